"""Agreement of judges with people: figures by hand, published figures from stored judgments, and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from plumbline.cli import main
from plumbline.evaluation.agreement import agreement, cohen_kappa, consistency, majority, turned
from plumbline.evaluation.judges.pairwise import Verdict
from plumbline.evaluation.scoring.judgments import read_judged

ONE, TWO, TIE = "1", "2", "Tie"


def test_figures_by_hand() -> None:
    labels: list[Verdict] = [ONE, ONE, TWO, TWO, TIE]
    found = agreement(labels, [ONE, TWO, TWO, TWO, ONE])
    assert (found.n, found.unscored, found.accuracy) == (5, 0, 0.6)
    assert found.precision == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found.recall == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.f1 == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    # observed 3/5, expected (2·2 + 2·3 + 1·0)/25
    assert found.kappa == pytest.approx((0.6 - 0.4) / (1 - 0.4))


def test_the_figures_are_those_of_scikit_learn() -> None:
    labels: list[Verdict] = [ONE, TWO, TIE, TWO, ONE, TIE, TWO, ONE]
    verdicts: list[Verdict | None] = [ONE, TWO, ONE, TIE, TWO, TIE, TWO, ONE]
    found = agreement(labels, verdicts)
    expected = precision_recall_fscore_support(labels, verdicts, average="macro", zero_division=0)
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected[:3])
    assert found.kappa == pytest.approx(cohen_kappa_score(labels, verdicts))


def test_an_unscored_verdict_is_wrong_and_no_tie() -> None:
    found = agreement([TIE, TIE, ONE], [None, TIE, ONE])
    assert (found.unscored, found.accuracy) == (1, pytest.approx(2 / 3))
    assert (found.classes["Tie"].judge, found.classes["Tie"].recall) == (1, 0.5)
    assert found.kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))  # a category of its own


def test_one_verdict_throughout_has_no_kappa_and_one_item_has_figures() -> None:
    assert cohen_kappa([TIE, TIE], [TIE, TIE]) is None
    found = agreement([TIE], [TIE])
    assert (found.accuracy, found.f1, found.kappa) == (1.0, 1.0, None)
    with pytest.raises(ValueError, match="at least one"):
        agreement([], [])
    with pytest.raises(ValueError, match="same items"):
        agreement([ONE], [ONE, TWO])


def test_consistency_between_orders() -> None:
    labels: list[Verdict] = [ONE, TWO, ONE, TIE]
    found = consistency(labels, [ONE, ONE, None, TIE], turned([TWO, ONE, ONE, TIE]))
    # exchanged tell of the answers: 1, 2, 2, tie; the third item has no verdict in the first order
    assert (found.n, found.unscored) == (3, 1)
    assert found.share == pytest.approx(2 / 3)
    assert found.both_right == 0.5
    # verdicts that name an answer: 1, 1 | 1, 2, 2; shown first: both of the given, and 2, 2 of the exchanged
    assert found.first == pytest.approx(4 / 5)


def test_majority_of_raters() -> None:
    assert majority([ONE, TIE, ONE]) == "1"
    assert majority([ONE, TWO, TIE]) is None
    assert majority([TWO]) == "2"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["agreement", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_pandalm_published_figures(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = str(shared / "pandalm/golden_labels.csv")
    code, found = run(capsys, "--format", "pandalm", "--humans", golden, "--judge", golden)
    assert code == 0
    assert found["humans"]["labels"] == {"1": 422, "2": 472, "Tie": 105}
    assert [round(kappa, 2) for kappa in found["humans"]["kappa"].values()] == [0.85, 0.88, 0.86]
    gpt, panda = found["judges"]
    names = ("accuracy", "precision", "recall", "f1")
    assert [round(100 * gpt["unscoredAsTie"][name], 2) for name in names] == [71.07, 58.79, 57.36, 57.55]
    assert (gpt["unscored"], round(gpt["accuracy"], 4), round(gpt["f1"], 4)) == (25, 0.6977, 0.5274)
    assert [round(100 * panda[name], 2) for name in names] == [66.77, 57.38, 57.50, 57.43]
    assert (panda["unscored"], panda["unscoredAsTie"]) == (0, None)


def test_pandalm_files_as_stored(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "pandalm"
    humans, judge = str(folder / "testset-v1_example.json"), str(folder / "gpt-3.5-turbo-testset-v1_example.json")
    code, found = run(capsys, "--format", "pandalm", "--humans", humans, "--judge", judge)
    assert (code, found["judges"][0]["items"], found["judges"][0]["accuracy"]) == (0, 5, 0.4)
    assert [one["id"] for one in found["judges"][0]["disagreements"]] == ["0", "123", "144"]
    # of 999 labelled items five were judged: the others are told, not counted
    code, found = run(capsys, "--format", "pandalm", "--humans", str(folder / "golden_labels.csv"), "--judge", judge)
    assert found["judges"][0]["notCompared"] == {"no verdict stored": 994}


def llmbar(path: Path, *items: tuple[int, str | None, str | None]) -> str:
    records = []
    for number, (label, given, exchanged) in enumerate(items):
        last = {"swap = False": {"winner": given, "completion": ["…", "stop"]}, "swap = True": {"winner": exchanged}}
        first = {"swap = False": {"winner": "1"}, "swap = True": {"winner": "2"}}
        records.append(
            {"input": f"q{number}", "output_1": "a", "output_2": "b", "label": label, "results": ["metrics", first, last]}
        )
    path.write_text(json.dumps(records, indent=1))
    return str(path)


def test_llmbar_in_both_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = llmbar(tmp_path / "result.json", (1, "1", "1"), (2, "2", "1"), (1, "2", "2"), (2, None, "2"))
    code, found = run(capsys, "--format", "llmbar", "--humans", judge, "--judge", judge)
    report = found["judges"][0]
    assert (code, report["items"], report["verdicts"], report["unscored"]) == (0, 4, 8, 1)
    assert report["accuracy"] == 0.5  # mean of the two orders: 2/4 and 2/4
    assert report["bothOrders"]["consistency"] == pytest.approx(2 / 3)
    assert report["bothOrders"]["accuracyBoth"] == 0.25
    assert set(report["classes"]) == {"1", "2"}


def test_auto_j_numbers_texts_and_the_other_order(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    humans = str(shared / "preference/autoj_testdata_pairwise_example.jsonl")  # 1, 0, 1, 1, 1: mostly response 2
    judge, other = tmp_path / "given.jsonl", tmp_path / "exchanged.jsonl"
    texts = [
        "So, the final decision is Response 1 … no: the final decision is Response 2.",
        0,
        1,
        -1,
        "the final decision is Tie",
    ]
    judge.write_text("".join(json.dumps({"output": text}) + "\n" for text in texts))
    other.write_text("".join(json.dumps({"output": number}) + "\n" for number in (0, 0, 0, 0, 2)))
    code, found = run(capsys, "--format", "auto_j", "--humans", humans, "--judge", str(judge), "--swapped", str(other))
    report = found["judges"][0]
    assert (code, report["unscored"]) == (0, 1)
    assert report["bothOrders"]["accuracyGiven"] == 0.6
    # shown in the other order, the first response is number 2: right but for the second item and the tie
    assert report["bothOrders"]["accuracyExchanged"] == 0.6
    assert report["bothOrders"]["consistency"] == pytest.approx(3 / 4)


def test_verdicts_are_found_by_item_in_any_order(tmp_path: Path) -> None:
    humans, judge = tmp_path / "humans.json", tmp_path / "judge.json"
    humans.write_text(json.dumps([{"idx": n, "annotator1": n % 3} for n in range(6)]))
    judge.write_text(json.dumps([{"idx": n, "our_result": n % 3, "our_reason": "…"} for n in reversed(range(6))]))
    found = read_judged("pandalm", str(humans), str(judge))[0]
    assert (found.judge, found.labels, found.given) == ("our_result", found.given, found.labels)
    assert found.exchanged is None


@pytest.mark.parametrize(
    ("humans", "judge", "words"),
    [
        ('[{"idx": 0, "annotator1": 3}]', '[{"idx": 0, "our_result": 1}]', "record 1: field 'annotator1' is 3"),
        ('[{"idx": 0, "annotator1": NaN}]', '[{"idx": 0, "our_result": 1}]', "'annotator1' is NaN"),
        ('[{"idx": 0}]', '[{"idx": 0, "our_result": 1}]', "no labels of people"),
        ('[{"idx": 0, "annotator1": 1}]', '[{"idx": 0}]', "no field of verdicts"),
        ('[{"idx": 0, "annotator1": 1}]', '[{"idx": 1, "our_result": 1}]', "none of its 1 verdicts is of an item"),
        ('[{"idx": 0, "annotator1": 1}]', '[{"idx": 0, "our_result": "well"}]', "can be read"),
        (
            '[{"idx": 0, "annotator1": 1}]',
            '[{"idx": 0, "our_result": 1}, {"idx": 0, "our_result": 2}]',
            "idx 0 stands a second time",
        ),
        ('[{"idx": 0, "annotator1": 1}]', '[{"idx": 0, "our_result": 1}, {"id', "not JSON"),
        ('[{"idx": 0, "annotator1": 1}]', "", "holds no records"),
        ('[{"idx": 0, "annotator1": 1}]', "[1]", "no JSON object"),
        ('[{"annotator1": 1}]', '[{"our_result": 1}, {"our_result": 2}]', "has 2 records and"),
    ],
)
def test_what_is_wrong_is_said(
    humans: str, judge: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "humans.json").write_text(humans)
    (tmp_path / "judge.json").write_text(judge)
    files = ("--humans", str(tmp_path / "humans.json"), "--judge", str(tmp_path / "judge.json"))
    assert main(["agreement", "--format", "pandalm", *files]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_the_table_tells_of_unscored_verdicts(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = str(shared / "pandalm/golden_labels.csv")
    assert main(["agreement", "--format", "pandalm", "--humans", golden, "--judge", golden]) == 0
    shown = capsys.readouterr().out
    assert "unscored: 25 of 999 verdicts cannot be read" in shown
    assert "accuracy 71.07 %" in shown
