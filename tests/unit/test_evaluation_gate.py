"""The gate: pass, fail or inconclusive, with a reason that carries the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from plumbline.api.stages.evaluate import GateSpec
from plumbline.evaluation.contamination import Exposure
from plumbline.evaluation.gate import Verdict, decide
from plumbline.evaluation.task_scores import TaskScores


def scores(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def judge(gates: list[dict[str, Any]], candidate: list[float], base: list[float], confidence: float = 0.95) -> Verdict:
    rules = [GateSpec.model_validate({"task": "skills", **gate}) for gate in gates]
    items = [f"q{i:04}" for i in range(len(candidate))]
    task = TaskScores(items, {"score": {"align": candidate, "base": base}}, exposure=Exposure(disjoint=True))
    verdict = decide(rules, {"skills": task}, "align", confidence)
    assert verdict is not None
    return verdict


BASELINE = {"baseline": "base"}


def test_no_rules_no_verdict() -> None:
    assert decide([], {"skills": TaskScores(["q"], {"score": {"align": [1.0]}})}, "align", 0.95) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [(200, 120, "pass"), (124, 120, "inconclusive"), (120, 200, "fail"), (125, 124, "inconclusive")],
)
def test_paired_rule(ours: int, theirs: int, status: str) -> None:
    assert judge([BASELINE], scores(ours, 400), scores(theirs, 400)).status == status


def test_reason_names_task_models_numbers_and_items() -> None:
    [rule] = judge([BASELINE], scores(124, 400), scores(120, 400)).rules
    assert rule.reason.startswith("skills: align - base = 0.010 [")
    assert "on 400 items" in rule.reason
    assert rule.items_needed is not None
    assert f"about {rule.items_needed:,} items would tell" in rule.reason
    assert rule.items_needed > 400


def test_the_items_it_asks_for_do_decide() -> None:
    """An effect of the observed size on that many items lies clear of the limit."""
    first = judge([BASELINE], scores(124, 400), scores(120, 400)).rules[0]
    assert first.items_needed is not None
    factor = -(-first.items_needed // 400)
    assert judge([BASELINE], scores(124 * factor, 400 * factor), scores(120 * factor, 400 * factor)).status == "pass"


def test_min_effect_must_be_exceeded_by_the_whole_interval() -> None:
    ours, theirs = scores(200, 400), scores(120, 400)  # +0.200 [0.160, 0.238]
    assert judge([BASELINE | {"minEffect": 0.1}], ours, theirs).status == "pass"
    assert judge([BASELINE | {"minEffect": 0.18}], ours, theirs).status == "inconclusive"
    assert judge([BASELINE | {"minEffect": 0.3}], ours, theirs).status == "fail"


def test_non_inferiority() -> None:
    same = scores(200, 400)
    assert judge([BASELINE | {"minEffect": -0.02}], same, same).status == "pass"
    few = scores(1, 2)
    assert judge([BASELINE | {"minEffect": -0.02}], few, few).status == "inconclusive"


def test_equal_scores_are_no_improvement_and_no_proof_of_none() -> None:
    [rule] = judge([BASELINE], scores(200, 400), scores(200, 400)).rules
    assert rule.status == "inconclusive"
    assert rule.items_needed is None
    assert "however many items" in rule.reason


def test_the_candidate_as_its_own_baseline_is_decided_exactly() -> None:
    values = scores(1, 2)
    assert judge([{"baseline": "align"}], values, values).status == "fail"
    assert judge([{"baseline": "align", "minEffect": -0.02}], values, values).status == "pass"


@pytest.mark.parametrize(("right", "status"), [(360, "pass"), (330, "inconclusive"), (280, "fail")])
def test_threshold_rule(right: int, status: str) -> None:
    verdict = judge([{"threshold": 0.8}], scores(right, 400), scores(0, 400))
    assert verdict.status == status
    assert (verdict.rules[0].items_needed is not None) == (status == "inconclusive")


def test_a_perfect_score_on_few_items_does_not_pass_a_high_threshold() -> None:
    verdict = judge([{"threshold": 0.95}], scores(5, 5), scores(0, 5))
    assert verdict.status == "inconclusive"
    assert verdict.rules[0].items_needed is not None


@pytest.mark.parametrize(
    ("gates", "status"),
    [
        ([{"threshold": 0.2}, {"threshold": 0.9}, {"threshold": 0.5}], "fail"),
        ([{"threshold": 0.2}, {"threshold": 0.5}], "inconclusive"),
        ([{"threshold": 0.2}, {"threshold": 0.1}], "pass"),
    ],
)
def test_the_worst_rule_decides(gates: list[dict[str, Any]], status: str) -> None:
    verdict = judge(gates, scores(200, 400), scores(0, 400))
    assert verdict.status == status
    deciding = [rule for rule in verdict.rules if rule.status == status]
    assert verdict.reason == "; ".join(rule.reason for rule in deciding)


def test_same_inputs_same_verdict_and_the_level_matters() -> None:
    ours, theirs = scores(127, 400), scores(120, 400)
    assert judge([BASELINE], ours, theirs) == judge([BASELINE], ours, theirs)
    assert judge([BASELINE], ours, theirs, 0.9).status == "pass"
    assert judge([BASELINE], ours, theirs, 0.999).status == "inconclusive"
