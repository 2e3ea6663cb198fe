"""`plumbline rate`: every format, options, and files that are not what they should be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main
from plumbline.evaluation.ratings.formats import MT_BENCH, VICUNA
from plumbline.evaluation.ratings.record import FIELDS

Rate = Callable[..., dict[str, Any]]
Refused = Callable[..., str]

BATTLE = {"question_id": 1, "model_a": "a", "model_b": "b", "winner": "model_a"}
GRADE = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": 8, "turn": 1}
REVIEW = {"question_id": 1, "answer1_id": "x", "answer2_id": "y", "score": [8.0, 9.0]}
ANNOTATION = {
    "instruction": "Say it.",
    "generator_1": "base",
    "output_1": "long answer",
    "generator_2": "m",
    "output_2": "short",
}


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def rated(capsys: pytest.CaptureFixture[str]) -> Rate:
    """The JSON of a command that worked."""

    def run(format: str, *arguments: object) -> dict[str, Any]:
        code = main(["rate", "--json", "--bootstrap", "20", "--format", format, *map(str, arguments)])
        shown = capsys.readouterr()
        assert (code, shown.err) == (0, "")
        found: dict[str, Any] = json.loads(shown.out)
        return found

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The sentence of a command that was refused as wrong input."""

    def run(format: str, *arguments: object) -> str:
        code = main(["rate", "--format", format, *map(str, arguments)])
        shown = capsys.readouterr()
        assert (code, shown.out) == (2, "")
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return shown.err

    return run


def of(found: dict[str, Any], model: str, table: str = "win_rates") -> dict[str, Any]:
    return next(one for one in found[table] if one["model"] == model)


def test_stored_examples(shared: Path, rated: Rate, capsys: pytest.CaptureFixture[str]) -> None:
    first = rated("alpaca_eval", shared / "alpaca_eval" / "annotation_v1_example.json")
    assert of(first, "minichat-3b")["win_rate"] == pytest.approx(100 / 3)
    assert of(first, "minichat-3b")["baseline"] == "text_davinci_003"
    second = of(rated("alpaca_eval", shared / "alpaca_eval" / "annotation_v2_example.json"), "phi-2")
    assert 0 < second["win_rate"] < 0.01
    assert (second["discrete_win_rate"], second["n_wins_base"]) == (0, 6)
    battles = rated("battles", shared / "arena_hard" / "battles_example.jsonl")
    assert of(battles, "claude-3-5-sonnet-20240620")["win_rate"] == 90
    grades = of(
        rated("mt_bench", shared / "mt_bench" / "gpt-4_single_judgment_example.jsonl"), "mistral-orpo-trl", "mean_scores"
    )
    assert (grades["mean"], grades["turns"]) == (pytest.approx(35.5 / 6), {"1": 8.5, "2": 5.4})
    assert grades["categories"] == {"extraction": 10, "math": 2, "reasoning": 1, "stem": 9, "writing": 6.75}
    review = rated("vicuna_review", shared / "vicuna80" / "review_example.jsonl")
    assert [of(review, model, "mean_scores")["mean"] for model in ("answer 1", "answer 2")] == [8.6, 9.2]
    assert of(review, "answer 2")["win_rate"] == 80  # three won, two tied
    assert review["positions"] == {"games": 3, "first_preferred": 0, "pairs": 0, "consistent": None}
    assert main(["rate", "--format", "battles", str(shared / "arena_hard" / "battles_example.jsonl")]) == 0
    assert "90.00 ± 10.00" in capsys.readouterr().out


def test_categories_by_number(shared: Path) -> None:
    for folder, first in (("mt_bench", 81), ("vicuna80", 1)):
        for line in (shared / folder / "question_shared.jsonl").read_text().splitlines():
            question = json.loads(line)
            number = question["question_id"]
            told = (
                MT_BENCH[(number - 81) // 10]
                if first == 81
                else next(name for name, last in VICUNA.items() if number <= last)
            )
            assert told == question["category"], number


def test_formats_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rate", "--help"])
    assert ended.value.code == 0
    assert "{" + ",".join(FIELDS) + "}" in capsys.readouterr().out


def test_unscored_judgments_are_told_and_counted_nowhere(
    tmp_path: Path, rated: Rate, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [2, 0, 1.5, 1, None, float("nan"), 7]
    path = lines(tmp_path / "some.jsonl", *({**ANNOTATION, "preference": value} for value in values))
    found = rated("alpaca_eval", path)
    row = of(found, "m")
    assert (row["win_rate"], row["n_draws"], row["n_total"], row["unscored"]) == (50, 2, 4, 3)
    assert (found["scored"], found["unscored"]["total"]) == (4, 3)
    assert found["unscored"]["reasons"] == {"no preference could be read": 2, "the preference 7 is not within 1 to 2": 1}
    assert found["unscored"]["first"][0].endswith("some.jsonl:5: no preference could be read")
    assert main(["rate", "--format", "alpaca_eval", str(path)]) == 0
    assert "unscored: 3 of 7 judgments" in capsys.readouterr().out


def test_baseline_on_either_side(tmp_path: Path, rated: Rate) -> None:
    path = lines(
        tmp_path / "both.jsonl",
        {**ANNOTATION, "preference": 1.9},
        {**ANNOTATION, "generator_1": "m", "generator_2": "base", "preference": 1.4},
        {**ANNOTATION, "generator_1": "m", "generator_2": "third", "preference": 1.5},
    )
    found = rated("alpaca_eval", path, "--baseline", "base")
    assert [one["model"] for one in found["win_rates"]] == ["m"]
    assert of(found, "m")["win_rate"] == pytest.approx(75)  # 0.9 and 1 − 0.4
    assert of(found, "base", "bradley_terry")["rating"] == 1000
    assert any("1 judgments without 'base'" in note for note in found["notes"])


def test_length_control_from_files(tmp_path: Path, rated: Rate, refused: Refused) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        *(
            {**ANNOTATION, "index": item, "output_2": "x" * (3 * item % 11), "preference": 1 + item % 3 / 2}
            for item in range(12)
        ),
    )
    hard, weights = tmp_path / "hard.csv", tmp_path / "weights.csv"
    hard.write_text("index,instruction_difficulty\n" + "".join(f"{item},{item / 10}\n" for item in range(12)))
    weights.write_text(",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\nm,-2,0,0\n")
    given = of(rated("alpaca_eval", path, "--lc-weights", weights, "--difficulty", hard), "m")
    assert given["length_controlled_winrate"] == 50
    assert given["length_control"]["source"] == "weights"
    fitted = of(rated("alpaca_eval", path, "--difficulty", hard), "m")
    assert fitted["length_control"]["source"] == "fit"
    assert set(fitted["length_control"]["weights"]) == {"model", "length", "difficulty"}
    assert "give the instructions' --difficulty too" in refused("alpaca_eval", path, "--lc-weights", weights)
    assert "belong to --format alpaca_eval" in refused("battles", path, "--difficulty", hard)
    weights.write_text("model,np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline\nother,1,1,1\n")
    assert "no row for 'm'; it has other" in refused("alpaca_eval", path, "--lc-weights", weights, "--difficulty", hard)
    weights.write_text("model,instruction_difficulty\nm,1\n")
    assert "weights.csv:2: no not_gamed_baseline" in refused(
        "alpaca_eval", path, "--lc-weights", weights, "--difficulty", hard
    )
    for table, said in (
        ("index,instruction_difficulty\n0,1\n", "no difficulty for item 1"),
        ("index,instruction_difficulty\n0,nan\n", "hard.csv:2: instruction_difficulty is"),
        ("index,instruction_difficulty\n0,1\n0,2\n", "item 0 has the difficulties 1 and 2"),
        ("index,hardness\n0,1\n", "no instruction_difficulty among its columns"),
        ("", "holds no record"),
    ):
        hard.write_text(table)
        assert said in refused("alpaca_eval", path, "--difficulty", hard), table
    lines(path, *({**ANNOTATION, "preference": 1} for _ in range(3)))
    hard.write_text("index,instruction_difficulty\n0,1\n1,1\n")
    assert "which belongs to which cannot be told" in refused("alpaca_eval", path, "--difficulty", hard)


def test_stored_length_control_and_anchors(tmp_path: Path, rated: Rate) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        *(
            {**ANNOTATION, "index": item, "output_2": "x" * item, "preference": 1 + item % 2, "glm_preference": 0.2}
            for item in range(8)
        ),
    )
    stored = of(rated("alpaca_eval", path), "m")
    assert (stored["length_controlled_winrate"], stored["length_control"]["source"]) == (pytest.approx(20), "stored")
    hard = tmp_path / "gamed.csv"
    rows = [f"{item},0.5,{preference},{length},False" for item in range(8) for preference, length in ((0.4, -1), (0.6, 1))]
    hard.write_text("index,instruction_difficulty,preference,std_delta_len,not_gamed_baseline\n" + "\n".join(rows) + "\n")
    assert of(rated("alpaca_eval", path, "--difficulty", hard), "m")["length_control"]["anchored"] is True


def test_pairs_of_mt_bench(tmp_path: Path, rated: Rate) -> None:
    pair = {"model_1": "a", "model_2": "b", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    outcomes = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "tie"), ("tie", "model_1"), ("error", "model_1")]
    found = rated(
        "mt_bench",
        lines(
            tmp_path / "pair.jsonl",
            *({**pair, "question_id": 81 + i, "g1_winner": one, "g2_winner": two} for i, (one, two) in enumerate(outcomes)),
        ),
    )
    row = of(found, "a")
    assert (row["win_rate"], row["n_wins"], row["n_draws"], row["unscored"]) == (62.5, 1, 3, 1)
    # Shown first and won: g1 model_1 twice; shown second and won: g2 model_1 three times, lost once
    assert found["positions"] == {"games": 6, "first_preferred": 0.5, "pairs": 4, "consistent": 0.5}
    assert found["unscored"]["reasons"] == {"no verdict could be read in one of the orders": 1}


def test_grades_of_mt_bench(tmp_path: Path, rated: Rate) -> None:
    other = {**GRADE, "model": "n", "category": "own"}
    path = lines(tmp_path / "single.jsonl", GRADE, {**GRADE, "turn": 2, "score": 3}, {**GRADE, "score": -1}, other)
    found = rated("mt_bench", path)
    one = of(found, "m", "mean_scores")
    assert (one["mean"], one["turns"], one["categories"], one["n"]) == (5.5, {"1": 8, "2": 3}, {"writing": 5.5}, 2)
    assert of(found, "n", "mean_scores")["categories"] == {"own": 8}
    assert found["unscored"]["total"] == 1
    assert found["bradley_terry"] == found["win_rates"] == []


def test_reviews_of_vicuna(tmp_path: Path, rated: Rate) -> None:
    forth = lines(tmp_path / "review_a-13b_b-7b.jsonl", REVIEW, {**REVIEW, "question_id": 61, "score": [-1, -1]})
    back = lines(tmp_path / "review_b-7b_a-13b.jsonl", {**REVIEW, "score": [9, 7.5]})
    found = rated("vicuna_review", forth, back)
    assert of(found, "b-7b")["win_rate"] == 100
    assert of(found, "a-13b", "mean_scores")["mean"] == 7.75
    assert of(found, "a-13b", "mean_scores")["categories"] == {"generic": 7.75}
    assert found["positions"] == {"games": 2, "first_preferred": 0.5, "pairs": 1, "consistent": 1}
    assert found["unscored"]["total"] == 1


def test_battles_of_arena_hard(tmp_path: Path, rated: Rate, refused: Refused) -> None:
    judged = {"question_id": "q", "model": "m", "judge": "gpt", "games": [{"score": "B>>A"}, {"score": "A>B"}]}
    path = lines(
        tmp_path / "hard.jsonl", judged, {**judged, "question_id": "r", "games": [{"score": "A=B"}, {"score": None}]}
    )
    assert "give --baseline" in refused("battles", path)
    found = rated("battles", path, "--baseline", "base")
    # Won decisively (counts three times), won, tied: 4.5 of 5
    assert of(found, "m")["win_rate"] == 90
    assert found["positions"] == {"games": 2, "first_preferred": 0.5, "pairs": 1, "consistent": 1}
    assert found["unscored"]["total"] == 1
    bad = lines(tmp_path / "bad.jsonl", {**judged, "games": [{"score": "A>>>B"}, {"score": "A>B"}]})
    assert 'games[0].score is "A>>>B"; accepted: A>>B' in refused("battles", bad, "--baseline", "base")


def test_battles_in_other_clothes(tmp_path: Path, rated: Rate) -> None:
    rows = [BATTLE, {**BATTLE, "winner": "tie (bothbad)"}, {**BATTLE, "winner": "b"}]
    plain = rated("battles", lines(tmp_path / "plain.jsonl", *rows))
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "plain.jsonl").read_bytes().replace(b"}\n", b"}\r\n\r\n"))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "plain.jsonl").read_bytes()))
    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows, indent=1))
    table = tmp_path / "table.csv"
    table.write_text("model_a,model_b,winner\na,b,model_a\na,b,tie (bothbad)\na,b,b\n")
    assert of(plain, "a")["win_rate"] == 50
    for path in (marked, packed, array, table):
        assert rated("battles", path) == plain, path.name


def test_names_that_cannot_be_shown(tmp_path: Path, rated: Rate, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "odd.jsonl", {**GRADE, "model": "half \ud800", "category": "[red]\udfff"})
    assert rated("mt_bench", path)["mean_scores"][0]["categories"] == {"[red]?": 8}
    assert main(["rate", "--format", "mt_bench", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "half ?" in shown
    assert "[red]?" in shown


def test_groups_that_never_met(tmp_path: Path, rated: Rate) -> None:
    apart = {**BATTLE, "model_a": "c", "model_b": "d"}
    found = rated("battles", lines(tmp_path / "apart.jsonl", BATTLE, apart))
    assert found["elo"] == found["bradley_terry"] == []
    assert len(found["win_rates"]) == 4
    assert any("disconnected: 2 groups of models never met (a, b; c, d)" in note for note in found["notes"])


def test_the_same_seed_says_the_same(tmp_path: Path, rated: Rate) -> None:
    path = lines(tmp_path / "b.jsonl", *({**BATTLE, "winner": winner} for winner in ("model_a", "model_b", "tie") * 5))
    assert rated("battles", path, "--seed", 5) == rated("battles", path, "--seed", 5)
    assert rated("battles", path, "--seed", 5)["elo"] != rated("battles", path, "--seed", 6)["elo"]
    none = rated("battles", path, "--bootstrap", 0)
    assert none["elo"][0]["low"] is none["bradley_terry"][0]["high"] is None


def test_repeated_judgments_are_told(tmp_path: Path, rated: Rate) -> None:
    found = rated("mt_bench", lines(tmp_path / "twice.jsonl", GRADE, GRADE, {**GRADE, "turn": 2, "judge": ["other", "x"]}))
    assert any(note.startswith("1 judgments are there more than once") for note in found["notes"])
    assert any("2 judges are taken together: gpt-4, other" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("format", "text", "said"),
    [
        ("battles", "", "holds no record"),
        ("battles", "[]", "holds no record"),
        ("battles", json.dumps(BATTLE) + '\n{"question_id": 2, "mod', ":2: broken JSON"),
        ("battles", '"text"\n', ":1: not an object"),
        ("battles", "hello\n", ":1: broken JSON"),
        ("battles", json.dumps({**BATTLE, "winner": "nobody"}), 'winner is "nobody"; accepted: model_a, model_b, tie'),
        ("battles", json.dumps({**BATTLE, "winner": 1}), "winner is 1; accepted"),
        ("battles", json.dumps({**BATTLE, "model_a": ""}), 'model_a is ""; accepted: the name of a model'),
        (
            "battles",
            json.dumps({**BATTLE, "winner": None}),
            "none of 1 judgments could be scored: no winner could be read (1)",
        ),
        ("battles", json.dumps({**BATTLE, "model_b": "a"}), "a model against itself (1)"),
        ("battles", json.dumps(GRADE), "it looks like --format mt_bench"),
        ("alpaca_eval", json.dumps(BATTLE), "it looks like --format battles"),
        ("mt_bench", json.dumps(REVIEW), "it looks like --format vicuna_review"),
        ("vicuna_review", json.dumps({**ANNOTATION, "preference": 1}), "it looks like --format alpaca_eval"),
        ("alpaca_eval", json.dumps({**ANNOTATION, "preference": "A"}), 'preference is "A"; accepted: 1 to 2'),
        ("alpaca_eval", json.dumps({**ANNOTATION, "preference": True}), "preference is true; accepted: 1 to 2"),
        ("alpaca_eval", json.dumps(ANNOTATION), "no preference among its fields"),
        ("alpaca_eval", json.dumps({**ANNOTATION, "preference": 1, "index": 1.5}), "index is 1.5; accepted: a whole number"),
        ("alpaca_eval", json.dumps({**ANNOTATION, "preference": 1, "glm_preference": 1e308}), "accepted: 0 to 1, or null"),
        ("alpaca_eval", '{"model": "m", "preference": 1, "characters_model": 1e308}', "accepted: a number of characters"),
        ("mt_bench", json.dumps({**GRADE, "score": [8]}), "score is [8]; accepted: a grade of 0 to 10"),
        ("mt_bench", json.dumps({**GRADE, "score": 10**400}), "accepted: a grade of 0 to 10"),
        ("mt_bench", json.dumps({key: GRADE[key] for key in ("model", "score")}), "no question_id among its fields"),
        ("vicuna_review", json.dumps({**REVIEW, "score": 8}), "score is 8; accepted: two grades of 0 to 10"),
        ("vicuna_review", json.dumps({**REVIEW, "score": [8, "9"]}), "accepted: two grades of 0 to 10"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, refused: Refused, format: str, text: str, said: str) -> None:
    path = tmp_path / "judgments.jsonl"
    path.write_text(text)
    message = refused(format, path)
    assert said in message
    assert "judgments.jsonl" in message


def test_wrong_arguments_are_refused(tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "b.jsonl", BATTLE)
    assert "no file matches" in refused("battles", tmp_path / "not-there.jsonl")
    (tmp_path / "empty").mkdir()
    assert "no file matches" in refused("battles", tmp_path / "empty")
    assert "is given 2 times" in refused("battles", path, path)
    assert "--baseline 'c' is in no judgment; models: a, b" in refused("battles", path, "--baseline", "c")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(BATTLE).encode() * 50)[:-12])
    assert "cut off" in refused("battles", cut)
    for option in ("--bootstrap", "--seed"):
        with pytest.raises(SystemExit) as ended:
            main(["rate", "--format", "battles", str(path), option, "-1"])
        assert ended.value.code == 2
        assert "is not a whole number" in capsys.readouterr().err
