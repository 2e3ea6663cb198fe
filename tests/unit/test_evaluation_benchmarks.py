"""Benchmarks: items from files, answers from replies, and complaints that name file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import get_args

import pytest

from plumbline.api.stages.evaluate import HARNESS, JUDGED, TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import BENCHMARKS, QUESTIONS, gsm8k, mmlu, prompt_answer, skills
from plumbline.evaluation.benchmarks.benchmark import Item
from support.benchmark_files import check_refusal


def item(reference: str) -> Item:
    return Item("i", [{"role": "user", "content": "?"}], reference)


def task(benchmark: str, uri: Path | None = None, limit: int | None = None, seed: int = 0, **more: object) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "t", "benchmark": benchmark, "uri": str(uri) if uri else None, "limit": limit, "seed": seed, **more}
    )


def write_pairs(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "answer": f"a{i}"}) + "\n" for i in range(count)))
    return path


def test_every_benchmark_of_the_contract_is_registered() -> None:
    assert {*QUESTIONS, HARNESS} == set(get_args(TaskSpec.model_fields["benchmark"].annotation))
    assert set(QUESTIONS) - set(BENCHMARKS) == set(JUDGED)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so she makes $18.", "18"),
        ("a profit of 1,234,567.50 dollars", "1234567.50"),
        ("A: $70,000", "70000"),
        ("it fell to -5", "-5"),
        ("it fell to −5 degrees", "-5"),
        ("-$3", "-3"),
        ("10-8", "8"),
        ("(2+3)-4", "4"),
        ("3,4", "4"),
        ("about .5 of it", ".5"),
        ("#### 42\nThat is 42.", "42"),
        ("no idea", None),
        ("", None),
    ],
)
def test_gsm8k_flexible_extraction(text: str, number: str | None) -> None:
    assert gsm8k.last_number(text) == number


def test_gsm8k_keeps_strict_beside_flexible() -> None:
    loose = gsm8k.score("The answer is $18.00", item("18"))
    assert (loose.value, loose.variants["strict"]) == (1.0, 0.0)
    strict = gsm8k.score("9 * 2 = 18\n#### 18\nI hope this helps, in 5 words.", item("18"))
    assert (strict.value, strict.extracted, strict.variants["strict"]) == (0.0, "5", 1.0)
    none = gsm8k.score("eighteen", item("18"))
    assert (none.value, none.extracted) == (0.0, None)


def test_gsm8k_agrees_with_the_published_judgments(shared: Path) -> None:
    checked = 0
    for line in (shared / "gsm8k" / "example_model_solutions_8.jsonl").read_text().splitlines():
        row = json.loads(line)
        reference = gsm8k.last_number(row["ground_truth"])
        assert reference is not None
        for solver in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            judged = gsm8k.score(row[solver]["solution"], item(reference))
            assert bool(judged.value) == row[solver]["is_correct"], row[solver]["solution"]
            checked += 1
    assert checked == 32


def test_gsm8k_reads_the_real_file(shared: Path) -> None:
    items = gsm8k.load(task("gsm8k", shared / "gsm8k" / "test_shared.jsonl.gz"))
    assert len(items) == 660
    assert len({i.id for i in items}) == 660
    assert all(gsm8k.score(f"#### {i.reference}", i).variants["strict"] == 1 for i in items)


def test_mmlu_reads_the_real_files(shared: Path) -> None:
    items = mmlu.load(task("mmlu", shared / "mmlu" / "dev"))
    assert len(items) == 285
    assert len({i.id for i in items}) == 285
    assert {i.reference for i in items} == set("ABCD")
    anatomy = [i for i in items if i.id.startswith("anatomy_dev.csv:")]
    assert len(anatomy) == 5
    assert "about anatomy." in anatomy[0].prompt[0]["content"]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("**D**.", "D"),
        ("The answer is A.", "A"),
        ("B. Because C is wrong", "B"),
        ("Because of the B-cells: D", "D"),
        ("Apples", None),
        ("b", None),
        ("E", None),
        ("", None),
    ],
)
def test_mmlu_letter(reply: str, letter: str | None) -> None:
    score = mmlu.score(reply, item("D"))
    assert score.extracted == letter
    assert score.value == float(letter == "D")


def test_mmlu_prompt_and_reference(tmp_path: Path) -> None:
    path = tmp_path / "high_school_biology_test.csv"
    path.write_text('"Which, then?",one,two,"three\nlines",four,C\n')
    [only] = mmlu.load(task("mmlu", path))
    assert only.reference == "C"
    assert only.prompt == [
        {
            "role": "user",
            "content": "The following are multiple choice questions (with answers) about high school biology.\n\n"
            "Which, then?\nA. one\nB. two\nC. three\nlines\nD. four\nAnswer:",
        }
    ]
    assert only.choices == (" A", " B", " C", " D")
    [written] = mmlu.load(task("mmlu", path, answers="written"))
    assert written.choices == ()
    assert written.prompt[0]["content"].endswith("Which, then?\nA. one\nB. two\nC. three\nlines\nD. four")
    assert "about high school biology." in written.prompt[0]["content"]
    assert (written.id, written.texts) == (only.id, only.texts)


def test_skills_are_held_out_limited_and_seeded() -> None:
    from plumbline.builtin.skills import tasks

    assert len(skills.load(task("skills"))) == 400
    first = skills.load(task("skills", limit=20, seed=3))
    assert [i.id for i in first] == [t.id for t in tasks(20, split="heldout", seed=3)]
    assert [i.id for i in first] != [i.id for i in skills.load(task("skills", limit=20, seed=4))]
    assert skills.score(f"  {first[0].reference}\n", first[0]).value == 1
    assert skills.score("z z z z z z z z z", first[0]).value == 0
    assert skills.score(" \n", first[0]).extracted is None


def test_prompt_answer_is_exact_up_to_white_space() -> None:
    assert prompt_answer.score(" a  b\n", item("a b")).value == 1
    assert prompt_answer.score("A b", item("a b")).value == 0
    assert prompt_answer.score("  ", item("a b")).extracted is None


def test_limit_takes_a_seeded_choice_with_stable_ids(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", 50)
    everything = {i.id: i for i in prompt_answer.load(task("promptAnswer", path))}
    assert len(everything) == 50
    few = prompt_answer.load(task("promptAnswer", path, limit=7, seed=1))
    assert [i.id for i in few] == [i.id for i in prompt_answer.load(task("promptAnswer", path, limit=7, seed=1))]
    assert [i.id for i in few] != [i.id for i in prompt_answer.load(task("promptAnswer", path, limit=7, seed=2))]
    assert all(everything[i.id] == i for i in few)
    assert everything["pairs.jsonl:3"].reference == "a2"


def test_ids_stay_distinct_across_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_pairs(tmp_path / name / "x.jsonl", 2)
    ids = [i.id for i in prompt_answer.load(task("promptAnswer", tmp_path))]
    assert sorted(ids) == ["a/x.jsonl:1", "a/x.jsonl:2", "b/x.jsonl:1", "b/x.jsonl:2"]


GOOD = '{"prompt": "p", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "line", "expected"),
    [
        ("promptAnswer", "x.jsonl", GOOD + "{oops\n", 2, "not JSON"),
        ("promptAnswer", "x.jsonl", GOOD + "[1]\n", 2, "no JSON object"),
        ("promptAnswer", "x.jsonl", GOOD + "\n" + '{"prompt": "p"}\n', 3, '"answer"'),
        ("promptAnswer", "x.jsonl", '{"prompt": "p", "answer": 3}\n', 1, '"answer"'),
        ("promptAnswer", "x.jsonl", "", 1, "holds no rows"),
        ("gsm8k", "x.jsonl", '{"question": "q", "answer": "18"}\n', 1, "#### NUMBER"),
        ("mmlu", "x.csv", "q,a,b,c,d,A\nq,a,b,c,d,E\n", 2, "six columns"),
        ("mmlu", "x.csv", "q,a,b,c,A\n", 1, "six columns"),
        ("mmlu", "x.csv", "question,A,B,C,D,answer\n", 1, "without a header"),
        ("promptAnswer", "x.jsonl.gz", GOOD, 1, "not compressed"),
    ],
)
def test_bad_files_are_named_with_their_line(
    tmp_path: Path, benchmark: str, name: str, content: str, line: int, expected: str
) -> None:
    check_refusal(tmp_path / name, benchmark, content, line, expected)


def test_undecodable_and_cut_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(GOOD.encode() + b'{"prompt": "caf\xe9", "answer": "a"}\n')
    with pytest.raises(InvalidInput, match=r"latin\.jsonl:2: not JSON"):
        prompt_answer.load(task("promptAnswer", tmp_path / "latin.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD.encode() * 100)[:-12])
    with pytest.raises(InvalidInput, match=r"cut\.jsonl\.gz: the compressed file is cut short"):
        prompt_answer.load(task("promptAnswer", tmp_path / "cut.jsonl.gz"))
    (tmp_path / "latin.csv").write_bytes(b"q,a,b,c,d,A\nq\xe9,a,b,c,d,A\n")
    with pytest.raises(InvalidInput, match=r"latin\.csv:\d+: not CSV in UTF-8"):
        mmlu.load(task("mmlu", tmp_path / "latin.csv"))


@pytest.mark.slow
def test_too_many_skills_are_refused() -> None:
    with pytest.raises(InvalidInput, match="task 't': limit 25000 is too high"):
        skills.load(task("skills", limit=25000))
