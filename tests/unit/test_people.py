"""`plumbline people`: blind sheets from outputs, filled sheets as spreadsheets write them, and the figures."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.cli import main
from plumbline.evaluation import statistics
from plumbline.evaluation.benchmarks.benchmark import Item, user
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.people import outputs
from plumbline.evaluation.people.reliability import fleiss_kappa, krippendorff_alpha, reliability
from plumbline.evaluation.people.sheet import Key, Row, columns, defused, read_key
from plumbline.evaluation.report import SAMPLES, Setting, sample_rows
from plumbline.evaluation.results import Sample

Command = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """The output of `plumbline people …` that worked; of `import` the figures."""

    def call(action: str, *arguments: object) -> Any:
        code = main(["people", action, *(["--json"] if action == "import" else []), *map(str, arguments)])
        shown = capsys.readouterr()
        assert (code, shown.err) == (0, "")
        return json.loads(shown.out) if action == "import" else shown.out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """The one sentence of a command that was refused as wrong input."""

    def call(action: str, *arguments: object) -> str:
        code = main(["people", action, *map(str, arguments)])
        shown = capsys.readouterr()
        assert (code, shown.out, shown.err.count("\n")) == (2, "", 1), shown.err
        return shown.err

    return call


def answers(folder: Path, items: int = 12, models: Sequence[str] = ("old", "new"), name: str = "samples.jsonl") -> Path:
    """Samples in a report's form."""
    rows = [
        {
            "task": "chat" if i % 3 else "sums", "item": f"item-{i}", "model": model, "fingerprint": "0",
            "prompt": [{"role": "user", "content": f"What is {i}?"}], "reply": f"{model.upper()[::-1]} says {i}", "score": 1,
        }
        for model in models
        for i in range(items)
    ]  # fmt: skip
    return lines(folder / name, rows)


def lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def exported(run: Command, folder: Path, *options: object, kind: str = "pairwise", **given: Any) -> Key:
    run("export", answers(folder / "in", **given), "--kind", kind, "--seed", "3", "-o", folder / "out", *options)
    return read_key(folder / "out")


def table(file: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")))


def fill(sheet: Path, into: Path, verdict: Callable[[str], str], rater: str = "") -> Path:
    """The sheet with verdicts by id."""
    head, *rows = table(sheet)
    place = {name.split(" (")[0]: number for number, name in enumerate(head)}
    for row in rows:
        row[place["verdict"]], row[place["rater"]] = verdict(row[0]), rater
    with into.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([head, *rows])
    return into


def favouring(key: Key, model: str, items: set[str] | None = None, other: str = "tie") -> Callable[[str], str]:
    """Verdicts for a model on these items, and something else on all others."""
    rows = {row.id: row for sheet in key.sheets for row in sheet.rows}

    def verdict(name: str) -> str:
        row = rows[name]
        return str(row.models.index(model) + 1) if items is None or row.item in items else other

    return verdict


# What is exported.


def test_a_sheet_is_blind_and_random_and_its_sides_are_balanced(run: Command, tmp_path: Path) -> None:
    key = exported(run, tmp_path, "--raters", 3, items=40)
    assert outputs.SAMPLES == SAMPLES
    assert [sheet.name for sheet in key.sheets] == ["sheet-1", "sheet-2", "sheet-3"]
    ids = [row.id for sheet in key.sheets for row in sheet.rows]
    assert len(set(ids)) == 120
    assert all(re.fullmatch("[b-df-hj-np-tv-xz]{8}", name) for name in ids)
    orders = [[row.item for row in sheet.rows] for sheet in key.sheets]
    sides = [{row.item: row.models for row in sheet.rows} for sheet in key.sheets]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) != order for order in orders)
    assert len({tuple(of[item] for item in orders[0]) for of in sides}) == 3
    assert all(sum(models[0] == "old" for models in of.values()) == 20 for of in sides)
    for sheet in key.sheets:
        for suffix in ("csv", "html"):
            text = (tmp_path / "out" / f"{sheet.name}.{suffix}").read_text(encoding="utf-8")
            text = text.partition('id="sheet">')[2].partition("</script>")[0] if suffix == "html" else text
            assert not re.search(r"\bold\b|\bnew\b|item-\d|sums|fingerprint", text)
            assert text.count("WEN says") == text.count("DLO says") == 40
        head, *rows = table(tmp_path / "out" / f"{sheet.name}.csv")
        assert (
            head
            == columns("pairwise")
            == ["id", "rater", "request", "answer 1", "answer 2", "verdict (1 / 2 / tie)", "comment"]
        )
        for row, cells in zip(sheet.rows, rows, strict=True):
            number = row.item.removeprefix("item-")
            assert cells[:3] == [row.id, "", f"What is {number}?"]
            assert cells[3:] == [*(f"{model.upper()[::-1]} says {number}" for model in row.models), "", ""]


def test_the_same_seed_gives_the_same_files_and_no_seed_a_secret_one(run: Command, tmp_path: Path) -> None:
    source = answers(tmp_path / "in")
    for name, options in (("a", ["--seed", 7]), ("b", ["--seed", 7]), ("c", ["--seed", 8]), ("d", []), ("e", [])):
        run("export", source, "--kind", "pairwise", "-o", tmp_path / name, *options)
    found = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "abcde"
    }  # fmt: skip
    assert sorted(found["a"]) == ["key.json", "sheet.csv", "sheet.html"]
    assert found["a"] == found["b"]
    keys = [found[name]["key.json"] for name in "acde"]
    assert len(set(keys)) == 4
    assert len({read_key(tmp_path / name).seed for name in "acde"}) == 4


def test_tasks_counts_and_models_choose_what_is_shown(run: Command, tmp_path: Path) -> None:
    source = answers(tmp_path / "report", models=("old", "new", "third")).parent
    some = ["--model", "third", "--against", "old", "--task", "sums", "--count", 3]
    shown = run("export", source, "--kind", "pairwise", *some, "-o", tmp_path / "a")
    key = read_key(tmp_path / "a")
    assert key.models == ("third", "old")
    assert len(key.sheets[0].rows) == 3
    assert {row.task for row in key.sheets[0].rows} == {"sums"}
    assert "3 pairs of third, old on one sheet" in shown
    shown = run("export", source, "--kind", "acceptability", "--task", "sums", "--count", 9, "-o", tmp_path / "b")
    assert "12 answers of old, new, third on one sheet\n--count asks for 9 items; there are 4" in shown
    run("export", source, "--kind", "acceptability", "--model", "new", "--model", "old", "-o", tmp_path / "c")
    assert {row.models for row in read_key(tmp_path / "c").sheets[0].rows} == {("new",), ("old",)}


def test_samples_of_a_real_report(run: Command, refused: Command, tmp_path: Path) -> None:
    tasks = [TaskSpec(name="talk", benchmark="prompts", uri="x"), TaskSpec(name="facts", benchmark="mmlu", uri="y")]
    texts = {"talk": "I am {0}\nand say {1}", "facts": "[-1.5, -0.2{1}]"}
    samples = [
        Sample(task.name, Item(f"{task.name}-{i}", user(f"{i}?"), ""), {m: Reply(texts[task.name].format(m, i), "stop") for m in "xy"}, {})
        for task in tasks
        for i in range(3)
    ]  # fmt: skip
    report = tmp_path / "report"
    lines(report / SAMPLES, list(sample_rows(Setting("run", "check", {"x": "1", "y": "2"}, tasks, 0.0), samples)))
    lines(report / "judgments.jsonl", [{"task": "talk", "item": "talk-0"}])  # beside them, and no answers
    assert "'facts' are likelihoods of its choices" in refused(
        "export", report, "--kind", "pairwise", "-o", tmp_path / "out"
    )
    run("export", report, "--kind", "pairwise", "--task", "talk", "-o", tmp_path / "out")
    rows = table(tmp_path / "out" / "sheet.csv")[1:]
    assert sorted(row[2] for row in rows) == ["0?", "1?", "2?"]
    assert {tuple(sorted(row[3:5])) for row in rows} == {tuple(f"I am {m}\nand say {i}" for m in "xy") for i in range(3)}


def test_identical_answers_are_not_asked_about_and_half_items_are_left_out(run: Command, tmp_path: Path) -> None:
    rows = [
        {"item": i, "model": m, "prompt": f"{i}?", "output": f"same {i}" if i < 4 else f"{m} {i}"}
        for i in range(9)
        for m in "xy"
    ]
    file = lines(tmp_path / "a.jsonl", [*rows, {"item": 9, "model": "x", "prompt": "9?", "output": "alone"}])
    shown = run("export", file, "--kind", "pairwise", "-o", tmp_path / "out")
    assert "1 items have an answer of one of the two only" in shown
    assert "4 pairs are word for word the same" in shown
    key = read_key(tmp_path / "out")
    assert {item for _, item in key.identical} == {"0", "1", "2", "3"}
    filled = fill(tmp_path / "out" / "sheet.csv", tmp_path / "r.csv", favouring(key, "x"))
    found = run("import", tmp_path / "out", filled)
    assert (found["items"], found["identical"], found["win_rate"]["value"]) == (5, 4, 1.0)
    assert found["with_identical"]["value"] == pytest.approx(7 / 9)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  \n=1", "＝1", "\ufeff=1", "=cmd|'/C calc'!A0"])
def test_no_cell_is_a_formula(run: Command, tmp_path: Path, text: str) -> None:
    rows = [{"item": i, "model": m, "prompt": text, "output": f"{text}{m}"} for i in range(2) for m in "xy"]
    run("export", lines(tmp_path / "a.jsonl", rows), "--kind", "pairwise", "-o", tmp_path / "out")
    for cell in (cell for row in table(tmp_path / "out" / "sheet.csv") for cell in row):
        assert not cell.strip().strip("\ufeff").startswith(("=", "+", "-", "@", "＝"))
    assert defused("a = b") == "a = b"


def test_plain_files_of_outputs(run: Command, refused: Command, shared: Path, tmp_path: Path) -> None:
    alpaca = shared / "alpaca_eval" / "model_outputs_shared"
    run(
        "export", alpaca, "--kind", "pairwise", "--model", "alpaca-7b", "--against", "text_davinci_003", "-o", tmp_path / "a"
    )
    key = read_key(tmp_path / "a")
    assert len(key.sheets[0].rows) + len(key.identical) == 403
    vicuna = shared / "vicuna80"
    assert "--questions FILE" in refused("export", vicuna / "answer_shared", "--kind", "acceptability", "-o", tmp_path / "b")
    run(
        "export", vicuna / "answer_shared", "--questions", vicuna / "question_shared.jsonl", "--kind", "acceptability",
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert len(read_key(tmp_path / "b").sheets[0].rows) == 240
    both = sorted((shared / "self_instruct").glob("*predictions*"))
    run("export", *both, "--kind", "pairwise", "-o", tmp_path / "c")
    key = read_key(tmp_path / "c")
    assert len(key.sheets[0].rows) + len(key.identical) == 126
    bench = shared / "mt_bench"
    run(
        "export", bench / "model_answer_shared", "--questions", bench / "question_shared.jsonl", "--kind", "pairwise",
        "--model", "gpt-4", "--against", "alpaca-13b", "-o", tmp_path / "d",
    )  # fmt: skip
    (request, first), *_ = [row[2:4] for row in table(tmp_path / "d" / "sheet.csv")[1:]]
    assert request.startswith("[turn 1]\n")
    assert "\n\n[turn 2]\n" in first


def test_what_cannot_be_exported_is_refused(run: Command, refused: Command, tmp_path: Path) -> None:
    source = answers(tmp_path / "in")
    out = tmp_path / "out"

    def no(*options: object, file: Path = source) -> str:
        found: str = refused("export", file, "-o", out, *options)
        assert not out.exists()
        return found

    pair = ["--kind", "pairwise"]
    assert "there are those of sums, chat" in no(*pair, "--task", "nothing")
    assert "no answer is of model 'older'; there are those of old, new" in no(*pair, "--model", "older")
    assert "a pair needs two models" in no(*pair, "--model", "old", "--against", "old")
    assert "not 2" in no(*pair, "--model", "old", "--model", "new")
    assert "--against belongs to --kind pairwise" in no("--kind", "acceptability", "--against", "old")
    twice = lines(tmp_path / "twice.jsonl", [json.loads(line) for line in source.read_text().splitlines()] * 2)
    assert re.search(
        r"twice\.jsonl, line 25: a second answer of old to item-0 of sums; the first stands at \S+, line 1",
        no(*pair, file=twice),
    )
    other = [
        {"item": 1, "model": "x", "prompt": "a", "output": "b"},
        {"item": 1, "model": "y", "prompt": "c", "output": "d"},
    ]
    assert "line 2: 1 of outputs asks something else than at" in no(*pair, file=lines(tmp_path / "other.jsonl", other))
    apart = [{"prompt": "a", "model": "x", "output": "b"}, {"prompt": "c", "model": "y", "output": "d"}]
    assert "no item has an answer of both x and y" in no(*pair, file=lines(tmp_path / "apart.jsonl", apart))
    same = [{"prompt": "a", "model": m, "output": "b"} for m in "xy"]
    assert "there is nothing to ask" in no(*pair, file=lines(tmp_path / "same.jsonl", same))
    for row, words in (
        ({"prompt": "a", "model": "x"}, "line 1: has no answer; its fields: prompt, model"),
        ({"output": "a", "model": "x"}, "line 1: has no request"),
        ({"task": "mmlu", "item": 1, "model": "x", "prompt": "a", "reply": "[-1.5, -2]"}, "task 'mmlu' are likelihoods"),
    ):
        assert words in no(*pair, file=lines(tmp_path / "bad.jsonl", [row]))
    (tmp_path / "bad.jsonl").write_text("{")
    assert "bad.jsonl, line 1: not JSON" in no(*pair, file=tmp_path / "bad.jsonl")
    assert "no file matches" in no(*pair, file=tmp_path / "absent")
    run("export", source, *pair, "-o", out)
    before = (out / "key.json").read_bytes()
    assert "already holds a key.json" in refused("export", source, *pair, "-o", out)
    assert (out / "key.json").read_bytes() == before
    assert "give a folder" in refused("export", source, *pair, "-o", source)
    for bad in ("0", "-1", "1.5", "x"):
        with pytest.raises(SystemExit) as ended:
            main(["people", "export", str(source), *pair, "--raters", bad, "-o", str(out)])
        assert ended.value.code == 2


# What is imported.

DIALECTS = {
    "as exported": lambda rows: written(rows),
    "semicolons, CRLF, BOM": lambda rows: b"\xef\xbb\xbf" + written(rows, ";"),
    "tabs, UTF-16": lambda rows: written(rows, "\t").decode().encode("utf-16"),
    "sep line": lambda rows: b"sep=;\r\n" + written(rows, ";"),
    "line feeds": lambda rows: written(rows, end="\n"),
    "carriage returns": lambda rows: written(rows, ";", end="\r"),
    "all quoted": lambda rows: written(rows, quoting=csv.QUOTE_ALL),
    "Windows text": lambda rows: written([[*row[:-1], "schön"] for row in rows], ";").decode().encode("cp1252"),
    "blank lines": lambda rows: b"\r\n" + written(rows).replace(b"\r\n", b"\r\n\r\n,,,,,,\r\n") + b"\r\n ,\r\n",
    "capitals": lambda rows: written([[cell.upper() for cell in row] for row in rows]),
    "floats": lambda rows: written([[*row[:5], row[5].replace("1", "1.0").replace("2", "2.0"), row[6]] for row in rows]),
    "other columns": lambda rows: written([[f"{n}", row[5], row[0].rjust(10)] for n, row in enumerate(rows)]),
    "short rows": lambda rows: written([row if row[5] else row[:1] for row in rows], ";"),
}


def written(rows: list[list[str]], mark: str = ",", end: str = "\r\n", quoting: Any = csv.QUOTE_MINIMAL) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=mark, lineterminator=end, quoting=quoting).writerows(rows)
    return stream.getvalue().encode()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whatever_a_spreadsheet_makes_of_it(run: Command, tmp_path: Path, dialect: str) -> None:
    key = exported(run, tmp_path)
    said = dict(
        zip(
            (row.id for row in key.sheets[0].rows),
            ["1", "2", "tie", "", "1", "1", "tie", "2", "", "1", "2", "1"],
            strict=True,
        )
    )
    rows = table(fill(tmp_path / "out" / "sheet.csv", tmp_path / "plain.csv", said.__getitem__))
    rows = [
        [cell.replace("says", 'says\n; , "') if place in (3, 4) else cell for place, cell in enumerate(row)] for row in rows
    ]
    file = tmp_path / "bo.csv"
    file.write_bytes(DIALECTS[dialect](rows))
    found = run("import", tmp_path / "out" / "key.json", file)
    (rater,) = found["raters"]
    assert rater["said"] == {"1": 5, "2": 3, "tie": 2}
    assert (rater["name"], rater["unanswered"], found["items"], found["open"]) == ("bo", 2, 10, 2)
    wins = sum(said[row.id] in "12" and said[row.id] != "" and row.models[int(said[row.id]) - 1] == "old" for row in key.sheets[0].rows if said[row.id] != "tie")  # fmt: skip
    assert found["win_rate"]["value"] == pytest.approx((wins + 1) / 10)
    assert ("Windows text" in str(found["notes"])) == (dialect == "Windows text")


def test_bad_answers_are_refused_with_file_and_line(run: Command, refused: Command, tmp_path: Path) -> None:
    key = exported(run, tmp_path, "--raters", 2)
    a, b = (row.id for row in key.sheets[0].rows[:2])
    other = key.sheets[1].rows[0].id
    file = tmp_path / "r.csv"

    def no(text: str | bytes, at: str = "") -> str:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        found: str = refused("import", tmp_path / "out", file)
        assert f"r.csv{at}" in found
        return found

    assert "accepted: 1, 2, tie" in no(f"id,verdict\n{a},1\n{b},3\n", ":3")
    assert 'verdict "both" is none' in no(f"id,verdict\n{a},both\n", ":2")
    assert "is in no sheet" in no(f"id,verdict\n{a},1\n\n\nabcdefgh,1\n", ":5")
    assert f"id {a} stands there twice, first in line 2" in no(f"id,verdict\n{a},1\n{a},1\n", ":3")
    assert "is of sheet-2, the rows before it are of sheet-1" in no(f"id,verdict\n{a},1\n{other},1\n", ":3")
    assert 'rater "bo" after rater "al"' in no(f"id,rater,verdict\n{a},al,1\n{b},bo,1\n", ":3")
    assert "no verdict has been given" in no(f"id,verdict\n{a},\n")
    assert "holds no row" in no("id,verdict\n")
    assert "no columns id and verdict" in no("number,said\n1,1\n")
    assert "no columns id and verdict" in no("")
    assert "names the column verdict twice" in no(f"id,verdict,verdict (1)\n{a},1,2\n")
    assert "broken CSV" in no(f'id,verdict\n{a},1\n{b},"1\n', ":3")
    assert "is a quote missing" in no(f"id,verdict\n{a},1,2\n", ":2")
    assert "save it as CSV" in no(b"PK\x03\x04rest")
    no(bytes(range(256)))
    assert "cannot be read" in refused("import", tmp_path / "out", tmp_path / "absent.csv")
    file.write_text(f"id,verdict\n{a},1\n")
    assert "cannot be read" in refused("import", tmp_path / "absent", file)
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "schemaVersion is null"),
        ('{"schemaVersion": 2}', "schemaVersion is 2"),
    ):
        (tmp_path / "k.json").write_text(text)
        assert words in refused("import", tmp_path / "k.json", file)
    value = json.loads((tmp_path / "out" / "key.json").read_text())
    value["sheets"][0]["rows"][0]["models"] = ["old", "old"]
    for bad in (
        value,
        {**value, "kind": "other"},
        {**value, "models": ["old", "new", "x"]},
        {"schemaVersion": 1},
        {**value, "sheets": []},
        {**value, "sheets": 3},
    ):
        (tmp_path / "k.json").write_text(json.dumps(bad))
        assert "is not a key" in refused("import", tmp_path / "k.json", file)


def test_nobody_counts_twice(run: Command, refused: Command, tmp_path: Path) -> None:
    key = exported(run, tmp_path, "--raters", 2)
    out = tmp_path / "out"

    def rated(sheet: int, name: str, rater: str, verdict: Callable[[str], str] | None = None) -> Path:
        return fill(out / f"sheet-{sheet}.csv", tmp_path / name, verdict or favouring(key, "old"), rater)

    al, bo = rated(1, "al.csv", "al"), rated(2, "bo.csv", "bo")
    assert len(run("import", out, al, bo)["raters"]) == 2
    assert 'are both of rater "al"' in refused("import", out, al, al)
    assert 'are both of rater "Al"' in refused("import", out, al, rated(2, "2.csv", "Al"))
    unnamed, copy = rated(1, "x.csv", ""), rated(1, "y.csv", "")
    assert "are both of sheet-1; give the one that counts" in refused("import", out, unnamed, copy)
    found = run("import", out, al, rated(1, "z.csv", "cy"))
    assert any("gave the same verdicts throughout" in note for note in found["notes"])

    one = exported(run, tmp_path / "one")
    first = fill(tmp_path / "one" / "out" / "sheet.csv", tmp_path / "1.csv", favouring(one, "old"))
    second = fill(tmp_path / "one" / "out" / "sheet.csv", tmp_path / "2.csv", favouring(one, "old"))
    assert "hold the same verdicts" in refused("import", tmp_path / "one" / "out", first, second)
    fill(tmp_path / "one" / "out" / "sheet.csv", second, favouring(one, "old", {"item-1"}))
    assert [rater["name"] for rater in run("import", tmp_path / "one" / "out", first, second)["raters"]] == ["1", "2"]


# Figures.


def test_pairs_in_figures(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = exported(run, tmp_path, "--raters", 2, "--model", "new", "--against", "old")
    out = tmp_path / "out"
    first = fill(out / "sheet-1.csv", tmp_path / "al.csv", favouring(key, "new", {f"item-{i}" for i in range(6)}), "al")
    second = fill(out / "sheet-2.csv", tmp_path / "bo.csv", lambda name: "1", "bo")
    alone = run("import", out, first, "-o", tmp_path / "al")
    expected = statistics.win_rate([1.0] * 6 + [0.5] * 6, [0.0] * 6 + [0.5] * 6, 0.95)
    assert alone["win_rate"] == pytest.approx(vars(expected))
    assert alone["majority"] == {"new": 6, "old": 0, "tie": 6, "no majority": 0}
    assert alone["reliability"] is None
    own = [row.models[0] == "new" for row in key.sheets[0].rows if row.item in {f"item-{i}" for i in range(6)}]
    assert alone["raters"][0]["first"] == pytest.approx(vars(statistics.wilson(sum(own), 6, 0.95)))

    both = run("import", out, first, second, "-o", tmp_path / "both")
    bo = next(rater for rater in both["raters"] if rater["name"] == "bo")
    assert bo["first"]["value"] == 1
    assert bo["first"]["low"] > 0.5
    shown_first = {row.item: row.models[0] == "new" for row in key.sheets[1].rows}
    means = [((1.0 if i < 6 else 0.5) + shown_first[f"item-{i}"]) / 2 for i in range(12)]
    assert both["win_rate"]["value"] == pytest.approx(sum(means) / 12)
    assert both["win_rate"]["n"] == 12
    assert both["majority"]["no majority"] == sum(mean not in (0.0, 1.0) for mean in means)
    assert list(both["reliability"]["cohen"]) == ["al / bo"]
    assert both["reliability"]["fleiss"] is None

    battles = [json.loads(line) for line in (tmp_path / "both" / "battles.jsonl").read_text().splitlines()]
    assert len(battles) == 24
    assert {battle["winner"] for battle in battles if battle["judge"] == "bo"} == {"model_a"}
    assert json.loads((tmp_path / "both" / "people.json").read_text()) == both
    opinions = [json.loads(line) for line in (tmp_path / "both" / "opinions.jsonl").read_text().splitlines()]
    assert {len(one["models"]) for one in opinions} == {2}
    assert len(opinions) == 24
    capsys.readouterr()
    assert main(["rate", "--format", "battles", "--json", "--bootstrap", "0", str(tmp_path / "al" / "battles.jsonl")]) == 0
    rates = {one["model"]: one for one in json.loads(capsys.readouterr().out)["win_rates"]}
    assert rates["new"]["win_rate"] == pytest.approx(100 * alone["win_rate"]["value"])
    assert rates["new"]["low"] == pytest.approx(100 * alone["win_rate"]["low"])

    assert main(["people", "import", str(out), str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "new against old: 12 items judged, 0 not" in shown
    assert "the side decided" in shown
    assert "Cohen's κ al / bo" in shown


def test_the_other_model_has_the_rest(run: Command, tmp_path: Path) -> None:
    rates = []
    for name, model, against in (("a", "new", "old"), ("b", "old", "new")):
        key = exported(run, tmp_path / name, "--model", model, "--against", against)
        file = fill(
            tmp_path / name / "out" / "sheet.csv",
            tmp_path / f"{name}.csv",
            favouring(key, "new", {"item-1", "item-5", "item-7"}),
        )
        rates.append(run("import", tmp_path / name / "out", file)["win_rate"])
    assert rates[0]["value"] == pytest.approx(7.5 / 12)
    assert [rates[0]["value"] + rates[1]["value"], rates[0]["low"] + rates[1]["high"]] == pytest.approx([1, 1])


def test_grades_in_figures(run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = exported(run, tmp_path, "--raters", 3, kind="acceptability", items=6)
    out = tmp_path / "out"
    rows: dict[str, Row] = {row.id: row for sheet in key.sheets for row in sheet.rows}
    grades = {"new": "AABBCD", "old": "ACCDD"}  # of the last old answer nobody says anything

    def verdict(name: str) -> str:
        row = rows[name]
        number = int(row.item[-1])
        return grades[row.models[0]][number].lower() if number < len(grades[row.models[0]]) else ""

    files = [fill(out / f"sheet-{n}.csv", tmp_path / f"{n}.csv", verdict, f"r{n}") for n in (1, 2)]
    found = run("import", out, *files)
    new, old = sorted(found["models"], key=lambda one: str(one["model"]))
    assert new["grades"] == {"A": 4, "B": 4, "C": 2, "D": 2}
    assert new["good"] == pytest.approx(vars(statistics.wilson(4, 6, 0.95)))
    assert (old["items"], old["open"], old["good"]["value"]) == (5, 1, 0.2)
    (difference,) = found["differences"]
    assert (difference["model"], difference["against"], difference["n"]) == ("old", "new", 5)
    assert difference["value"] == pytest.approx((1 - 4) / 5)
    assert found["reliability"]["krippendorff"] == found["reliability"]["alike"] == 1

    files.append(fill(out / "sheet-3.csv", tmp_path / "3.csv", lambda name: "D" if verdict(name) else "", "r3"))
    three = run("import", out, *files)
    assert next(one for one in three["models"] if one["model"] == "new")["good"]["value"] == pytest.approx(4 / 6 * 2 / 3)
    assert -1 < three["reliability"]["krippendorff"] < 1
    assert three["reliability"]["fleiss"] < 1
    assert len(three["reliability"]["cohen"]) == 3

    judged = [
        {"task": row.task, "item": row.item, "model": row.models[0], "verdict": None if row.item == "item-0" else "C"}
        for row in key.sheets[0].rows
    ]
    judge = run(
        "import",
        out,
        *files,
        "--judge",
        lines(tmp_path / "judged.jsonl", [*judged, {"item": "x", "model": "new", "verdict": "A"}]),
    )["judge"]
    assert judge["n"] == 11
    assert judge["accuracy"]["value"] == pytest.approx(3 / 11)
    assert judge["matrix"]["A"] == {"A": 0, "B": 0, "C": 1, "D": 0, "unscored": 2}
    assert judge["apart"] == {"no verdict of people": 2}

    # Grades of 0 to 1, as a report's judgments have them, each turn apart.
    shares = {"item-0": [1, 0.9], "item-1": [0.9, 0.4], "item-2": [0.2, 0.1], "item-3": [0.4, None], "item-4": [0.5]}
    rows_of = [
        {"task": row.task, "item": row.item, "model": row.models[0], "value": value}
        for row in key.sheets[0].rows
        for value in shares.get(row.item, ())
    ]
    judge = run("import", out, *files[:2], "--judge", lines(tmp_path / "graded.jsonl", rows_of))["judge"]
    told = {human: {name: count for name, count in of.items() if count} for human, of in judge["matrix"].items()}
    # Read as A, B, D, unscored and C, beside AABBC of the one model and ACCDD of the other.
    assert told == {
        "A": {"A": 2, "B": 1},
        "B": {"D": 1, "unscored": 1},
        "C": {"B": 1, "C": 1, "D": 1},
        "D": {"C": 1, "unscored": 1},
    }
    assert judge["accuracy"]["value"] == pytest.approx(3 / 10)
    capsys.readouterr()
    assert main(["people", "import", str(out), *map(str, files)]) == 0
    assert "Fleiss' κ of all" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["winner", "outcome"])
def test_a_judge_beside_people(run: Command, refused: Command, tmp_path: Path, form: str) -> None:
    key = exported(run, tmp_path, "--model", "new", "--against", "old")
    file = fill(tmp_path / "out" / "sheet.csv", tmp_path / "r.csv", favouring(key, "new", {f"item-{i}" for i in range(8)}))

    def judgment(number: int, winner: str | None, turned: bool) -> dict[str, Any]:
        sides = ("old", "new") if turned else ("new", "old")
        if form == "winner":
            said = winner if winner in (None, "tie") else "model_a" if winner == sides[0] else "model_b"
            return {"question_id": f"item-{number}", "model_a": sides[0], "model_b": sides[1], "winner": said}
        value = None if winner is None else 0.5 if winner == "tie" else float(winner == sides[0])
        return {"item": f"item-{number}", "model": sides[0], "against": sides[1], "outcome": value}

    said = ["new", "new", "new", "new", "old", "tie", None, "new", "tie", "tie", "old"]
    rows = [judgment(number, winner, turned) for number, winner in enumerate(said) for turned in (False, True)]
    rows += [judgment(11, "new", False), judgment(11, "old", True), judgment(99, "new", False)]  # the orders disagree: a tie
    found = run("import", tmp_path / "out", file, "--judge", lines(tmp_path / "j.jsonl", rows))["judge"]
    assert found["n"] == 12
    assert found["matrix"]["new"] == {"old": 1, "tie": 1, "new": 5, "unscored": 1}
    assert found["matrix"]["tie"] == {"old": 1, "tie": 3, "new": 0, "unscored": 0}
    assert found["accuracy"] == pytest.approx(vars(statistics.wilson(8, 12, 0.95)))
    assert found["apart"] == {"no verdict of people": 1}
    bad = {**judgment(1, "new", False), **({"winner": 7} if form == "winner" else {"outcome": 1.5})}
    assert "j.jsonl, line 1" in refused("import", tmp_path / "out", file, "--judge", lines(tmp_path / "j.jsonl", [bad]))
    for row, words in (
        ({"item": 1}, "line 1: has no winner"),
        ({"model": "new"}, "line 1: has no item"),
        (judgment(99, "new", False), "none of its 1"),
    ):
        assert words in refused("import", tmp_path / "out", file, "--judge", lines(tmp_path / "j.jsonl", [row]))


def test_agreement_beyond_chance_has_known_values() -> None:
    coders = ["123321412   ", "1233224125 3", " 3332342251 ", "12332441251 "]
    units = [[coder[place] for coder in coders if coder[place] != " "] for place in range(12)]
    assert krippendorff_alpha(units, "12345") == pytest.approx(0.815, abs=5e-4)  # Krippendorff 2011, his data C
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    assert fleiss_kappa(["".join(c * n for c, n in zip("abcde", of, strict=True)) for of in counts]) == pytest.approx(
        0.2099, abs=5e-5
    )
    assert krippendorff_alpha([["A", "A"], ["A", "A"]], "ABCD") is None
    assert krippendorff_alpha([["A"], ["B"]], "ABCD") is None
    assert fleiss_kappa([["A", "A", "A"]]) is None
    assert fleiss_kappa([]) is None
    assert krippendorff_alpha([["A", "B"]] * 9 + [["C", "D"]] * 9, "ABCD") > krippendorff_alpha(
        [["A", "C"]] * 9 + [["B", "D"]] * 9, "ABCD"
    )  # type: ignore[operator]
    with pytest.raises(ValueError, match="must be among"):
        krippendorff_alpha([["A", "E"]], "ABCD")
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([["A", "A"], ["A"]])
    found = reliability({"a": {1: "A", 2: "B"}, "b": {3: "A"}}, "ABCD")
    assert found is not None
    assert (found.units, found.alike, found.cohen, found.krippendorff) == (0, None, {"a / b": None}, None)
    assert reliability({"a": {1: "A"}}, "ABCD") is None
