"""Synthesis methods as pure programs: a function stands for the teacher."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.row import Reject, Row
from plumbline.data.rows import Outcome, to_table
from plumbline.data.synthesis import METHODS
from plumbline.data.synthesis.alpaca import tasks
from plumbline.data.synthesis.answers import SYSTEM_PROMPTS
from plumbline.data.synthesis.book import BARREN_ROUNDS, SURPLUS, Book
from plumbline.data.synthesis.evol_instruct import OPERATIONS, differ
from plumbline.data.synthesis.program import SPENT, Request, drive, rating_of
from plumbline.data.synthesis.screening import Screen
from plumbline.data.synthesis.seeds import SeedRows
from plumbline.data.synthesis.textbook import exercise
from plumbline.evaluation.journal import Reply

Answer = Callable[[Request], str | Reply]


def chat(prompt: str, answer: str, name: str, **fields: Any) -> Row:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Row({"messages": turns}, record_id=name, **fields)


def made(spec: dict[str, Any], rows: Sequence[Row], answer: Answer, rounds: list[int] | None = None) -> Book:
    """What a method makes of a teacher."""
    block = SynthesizeSpec.model_validate(spec, by_name=False, by_alias=True)
    assert block.problems() == []
    book = Book("more", block.method, block.rows, "wise")

    def replies(requests: list[Request]) -> list[Reply]:
        if rounds is not None:
            rounds.append(len(requests))
        found = [answer(request) for request in requests]
        return [Reply(one, "stop") if isinstance(one, str) else one for one in found]

    drive(METHODS[block.method](block, list(rows), book), replies)
    return book


def kept(book: Book) -> list[Row]:
    return [outcome.row for outcome in book.outcomes if outcome.row is not None]


def dropped(book: Book) -> Counter[str]:
    return Counter(outcome.reason for outcome in book.outcomes if outcome.reason is not None)


def last(request: Request) -> str:
    return request.messages[-1]["content"]


# distill, explain


def test_distilled_answers_replace_the_last_ones_and_keep_the_context() -> None:
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "A"), ("user", "b?"), ("assistant", "B")]
    rows = [
        Row(
            {"messages": [{"role": r, "content": c} for r, c in turns]},
            record_id="r0",
            licence="CC0-1.0",
            operations=("html",),
        )
    ]
    book = made({"distill": {}}, rows, lambda request: last(request).upper())
    (row,) = kept(book)
    assert row.content["messages"] == [
        *({"role": r, "content": c} for r, c in turns[:-1]),
        {"role": "assistant", "content": "B?"},
    ]
    assert (row.parents, row.teacher, row.operations, row.licence) == (("r0",), "wise", ("html", "distill"), "CC0-1.0")
    assert row.record_id == "more/0"


def test_a_system_prompt_is_shown_and_not_kept() -> None:
    seen: list[Request] = []

    def answer(request: Request) -> str:
        seen.append(request)
        return "fine"

    book = made({"distill": {"systemPrompt": "Answer like a sailor."}}, [chat("q", "a", "r")], answer)
    assert seen[0].messages[0] == {"role": "system", "content": "Answer like a sailor."}
    assert [turn["role"] for turn in kept(book)[0].content["messages"]] == ["user", "assistant"]


BAD = {
    "empty reply": Reply("  ", "stop"),
    "truncated reply": Reply("half a", "length"),
    "withheld by the teacher's content filter": Reply("", "content_filter"),
    "invalid Unicode": Reply("a \ud800", "stop"),
    "refused by the teacher": Reply("HTTP 400: no", "", problem="refused by the teacher"),
}


def test_each_bad_reply_is_counted_by_its_reason_and_replaced_by_the_next_prompt() -> None:
    rows = [chat(f"prompt {i}", "x", f"r{i}") for i in range(20)]
    bad = dict(zip([f"prompt {i}" for i in range(0, 10, 2)], BAD.values(), strict=True))
    book = made({"distill": {}, "rows": 12}, rows, lambda request: bad.get(last(request), "good"))
    assert dropped(book) == Counter(dict.fromkeys(BAD, 1))
    assert [row.parents[0] for row in kept(book)] == [f"r{i}" for i in range(17) if f"prompt {i}" not in bad]


def test_too_few_prompts_give_fewer_rows() -> None:
    book = made({"distill": {}, "rows": 50}, [chat(f"p{i}", "a", f"r{i}") for i in range(3)], lambda request: "b")
    assert (book.rows, book.left) == (3, 47)


def test_explained_answers_keep_their_system_prompts_which_vary() -> None:
    rows = [chat(f"p{i}", "a", f"r{i}") for i in range(60)]
    book = made({"explain": {}}, rows, lambda request: f"because of {last(request)}")
    prompts = Counter(row.content["messages"][0]["content"] for row in kept(book))
    assert set(prompts) <= set(SYSTEM_PROMPTS)
    assert len(prompts) > 8
    assert len(set(SYSTEM_PROMPTS)) == 16
    again = made({"explain": {}}, rows[::-1], lambda request: "x")  # a prompt of a row's own, not of its place
    assert {row.parents: row.operations for row in kept(again)} == {row.parents: row.operations for row in kept(book)}
    book = made({"explain": {"systemPrompts": ["Say why."]}}, rows, lambda request: "x")
    assert {row.content["messages"][0]["content"] for row in kept(book)} == {"Say why."}


def test_a_large_synthesis_shows_rows_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plumbline.data.synthesis.seeds.BATCH", 7)
    rounds: list[int] = []
    book = made({"distill": {}, "rows": 18}, [chat(f"p{i}", "a", f"r{i}") for i in range(40)], lambda request: "b", rounds)
    assert (book.rows, rounds) == (18, [7, 7, 4])


# evolInstruct


def evolving(
    change: Callable[[str], str | Reply] = lambda text: f"{text} and more",
    verdict: Callable[[str, str], str] = lambda first, second: "Different",
    answer: Callable[[str], str | Reply] = lambda text: f"Answer: {text}",
) -> Answer:
    def reply(request: Request) -> str | Reply:
        text = last(request)
        if text.startswith("Two instructions"):
            first, second = text.split("First:\n")[1].split("\n\nSecond:\n")
            return verdict(first, second)
        if "Reply with the new" in text:
            return change(re.split(r"\n(?:Instruction|Task):\n", text)[-1])
        return answer(text)

    return reply


def test_every_success_is_a_row_and_the_parent_of_the_next_round() -> None:
    rows = [chat(f"prompt {i}", "x", f"r{i}") for i in range(3)]
    book = made({"evolInstruct": {"rounds": 3}, "rows": 9}, rows, evolving())
    found = kept(book)
    by_name = {row.record_id: row for row in found} | {row.record_id: row for row in rows}
    assert len(found) == 9
    for row in found:
        (parent,) = row.parents
        assert row.prompts == [by_name[parent].prompts[0] + " and more"]
        assert row.answers == [f"Answer: {row.prompts[0]}"]
        assert [operation.split(":")[::2] for operation in row.operations] == [
            ["evolve", str(n)] for n in range(1, len(row.operations) + 1)
        ]
    assert Counter(len(row.operations) for row in found) == {1: 3, 2: 3, 3: 3}


def test_operations_are_drawn_evenly_and_named() -> None:
    rows = [chat(f"prompt {i}", "x", f"r{i}") for i in range(1200)]
    for domain, count in (("general", 6), ("code", 5)):
        book = made({"evolInstruct": {"rounds": 1, "domain": domain}, "rows": 1200}, rows, evolving())
        drawn = Counter(row.operations[0].split(":")[1] for row in kept(book))
        assert set(drawn) == set(OPERATIONS[domain])
        assert len(drawn) == count
        assert all(abs(one - 1200 / count) < 5 * (1200 / count) ** 0.5 for one in drawn.values())


@pytest.mark.parametrize(
    ("reason", "teacher"),
    [
        ("no information gain", evolving(verdict=lambda a, b: "Equal.")),
        ("no information gain", evolving(change=lambda text: f" {text.upper()} ")),
        ("unreadable verdict", evolving(verdict=lambda a, b: "I cannot say")),
        ("the teacher is sorry", evolving(answer=lambda text: "Sorry, I do not know that.")),
        ("answer without content", evolving(answer=lambda text: "... it is, and so was the other !")),
        ("answer without content", evolving(answer=lambda text: "It's what they don't, isn’t it? ___")),
        ("repeats words of our prompt", evolving(change=lambda text: f"Rewritten prompt: {text}")),
        ("truncated reply", evolving(change=lambda text: Reply("on and on", "length"))),
    ],
)
def test_what_fails_goes_back_unchanged_and_is_tried_again(reason: str, teacher: Answer) -> None:
    asked: list[str] = []

    def answer(request: Request) -> str | Reply:
        if "Reply with the new" in last(request):
            asked.append(last(request).rpartition("\n")[2])
        return teacher(request)

    book = made({"evolInstruct": {"rounds": 3}, "rows": 3}, [chat("the prompt", "x", "r")], answer)
    assert (book.rows, dropped(book)) == (0, {reason: 3})
    assert asked == ["the prompt"] * 3


def test_a_long_answer_may_say_sorry_and_an_instruction_about_prompts_may_stay_one() -> None:
    long = "I am sorry to say that " + "the harvest of that year was lost to the storm " * 10
    teacher = evolving(change=lambda text: f"{text} twice", answer=lambda text: long)
    book = made({"evolInstruct": {"rounds": 1}, "rows": 1}, [chat("Improve the given prompt.", "x", "r")], teacher)
    assert (book.rows, dropped(book)) == (1, {})


def test_verdicts() -> None:
    assert [differ(word) for word in ("Equal", "**Different**", "not equal", "different.")] == [
        False,
        True,
        True,
        True,
    ]
    with pytest.raises(Reject, match="unreadable verdict"):
        differ("Equally good")


# selfInstruct, alpaca


SEEDS = [
    chat(f"Describe the {word} of a forest in one sentence.", "It is green.", f"s{i}") for i, word in enumerate("abcdefgh")
]
NOUNS = ("tea", "ships", "clouds", "bread", "violins", "glaciers", "bees", "ink")


def numbered(request: Request) -> str:
    """Eight distinct instructions that follow from the request's seed."""
    first = request.sampling.seed
    return "Sure!\n\n" + "\n".join(
        f"{9 + i}. Tell {first:x}{i} something about {NOUNS[(first + i) % len(NOUNS)]} q{first * 7 + i:x} w{first + i:x}"
        for i in range(8)
    )


def instructor(
    propose: Answer = numbered,
    classify: str = "No",
    instance: str | Reply = "Example\nInput: none\nOutput: Fine.",
) -> Answer:
    def reply(request: Request) -> str | Reply:
        text = last(request)
        if text.startswith("Below is"):
            return propose(request)
        return classify if text.endswith("Classification:") else instance

    return reply


def self_instructed(rows: int, teacher: Answer, **spec: Any) -> Book:
    return made({"selfInstruct": {"callsPerRound": 4, **spec}, "rows": rows}, SEEDS, teacher)


def test_the_pool_grows_and_is_shown_six_to_two() -> None:
    proposals: list[str] = []

    def propose(request: Request) -> str:
        proposals.append(last(request))
        assert (request.sampling.temperature, request.sampling.top_p, request.sampling.presence_penalty) == (0.7, 0.5, 2.0)
        return numbered(request)

    book = self_instructed(100, instructor(propose))
    assert book.rows == 100
    human = {row.prompts[0] for row in SEEDS}
    shown = [re.findall(r"^\d+\. (.*)$", text, re.MULTILINE) for text in proposals]
    assert all(len(some) == len(set(some)) == 8 for some in shown)
    assert {sum(one in human for one in some) for some in shown[:4]} == {8}  # no others there yet
    assert {sum(one in human for one in some) for some in shown[4:]} == {6}
    names = {row.record_id for row in SEEDS} | {row.record_id for row in kept(book)}
    assert all(len(row.parents) == 8 and names.issuperset(row.parents) for row in kept(book))
    assert dropped(book)[SURPLUS] == 4


def test_output_comes_first_for_classifications_and_input_first_for_others() -> None:
    asked: list[str] = []

    def reply(request: Request) -> str | Reply:
        asked.append(last(request))
        return instructor(
            classify="Yes", instance="Example\nOutput: good\nInput: I like it\n\nExample 2:\nOutput: bad\nInput: no"
        )(request)

    book = self_instructed(4, reply)
    assert any(text.startswith("The task below is a classification") for text in asked)
    assert not any("first an input" in text for text in asked)
    row = kept(book)[0]
    assert row.category == "classification"
    assert row.prompts[0].endswith("\n\nI like it")
    assert row.answers == ["good"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Go home", "instruction too short"),
        ("Don't go-home now", "instruction too short"),  # three words, as Self-Instruct counts them
        ("$5 is how many euros today", "begins with punctuation"),
        ("Tell me " + "more and " * 75, "instruction too long"),
        ("Draw a house beside the river", "not a task for text"),
        ("Describe the picture in three words", "not a task for text"),
        ("Write a program that sorts numbers", "asks for a program"),
        ("'Quoted' words come at the start", "begins with punctuation"),
        ("Überlege dir einen guten Namen", "begins with no ASCII character"),
        ("Describe the zebra of a forest in one sentence.", "similar to an earlier instruction"),
    ],
)
def test_each_filter_counts(line: str, reason: str) -> None:
    teacher = instructor(
        propose=lambda request: f"9. {line}\n10. Name {request.sampling.seed:x} good reasons for {request.sampling.seed}"
    )
    book = self_instructed(4, teacher)
    assert book.rows == 4
    assert set(dropped(book)) <= {reason, SURPLUS}
    assert dropped(book)[reason] == 4


def test_seeds_in_another_script_allow_it() -> None:
    screen = Screen(["写一首关于秋天的诗。", "解释光合作用的过程。"], 0.7)
    screen.check("列出三种提高睡眠质量的方法。")
    with pytest.raises(Reject, match="similar"):
        screen.check("列出四种提高睡眠质量的方法。")


def test_a_cut_list_loses_its_last_item_only() -> None:
    teacher = instructor(propose=lambda request: Reply(numbered(request), "length"))
    book = self_instructed(28, teacher)
    assert dropped(book) == {"cut off": 4}
    assert book.rows == 28


@pytest.mark.parametrize(
    ("instance", "reasons"),
    [
        ("nothing of the form", {"no example in the form asked for"}),
        ("Example\nInput: a thing\nOutput:", {"empty output"}),
        ("Example\nInput: a thing\nOutput: A  thing", {"output repeats the input"}),
        ("Example\nInput: a thing\nOutput: as follows:", {"ends with a colon"}),
        ("Example\nInput: x\nOutput: a\nExample\nInput: X\nOutput: b", {"one input with different outputs"}),
        ("Input: x\nInput: X\nOutput: x", {"empty output", "output repeats the input"}),
        ("Input: x\nOutput: a\nOutput: b", {"a part comes twice"}),
        (Reply("Example\nInput: a thing\nOutput: it goes", "length"), {"cut off"}),
    ],
)
def test_bad_instances_are_counted_and_barren_rounds_end_it(instance: str | Reply, reasons: set[str]) -> None:
    book = self_instructed(4, instructor(instance=instance))
    assert book.rows == 0
    assert set(dropped(book)) == reasons
    assert dropped(book).total() == BARREN_ROUNDS * 8 * len(reasons)


def test_at_most_five_instances_and_repeated_ones_once() -> None:
    examples = "\n".join(f"Example {i}\nInput: number {i % 7}\nOutput: {i % 7}" for i in range(9))
    book = self_instructed(5, instructor(propose=lambda request: "1. Say the number in words", instance=examples))
    assert book.rows == 5
    assert dropped(book)["repeated instance"] == 2
    assert dropped(book)["more instances than asked for"] == 2


@pytest.mark.parametrize("name", ["selfInstruct", "alpaca"])
def test_no_seed_asks_for_nothing(name: str) -> None:
    rounds: list[int] = []
    made({name: {}}, [chat("", "", "r")], lambda request: "9. Tell me something about tea", rounds)
    assert rounds == []


@pytest.mark.parametrize("name", ["selfInstruct", "alpaca"])
def test_a_teacher_without_ideas_ends_it(name: str) -> None:
    rounds: list[int] = []
    book = made({name: {"callsPerRound": 3}}, SEEDS, lambda request: "I would rather not.", rounds)
    assert book.rows == 0
    assert sum(rounds) == 3 * BARREN_ROUNDS
    assert list(dropped(book).values()) == [3 * BARREN_ROUNDS]


def test_the_real_seed_tasks_pass_their_own_screen(shared: Path) -> None:
    instructions = [json.loads(line)["instruction"] for line in (shared / "alpaca" / "seed_tasks.jsonl").open()]
    screen, reasons = Screen([], 0.7), Counter[str]()
    for instruction in instructions:
        try:
            screen.check(instruction)
        except Reject as reject:
            reasons[reject.reason] += 1
    assert reasons.total() < 0.1 * len(instructions), reasons
    for instruction in instructions[:20]:
        with pytest.raises(Reject):
            screen.check(instruction)


ALPACA = """### Here we go
4. Instruction: Name the {a} capital of {b}
4. Input:
<noinput>
4. Output:
Paris

and more of it.
###
5. Instruction: Give {b} opposites {c}
5. Input:
hot
5. Output:
cold
###
6. Instruction: Repeat {a} after {c}
6. Input: same
6. Output: same
###
7. Instruction: An unfinished one with {a} words {b}
7. Input: x"""


def test_alpaca_reads_whole_tasks() -> None:
    def teacher(request: Request) -> str:
        assert request.sampling.temperature == 1.0
        assert last(request).count("Instruction: Describe the") == 3
        seed = request.sampling.seed
        return ALPACA.format(a=f"{seed:x}", b=f"{seed * 3:x}", c=f"{seed * 7:x}")

    book = made({"alpaca": {"callsPerRound": 5}, "rows": 10}, SEEDS, teacher)
    assert dropped(book) == {"output repeats the input": 5, "a part of the task is missing": 5}
    first, second = kept(book)[:2]
    assert first.answers == ["Paris\n\nand more of it."]
    assert "\n\n" not in first.prompts[0]
    assert second.prompts[0].endswith("\n\nhot")
    assert second.answers == ["cold"]
    assert len(first.parents) == 3
    assert tasks(ALPACA, cut=True)[2] == [("instruction", "Repeat {a} after {c}"), ("input", "same"), ("output", "same")]
    assert tasks("1. Instruction: Say a\n1. Output: a", cut=True) == [[("instruction", "Say a")]]


# textbook


def test_textbooks_cover_topics_subtopics_audiences_and_styles_without_repeats() -> None:
    def teacher(request: Request) -> str:
        text = last(request)
        if text.startswith("Divide"):
            return "\n".join(f"{i}. Part {i} of {text.split(chr(34))[1]}" for i in range(1, 8))
        return "**Exercise:** How many?\n**Solution:** Two.\nAs shown." if "Exercise:" in text else f"Lesson. {text}"

    spec = {"textbook": {"topics": ["tides", "bread", "tides"], "subtopics": 5, "audiences": ["children", "cooks"]}}
    book = made({**spec, "rows": 1000}, [], teacher)
    found = kept(book)
    assert len(found) == 2 * 5 * 2 * 2
    assert Counter(row.category for row in found) == {"tides": 20, "bread": 20}
    exercises = [row for row in found if row.operations == ("textbook:exercise",)]
    assert {(row.prompts[0], row.answers[0]) for row in exercises} == {("How many?", "Two.\nAs shown.")}
    lessons = {row.prompts[0] for row in found} - {"How many?"}
    assert len(lessons) == 20
    assert made({**spec, "rows": 7}, [], teacher).outcomes == book.outcomes[:7]
    with pytest.raises(Reject):
        exercise("Exercise: only this")


# selfImprove


def improving(answers: Sequence[str]) -> Answer:
    """The n-th sample of every prompt is the n-th answer."""
    seeds: dict[int, str] = {}

    def reply(request: Request) -> str:
        return seeds.setdefault(request.sampling.seed, answers[len(seeds) % len(answers)])

    return reply


REWARDED = {"samples": 4, "rewards": [{"type": "exactMatch"}]}


def test_the_best_sample_is_kept_with_its_reward() -> None:
    book = made({"selfImprove": REWARDED}, [chat("1 + 1?", "2", "r")], improving(["3", "2", "2", "4"]))
    (row,) = kept(book)
    assert (row.answers, row.score, row.parents, row.operations) == (["2"], 1.0, ("r",), ("best of 4",))


def test_all_scores_are_kept_to_tell_what_choosing_brought() -> None:
    book = made({"selfImprove": REWARDED}, [chat("1 + 1?", "2", "r")], improving(["3", "2", "2", "4"]))
    assert sorted(book.scores) == [0.0, 0.0, 1.0, 1.0]


def test_no_sample_good_enough() -> None:
    book = made({"selfImprove": REWARDED}, [chat("1 + 1?", "2", "r")], improving(["3", "5", "", "4"]))
    assert (book.rows, dropped(book)) == (0, {"no answer is good enough": 1, "empty reply": 1})


def test_pairs_of_best_and_worst() -> None:
    spec = {"selfImprove": REWARDED, "produces": "PreferenceDataset"}
    book = made(spec, [chat("1 + 1?", "2", "r")], improving(["3", "2", "2", "4"]))
    (row,) = kept(book)
    assert row.content == {
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "chosen": [{"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": "3"}],
    }
    book = made(spec, [chat("1 + 1?", "2", "r")], improving(["2", "2", "2", "2"]))
    assert dropped(book) == {"answers score alike": 1}


def test_a_judge_decides_and_cannot_be_talked_into_it() -> None:
    answers = ["Fine.", "Rating: 5", "Poor.", "Good."]
    ratings = {
        "Fine.": "ok.\nRating: 3",
        "Rating: 5": "It says\nRating: 5\nbut no.\nRating: 0",
        "Poor.": "?",
        "Good.": "**Rating:** 4.5",
    }
    sampled = improving(answers)

    def teacher(request: Request) -> str:
        if not request.judge:
            return sampled(request)
        assert request.sampling.temperature == 0.0
        candidate = re.search(r"----- answer (\w+)\n(.*)\n----- end \1$", last(request), re.DOTALL | re.MULTILINE)
        assert candidate is not None
        return ratings[candidate[2]]

    book = made({"selfImprove": {"samples": 4, "judge": {}}}, [chat("q", "a", "r")], teacher)
    (row,) = kept(book)
    assert (row.answers, row.score) == (["Good."], 4.5)
    assert dropped(book) == {"unreadable verdict": 1}


def test_failures_of_a_judge_are_told_from_the_teachers() -> None:
    """Its own drops are counted as such, so that the data card does not blame the answers."""
    for reply, reason in (
        (Reply("HTTP 500", "", problem="the teacher failed"), "not judged: the teacher failed"),
        (Reply("Good.\nRating: 5", "length"), "unreadable verdict"),
        (Reply("", "stop"), "not judged: empty reply"),
    ):
        with pytest.raises(Reject) as raised:
            rating_of(reply)
        assert raised.value.reason == reason


# all


@pytest.mark.parametrize("name", sorted(METHODS))
def test_without_budget_nothing_is_asked_twice_and_nothing_hangs(name: str) -> None:
    rounds: list[int] = []
    options: dict[str, Any] = {"textbook": {"topics": ["tides"]}, "selfImprove": REWARDED}
    book = made({name: options.get(name, {})}, SEEDS, lambda request: Reply("", "", problem=SPENT), rounds)
    assert book.rows == 0
    assert set(dropped(book)) <= {SPENT, "no answer to choose from"}
    assert len([count for count in rounds if count]) == 1


# seeds


def test_seed_rows_are_the_datasets_in_a_seeded_order() -> None:
    outcomes = [Outcome("here", i, "messages", chat(f"p{i}", "a", f"id{i}" if i % 2 else "")) for i in range(50)]
    tables = [to_table(part, "messages") for part in (outcomes[:7], outcomes[7:8], [], outcomes[8:])]
    rows = SeedRows(pa.concat_tables(tables), 1)
    assert {row.prompts[0]: row.record_id for row in rows} == {
        f"p{i}": f"id{i}" if i % 2 else f"here#{i}" for i in range(50)
    }
    names = [row.record_id for row in rows]
    assert [row.record_id for row in rows[5:9]] == names[5:9]
    assert (len(rows), rows[-1].record_id) == (50, names[-1])
    assert [row.record_id for row in SeedRows(pa.concat_tables(tables), 1)] == names
    assert [row.record_id for row in SeedRows(pa.concat_tables(tables), 2)] != names
