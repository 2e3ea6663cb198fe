"""`plumbline score`: stored outputs of models in the benchmarks' formats, and files that are not what they should be."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.cli import main
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import BENCHMARKS
from plumbline.evaluation.benchmarks import humaneval as humaneval_task
from plumbline.evaluation.benchmarks import ifeval as ifeval_task
from plumbline.evaluation.benchmarks.benchmark import Score
from plumbline.evaluation.client import Question
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.questions import Questions
from plumbline.evaluation.scoring import humaneval
from plumbline.evaluation.scoring.humaneval import Problem, pass_at_k, program, score_humaneval
from plumbline.evaluation.scoring.ifeval import clustered
from plumbline.evaluation.scoring.mmlu import score_mmlu
from plumbline.evaluation.scoring.records import read_records
from plumbline.models.reference import ModelReference
from plumbline.sandbox import supported
from plumbline.serving.evaluation import Evaluated
from plumbline.stages import evaluate

isolated = pytest.mark.skipif(supported() is not None, reason=f"this host cannot isolate programs: {supported()}")


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    assert main(["score", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["models"]  # type: ignore[no-any-return]


def values(model: Any) -> dict[str, float]:
    return {name: metric["value"] for name, metric in model["metrics"].items()}


# GSM8K


def test_gsm8k_agrees_with_every_stored_flag(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = run(capsys, "gsm8k", str(shared / "gsm8k/example_model_solutions_8.jsonl"))
    assert [one["model"] for one in models] == ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    for one in models:
        assert [sample["value"] for sample in one["samples"]] == [float(sample["stored"]) for sample in one["samples"]]
        assert [sample["variants"]["strict"] for sample in one["samples"]] == [float(s["stored"]) for s in one["samples"]]
        assert one["counts"]["stored flags that strict agrees with"] == one["counts"]["stored flags"] == 8
    assert [values(one)["strict"] for one in models] == [0, 0.25, 0.125, 0.375]


def test_gsm8k_strict_and_flexible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = write(
        tmp_path / "outputs.jsonl",
        {"question": "a", "answer": "…\n#### 1,200", "response": "so #### $1200."},
        {"question": "b", "answer": "#### 18", "output": "The answer is 18.0"},
        {"question": "c", "answer": 5, "completion": "I do not know"},
        {"question": "d", "answer": "#### 7", "response": "#### 7 and then 9"},
        {"question": "e", "answer": "#### 7", "response": None},
    )
    (model,) = run(capsys, "gsm8k", outputs)
    assert [one["value"] for one in model["samples"]] == [1, 1, 0, 0, 0]
    assert [one["variants"]["strict"] for one in model["samples"]] == [1, 0, 0, 1, 0]
    assert [one["reason"] for one in model["samples"]] == ["", "", "no number in it", "9 instead of 7", "no number in it"]
    assert model["counts"] == {"no number": 2, "no number after the marker": 3}


def test_gsm8k_takes_answers_from_the_benchmarks_file(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = read_records(str(shared / "gsm8k/test_shared.jsonl.gz"), "problems")
    asked = [{"question": one.value["question"], "response": one.value["answer"]} for one in problems[:20]]
    outputs = write(tmp_path / "outputs.jsonl", *asked, {"question": "another", "response": "3"})
    (model,) = run(capsys, "gsm8k", outputs, "--problems", str(shared / "gsm8k/test_shared.jsonl.gz"))
    assert values(model) == {"flexible": 1.0, "strict": 1.0}
    assert model["metrics"]["flexible"]["n"] == 20
    assert model["counts"]["outputs without a problem, not scored"] == 1
    assert model["counts"]["problems without an output, not scored"] == 640


def test_gsm8k_samples_of_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = write(
        tmp_path / "samples.jsonl",
        {"doc_id": 3, "doc": {"question": "a", "answer": "#### 4"}, "resps": [["2 + 2 = 4\n#### 4"]]},
    )
    (model,) = run(capsys, "gsm8k", outputs)
    assert (values(model), model["samples"][0]["id"]) == ({"flexible": 1.0, "strict": 1.0}, "3")


# HumanEval


@pytest.mark.parametrize(("n", "passed", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (5, 3, 3), (6, 6, 2), (7, 0, 4)])
def test_pass_at_k_is_the_share_of_all_draws(n: int, passed: int, k: int) -> None:
    samples = [1] * passed + [0] * (n - passed)
    draws = [max(draw) for draw in itertools.combinations(samples, k)]
    assert pass_at_k(n, passed, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_of_too_few_samples_is_refused() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="within 1…n"):
        pass_at_k(5, 2, 10)


SQUARE = Problem(
    "import math\n\n\ndef square(x):\n    '''x times x'''\n",
    "square",
    "def check(candidate):\n    assert candidate(3) == 9\n",
)
WHOLE = "from math import prod\n\ndef square(x):\n    return prod([x, x])\n"


@pytest.mark.parametrize(
    "completion",
    [
        "    return x * x\n",
        "    y = x\n    return helper(y)\n\ndef helper(y):\n    return y * y",
        f"Sure, here it is:\n```python\n{WHOLE}```\nIt multiplies.",
        f"First install it:\n```sh\npip install nothing\n```\n```py\n{WHOLE}",
        f"- a list:\n  ```python\n{textwrap.indent(WHOLE, '  ')}  ```\n",
        WHOLE,
        "```\n    return x * x\n```",
        "```python\ny = x\nreturn x * y\n```",
        "~~~python\nasync_ = x\nreturn async_ * x\n~~~",
    ],
)
def test_code_is_taken_out_of_an_answer(completion: str) -> None:
    source = program(SQUARE, completion)
    names: dict[str, Any] = {}
    exec(compile(source, "<test>", "exec"), names)
    assert names["square"](4) == 16


def test_a_definition_keeps_what_stands_before_the_prompts_own() -> None:
    problem = Problem("def twice(x):\n    return 2 * x\n\ndef four(x):\n    ", "four", "")
    assert "return 2 * x" in program(problem, "```python\ndef four(x):\n    return twice(twice(x))\n```")


def test_what_does_not_compile_goes_on_after_the_prompt() -> None:
    assert program(SQUARE, "    return (") == SQUARE.prompt + "    return ("
    assert program(SQUARE, "```\n" + "(" * 60_000) == SQUARE.prompt + "(" * 60_000


@isolated
def test_humanevals_own_example(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "humaneval"
    (model,) = run(
        capsys,
        "humaneval",
        str(folder / "example_samples.jsonl"),
        "--problems",
        str(folder / "example_problem.jsonl"),
        "--timeout",
        "2",
    )
    assert values(model) == {"pass@1": 0.5}
    assert [sample["value"] for sample in model["samples"]] == [0, 0, 0, 1, 1, 1]
    assert "not done in 2 s" in model["samples"][1]["reason"]


@isolated
def test_humaneval_counts_samples_and_tells_progress(tmp_path: Path) -> None:
    problem = {"task_id": "t/0", "prompt": SQUARE.prompt, "entry_point": "square", "test": SQUARE.test}
    other = {**problem, "task_id": "t/1"}
    problems = write(tmp_path / "problems.jsonl", problem, other, {**problem, "task_id": "t/2"})
    right, wrong = "    return x * x", "    return 8"
    samples = [{"task_id": "t/0", "completion": right if n < 2 else wrong} for n in range(12)]
    samples += [{"task_id": "t/1", "completion": wrong, "passed": False} for _ in range(10)]
    outputs = write(tmp_path / "samples.jsonl", *samples, {"task_id": "t/9", "completion": right})
    told: list[tuple[int, int]] = []
    (found,) = score_humaneval(
        outputs, problems, seconds=20.0, progress=lambda done, programs: told.append((done, programs))
    )
    assert told == [(1, 2), (2, 2)]  # equal programs against equal tests run once
    assert found.metrics["pass@1"].value == pytest.approx(1 / 12)  # mean of 2/12 and 0
    assert found.metrics["pass@10"].value == pytest.approx((1 - 1 / 66) / 2)  # C(10, 10)/C(12, 10) of one miss all
    assert "pass@100" not in found.metrics
    assert found.counts["outputs without a problem, not scored"] == 1
    assert found.counts["problems without an output, not scored"] == 1
    assert found.counts["stored flags that agree"] == 10
    assert "AssertionError" in found.samples[-1].reason


def test_no_k_above_the_fewest_samples_of_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "supported", lambda: None)
    monkeypatch.setattr(humaneval, "failure", lambda *_: "")
    problem = {"prompt": SQUARE.prompt, "entry_point": "square", "test": SQUARE.test}
    samples = [{**problem, "task_id": f"t/{n % 2}", "completion": "    return 9"} for n in range(20)]
    assert list(score_humaneval(write(tmp_path / "ten.jsonl", *samples))[0].metrics) == ["pass@1", "pass@10"]
    assert list(score_humaneval(write(tmp_path / "nine.jsonl", *samples[1:]))[0].metrics) == ["pass@1"]


@isolated
def test_what_a_program_does_is_its_own_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"task_id": "t", "prompt": SQUARE.prompt, "entry_point": "square", "test": SQUARE.test}
    bodies = [
        "    import os\n    os._exit(0)",
        "    return \ud800",
        None,
        "    raise SystemExit(0)",
        "    x" + "(" * 300,
        "\x00",
    ]
    outputs = write(tmp_path / "samples.jsonl", *({**problem, "completion": body} for body in bodies))
    (model,) = run(capsys, "humaneval", outputs, "--timeout", "20")
    assert values(model) == {"pass@1": 0.0}
    assert all(sample["reason"] for sample in model["samples"])


def test_humaneval_needs_a_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(humaneval, "supported", lambda: "no Landlock")
    outputs = write(tmp_path / "samples.jsonl", {"task_id": "t", "completion": "    return 1"})
    assert main(["score", "humaneval", outputs]) == 2
    assert "--allow-unsandboxed" in capsys.readouterr().err


# IFEval


def test_ifeval_agrees_with_every_stored_flag(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "ifeval"
    (model,) = run(
        capsys,
        "ifeval",
        str(folder / "eval_results_strict_example.jsonl"),
        "--problems",
        str(folder / "input_data_shared.jsonl"),
    )
    assert all(sample["variants"]["strict"] == sample["stored"] for sample in model["samples"])
    assert model["counts"]["stored flags that strict agrees with"] == model["counts"]["stored flags"] == 9
    assert values(model)["prompt-level strict"] == pytest.approx(5 / 6)
    assert values(model)["instruction-level strict"] == pytest.approx(8 / 9)


def test_every_prompt_of_ifeval_is_understood(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = shared / "ifeval/input_data_shared.jsonl"
    prompts = [json.loads(line)["prompt"] for line in problems.read_text().splitlines()]
    outputs = write(tmp_path / "empty.jsonl", *({"prompt": prompt, "response": ""} for prompt in prompts))
    (model,) = run(capsys, "ifeval", outputs, "--problems", str(problems))
    assert (model["counts"]["prompts"], model["counts"]["empty replies"], len(model["groups"])) == (271, 271, 25)
    assert set(values(model).values()) == {0.0}


def test_ifeval_loose_and_instruction_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["startend:quotation", "punctuation:no_comma"]
    given = {"instruction_id_list": kinds, "kwargs": [{"num_words": None}, {}]}  # some copies fill up with nulls
    outputs = write(
        tmp_path / "replies.jsonl",
        {"prompt": "a", "response": 'Sure:\n"quoted"', **given},
        {"prompt": "b", "response": '"quoted"', **given},
        {"prompt": "c", "response": "no, not at all", **given},
    )
    (model,) = run(capsys, "ifeval", outputs)
    assert list(values(model).values()) == pytest.approx([1 / 3, 1 / 2, 2 / 3, 2 / 3])
    assert model["samples"][0]["reason"] == "not followed: startend:quotation"
    assert model["groups"]["startend:quotation"]["value"] == pytest.approx(1 / 3)


def test_instructions_of_one_prompt_are_one_cluster() -> None:
    apart, together = clustered([[True], [False]] * 20), clustered([[True, True], [False, False]] * 20)
    assert apart.value == together.value == 0.5
    assert together.high - together.low == pytest.approx(apart.high - apart.low)  # twice the instructions tell no more
    assert clustered([[True, True]] * 3).low < 1.0


# MMLU


def test_mmlu_micro_and_macro(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = write(
        tmp_path / "outputs.jsonl",
        {"subject": "anatomy", "answer": "B", "loglikelihoods": [-3.0, -1.0, -2.0, -9.0]},
        {"subject": "anatomy", "answer": 0, "loglikelihoods": {"A": -1, "B": -2, "C": -3, "D": -4}},
        {"subject": "anatomy", "answer": "C", "response": "C. because"},
        {"subject": "virology", "answer": "A", "response": "The answer is D"},
    )
    (model,) = run(capsys, "mmlu", outputs)
    assert values(model) == {"micro": 0.75, "macro": 0.5}
    assert {name: group["value"] for name, group in model["groups"].items()} == {"anatomy": 1.0, "virology": 0.0}


def test_mmlu_equal_likelihoods_are_no_choice(tmp_path: Path) -> None:
    outputs = write(
        tmp_path / "outputs.jsonl",
        {"subject": "a", "answer": "A", "loglikelihoods": [-1, -1, -1, -1]},
        {"subject": "a", "answer": "A", "loglikelihoods": [float("nan"), -1, -1, -2]},
        {"subject": "a", "answer": "A", "loglikelihoods": [-1, -2]},
    )
    (found,) = score_mmlu(outputs)
    assert (found.metrics["micro"].value, found.counts["no choice"]) == (0.0, 3)
    assert found.samples[0].reason == "A and B and C and D are equally likely: no choice"


def test_mmlu_samples_of_the_harness(tmp_path: Path) -> None:
    doc = {"question": "q", "subject": "college_physics", "choices": ["a", "b", "c", "d"], "answer": 2}
    likely = [["-4.5", "False"], ["-2.5", "False"], ["-1.5", "True"], ["-3.5", "False"]]
    outputs = write(tmp_path / "samples.jsonl", {"doc_id": 0, "doc": doc, "target": "2", "filtered_resps": likely})
    (found,) = score_mmlu(outputs)
    assert (found.metrics["micro"].value, list(found.groups)) == (1.0, ["college physics"])


def test_mmlu_takes_letters_from_the_benchmarks_files(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "Which of the following best describes the structure that collects urine in the body?"
    outputs = write(
        tmp_path / "outputs.jsonl",
        {"subject": "anatomy", "question": question, "response": "A"},
        {"subject": "anatomy", "question": "another", "response": "A"},
    )
    (model,) = run(capsys, "mmlu", outputs, "--problems", str(shared / "mmlu/test_shared/anatomy_test.csv"))
    assert (values(model)["micro"], model["metrics"]["micro"]["n"]) == (1.0, 1)
    assert model["counts"]["outputs without a problem, not scored"] == 1


# Wrong input

GOOD = {"question": "q", "answer": "#### 1", "response": "1"}


@pytest.mark.parametrize(
    ("benchmark", "content", "words"),
    [
        ("gsm8k", "", "holds no records"),
        ("gsm8k", "[]", "holds no records"),
        ("gsm8k", "3\n", "is no JSON object"),
        ("gsm8k", json.dumps(GOOD) + '\n{"question": "q2", "ans', "line 2: not JSON"),
        ("gsm8k", json.dumps(GOOD) + '\n{"question": "q2", "ans', "the last line is cut short"),
        ("gsm8k", f"{json.dumps(GOOD)}\n" * 2, "stands a second time (first:"),
        ("gsm8k", '{"question": "q", "answer": NaN, "response": "1"}', "has no answer with a number"),
        ("gsm8k", '{"question": "q", "answer": "#### 1"}', "has no output of a model"),
        ("gsm8k", '{"question": "q", "answer": "#### 1", "response": 1}', "expected text"),
        ("gsm8k", '{"\\ud800": "q"}', "has no answer"),
        ("gsm8k", "[" * 100_000, "not JSON"),
        ("humaneval", '{"completion": "x", "prompt": "p", "entry_point": "f", "test": "t"}', "has no field 'task_id'"),
        ("humaneval", '{"task_id": "t", "completion": "x"}', "--problems"),
        ("ifeval", '{"prompt": "p", "response": "r"}', "--problems"),
        (
            "ifeval",
            '{"prompt": "p", "response": "r", "instruction_id_list": ["es:punctuation:question_marks"], "kwargs": [{}]}',
            "is not one of the 25",
        ),
        (
            "ifeval",
            '{"prompt": "p", "response": "r", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "x"}]}',
            "'keywords' of keywords:existence is \"x\"; expected a list of texts",
        ),
        (
            "ifeval",
            '{"prompt": "p", "response": "r", "instruction_id_list": [], "kwargs": []}',
            "no two lists of one length",
        ),
        ("mmlu", '{"answer": "A", "response": "A"}', "has no subject"),
        ("mmlu", '{"subject": "a", "answer": "E", "response": "A"}', "expected A, B, C, D or 0 to 3"),
        ("mmlu", '{"subject": "a", "answer": "A"}', "neither log-likelihoods nor an output"),
    ],
)
def test_what_is_wrong_is_said(
    benchmark: str,
    content: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(humaneval, "supported", lambda: None)
    (tmp_path / "outputs.jsonl").write_text(content)
    assert main(["score", benchmark, str(tmp_path / "outputs.jsonl")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_files_of_every_wrapping(tmp_path: Path) -> None:
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    with fsspec.open(str(tmp_path / "packed.json.gz"), "wb", compression="gzip") as stream:
        stream.write(json.dumps([GOOD]).encode())
    (tmp_path / "pretty.json").write_text(json.dumps(GOOD, indent=1))
    (tmp_path / "table.csv").write_text('question,answer,response\nq,#### 1,"1\n2"\n')
    for name in ("bom.jsonl", "packed.json.gz", "pretty.json"):
        assert [one.value for one in read_records(str(tmp_path / name), "…")] == [GOOD]
    assert read_records(str(tmp_path / "table.csv"), "…")[0].value["response"] == "1\n2"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json.gz", b"{}", "not compressed as its name says"),
        ("x.json.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", "cut short or damaged"),
        ("x.zip", b"{}", "cannot be unpacked"),
        ("x.jsonl", b'{"a": 1}\n\xff\n', "line 2: not UTF-8"),
        ("x.csv", b"a,b\n1\n", "1 fields under a header of 2"),
        ("x.csv", b"a,a\n1,2\n", "stands twice"),
        ("x.csv", b'a,b\n"1,2\n', "not CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=words) as caught:
        read_records(str(tmp_path / name), "records")
    assert name in str(caught.value)


def test_a_file_without_permission_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "x.jsonl", GOOD)
    monkeypatch.setattr(fsspec, "open", refuse)
    with pytest.raises(InvalidInput, match="Permission denied"):
        read_records(str(tmp_path / "x.jsonl"), "records")


# The same benchmarks as tasks of an `evaluate` stage


def task(benchmark: str, uri: Path) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", "benchmark": benchmark, "uri": str(uri)})


def test_ifeval_as_a_task(shared: Path) -> None:
    items = ifeval_task.load(task("ifeval", shared / "ifeval/input_data_shared.jsonl"))
    assert len({item.id for item in items}) == 271
    quoted = next(item for item in items if json.loads(item.reference) == [["startend:quotation", {}]])
    assert quoted.prompt[0]["content"] == quoted.texts[0]
    assert ifeval_task.score('"yes"', quoted) == Score(1.0, '"yes"', {"loose": 1.0})
    assert ifeval_task.score('Here:\n"yes"', quoted) == Score(0.0, 'Here:\n"yes"', {"loose": 1.0})
    assert ifeval_task.score(" ", quoted) == Score(0.0, None, {"loose": 0.0})


@isolated
def test_humaneval_as_a_task(shared: Path) -> None:
    items = humaneval_task.load(task("humaneval", shared / "humaneval/HumanEval_shared.jsonl"))
    assert len(items) == 83
    item = items[0]
    assert humaneval_task.score(f"Here:\n```python\n{item.code}```", item).value == 1.0
    wrong = humaneval_task.score("```python\nraise SystemExit(0)\n```", item)
    assert (wrong.value, "SystemExit" in (wrong.extracted or "")) == (0.0, True)
    assert humaneval_task.score("", item) == Score(0.0, None)
    right = f"```python\n{item.code}```"
    several = humaneval_task.score_samples(["", right, "pass", right], item, [1, 2, 4])
    assert (several.value, several.extracted) == (0.5, humaneval_task.score(right, item).extracted)
    assert several.variants == {"pass@2": pytest.approx(1 - 1 / 6), "pass@4": 1.0}


@isolated
def test_humaneval_with_several_samples_in_a_stage(tmp_path: Path) -> None:
    """From the questions to the score: of four replies of each model two pass."""
    problem = {
        "task_id": "t", "prompt": "def one():\n", "entry_point": "one", "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f() == 1\n",
    }  # fmt: skip
    write(tmp_path / "x.jsonl", problem)
    spec = task("humaneval", tmp_path / "x.jsonl").model_copy(update={"samples": 4, "k": [1, 2], "temperature": 1.0})
    questions = Questions.of(spec, ["ours", "base"], "tasks[0]")
    models = {name: Evaluated(name, f"f-{name}", ModelReference("b"), None) for name in ("ours", "base")}

    def ask(asked: Sequence[Question]) -> list[Reply]:
        assert len({(one.fingerprint, one.sampling.seed) for one in asked}) == 8
        return [Reply(f"def one():\n    return {1 + number % 2}", "stop") for number in range(len(asked))]

    replies = evaluate.answers([spec], 0.0, {spec.name: questions}, models, ask)
    sample = evaluate._sample(spec, questions.items[0], replies[spec.name], None)
    assert {name: (score.value, score.variants) for name, score in sample.scores.items()} == dict.fromkeys(
        ("ours", "base"), (0.5, {"pass@2": pytest.approx(1 - 1 / 6)})
    )
    assert sample.replies["ours"].text.count("--- next sample ---") == 3


def test_humaneval_as_a_task_needs_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval_task, "supported", lambda: "no Landlock")
    with pytest.raises(InvalidInput, match=r"cannot isolate them \(no Landlock\)"):
        humaneval_task.require_isolation()


@pytest.mark.parametrize(
    ("benchmark", "row", "words"),
    [
        ("ifeval", {"prompt": "p"}, "two lists of one length"),
        ("ifeval", {"prompt": 1}, "x.jsonl:1"),
        ("ifeval", {"prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{}]}, "line 1: instruction"),
        ("humaneval", {"prompt": "p", "entry_point": "f", "test": "t"}, "x.jsonl:1"),
    ],
)
def test_rows_of_other_files_are_refused(benchmark: str, row: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", row)
    with pytest.raises(InvalidInput, match=words):
        BENCHMARKS[benchmark].load(task(benchmark, tmp_path / "x.jsonl"))
