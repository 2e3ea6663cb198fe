"""Text metrics beside a score, and the share of supported facts as a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import supported_facts
from plumbline.evaluation.metrics.likeness import likeness

SOURCE = "The bridge was opened in 1932. It is 1,149 metres long and carries eight lanes. John Bradfield led the work."


def test_each_reply_is_compared_with_its_nearest_reference() -> None:
    same, other, nothing = likeness(
        ["rougeL", "bleu"],
        ["the cat sat on the mat", "a dog ran", ""],
        [["no match", "the cat sat on the mat"], ["the cat sat on the mat"], ["anything"]],
        None,
    )
    assert same == {"rougeL": pytest.approx(1), "bleu": pytest.approx(1)}
    assert other["rougeL"] == 0
    assert 0 <= other["bleu"] < 0.3
    assert nothing["rougeL"] == nothing["bleu"] == 0
    assert likeness(["bleu"], [], [], None) == []


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("The bridge was opened in 1932.", 1.0),
        ("It was opened in 1935.", 0.0),
        ("The bridge opened in 1932. It was designed by Mary Smith in Paris.", 0.5),
        ("It is 1149 metres long.", 1.0),
    ],
)
def test_the_score_is_the_share_of_claims_that_the_source_supports(tmp_path: Path, reply: str, share: float) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Tell me about the bridge.", "source": SOURCE}) + "\n")
    task = TaskSpec(name="facts", benchmark="supportedFacts", uri=str(path))
    (item,) = supported_facts.load(task)
    assert item.prompt[0]["content"] == f"Tell me about the bridge.\n\n{SOURCE}"
    assert supported_facts.score(reply, item).value == share


def test_a_reply_that_states_nothing_is_unparseable_and_rows_need_a_source(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "source": SOURCE}) + "\n")
    task = TaskSpec(name="facts", benchmark="supportedFacts", uri=str(path))
    (item,) = supported_facts.load(task)
    assert supported_facts.score("", item).extracted is None
    path.write_text(json.dumps({"prompt": "p"}) + "\n")
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:1"):
        supported_facts.load(task)


def test_the_contract_asks_for_an_encoder_where_one_is_needed() -> None:
    def problems(**more: object) -> dict[str, str]:
        return dict(TaskSpec.model_validate({"name": "a", "uri": "x", **more}, by_name=False, by_alias=True).problems())

    assert "encoder" in problems(benchmark="promptAnswer", metrics=["bertScore"])
    assert "encoder" in problems(benchmark="promptAnswer", encoder="bert")
    assert problems(benchmark="promptAnswer", metrics=["bertScore", "bleu"], encoder="bert") == {}
    assert "metrics" in problems(benchmark="gsm8k", metrics=["bleu"])
