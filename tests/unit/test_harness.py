"""Tasks of lm-evaluation-harness: what a folder of tasks may hold, what is refused, and what becomes of replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.api.stages.evaluate import EvaluateSpec, TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation import harness
from plumbline.evaluation.benchmarks.benchmark import Score
from plumbline.evaluation.client import TOO_LONG, Question
from plumbline.evaluation.harness.folder import plain_tasks
from plumbline.evaluation.harness.rows import Asked, answered, metrics_of
from plumbline.evaluation.journal import Reply
from support.harness import ITEMS, write_tasks

pytest.importorskip("lm_eval", reason="needs the extra `harness`")

WHERE = "tasks[0]"


def spec(folder: Path, name: str, **more: Any) -> TaskSpec:
    values = {"name": "own", "benchmark": "lmEvaluationHarness", "harnessTask": name, "includePath": str(folder), **more}
    return TaskSpec.model_validate(values, by_name=False, by_alias=True)


def likes(colour: str) -> Any:
    """A model whose likeliest colour is this one, and which writes 5 and then goes on."""

    def ask(questions: Sequence[Question]) -> list[Reply]:
        return [_reply(question, colour) for question in questions]

    return ask


def _reply(question: Question, colour: str) -> Reply:
    if not question.choices:
        return Reply(" 5 b 7", "stop")
    values: list[Any] = [-1.0 if choice == f" {colour}" else -2.0 for choice in question.choices]
    return Reply(json.dumps([[value, value == -1.0] for value in values] if question.greedy else values), "stop")


def test_items_are_scored_by_the_metrics_of_the_harness(tmp_path: Path) -> None:
    found = harness.load(spec(write_tasks(tmp_path / "t"), "own"), WHERE)
    assert [item.id for item in found.items] == [f"{name}:{i}" for name in ("colours", "last") for i in range(ITEMS)]
    samples, remarks = found.samples({"ours": "f"}, 0.0, likes("red"))
    assert [sample.item.id for sample in samples] == [item.id for item in found.items]
    assert [sample.scores["ours"].value for sample in samples] == [float(i % 3 == 0) for i in range(ITEMS)] * 2
    first, second = samples[0], samples[1]
    assert first.item.groups == {"task": "colours"}
    assert first.item.prompt[0]["content"].endswith("Question: test 0: which colour has number 0?\nAnswer:")
    assert (first.item.reference, second.item.reference) == ("red", "green")
    assert (first.replies["ours"].text, first.scores["ours"].extracted) == (" red", "red")
    assert set(first.scores["ours"].variants) == {"acc_norm"}
    assert samples[ITEMS].replies["ours"].text == " red (log-likelihood -1.00, what greedy sampling writes)"
    assert samples[ITEMS + 1].replies["ours"].text == " green (log-likelihood -2.00, not what greedy sampling writes)"
    assert any("perplexity of last" in words for words in remarks)


def test_every_model_is_shown_the_same_examples(tmp_path: Path) -> None:
    asked: dict[str, list[Any]] = {}

    def ask(questions: Sequence[Question]) -> list[Reply]:
        asked[questions[0].model] = [question.messages for question in questions]
        return [_reply(question, "red") for question in questions]

    harness.load(spec(write_tasks(tmp_path / "t"), "colours", limit=5), WHERE).samples({"ours": "f", "base": "g"}, 0.0, ask)
    assert asked["ours"] == asked["base"]
    assert len(asked["ours"]) == 5


@pytest.mark.parametrize(
    ("given", "value", "variants"),
    [
        ({}, 0.0, {"exact_match,flexible": 1.0}),
        ({"harnessMetric": "exact_match"}, 0.0, {"exact_match,flexible": 1.0}),
        ({"harnessMetric": "exact_match,flexible"}, 1.0, {"exact_match,strict": 0.0}),
    ],
)
def test_a_filter_makes_a_metric_of_its_own(
    given: dict[str, Any], value: float, variants: dict[str, float], tmp_path: Path
) -> None:
    found = harness.load(spec(write_tasks(tmp_path / "t"), "sums", **given), WHERE)
    samples, _ = found.samples({"ours": "f"}, 0.0, likes("red"))
    score = samples[1].scores["ours"]  # 1 + 4; the reply ends before its b
    assert (score.value, score.variants) == (value, variants)
    assert score.extracted == ("5" if value else None)


def test_written_answers_are_asked_for_in_a_chat_or_as_plain_text(tmp_path: Path) -> None:
    asked: list[Question] = []

    def ask(questions: Sequence[Question]) -> list[Reply]:
        asked.append(questions[0])
        return [Reply("x", "stop")] * len(questions)

    folder = write_tasks(tmp_path / "t")
    for chat in (True, False):
        load = harness.load(spec(folder, "sums", chatTemplate=chat, shots=1, maxTokens=8), WHERE)
        _, remarks = load.samples({"ours": "f"}, 0.7, ask)
        assert any("answers of up to 16 tokens; maxTokens cuts them at 8" in words for words in remarks)
    chat, plain = asked
    assert ([turn["role"] for turn in chat.messages], chat.plain) == (["user", "assistant", "user"], False)
    assert (len(plain.messages), plain.plain) == (1, True)
    assert (chat.sampling.temperature, chat.sampling.max_tokens) == (0.0, 8)  # the task is greedy
    assert chat.sampling.stop == ("Question:", "a", "b", "c")  # four, as chats take; the fifth ends the answer here


def test_what_does_not_fit_scores_nothing(tmp_path: Path) -> None:
    found = harness.load(spec(write_tasks(tmp_path / "t"), "colours"), WHERE)
    samples, _ = found.samples({"ours": "f"}, 0.0, lambda questions: [Reply("", TOO_LONG)] * len(questions))
    scores = [sample.scores["ours"] for sample in samples]
    assert all((score.value, score.extracted, score.variants) == (0.0, None, {"acc_norm": 0.0}) for score in scores)


def test_an_endpoint_that_fails_is_no_fault_of_the_task(tmp_path: Path) -> None:
    def ask(questions: Sequence[Question]) -> list[Reply]:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        harness.load(spec(write_tasks(tmp_path / "t"), "colours"), WHERE).samples({"ours": "f"}, 0.0, ask)


def log(filter: str, number: int, **metrics: Any) -> dict[str, Any]:
    """A row of a written answer, as the harness logs it."""
    return {
        "filter": filter, "doc_id": number, "metrics": list(metrics), "target": "x", "arguments": [("q", {})],
        "filtered_resps": ["x"], **metrics,
    }  # fmt: skip


def test_items_that_a_metric_leaves_out_have_no_score_of_it() -> None:
    rows = [log("none", 0, exact=1, answerable=1.0), log("none", 1, exact=0)]
    metrics, left_out = metrics_of([*rows, log("none", 2, exact=1, pair=(1, 2), much=7.0)])
    assert (metrics, left_out) == (["exact", "answerable"], ["pair", "much"])
    replies = {place: [Reply("x", "stop")] for place in range(2)}
    by_exact, by_answerable = (
        [one.scores.get("ours") for one in answered({"ours": Asked(rows, replies, False, 0)}, main, metrics)]
        for main in ("exact", "answerable")
    )
    assert by_exact == [Score(1.0, "x", {"answerable": 1.0}), Score(0.0, "x", {})]
    assert by_answerable == [Score(1.0, "x", {"exact": 1.0}), None]


def test_a_score_is_a_share_of_which_more_is_better(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t")
    for wanted, words in (("perplexity", "is no value of 0 to 1 of each item"), ("f1", "is no metric of it")):
        found = harness.load(spec(folder, "last", harnessMetric=wanted), WHERE)
        with pytest.raises(
            InvalidInput, match=f"harnessMetric: task 'last': '{wanted}' {words}; what can be its score: acc$"
        ):
            found.samples({"ours": "f"}, 0.0, likes("red"))


def change(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"doc_to_text": "{{ question.__class__.__mro__ }}"}, "access to attribute '__class__'"),
        ({"output_type": "loglikelihood_rolling"}, "tells perplexities"),
        ({"unsafe_code": True}, "asks for code from elsewhere"),
        ({"use_prompt": "promptsource:x"}, "asks for code from elsewhere"),
        ({"metric_list": [{"metric": "rouge", "hf_evaluate": True}]}, "asks for code from elsewhere"),
        ({"metric_list": [{"metric": "no_such", "aggregation": "mean", "higher_is_better": True}]}, "fetched as programs"),
        ({"metric_list": [{"metric": "/tmp/metric.py"}]}, "asks for code from elsewhere"),
        ({"metric_list": [{"metric": "./metric"}]}, "asks for code from elsewhere"),
        ({"dataset_path": "pandas"}, "reads its data as 'pandas'; accepted: json, csv"),
        ({"dataset_path": "/srv/data"}, "reads its data as '/srv/data'; accepted: json, csv"),
        ({"dataset_path": "../data/x"}, "reads its data as '../data/x'; accepted: json, csv"),
        ({"dataset_kwargs": {"data_dir": "/srv/data"}}, "lies outside of the folder"),
        ({"dataset_kwargs": {"data_files": {"test": "../../x.jsonl"}}}, "lies outside of the folder"),
        ({"dataset_kwargs": {"data_files": "https://host/x.jsonl"}}, "lies outside of the folder"),
        ({"include": "../other.yaml"}, "include other files of the folder"),
        ({"include": "colours.yaml"}, "none that includes this one"),
        ({"include": "no.yaml"}, "includes 'no.yaml', which is not there"),
        ({"doc_to_text": "{{ no_such_field }}"}, "'no_such_field' is undefined"),
        ({"num_fewshot": 0}, "made to be asked without examples; leave shots out"),
    ],
)
def test_what_a_folder_may_not_hold(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = change(write_tasks(tmp_path / "t"), "colours", **fields)
    with pytest.raises(InvalidInput, match=words) as caught:
        harness.load(spec(folder, "colours", shots=2), WHERE)
    assert str(caught.value).startswith(WHERE)


def test_functions_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t")
    (folder / "colours.yaml").write_text("include: _base\ntask: colours\nprocess_docs: !function code.run\n")
    (folder / "code.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(InvalidInput, match=r"tasks\[0\]\.includePath: colours\.yaml cannot be read: .*!function"):
        harness.load(spec(folder, "colours"), WHERE)


def test_a_task_that_a_group_defines_is_held_to_the_same(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t")
    (folder / "own.yaml").write_text("group: own\ntask: [{task: colours, dataset_path: pandas}]\n")
    with pytest.raises(InvalidInput, match="reads its data as 'pandas'"):
        harness.load(spec(folder, "own"), WHERE)


def test_folders_without_tasks(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    for uri, words in ((tmp_path, "holds no YAML file"), (tmp_path / "x", "is no folder"), (tmp_path / "y", "is no folder")):
        with pytest.raises(InvalidInput, match=words), plain_tasks(str(uri), WHERE):
            pass


def test_a_folder_in_a_store_is_read_like_a_local_one(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(f"{write_tasks(tmp_path / 't')}/", "/harness-tasks/", recursive=True)
    found = harness.load(spec(Path("x"), "colours", includePath="memory://harness-tasks"), WHERE)
    assert len(found.items) == ITEMS


def test_an_unknown_task_is_told_with_those_near_it(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"tasks\[0\]\.harnessTask: the folder .* has no task, group or tag 'colourz'; near it: colours"
    ):
        harness.load(spec(write_tasks(tmp_path / "t"), "colourz"), WHERE)


def test_the_contract_says_what_goes_with_it() -> None:
    def problems(**task: Any) -> dict[str, str]:
        stage = {"tasks": [{"name": "t", **task}]}
        return dict(EvaluateSpec.model_validate(stage, by_name=False, by_alias=True).problems())

    own = {"benchmark": "lmEvaluationHarness", "harnessTask": "hellaswag"}
    assert problems(**own, shots=3, limit=5, harnessMetric="acc_norm", includePath="x", chatTemplate=False) == {}
    assert "tasks[0].harnessTask" in problems(benchmark="lmEvaluationHarness")
    assert "tasks[0].uri" in problems(**own, uri="x")
    for field, value in {"harnessTask": "x", "includePath": "x", "harnessMetric": "x", "chatTemplate": False}.items():
        assert f"tasks[0].{field}" in problems(**{"benchmark": "skills", field: value})
    stage = {"tasks": [{"name": "t", **own, "includePath": "x"}]}
    assert EvaluateSpec.model_validate(stage, by_name=False, by_alias=True).external_uris() == {"tasks[0].includePath": "x"}
