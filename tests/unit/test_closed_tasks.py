"""Multiple choice, few-shot and described tasks: prompts, scores from the definitions, real files without loss, bad rows."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import (
    BENCHMARKS,
    bbq,
    ceval,
    cmmlu,
    gsm8k,
    halueval,
    mmlu,
    super_natural_instructions,
    truthfulqa,
)
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.benchmarks.choices import written_letter
from support.benchmark_files import check_refusal


def task(benchmark: str, uri: Path | str, **more: object) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", "benchmark": benchmark, "uri": str(uri), **more})


def likelihood(*values: float) -> str:
    return json.dumps(list(values))


def text(item: Item) -> str:
    [turn] = item.prompt
    return turn["content"]


def by_id(items: list[Item]) -> dict[str, Item]:
    found = {item.id: item for item in items}
    assert len(found) == len(items)
    return found


# The choice


@pytest.mark.parametrize(
    ("values", "letter"),
    [
        ((-1.0, -2.0, -3.0, -4.0), "A"),
        ((-4.0, -2.0, -3.0, -1.5), "D"),
        ((-1.0, -1.0, -3.0, -4.0), None),  # no choice between equals
        ((-math.inf, -9.0, -math.inf, -math.inf), "B"),
        ((-math.inf,) * 4, None),
        ((math.nan, -1.0, -2.0, -3.0), None),
        ((-1.0, -2.0, -3.0), None),
    ],
)
def test_the_likeliest_letter_is_the_answer(tmp_path: Path, values: tuple[float, ...], letter: str | None) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text("q,1,2,3,4,B\n")
    [only] = mmlu.load(task("mmlu", path))
    assert mmlu.score(likelihood(*values), only) == Score(float(letter == "B"), letter)


@pytest.mark.parametrize("reply", ["", "B", "{}", "[1, 2", '["a", 1, 2, 3]', "[null, 1, 2, 3]", "7"])
def test_what_is_no_list_of_numbers_is_unparseable(tmp_path: Path, reply: str) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text("q,1,2,3,4,B\n")
    [only] = mmlu.load(task("mmlu", path))
    assert mmlu.score(reply, only) == Score(0.0, None)


# MMLU


def test_mmlu_shows_the_subjects_first_examples_in_order(shared: Path) -> None:
    items = mmlu.load(task("mmlu", shared / "mmlu" / "test_shared", examples=str(shared / "mmlu" / "dev")))
    assert len(by_id(items)) == 7041
    of = {item.groups["subject"]: item.groups["category"] for item in items}
    counts = {name: list(of.values()).count(name) for name in ("STEM", "humanities", "social sciences", "other")}
    assert counts == {"STEM": 19, "humanities": 13, "social sciences": 12, "other": 13}
    expected = {}
    for file in (shared / "mmlu" / "dev").glob("*.csv"):
        topic = file.name.removesuffix("_dev.csv").replace("_", " ")
        with file.open(newline="") as stream:
            blocks = [
                f"{question.strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer: {letter}"
                for question, a, b, c, d, letter in csv.reader(stream)
            ]
        heading = f"The following are multiple choice questions (with answers) about {topic}."
        expected[topic] = "\n\n".join([heading, *blocks]) + "\n\n"
    for item in items:
        assert text(item) == f"{expected[item.groups['subject']]}{item.texts[0]}\nAnswer:"
    assert len(mmlu.load(task("mmlu", shared / "mmlu" / "val_shared"))) == 779


def test_written_answers_show_examples_as_turns(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text("q,1,2,3,4,B\n")
    (tmp_path / "dev" / "anatomy_dev.csv").write_text("e1,1,2,3,4,C\ne2,1,2,3,4,D\ne3,1,2,3,4,A\n")
    more: dict[str, Any] = {"examples": str(tmp_path / "dev"), "shots": 2}
    [only] = mmlu.load(task("mmlu", tmp_path / "test", answers="written", **more))
    assert [(turn["role"], turn["content"].split("\n")[-5:][0]) for turn in only.prompt] == [
        ("user", "e1"),
        ("assistant", "C"),
        ("user", "e2"),
        ("assistant", "D"),
        ("user", "q"),
    ]
    assert mmlu.score("The answer is B.", only).value == 1


def test_a_question_is_never_its_own_example(tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text("q1,1,2,3,4,B\nq2,1,2,3,4,C\nq3,1,2,3,4,D\n")
    items = mmlu.load(task("mmlu", path, examples=str(path), shots=2))
    for item in items:
        assert text(item).count(item.texts[0]) == 1


def test_too_few_examples_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "anatomy_test.csv").write_text("q1,1,2,3,4,B\n")
    (tmp_path / "astronomy_dev.csv").write_text("q1,1,2,3,4,B\n")
    for examples, subject, number in (("anatomy_test.csv", "anatomy", 0), ("astronomy_dev.csv", "anatomy", 0)):
        with pytest.raises(InvalidInput, match=rf"holds {number} examples of subject '{subject}'.*and 5 are shown"):
            mmlu.load(task("mmlu", tmp_path / "anatomy_test.csv", examples=str(tmp_path / examples)))


# C-Eval and CMMLU


def test_ceval_reads_all_files(shared: Path) -> None:
    folder = shared / "ceval"
    items = ceval.EXAM.load(task("ceval", folder / "val_shared", examples=str(folder / "dev")))
    assert len(by_id(items)) == 690
    of = {item.groups["subject"]: item.groups["category"] for item in items}
    counts = {name: list(of.values()).count(name) for name in ("STEM", "social science", "humanities", "other")}
    assert counts == {"STEM": 20, "social science": 10, "humanities": 11, "other": 11}
    assert len({item.groups["subject"] for item in items if item.groups["hard"] == "yes"}) == 8
    law = next(item for item in items if item.groups["subject"] == "law")
    assert text(law).startswith("以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n")
    assert text(law).endswith("\n答案：")
    assert text(law).count("\n答案： ") == 5
    assert len(ceval.EXAM.load(task("ceval", folder / "dev"))) == 260


def test_cmmlu_reads_all_files(shared: Path) -> None:
    folder = shared / "cmmlu"
    items = cmmlu.EXAM.load(task("cmmlu", folder / "test_shared", examples=str(folder / "dev"), shots=3))
    assert len(by_id(items)) == 1405
    assert all("category" in item.groups for item in items)
    agronomy = next(item for item in items if item.groups["subject"] == "agronomy")
    assert text(agronomy).startswith(
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n肉牛屠宰后，胴体的哪个部位肉质较好\nA. 胸\nB. 腹\nC. 大腿\nD. 小腿\n答案： C\n\n"
    )
    assert text(agronomy).count("\n答案： ") == 3
    assert cmmlu.EXAM.score(likelihood(-1, -2, -3, -4), agronomy).extracted == "A"
    assert sum(len(subjects) for subjects in cmmlu.SUBJECTS.values()) == 67
    written = cmmlu.EXAM.load(task("cmmlu", folder / "test_shared", answers="written", limit=1))[0]
    assert cmmlu.EXAM.score(f"正确答案是{written.reference}。", written).value == 1


def test_a_subject_that_the_benchmark_does_not_know_has_no_category(tmp_path: Path) -> None:
    path = tmp_path / "my_own_subject.csv"
    path.write_text("Answer,Question,A,B,C,D,note\nB,问题,1,2,3,4,x\n", encoding="utf-8-sig")
    for module, name in ((ceval, "ceval"), (cmmlu, "cmmlu")):
        [only] = module.EXAM.load(task(name, path))
        assert only.groups == {"subject": "my own subject"}
        assert only.reference == "B"
        assert "关于my own subject的" in text(only)


# GSM8K


def test_gsm8k_shows_the_first_examples(shared: Path) -> None:
    folder = shared / "gsm8k"
    items = gsm8k.load(
        task("gsm8k", folder / "test_shared.jsonl.gz", examples=str(folder / "train.jsonl.gz"), limit=3, shots=2)
    )
    with gzip.open(folder / "train.jsonl.gz", "rt") as lines:
        first, second = (json.loads(next(lines)) for _ in range(2))
    for item in items:
        [own] = item.texts
        assert text(item) == (
            f"Question: {first['question']}\nAnswer: {first['answer']}\n\n"
            f"Question: {second['question']}\nAnswer: {second['answer']}\n\nQuestion: {own}\nAnswer:"
        )


def test_gsm8k_after_examples_a_reply_ends_where_the_next_question_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"so\n#### {i}"}) + "\n" for i in range(3)))
    shown = next(i for i in gsm8k.load(task("gsm8k", path, examples=str(path), shots=2)) if i.reference == "1")
    assert "q1\n" in text(shown)
    assert text(shown).count("q1") == 1
    reply = "It is 1.\n#### 1\n\nQuestion: and 7?\nAnswer: 7\n#### 7"
    assert gsm8k.score(reply, shown) == Score(1.0, "1", {"strict": 1.0})
    plain = next(i for i in gsm8k.load(task("gsm8k", path)) if i.reference == "1")
    assert (shown.stop, plain.stop) == (("Question:",), ())  # nor is more of it written
    assert gsm8k.score(reply, plain) == Score(0.0, "7", {"strict": 1.0})
    with pytest.raises(InvalidInput, match=r"holds 2 examples other than .*x\.jsonl:1, and 5 are shown; .* shots: 2"):
        gsm8k.load(task("gsm8k", path, examples=str(path)))


# TruthfulQA

HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"


def truthful(tmp_path: Path, **more: object) -> Item:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "A,Maths,Is it?,Yes,Yes; Indeed.; Yes; ,No; Never; No;,x\n")
    [only] = truthfulqa.load(task("truthfulqa", path, **more))
    return only


def test_truthfulqa_prompt_and_choices(tmp_path: Path) -> None:
    only = truthful(tmp_path)
    assert only.choices == (" Yes.", " Indeed.", " No.", " Never.")
    assert text(only).endswith("Barcelona, Spain.\n\nQ: Is it?\nA:")
    assert only.groups == {"category": "Maths"}
    assert only.texts == ("Is it?",)


@pytest.mark.parametrize(
    ("shares", "value", "extracted"),
    [
        ((0.4, 0.1, 0.3, 0.2), 1.0, "Yes."),
        ((0.3, 0.4, 0.2, 0.1), 1.0, "Yes."),  # another true answer does not stand in MC1
        ((0.2, 0.5, 0.3, 0.0001), 0.0, "No."),
        ((0.1, 0.1, 0.2, 0.6), 0.0, "Never."),
        ((0.25, 0.25, 0.25, 0.25), 0.0, None),
    ],
)
def test_truthfulqa_mc1_and_mc2(tmp_path: Path, shares: tuple[float, ...], value: float, extracted: str | None) -> None:
    score = truthfulqa.score(likelihood(*(math.log(share) - 50 for share in shares)), truthful(tmp_path))
    assert (score.value, score.extracted) == (value, extracted)
    assert score.variants["mc2"] == pytest.approx((shares[0] + shares[1]) / sum(shares), abs=1e-12)


def test_truthfulqa_reads_the_real_file(shared: Path) -> None:
    path = shared / "truthfulqa" / "TruthfulQA_shared.csv"
    items = by_id(truthfulqa.load(task("truthfulqa", path)))
    assert len(items) == 409
    for item in items.values():
        true = json.loads(item.reference)["true"]
        assert 1 <= true < len(item.choices)
        assert all(choice.startswith(" ") and choice.endswith(".") and len(choice) > 2 for choice in item.choices)
        perfect = truthfulqa.score(likelihood(*[-1.0] * true, *[-1000.0] * (len(item.choices) - true)), item)
        assert (perfect.value, perfect.variants["mc2"]) == (1.0, pytest.approx(1.0))
    written = by_id(truthfulqa.load(task("truthfulqa", path, answers="written")))
    assert written.keys() == items.keys()
    letters = [json.loads(item.reference)["letter"] for item in written.values()]
    assert max(letters.count(letter) for letter in set(letters)) < len(letters) / 2  # the best answer is not always first
    for id, item in written.items():
        right = json.loads(item.reference)
        [line] = [line for line in text(item).split("\n") if line.startswith(f"{right['letter']}. ")]
        assert line[3:] == items[id].choices[0].strip()
        assert truthfulqa.score(right["letter"], item) == Score(1.0, right["letter"])


# BBQ


def bbq_row(**changes: object) -> dict[str, Any]:
    return {
        "example_id": 1,
        "question_index": "3",
        "question_polarity": "neg",
        "context_condition": "ambig",
        "category": "Age",
        "answer_info": {"ans0": ["boy", "nonOld"], "ans1": ["man", "old"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": "A boy and a man met.",
        "question": "Who forgot it?",
        "ans0": "The boy",
        "ans1": "The man",
        "ans2": "Unknown",
        "label": 2,
    } | changes


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pick(letter: str) -> str:
    return likelihood(*(0.0 if letter == one else -5.0 for one in "ABC"))


def test_bbq_reads_the_real_files(shared: Path) -> None:
    items = bbq.load(task("bbq", shared / "bbq"))
    assert len(by_id(items)) == 1768 + 844 + 1360 + 888 + 480 + 400
    sides = [json.loads(item.reference) for item in items]
    assert all(side["biased"] and side["counter"] and side["biased"] != side["counter"] for side in sides)
    assert {item.groups["category"] for item in items} == {
        "Age",
        "Disability_status",
        "Nationality",
        "Physical_appearance",
        "Religion",
        "Sexual_orientation",
    }
    perfect = [bbq.score(pick(side["letter"]), item) for side, item in zip(sides, items, strict=True)]
    assert all(score.value == 1 for score in perfect)
    assert bbq.figures(items, perfect)["biasAmbiguous"] == 0
    always = [bbq.score(pick(side["biased"]), item) for side, item in zip(sides, items, strict=True)]
    figures = bbq.figures(items, always)
    assert figures["biasDisambiguated"] == 1
    assert figures["biasAmbiguous"] == 1
    assert figures["biasAmbiguous Age"] == 1
    assert all(
        value == -1
        for value in bbq.figures(
            items, [bbq.score(pick(side["counter"]), item) for side, item in zip(sides, items, strict=True)]
        ).values()
    )


def test_bbq_scores_as_defined(tmp_path: Path) -> None:
    """4 ambiguous: 1 right, 2 of the stereotype, 1 against it: s = 2·2/3 − 1 = 1/3, times 1 − ¼. 3 disambiguated: 1 of 2 named."""
    rows = [bbq_row(question_index=str(i)) for i in range(4)]
    rows += [bbq_row(context_condition="disambig", label=0, question_polarity="nonneg") for _ in range(3)]
    items = bbq.load(task("bbq", write(tmp_path / "x.jsonl", rows)))
    ambiguous = [item for item in items if item.groups["condition"] == "ambiguous"]
    told = [item for item in items if item.groups["condition"] == "disambiguated"]
    scores = [bbq.score(pick(letter), item) for letter, item in zip("CBBA", ambiguous, strict=True)]
    scores += [bbq.score(pick(letter), item) for letter, item in zip("ABC", told, strict=True)]
    assert [score.value for score in scores] == [1, 0, 0, 0, 1, 0, 0]
    assert [score.variants for score in scores[:3]] == [
        {"ambiguous": 1.0},
        {"ambiguous": 0.0, "stereotypedAmbiguous": 1.0},
        {"ambiguous": 0.0, "stereotypedAmbiguous": 1.0},
    ]
    # Of a question about something good, the answer of the stereotype is the other group.
    assert scores[4].variants == {"disambiguated": 1.0, "stereotypedDisambiguated": 1.0}
    figures = bbq.figures([*ambiguous, *told], scores)
    assert figures == pytest.approx(
        {
            "biasAmbiguous": 0.75 / 3,
            "biasDisambiguated": 0.0,
            "biasAmbiguous Age": 0.75 / 3,
            "biasDisambiguated Age": 0.0,
        }
    )
    assert len({item.cluster for item in items}) == 4
    unparseable = bbq.score("", items[0])
    assert (unparseable.value, unparseable.extracted) == (0.0, None)


@pytest.mark.parametrize(
    ("groups", "info", "expected"),
    [
        (["low SES"], [["the driver", "lowSES"], ["the lawyer", "highSES"]], ("A", "B")),
        (["Black", "African American"], [["Ann Smith", "F-White"], ["Bo Jones", "M-Black"]], ("B", "A")),
        (["F-Black"], [["Ann Smith", "M-Black"], ["Bo Jones", "F-Black"]], ("B", "A")),
        (["F"], [["the man", "man"], ["the girl", "girl"]], ("B", "A")),
        (["Kenyan"], [["Kenyan", "Africa"], ["Polish", "Europe"]], ("A", "B")),
        (["gay"], [["gay", "gay"], ["Gay", "gay"]], (None, None)),
        ([], [["x", "old"], ["y", "nonOld"]], (None, None)),
    ],
)
def test_bbq_finds_the_stereotyped_group(
    tmp_path: Path, groups: list[str], info: list[list[str]], expected: tuple[str | None, str | None]
) -> None:
    row = bbq_row(
        additional_metadata={"stereotyped_groups": groups},
        answer_info={"ans0": info[0], "ans1": info[1], "ans2": ["Unknown", "unknown"]},
    )
    [only] = bbq.load(task("bbq", write(tmp_path / "x.jsonl", [row])))
    side = json.loads(only.reference)
    assert (side["biased"], side["counter"]) == expected
    if expected == (None, None):
        assert bbq.figures([only], [bbq.score(pick("A"), only)]) == {}


# Super-NaturalInstructions


def test_super_natural_instructions_reads_the_real_files(shared: Path) -> None:
    load = super_natural_instructions.load
    folder = shared / "super_natural_instructions"
    items = load(task("superNaturalInstructions", folder))
    assert len(by_id(items)) == 1500
    assert len({item.groups["task"] for item in items}) == 15
    for item in items[:200]:
        right = json.loads(item.reference)
        score = super_natural_instructions.score(right["outputs"][-1], item)
        assert score.value in (0.0, 1.0)
        assert score.value == 1 or not any(character.isalnum() for character in right["outputs"][-1])
        assert score.variants == ({"exactMatch": 1.0} if right["classification"] else {})
    kinds = {item.groups["task"].split("_")[0]: json.loads(item.reference)["classification"] for item in items}
    assert {name for name, is_one in kinds.items() if is_one} == {"task073", "task1687", "task363", "task875"}
    others = load(task("superNaturalInstructions", shared / "classification_tasks_sni_format"))
    assert len(others) == 780
    assert all(json.loads(item.reference)["classification"] for item in others)


def test_super_natural_instructions_prompt_and_score(tmp_path: Path) -> None:
    path = tmp_path / "task9_x.json"
    examples = [{"input": f"i{k}", "output": f"o{k}", "explanation": "e"} for k in range(3)]
    outputs = [["The cat sat on the mat.", "a dog"], ["x"], ["y z"]]
    path.write_text(
        json.dumps(
            {
                "Definition": ["Say", "it."],
                "Positive Examples": examples,
                "Instances": [{"input": f"in{k}", "output": one} for k, one in enumerate(outputs)],
            },
            indent=2,
        )
    )
    items = super_natural_instructions.load(task("superNaturalInstructions", path))
    first = next(item for item in items if item.texts == ("in0",))
    assert text(first) == (
        "Definition: Say it.\n\nExample 1\nInput: i0\nOutput: o0\n\nExample 2\nInput: i1\nOutput: o1\n\n"
        "Now complete the following example.\nInput: in0\nOutput:"
    )
    assert first.cluster == first.groups["task"] == "task9_x"
    assert super_natural_instructions.score("the cats sat", first).value == pytest.approx(6 / 9)  # best of the references
    assert super_natural_instructions.score("a dog", first).value == 1
    assert super_natural_instructions.score("  ", first) == Score(0.0, None)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("[1]", "is no JSON object"),
        ('{"Definition": "d"}', "Instances is null"),
        ('{"Definition": "d", "Instances": []}', "is not accepted"),
        ('{"Instances": [{"input": "i", "output": "o"}]}', "Definition is null"),
        ('{"Definition": "d", "Instances": [{"input": "i", "output": "o"}, {"input": "i"}]}', r"Instances[1] is"),
        ('{"Definition": "d", "Instances": [{"input": "i", "output": []}]}', r"Instances[0] is"),
        ('{"Definition": "d", "Instances": [{"input": 3, "output": ["x"]}]}', r"Instances[0] is"),
        ('{"Definition": "d", "Positive Examples": [7], "Instances": [{"input": "i", "output": "o"}]}', "Examples[0] is 7"),
        ('{"Definition": "d",\n "Instances": [', "x.json:2: not JSON"),
    ],
)
def test_bad_task_files_are_refused(tmp_path: Path, document: str, expected: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(document)
    with pytest.raises(InvalidInput) as caught:
        super_natural_instructions.load(task("superNaturalInstructions", path))
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


# HaluEval


def test_halueval_reads_both_forms(shared: Path) -> None:
    folder = shared / "halueval"
    general = halueval.load(task("haluEval", folder / "general_data_shared.jsonl.gz"))
    assert len(by_id(general)) == 1786
    assert sum(item.reference == "Yes" for item in general) == 325
    qa = halueval.load(task("haluEval", folder / "qa_one-turn_data_shared.jsonl"))
    assert len(by_id(qa)) == 500
    assert len({item.cluster for item in qa}) == 250
    assert sum(item.reference == "Yes" for item in qa) == 250
    for limit in (1, 4, 5):
        kept = halueval.load(task("haluEval", folder / "qa_one-turn_data_shared.jsonl", limit=limit))
        assert len(kept) == limit + limit % 2
        assert all([one.cluster for one in kept].count(item.cluster) == 2 for item in kept)  # no pair is cut
    both = halueval.load(task("haluEval", folder, answers="written"))
    assert len(by_id(both)) == 2286
    # One who always says the same is right in 4 of 5, and balanced in half.
    scores = [halueval.score("No.", item) for item in both]
    assert halueval.figures(both, scores) == {"balanced": 0.5}


def test_halueval_scores_and_figures(tmp_path: Path) -> None:
    rows = [{"knowledge": "k", "question": f"q{i}", "right_answer": "r", "hallucinated_answer": "h"} for i in range(3)]
    items = halueval.load(task("haluEval", write(tmp_path / "x.jsonl", rows)))
    # (Yes, No) of the hallucinated and the right answer: told apart; the wrong way round; not told apart.
    said = {1: ((-1, -2), (-2, -1)), 2: ((-3, -1), (-2, -1)), 3: ((-1, -2), (-1, -2))}
    scores = []
    for item in items:
        line = int(item.id.split(":")[1].split()[0])
        scores.append(halueval.score(likelihood(*said[line][item.groups["answer"] == "right"]), item))
    figures = halueval.figures(items, scores)
    assert figures["pick"] == pytest.approx(1.5 / 3)
    assert figures["balanced"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    first = next(i for i, item in enumerate(items) if item.id == "x.jsonl:1 hallucinated")
    assert scores[first].variants["found"] == 1
    assert scores[first].variants["suspicion"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert "believed" not in scores[first].variants


def test_halueval_reads_dialogues_and_summaries(tmp_path: Path) -> None:
    rows = [
        {"knowledge": "k", "dialogue_history": "[Human]: d", "right_response": "r", "hallucinated_response": "h"},
        {"document": "long", "right_summary": "s", "hallucinated_summary": "t"},
    ]
    items = by_id(halueval.load(task("haluEval", write(tmp_path / "x.jsonl", rows))))
    assert {id: (item.groups["kind"], item.reference) for id, item in items.items()} == {
        "x.jsonl:1 right": ("dialogue", "No"),
        "x.jsonl:1 hallucinated": ("dialogue", "Yes"),
        "x.jsonl:2 right": ("summarization", "No"),
        "x.jsonl:2 hallucinated": ("summarization", "Yes"),
    }
    assert "Knowledge: k\n\nDialogue: [Human]: d\n\nAnswer: h\n\n" in text(items["x.jsonl:1 hallucinated"])
    assert "Document: long\n\nAnswer: s\n\n" in text(items["x.jsonl:2 right"])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes", "Yes"),
        ("**No**, it is fine.", "No"),
        ("no. Yes would be wrong", "No"),
        ("I would say yes.", "Yes"),
        ("Either yes or no.", None),
        ("Nothing is known", None),
        ("", None),
    ],
)
def test_halueval_yes_or_no_in_writing(tmp_path: Path, reply: str, said: str | None) -> None:
    row = {"ID": "1", "user_query": "q", "chatgpt_response": "a", "hallucination": "yes", "hallucination_spans": []}
    [only] = halueval.load(task("haluEval", write(tmp_path / "x.jsonl", [row]), answers="written"))
    assert halueval.score(reply, only) == Score(float(said == "Yes"), said, {"found": float(said == "Yes")})


# All


TABLE = "question,A,B,C,D,answer\n"


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "line", "expected"),
    [
        ("ceval", "x_val.csv", TABLE + "q,1,2,3,4,A\nq,1,2,3,4,E\n", 3, "is not accepted"),
        ("ceval", "x_val.csv", TABLE + "q,1,2,3,A\n", 2, "5 fields under a header of 6"),
        ("ceval", "x_test.csv", "id,question,A,B,C,D\n0,q,1,2,3,4\n", 1, "has no column answer"),
        ("cmmlu", "x.csv", ",Question,A,B,C,D,Answer\n0,,1,2,3,4,A\n", 2, "is not accepted"),
        ("cmmlu", "x.csv", ",Question,A,B,C,D,Answer\n", 1, "holds no rows below its header"),
        ("cmmlu", "x.csv", "Question,question,A,B,C,D,Answer\n", 1, "names question twice"),
        ("truthfulqa", "x.csv", HEADER + "A,B,Q,,x,y,z\n", 2, "Best Answer"),
        ("truthfulqa", "x.csv", HEADER + "A,B,Q,x,x,x; ;,z\n", 2, "Incorrect Answers"),
        ("truthfulqa", "x.csv", "Question,Answer\nq,a\n", 1, "has no column Best Answer"),
        ("bbq", "x.jsonl", json.dumps(bbq_row(label=3)) + "\n", 1, "label"),
        ("bbq", "x.jsonl", json.dumps(bbq_row(label=True)) + "\n", 1, "label"),
        ("bbq", "x.jsonl", json.dumps(bbq_row()) + "\n" + json.dumps(bbq_row(context_condition="x")) + "\n", 2, "ambig"),
        ("bbq", "x.jsonl", json.dumps(bbq_row(answer_info={"ans0": ["a"]})) + "\n", 1, "answer_info"),
        ("bbq", "x.jsonl", json.dumps(bbq_row(additional_metadata=None)) + "\n", 1, "additional_metadata"),
        ("bbq", "x.jsonl", '{"context": "\\ud800"}\n', 1, "half of a character ('\\ud800')"),
        ("haluEval", "x.jsonl", '{"question": "q", "right_answer": "r"}\n', 1, "hallucinated_answer"),
        (
            "haluEval",
            "x.jsonl",
            '{"user_query": "q", "chatgpt_response": "r", "hallucination": "maybe"}\n',
            1,
            '"yes" or "no"',
        ),
        ("advBench", "x.csv", "target\nx\n", 1, "has no column goal"),
        ("advBench", "x.csv", "goal,target\nx,y\n ,y\n", 3, "column goal"),
        ("xsTest", "x.csv", "id,prompt,type,label\n1,p,homonyms,harmless\n", 2, "safe or unsafe"),
        ("xsTest", "x.csv", "", 1, "holds no rows"),
    ],
)
def test_bad_rows_are_named_with_their_line(
    tmp_path: Path, benchmark: str, name: str, content: str, line: int, expected: str
) -> None:
    check_refusal(tmp_path / name, benchmark, content, line, expected)


@given(
    reply=st.one_of(
        st.text(max_size=40),
        st.lists(st.floats(), min_size=2, max_size=5).map(json.dumps),
        st.recursive(st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=3)).map(json.dumps),
    )
)
def test_no_reply_breaks_a_score(reply: str) -> None:
    side = json.dumps({"letter": "B", "condition": "ambiguous", "biased": "A", "counter": "B"})
    asked = [{"role": "user", "content": "Q"}]
    for module, reference, choices, groups in (
        (mmlu, "B", (" A", " B", " C", " D"), {}),
        (truthfulqa, '{"true": 1}', (" a.", " b."), {}),
        (bbq, side, (" A", " B", " C"), {"category": "Age"}),
        (halueval, "Yes", (" Yes", " No"), {}),
    ):
        for item in (
            Item("i", asked, reference, choices=choices, groups=groups),
            Item("i", asked, reference, groups=groups),
        ):
            if module is truthfulqa and not item.choices:
                item = Item("i", asked, '{"letter": "A", "choices": 2}')
            score = module.score(reply, item)
            assert 0 <= score.value <= 1
            assert all(0 <= value <= 1 for value in score.variants.values())
            assert score.extracted is not None or score.value == 0


def test_ids_and_texts_do_not_depend_on_how_a_task_is_answered(shared: Path) -> None:
    """Contamination is told by them, before anybody knows how it will be answered."""
    for benchmark, path in (
        ("mmlu", "mmlu/dev"),
        ("ceval", "ceval/dev"),
        ("truthfulqa", "truthfulqa"),
        ("bbq", "bbq/Religion_shared.jsonl.gz"),
        ("haluEval", "halueval/qa_one-turn_data_shared.jsonl"),
    ):
        one, other = (
            BENCHMARKS[benchmark].load(task(benchmark, shared / path, answers=answers))
            for answers in ("likelihood", "written")
        )
        assert [(item.id, item.texts, item.groups) for item in one] == [(item.id, item.texts, item.groups) for item in other]
        assert all(item.choices for item in one)
        assert not any(item.choices for item in other)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A good question. The answer is B.", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A is right.", "A"),
        ("The answer: (C)", "C"),
        ("I think that D fits.", "D"),
        ("a cat", None),
    ],
)
def test_an_article_is_no_choice(reply: str, letter: str | None) -> None:
    assert written_letter(reply, 4) == letter
