"""Tasks without right answers: their files, the conversations, and what a judge's replies come to."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.stages.evaluate import EvaluateSpec, GateSpec, TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation import judging
from plumbline.evaluation.benchmarks import QUESTIONS
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user
from plumbline.evaluation.benchmarks.open_questions import stored_answers
from plumbline.evaluation.client import TOO_LONG, Question
from plumbline.evaluation.conversations import Asked, converse, item_seed
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges.calls import Call
from plumbline.evaluation.judges.errors import KNOWN
from plumbline.evaluation.judges.length_controlled import LengthControlled
from plumbline.evaluation.judges.pairs import Pair
from plumbline.evaluation.judges.qualification import Labelled
from plumbline.evaluation.judges.self_tests import distrust
from plumbline.evaluation.judges.styles import STYLES
from plumbline.evaluation.judges.styles.style import Case
from plumbline.evaluation.judging import Judge
from plumbline.evaluation.questions import Questions
from plumbline.evaluation.ratings.formats import read_judgments
from plumbline.evaluation.ratings.rating import rate
from plumbline.evaluation.ratings.terms import read_difficulties
from plumbline.evaluation.results import Sample, conclude


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task(benchmark: str, uri: str, **more: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "open", "benchmark": benchmark, "uri": uri, **more}, by_name=False, by_alias=True
    )


def items_of(benchmark: str, uri: str, **more: Any) -> list[Item]:
    return sorted(QUESTIONS[benchmark].load(task(benchmark, uri, **more)), key=lambda item: item.id)


BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."]},
    {"question_id": 101, "category": "reasoning", "turns": ["Who is taller?", "And who shorter?"]},
]


def test_mt_bench_has_two_turns_references_and_temperatures(tmp_path: Path) -> None:
    uri = lines(tmp_path / "question.jsonl", BENCH)
    references = lines(
        tmp_path / "reference.jsonl", [{"question_id": 101, "choices": [{"index": 0, "turns": ["Ann.", "Bob."]}]}]
    )
    reasoning, writing = items_of("mtBench", uri, references=references)
    assert (writing.prompt, writing.turns) == (user("Write a poem."), ("Shorten it.",))
    assert (writing.groups, writing.temperature, writing.references) == ({"category": "writing"}, 0.7, ())
    assert (reasoning.temperature, reasoning.references) == (0.0, ("Ann.", "Bob."))


@pytest.mark.parametrize(
    ("benchmark", "rows", "said"),
    [
        ("mtBench", [{"question_id": 1, "turns": ["one"]}], "has 1 turns; mtBench has 2"),
        ("vicuna80", [*BENCH[:1]], "has 2 turns; vicuna80 has 1"),
        ("prompts", [{"prompt": ""}], "is no question"),
        ("prompts", [{"text": "no question here"}], "is no question"),
        ("prompts", [{"id": 3, "prompt": "a"}, {"id": 3, "prompt": "b"}], "question 3 stands there twice"),
        ("flask", [{"idx": 1, "instruction": "a", "skill": ["Speed"]}], "field 'skill' is"),
        ("arenaHard", [{"uid": "x", "turns": [{"text": "another form"}]}], "is no question"),
    ],
)
def test_what_is_no_question_is_refused_with_its_place(
    tmp_path: Path, benchmark: str, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)) as refused:
        items_of(benchmark, lines(tmp_path / "rows.jsonl", rows))
    assert "rows.jsonl, line" in str(refused.value)


def test_stored_answers_belong_by_id_or_by_the_question(tmp_path: Path) -> None:
    items = items_of("alpacaEval", lines(tmp_path / "q.jsonl", [{"instruction": " Why? "}, {"instruction": "How?"}]))
    outputs = [{"instruction": "How?", "output": "So."}, {"instruction": "Where?", "output": "Here."}]
    assert list(stored_answers(lines(tmp_path / "a.jsonl", outputs), items, "opponents").values()) == [("So.",)]
    items = items_of("vicuna80", lines(tmp_path / "v.jsonl", [{"question_id": 2, "turns": ["Why?"]}]))
    assert stored_answers(lines(tmp_path / "b.jsonl", [{"question_id": 2, "text": "Because."}]), items, "x") == {
        "2": ("Because.",)
    }
    mixed = [
        {"question_id": 2, "instruction": "How?", "output": "wrong list"},
        {"id": 7, "instruction": "Why?", "output": "So."},
    ]
    assert stored_answers(lines(tmp_path / "m.jsonl", mixed), items, "x") == {"2": ("So.",)}  # the text says which
    with pytest.raises(InvalidInput, match="no answer in"):
        stored_answers(lines(tmp_path / "c.jsonl", [{"question_id": 9, "text": "?"}]), items, "opponents")
    with pytest.raises(InvalidInput, match="question 2 has an answer already"):
        stored_answers(lines(tmp_path / "d.jsonl", [{"question_id": 2, "text": "?"}] * 2), items, "opponents")


def test_each_turn_follows_the_reply_to_the_one_before() -> None:
    item = Item("1", user("a"), "", turns=("b", "c"))
    seen: list[list[str]] = []

    def ask(questions: Sequence[Question]) -> list[Reply]:
        seen.append([question.messages[-1]["content"] for question in questions])
        for question in questions:
            assert [turn["role"] for turn in question.messages] == ["user", "assistant"] * (len(seen) - 1) + ["user"]
        return [Reply(question.messages[-1]["content"].upper(), "stop") for question in questions]

    spec = TaskSpec(name="open", benchmark="prompts", uri="x")
    asked = [Asked(spec, item, "m", "f"), Asked(spec, Item("2", user("z"), ""), "m", "f")]
    replies = converse(asked, 0.0, ask)
    assert [[reply.text for reply in turns] for turns in replies] == [["A", "B", "C"], ["Z"]]
    assert seen == [["a", "z"], ["b"], ["c"]]


def test_a_chat_that_has_grown_too_long_is_asked_no_further() -> None:
    item = Item("1", user("a"), "", turns=("b", "c"))

    def ask(questions: Sequence[Question]) -> list[Reply]:
        assert all(question.messages[-1]["content"] != "c" for question in questions)
        return [
            Reply("", TOO_LONG) if question.messages[-1]["content"] == "b" else Reply("x", "stop") for question in questions
        ]

    (turns,) = converse([Asked(TaskSpec(name="open", benchmark="prompts", uri="x"), item, "m", "f")], 0.0, ask)
    assert [turn.finish_reason for turn in turns] == ["stop", TOO_LONG, TOO_LONG]


def judge(verdict: Callable[[str], str], samples: int = 1) -> Judge:
    """A simulated judge: the text of the question → reply."""

    def ask(calls: Sequence[Call], attempt: int) -> dict[str, Reply]:
        return {call.key: Reply(verdict(call.messages[-1]["content"]), "stop") for call in calls}

    return Judge(STYLES["plumbline"], samples, ask, lambda chats: [])


def shown(text: str) -> tuple[str, str]:
    """The two answers that a judge is shown."""
    mark = re.findall(r"^----- request (\w+)$", text, re.MULTILINE)[0]
    first, second = re.split(rf"^----- (?:response \d|end) {mark}$", text, flags=re.MULTILINE)[1:3]
    return first, second


def longer_wins(text: str) -> str:
    first, second = shown(text)
    return "Tie" if len(first) == len(second) else "1" if len(first) > len(second) else "2"


def by_mark(text: str) -> str:
    """Prefers the answer that says GOOD, wherever it stands, and what it knows to be right."""
    first, second = (any(mark in said for mark in ("GOOD", *RIGHT)) for said in shown(text))
    return "Tie" if first == second else "1" if first else "2"


RIGHT = [f"\n{right}\n" for _, right, _ in KNOWN]
ITEMS = [Item(str(i), user(f"question {i}"), "") for i in range(12)]


def test_a_preferred_candidate_scores_1_and_the_opponent_what_is_left() -> None:
    answers = {
        "ours": {item.id: ("GOOD" if int(item.id) < 6 else "bad",) for item in ITEMS},
        "theirs": {item.id: ("bad" if int(item.id) < 9 else "GOOD",) for item in ITEMS},
    }
    spec = task("prompts", "x")
    found = judging.compare(spec, ITEMS, answers, "ours", "theirs", judge(by_mark), 0.95)
    assert [found.scores[item.id]["ours"].value for item in ITEMS] == [1.0] * 6 + [0.5] * 3 + [0.0] * 3
    mirrored = judging.compare(spec, ITEMS, answers, "theirs", "ours", judge(by_mark), 0.95)
    for item in ITEMS:
        assert found.scores[item.id]["ours"].value + found.scores[item.id]["theirs"].value == 1
        assert mirrored.scores[item.id]["ours"].value == found.scores[item.id]["ours"].value
    assert found.figures is not None
    assert (found.figures.identical, found.figures.unscored) == (3, {})
    assert {row["decision"] for row in found.rows} == {"agreed", "identical"}


def test_what_the_judge_says_nothing_about_has_no_score_and_is_counted() -> None:
    answers = {name: {item.id: (f"{name} {item.id}",) for item in ITEMS} for name in ("ours", "theirs")}
    tries = []

    def ask(calls: Sequence[Call], attempt: int) -> dict[str, Reply]:
        tries.append((attempt, len(calls)))
        silent = {call.key for call in calls if "question 3\n" in call.messages[-1]["content"]}
        return {call.key: Reply("No idea." if call.key in silent else "1", "stop") for call in calls}

    found = judging.compare(
        task("prompts", "x"), ITEMS, answers, "ours", "theirs", Judge(STYLES["plumbline"], 1, ask, lambda chats: []), 0.95
    )
    assert found.scores["3"] == {}
    assert found.unscored == {"unreadable": 1}
    assert tries == [(0, 24), (1, 2), (2, 2)]
    assert {scores["ours"].value for known, scores in found.scores.items() if known != "3"} == {
        0.5
    }  # always the first: no verdict


def test_grades_are_brought_to_0_to_1_and_rubrics_are_variants() -> None:
    skills = {"Factuality": "how true it is", "Readability": "how clear it is"}
    items = [Item("1", user("q"), "", rubrics=skills), Item("2", user("q"), "", turns=("more",))]
    answers = {"m": {"1": ("a",), "2": ("a", "b")}}
    found = judging.grade(
        task("flask", "x"), items, answers, judge(lambda text: "Rating: 5" if "factuality" in text else "Rating: 2")
    )
    assert found.scores["1"]["m"].value == pytest.approx(0.7)
    assert found.scores["1"]["m"].variants == {"Factuality": 1.0, "Readability": 0.4}
    assert found.scores["2"]["m"].value == pytest.approx(0.4)
    assert [row["graded"] for row in found.rows] == ["Factuality", "Readability", "turn 1", "turn 2"]


def test_a_reward_model_compares_and_grades_without_being_asked() -> None:
    def rewards(chats: Sequence[Any]) -> list[float | None]:
        return [None if "?" in chat[-1]["content"] else float(len(chat[-1]["content"]) - 4) for chat in chats]

    graded = Judge(None, 1, lambda calls, attempt: {}, rewards)
    answers = {"ours": {"0": ("long one",), "1": ("a?",)}, "theirs": {"0": ("four",), "1": ("b",)}}
    found = judging.compare(task("prompts", "x"), ITEMS[:2], answers, "ours", "theirs", graded, 0.95)
    assert found.scores["0"]["ours"].value == 1.0
    assert found.unscored == {"no score": 1}
    alone = judging.grade(task("prompts", "x", grading="single"), ITEMS[:1], {"m": {"0": ("four",)}}, graded)
    assert alone.scores["0"]["m"].value == 0.5


@pytest.mark.parametrize(
    ("verdict", "failed"),
    [(by_mark, set()), (longer_wins, {"length"}), (lambda text: "1", {"position"})],
    ids=["fair", "longer", "first"],
)
def test_a_gate_hangs_on_a_judge_that_passes_its_self_tests(verdict: Callable[[str], str], failed: set[str]) -> None:
    answers = {
        "ours": {item.id: (f"GOOD answer to question {item.id}",) for item in ITEMS},
        "theirs": {item.id: (f"some answer to question {item.id}",) for item in ITEMS},
    }
    spec, tried = task("prompts", "x"), judge(verdict)
    judged = judging.compare(spec, ITEMS, answers, "ours", "theirs", tried, 0.95)
    tests = judging.tests_of(spec, ITEMS, answers, judged, tried)
    assert failed <= {test.name for test in tests if not test.passed}
    assert (distrust(tests) is None) == (not failed)


def test_length_is_controlled_where_difficulties_are_given(tmp_path: Path) -> None:
    """Beside `plumbline rate` on the same judgments."""
    draw = random.Random(0)
    questions = [{"instruction": f"question {i}"} for i in range(60)]
    texts = {side: ["x" * draw.randrange(1, 200) for _ in questions] for side in ("ours", "theirs")}
    hard = [draw.gauss(0, 1) for _ in questions]
    uri = lines(tmp_path / "q.jsonl", questions)
    (tmp_path / "d.csv").write_text("index,instruction_difficulty\n" + "".join(f"{i},{d}\n" for i, d in enumerate(hard)))
    spec = task("alpacaEval", uri, difficulties=str(tmp_path / "d.csv"))
    found = Questions.of(spec, ["ours", "theirs"], "tasks[0]")
    assert found.difficulty is not None
    assert {item.id: found.difficulty[item.id] for item in found.items} == {
        item.id: pytest.approx(hard[int(item.prompt[0]["content"].split()[1])]) for item in found.items
    }
    answers = {
        side: {item.id: (of[int(item.prompt[0]["content"].split()[1])],) for item in found.items}
        for side, of in texts.items()
    }
    judged = judging.compare(spec, found.items, answers, "ours", "theirs", judge(longer_wins), 0.95, found.difficulty)
    assert judged.controlled is not None
    ours = [judged.scores[item.id]["ours"] for item in found.items]
    theirs = [judged.scores[item.id]["theirs"] for item in found.items]
    value = judged.controlled(found.items, ours)["lengthControlledWinRate"]
    assert judged.controlled(found.items, theirs)["lengthControlledWinRate"] == pytest.approx(1 - value, abs=1e-3)

    numbers = {item.id: int(item.prompt[0]["content"].split()[1]) for item in found.items}
    records = [
        {
            "generator_1": "theirs", "generator_2": "ours", "index": i, "instruction": f"question {i}", "preference": 1 + score.value,
            "output_1": texts["theirs"][i], "output_2": texts["ours"][i],
        }
        for item, score in zip(found.items, ours, strict=True) for i in [numbers[item.id]]
    ]  # fmt: skip
    judgments = read_judgments("alpaca_eval", [lines(tmp_path / "r.jsonl", records)])
    rated = rate(judgments, rounds=0, difficulties=read_difficulties(str(tmp_path / "d.csv")))
    [one] = rated.win_rates
    assert one.controlled is not None
    assert value == pytest.approx(one.controlled.win_rate / 100, abs=1e-3)

    samples = [Sample("open", item, {}, judged.scores[item.id]) for item in found.items]
    gate = GateSpec(task="open", metric="lengthControlledWinRate", threshold=0.9, contaminated="accept")
    results = conclude(
        samples, candidate="ours", baselines=["theirs"], gates=[gate], confidence=0.9, figures={"open": judged.controlled}
    )
    assert results.verdict is not None
    [told] = results.verdict.rules
    assert told.estimate is not None
    assert (told.status, told.estimate.value) == ("fail", pytest.approx(value))

    (tmp_path / "d.csv").write_text("index,instruction_difficulty\n0,1\n")
    with pytest.raises(
        InvalidInput, match=r"tasks\[0\]\.difficulties: .* no difficulty for question .* \(59 of 60 are missing, by index"
    ):
        Questions.of(spec, ["ours", "theirs"], "tasks[0]")


def test_too_few_comparisons_control_no_length(tmp_path: Path) -> None:
    scores = {str(i): Score(i % 2, "", longer=i) for i in range(4)}
    controlled = LengthControlled.of(dict.fromkeys(scores, 1.0), scores)
    assert controlled([Item(known, user("x"), "") for known in scores], list(scores.values())) == {}


def test_samples_of_one_item_are_drawn_apart() -> None:
    spec, item = TaskSpec(name="code", benchmark="humaneval", uri="x", samples=3, temperature=0.8), Item("1", user("a"), "")
    asked: list[Question] = []

    def ask(questions: Sequence[Question]) -> list[Reply]:
        asked.extend(questions)
        return [Reply("", "stop")] * len(questions)

    converse([Asked(spec, item, "m", "f", sample) for sample in range(3)], 0.0, ask)
    assert len({question.sampling.seed for question in asked}) == 3
    assert {question.sampling.temperature for question in asked} == {0.8}
    assert asked[0].sampling.seed == item_seed(spec, item)  # what one sample alone is asked with


def test_ids_that_look_like_turns_of_others_keep_their_own_verdicts() -> None:
    items = [Item("1", user("question one"), "", turns=("more",)), Item("1/1", user("question two"), "")]
    answers = {"ours": {"1": ("GOOD", "GOOD"), "1/1": ("bad",)}, "theirs": {"1": ("bad", "bad"), "1/1": ("GOOD",)}}
    found = judging.compare(task("prompts", "x"), items, answers, "ours", "theirs", judge(by_mark), 0.95)
    assert (found.scores["1"]["ours"].value, found.scores["1/1"]["ours"].value) == (1.0, 0.0)
    assert [(row["item"], row["turn"]) for row in found.rows] == [("1", 1), ("1", 2), ("1/1", 1)]


def test_a_reward_model_is_qualified_by_its_scores() -> None:
    pairs = [Pair(str(i), Case(user(f"q{i}")), ("good answer",), ("bad",)) for i in range(12)]
    labelled = Labelled(pairs, ["1"] * 12, {})

    def rewards(sign: float) -> Callable[[Sequence[Any]], list[float | None]]:
        return lambda chats: [sign * ("good" in chat[-1]["content"]) for chat in chats]

    right = judging.qualified(labelled, 0.6, Judge(None, 1, lambda calls, attempt: {}, rewards(1.0)))
    wrong = judging.qualified(labelled, 0.6, Judge(None, 1, lambda calls, attempt: {}, rewards(-1.0)))
    assert (right.qualified, right.accuracy.value, wrong.qualified, wrong.accuracy.value) == (True, 1.0, False, 0.0)
    few = judging.qualified(Labelled(pairs[:3], ["1"] * 3, {}), 0.6, Judge(None, 1, lambda calls, attempt: {}, rewards(1.0)))
    assert not few.qualified
    assert "too few" in few.reason


def test_a_judge_of_equal_answers_needs_no_places() -> None:
    answers = {name: {item.id: (f"GOOD answer to question {item.id}",) for item in ITEMS} for name in ("ours", "theirs")}
    spec, tried = task("prompts", "x"), judge(by_mark)
    judged = judging.compare(spec, ITEMS, answers, "ours", "theirs", tried, 0.95)
    tests = {test.name: test for test in judging.tests_of(spec, ITEMS, answers, judged, tried)}
    assert tests["position"].passed
    assert "only 0 of 12 pairs were not identical" in tests["position"].reason


def test_a_candidate_with_one_answer_to_everything_is_caught() -> None:
    same = {item.id: ("I am the best answer.",) for item in ITEMS}
    assert "one and the same reply" in (judging.tripped(ITEMS, same) or "")
    assert judging.tripped(ITEMS, {item.id: (f"answer {item.id}",) for item in ITEMS}) is None


def problems(stage: dict[str, Any]) -> dict[str, str]:
    return dict(EvaluateSpec.model_validate(stage, by_name=False, by_alias=True).problems())


def test_the_contract_says_what_is_missing_and_what_has_no_use() -> None:
    def open_task(**more: Any) -> dict[str, Any]:
        return {"name": "open", "benchmark": "alpacaEval", "uri": "x.json", **more}

    judged = {"endpoint": "http://judge/v1", "model": "m"}
    assert "judge" in problems({"tasks": [open_task()]})
    assert problems({"tasks": [open_task()], "judge": judged}) == {}
    assert "tasks[0].against" in problems({"tasks": [open_task(grading="single", against="base")], "judge": judged})
    assert "tasks[0].against" in problems({"tasks": [open_task(against="base", opponents="y")], "judge": judged})
    assert "tasks[0].answers" in problems({"tasks": [open_task(answers="written")], "judge": judged})
    assert "tasks[0].shots" in problems({"tasks": [{"name": "a", "benchmark": "mmlu", "uri": "x", "shots": 3}]})
    assert "judge" in problems({"tasks": [{"name": "a", "benchmark": "mmlu", "uri": "x"}], "judge": judged})
    assert "judge.samples" in problems({"tasks": [open_task()], "judge": {**judged, "samples": 3}})
    assert "judge.endpoint" in problems({"tasks": [open_task()], "judge": {**judged, "style": "rewardModel"}})
    gate = {"task": "open", "baseline": "base"}
    assert "gates[0].baseline" in problems({"tasks": [open_task(opponents="y")], "judge": judged, "gates": [gate]})
    assert "gates[0].baseline" in problems({"tasks": [open_task(against="sft")], "judge": judged, "gates": [gate]})
    assert problems({"tasks": [open_task(against="base")], "judge": judged, "gates": [gate]}) == {}
    worded = {"name": "open", "benchmark": "promptAnswer", "uri": "x"}
    assert "gates[0].metric" in problems(
        {"tasks": [worded], "gates": [{"task": "open", "metric": "bleu", "threshold": 0.5}]}
    )
    assert "gates[0].metric" in problems({"tasks": [open_task()], "judge": judged, "gates": [gate | {"metric": "turn2"}]})
    by_length = {"judge": judged, "gates": [gate | {"metric": "lengthControlledWinRate"}]}
    assert "gates[0].metric" in problems({"tasks": [open_task()], **by_length})
    assert problems({"tasks": [open_task(difficulties="d.csv")], **by_length}) == {}
    assert "tasks[0].difficulties" in problems(
        {"tasks": [open_task(benchmark="prompts", difficulties="d")], "judge": judged}
    )
    code = {"name": "code", "benchmark": "humaneval", "uri": "x", "samples": 10}
    assert "tasks[0].samples" in problems({"tasks": [code]})  # the stage's temperature is 0
    assert problems({"tasks": [code], "temperature": 0.8}) == {}
    several = code | {"k": [1, 10], "temperature": 0.8}
    rule = {"task": "code", "metric": "pass@10", "threshold": 0.5}
    assert problems({"tasks": [several], "gates": [rule]}) == {}
    for metric in ("pass@5", "pass@1"):  # pass@1 is `score`
        assert "gates[0].metric" in problems({"tasks": [several], "gates": [rule | {"metric": metric}]})
    assert "tasks[0].k" in problems({"tasks": [several | {"k": [20]}]})
    assert "tasks[0].samples" in problems({"tasks": [worded | {"samples": 2, "temperature": 1}]})
    pandalm = {"tasks": [open_task(grading="single")], "judge": {**judged, "style": "pandalm"}}
    assert "tasks[0].grading" in problems(pandalm)
    assert "tasks[0].grading" in problems({"tasks": [open_task(benchmark="flask", grading="pairwise")], "judge": judged})
