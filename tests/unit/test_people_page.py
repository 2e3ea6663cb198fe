"""The page that raters fill in, in a real browser: clicks, keys, reloads, downloads; what models wrote is text and nothing else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main
from plumbline.evaluation.people.sheet import Key, read_key
from support.browser import Browser, chromium, needs_browser
from support.patience import wait_for

pytestmark = needs_browser

HOSTILE = (
    "</script><script>window.owned = 1</script>",
    '"><img src=x onerror="window.owned = 1">',
    '=HYPERLINK("http://127.0.0.1/","go")',
    'one, "two"; three\nfour\ttab\n\nline\u2028separator \U0001f600 é 中',
    "&lt;b&gt; <!-- <script> ${1} `x`",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def exported(folder: Path, kind: str) -> Key:
    """Sheets of two models whose answers are hostile texts."""
    for name in ("apple", "pear"):
        rows = [
            {"item": f"q{i}", "model": name, "prompt": f"request {i} {text}", "output": f"{name == 'apple'} {i}\n{text}"}
            for i, text in enumerate(HOSTILE)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(folder / "apple.jsonl"), str(folder / "pear.jsonl")]
    assert main(["people", "export", *files, "--kind", kind, "--seed", "5", "-o", str(folder / "out")]) == 0
    return read_key(folder / "out")


def imported(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["people", "import", "--json", *map(str, arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def test_pairs_by_keys_and_clicks_from_page_to_figures(
    tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    key = exported(tmp_path, "pairwise")
    page, rows = tmp_path / "out" / "sheet.html", key.sheets[0].rows
    browser.open(page.as_uri())

    for place, row in enumerate(rows):  # every text as it was written, and none of it run
        number = int(row.item[1:])
        assert browser.text("#request") == f"request {number} {HOSTILE[number]}"
        shown = [browser.text(f"#answers section:nth-child({side}) pre") for side in (1, 2)]
        assert shown == [f"{model == 'apple'} {number}\n{HOSTILE[number]}" for model in row.models]
        assert f"number {place + 1}" in browser.text("#count")
        browser.press("ArrowRight")
    assert browser.do("window.owned") is None
    assert browser.do("performance.getEntriesByType('resource').length") == 0
    listening = "new Promise((r) => { addEventListener('securitypolicyviolation', (e) => r(e.effectiveDirective)); %s })"
    assert browser.do(listening % "fetch('http://127.0.0.1:9/').catch(() => 0)") == "connect-src"
    inline = "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
    assert browser.do(listening % inline) == "script-src-elem"
    assert browser.do("window.owned") is None
    source = page.read_text(encoding="utf-8")
    assert not any(word in source for word in ("apple", "pear", '"q0"'))

    for _ in rows:
        browser.press("ArrowLeft")
    browser.press("1")
    browser.press("T")
    browser.click("#verdicts button[data-value='2']")
    assert browser.text("#count") == "3 of 5 answered; this is number 4"
    browser.type("#comment", "=1 or 2, t")  # keys in a text are no verdicts
    browser.reload()
    assert browser.text("#count") == "3 of 5 answered; this is number 4"
    assert browser.do("document.querySelector('#comment').value") == "=1 or 2, t"

    browser.press("ArrowLeft")
    browser.press("1")  # a verdict changed stays where it is
    assert browser.text("#count") == "3 of 5 answered; this is number 3"
    assert browser.do("document.querySelector('[aria-pressed=true]').dataset.value") == "1"
    browser.press("Backspace")
    browser.press("n")
    assert browser.text("#count") == "2 of 5 answered; this is number 4"

    browser.click("#download")
    assert "your name" in browser.text("#message")
    browser.type("#rater", "Åsa B")
    browser.click("#download")
    assert "3 are still without a verdict" in browser.text("#message")
    file = browser.downloaded("answers-Åsa-B.csv")
    table = cells(file.read_bytes().decode("utf-8"))
    assert [row[-2:] for row in table[1:]] == [["1", ""], ["tie", ""], ["", ""], ["", "'=1 or 2, t"], ["", ""]]
    blank = [table[0]] + [[*row[:1], "", *row[2:-2], "", ""] for row in table[1:]]
    assert blank == cells((tmp_path / "out" / "sheet.csv").read_bytes().decode("utf-8"))

    found = imported(capsys, tmp_path / "out", file)
    (rater,) = found["raters"]
    assert (rater["name"], rater["said"], rater["unanswered"]) == ("Åsa B", {"1": 1, "2": 0, "tie": 1}, 3)
    assert found["win_rate"]["value"] == (1.5 if rows[0].models[0] == "apple" else 0.5) / 2

    browser.do("localStorage.clear()")  # another machine
    browser.reload()
    assert browser.text("#count").startswith("0 of 5")
    bad = tmp_path / "bad.csv"
    bad.write_text(f"id;verdict\r\n\r\n{rows[0].id};3\r\nnobody;1\r\n")
    browser.choose("#load", bad)
    wait_for(lambda: "Nothing was loaded" in browser.text("#message"))
    assert "line 3: verdict '3'" in browser.text("#message")
    assert "line 4: id 'nobody'" in browser.text("#message")
    browser.choose("#load", file)
    wait_for(lambda: "2 verdicts were loaded" in browser.text("#message"))
    assert browser.do("document.querySelector('#rater').value") == "Åsa B"
    for _ in range(3):
        browser.click("#open")
        browser.press("2")
    assert "All 5 are answered" in browser.text("#message")
    browser.click("#download")
    file = browser.downloaded("answers-Åsa-B.csv")
    assert [row[-2] for row in cells(file.read_bytes().decode("utf-8"))[1:]] == ["1", "tie", "2", "2", "2"]
    assert cells(file.read_bytes().decode("utf-8"))[4][-1] == "'=1 or 2, t"


def test_grades_one_answer_at_a_time(tmp_path: Path, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    key = exported(tmp_path, "acceptability")
    page, rows = tmp_path / "out" / "sheet.html", key.sheets[0].rows
    browser.open(page.as_uri())
    assert len(rows) == 10
    for row, letter in zip(rows, "abcdABCDaD", strict=True):
        assert browser.do("document.querySelectorAll('#answers pre').length") == 1
        assert browser.text("#answers pre").startswith(str(row.models[0] == "apple"))
        browser.press(letter)
    browser.type("#rater", "r")
    browser.click("#download")
    found = imported(capsys, tmp_path / "out", browser.downloaded("answers-r.csv"))
    said = dict(zip([row.id for row in rows], "ABCDABCDAD", strict=True))
    for one in found["models"]:
        own = [said[row.id] for row in rows if row.models == (one["model"],)]
        assert one["grades"] == {grade: own.count(grade) for grade in "ABCD"}
        assert one["good"]["value"] == pytest.approx(sum(grade in "AB" for grade in own) / 5)
