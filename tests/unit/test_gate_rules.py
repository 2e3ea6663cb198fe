"""Rules of the gate: metrics, directions, levels, groups, contamination, judges that are not trusted, power."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.api.stages.evaluate import METRICS, EvaluateSpec, GateSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation import statistics
from plumbline.evaluation.benchmarks import BENCHMARKS, QUESTIONS
from plumbline.evaluation.benchmarks.benchmark import Item, Score, user
from plumbline.evaluation.contamination import Exposure
from plumbline.evaluation.gate import RuleResult, Verdict, check_groups, decide
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.results import Sample, conclude
from plumbline.evaluation.task_scores import TaskScores

CLEAN = Exposure(disjoint=True)
Values = Mapping[str, Mapping[str, Sequence[float | None]]]


def task(values: Values, exposure: Exposure | None = CLEAN, **more: Any) -> TaskScores:
    n = len(next(iter(values["score"].values())))
    return TaskScores([f"q{i:04}" for i in range(n)], values, exposure=exposure, **more)


def rule(spec: dict[str, Any], scores: TaskScores, trust: Mapping[str, str] | None = None) -> RuleResult:
    verdict = decide([GateSpec.model_validate({"task": "t"} | spec)], {"t": scores}, "ours", 0.95, trust)
    assert verdict is not None
    [found] = verdict.rules
    return found


def part(ones: int, n: int) -> list[float]:
    return [1.0] * ones + [0.0] * (n - ones)


# What a rule says


def problems(gate: dict[str, Any], benchmark: str = "gsm8k") -> list[tuple[str, str]]:
    tasks = [{"name": "t", "benchmark": benchmark, "uri": "x"}]
    return EvaluateSpec.model_validate({"tasks": tasks, "gates": [{"task": "t"} | gate]}).problems()


def test_rules_of_before_mean_what_they_meant() -> None:
    gate = GateSpec.model_validate({"task": "t", "baseline": "base", "minEffect": 0.1})
    assert (gate.metric, gate.comparison, gate.confidence, gate.contaminated) == ("score", "above", None, "refuse")
    assert problems({"baseline": "base", "minEffect": 0.1}) == problems({"threshold": 1.0}) == []


@pytest.mark.parametrize(
    ("gate", "field", "words"),
    [
        ({"metric": "stric", "threshold": 0.5}, "gates[0].metric", "'stric' is no metric of task 't' (gsm8k); accepted: score, strict, GROUP=VALUE"),
        ({"comparison": "below", "threshold": 0.0}, "gates[0].threshold", "nothing lies below a threshold of 0"),
        ({"metric": "strict"}, "gates[0]", "give either a baseline"),
        ({"baseline": "base", "threshold": 0.5}, "gates[0]", "give either a baseline"),
    ],
)  # fmt: skip
def test_what_a_rule_cannot_say_is_told_with_its_field(gate: dict[str, Any], field: str, words: str) -> None:
    [(where, what)] = problems(gate)
    assert where == field
    assert words in what


@pytest.mark.parametrize("metric", ["score", "strict", "macro", "macro:subject", "subject=anatomy"])
def test_metrics_that_a_benchmark_may_have(metric: str) -> None:
    assert problems({"metric": metric, "threshold": 0.5}) == []
    assert problems({"metric": "biasAmbiguous Age", "threshold": 0.5}, "bbq") == []


def test_metrics_are_those_that_the_benchmarks_tell() -> None:
    told = {
        "gsm8k": BENCHMARKS["gsm8k"].score("The answer is 4. #### 4", Item("q", user("?"), "4")).variants,
        "advBench": BENCHMARKS["advBench"].score("I cannot help with that.", Item("q", user("?"), "unsafe")).variants,
        "skills": BENCHMARKS["skills"].score("4", Item("q", user("?"), "4")).variants,
    }
    for benchmark, variants in told.items():
        assert set(variants) <= set(METRICS[benchmark])
    assert set(METRICS) <= set(QUESTIONS)


# Directions and figures


def test_lower_is_better() -> None:
    scores = task(
        {"score": {"ours": part(100, 400), "base": part(300, 400)}, "harm": {"ours": part(4, 400), "base": part(60, 400)}}
    )
    assert rule({"metric": "harm", "comparison": "below", "threshold": 0.05}, scores).status == "pass"
    assert rule({"metric": "harm", "comparison": "below", "threshold": 0.015}, scores).status == "inconclusive"
    assert rule({"metric": "harm", "comparison": "below", "threshold": 0.001}, scores).status == "fail"
    better = rule({"metric": "harm", "comparison": "below", "baseline": "base", "minEffect": 0.05}, scores)
    assert (better.status, better.limit) == ("pass", -0.05)
    assert better.reason.startswith("t, harm: ours - base = -0.140 [")
    assert better.reason.endswith("on 400 items, all of it below -0.05")
    assert rule({"metric": "harm", "comparison": "below", "baseline": "base", "minEffect": 0.3}, scores).status == "fail"
    assert rule({"metric": "harm", "baseline": "base"}, scores).status == "fail"
    lower = rule({"baseline": "base", "comparison": "below"}, scores)
    assert (lower.status, lower.reason.endswith("all of it below 0")) == ("pass", True)


def test_non_inferiority_of_what_should_be_low() -> None:
    scores = task(
        {"score": {"ours": part(5, 900), "base": part(5, 900)}, "harm": {"ours": part(5, 900), "base": part(5, 900)}}
    )
    spec = {"metric": "harm", "comparison": "below", "baseline": "base"}
    assert rule(spec | {"minEffect": -0.01}, scores).status == "pass"
    undecided = rule(spec | {"minEffect": -0.0001}, scores)
    assert undecided.status == "inconclusive"
    assert undecided.limit == 0.0001


def test_a_metric_counts_the_items_that_it_has() -> None:
    over = [0.0] * 250 + [None] * 200
    scores = task({"score": {"ours": part(400, 450)}, "overRefusal": {"ours": over}})
    found = rule({"metric": "overRefusal", "comparison": "below", "threshold": 0.05}, scores)
    assert found.estimate == statistics.wilson(0, 250, 0.95)
    assert found.status == "pass"


def test_a_rule_has_its_own_level() -> None:
    scores = task({"score": {"ours": part(127, 400), "base": part(120, 400)}})
    of_stage = rule({"baseline": "base"}, scores)
    assert (of_stage.status, of_stage.confidence) == ("pass", 0.95)
    own = rule({"baseline": "base", "confidence": 0.999}, scores)
    assert (own.status, own.confidence) == ("inconclusive", 0.999)


def test_groups_and_macro() -> None:
    subjects = ["anatomy"] * 300 + ["law"] * 100
    scores = task(
        {"score": {"ours": part(300, 400), "base": part(240, 400)}},
        groups={"subject": subjects, "half": ["a", "b"] * 200},
    )
    anatomy = rule({"metric": "subject=anatomy", "threshold": 0.9}, scores)
    assert anatomy.estimate == statistics.wilson(300, 300, 0.95)
    assert anatomy.status == "pass"
    assert rule({"metric": "subject=law", "threshold": 0.1}, scores).status == "fail"
    macro = rule({"metric": "macro", "threshold": 0.4}, scores)
    assert macro.estimate is not None
    assert macro.estimate.value == 0.5
    assert (macro.status, macro.estimate.n) == ("pass", 400)
    assert rule({"metric": "macro:subject", "threshold": 0.4}, scores).estimate == macro.estimate
    assert rule({"metric": "macro:half", "threshold": 0.4}, scores).estimate != macro.estimate
    gain = rule({"metric": "macro", "baseline": "base", "minEffect": 0.05}, scores)
    assert gain.estimate is not None
    assert gain.estimate.value == pytest.approx(0.1)
    assert gain.status == "pass"


@pytest.mark.parametrize("metric", ["strict", "subject=botany", "macro:topic"])
def test_a_metric_that_no_item_has_is_inconclusive_with_those_that_there_are(metric: str) -> None:
    scores = task({"score": {"ours": part(3, 4)}, "loose": {"ours": part(3, 4)}}, groups={"subject": ["law"] * 4})
    found = rule({"metric": metric, "threshold": 0.5}, scores)
    assert found.status == "inconclusive"
    assert "it has score, loose, macro, macro:subject, subject=law" in found.reason


def test_groups_are_checked_before_anything_is_asked() -> None:
    items = {"t": [Item("a", user("?"), "", groups={"subject": "law"}), Item("b", user("?"), "")], "u": []}

    def check(name: str, metric: str) -> None:
        check_groups([GateSpec.model_validate({"task": name, "metric": metric, "threshold": 0.5})], items)

    for metric in ("score", "strict", "macro", "macro:subject", "subject=law"):
        check("t", metric)
    with pytest.raises(InvalidInput, match=r"gates\[0\]\.metric: task 't' has no metric 'subject='; it has macro"):
        check("t", "subject=")
    with pytest.raises(InvalidInput, match="it has no groups"):
        check("u", "macro")


def test_figures_that_are_no_means() -> None:
    ours, base = part(50, 200), part(120, 200)

    def ratio(values: Sequence[float]) -> Any:
        return lambda numbers: {"odds": sum(values[i] for i in numbers) / (1 + sum(1 - values[i] for i in numbers))}

    scores = task({"score": {"ours": ours, "base": base}}, figures={"ours": ratio(ours), "base": ratio(base)})
    alone = rule({"metric": "odds", "comparison": "below", "threshold": 0.6}, scores)
    assert alone.estimate is not None
    assert alone.estimate.value == pytest.approx(50 / 151)
    assert (alone.status, alone.estimate.n) == ("pass", 200)
    gain = rule({"metric": "odds", "comparison": "below", "baseline": "base", "minEffect": 0.2}, scores)
    assert gain.estimate is not None
    assert gain.estimate.value == pytest.approx(50 / 151 - 120 / 81)
    assert gain.status == "pass"
    assert rule({"metric": "odds", "comparison": "below", "baseline": "base", "minEffect": 0.2}, scores) == gain
    assert rule({"metric": "odds", "baseline": "ours"}, scores).status == "fail"


def test_items_of_one_cluster_are_not_independent() -> None:
    # 40 tasks of ten items each, a task all right or all wrong: 26 of 40 are no proof of more than one half.
    values = [float(i // 10 < 26) for i in range(400)]
    names = [f"c{i // 10}" for i in range(400)]
    spec = {"threshold": 0.5}
    assert rule(spec, task({"score": {"ours": values}})).status == "pass"
    clustered = rule(spec, task({"score": {"ours": values}}, clusters=names))
    assert clustered.status == "inconclusive"
    assert clustered.items_needed is not None
    assert clustered.items_needed > 400
    assert clustered.detectable == pytest.approx(10**0.5 * (rule(spec, task({"score": {"ours": values}})).detectable or 0))


# What cannot be believed


def test_only_questions_that_no_source_holds_count() -> None:
    touched = frozenset(f"q{i:04}" for i in range(100))
    values = {"score": {"ours": part(250, 400), "base": part(150, 400)}}
    scores = task(values, Exposure((), touched, frozenset()))
    found = rule({"threshold": 0.55}, scores)
    assert found.estimate == statistics.wilson(150, 300, 0.95)
    assert (found.status, found.basis) == ("inconclusive", "clean subset")
    assert "on 300 items that no training source holds" in found.reason
    accepted = rule({"threshold": 0.55, "contaminated": "accept"}, scores)
    assert accepted.estimate == statistics.wilson(250, 400, 0.95)
    assert (accepted.status, accepted.basis) == ("pass", "accepted")
    assert "on 400 items (proven clean or not), all of it above 0.55" in accepted.reason
    assert rule({"threshold": 0.55}, task(values)).basis == "clean"
    # Questions of another seed, which were not asked, do not count against the task.
    assert rule({"threshold": 0.55}, task(values, Exposure((), frozenset(["elsewhere"])))).basis == "clean"


@pytest.mark.parametrize(
    ("exposure", "why"),
    [
        (None, "nothing is known of the training data"),
        (Exposure(("data", "more")), "nobody compared it with the data of data, more"),
        (Exposure((), frozenset(f"q{i:04}" for i in range(400))), "all 400 questions occurred in training sources"),
    ],
)
@pytest.mark.parametrize("spec", [{"threshold": 0.1}, {"threshold": 0.999}, {"baseline": "base"}])
def test_a_score_that_is_not_proven_clean_decides_nothing(exposure: Exposure | None, why: str, spec: dict[str, Any]) -> None:
    scores = task({"score": {"ours": part(300, 400), "base": part(100, 400)}}, exposure)
    found = rule(spec, scores)
    assert (found.status, found.basis) == ("inconclusive", "not proven")
    assert f"not proven clean: {why}" in found.reason
    assert "set contaminated: accept" in found.reason
    assert found.items_needed is None
    assert rule(spec | {"contaminated": "accept"}, scores).status != "inconclusive"


def test_a_judge_that_is_not_trusted_decides_nothing() -> None:
    scores = task({"score": {"ours": part(390, 400)}})
    assert rule({"threshold": 0.5}, scores, {"other": "bad"}).status == "pass"
    found = rule({"threshold": 0.5}, scores, {"t": "the judge failed its test of positions"})
    assert found.status == "inconclusive"
    assert found.reason.endswith("on 400 items; cannot be gated on: the judge failed its test of positions")


@pytest.mark.parametrize(("missing", "status"), [(0, "pass"), (8, "pass"), (9, "inconclusive"), (400, "inconclusive")])
def test_more_than_two_percent_without_a_score_decide_nothing(missing: int, status: str) -> None:
    ours = [None] * missing + part(400 - missing, 400 - missing)
    found = rule({"baseline": "base"}, task({"score": {"ours": ours, "base": part(0, 400)}}))
    assert found.status == status
    assert (found.estimate.n if found.estimate else 0) == 400 - missing
    if 8 < missing < 400:
        assert f"{missing} of 400 items have no score that could be read, more than 2%" in found.reason


def test_undecided_refusals_decide_nothing() -> None:
    harm, spec = [0.0] * 380 + [None] * 20, {"metric": "harm", "comparison": "below", "threshold": 0.05}
    for undecided, status in ((8, "pass"), (20, "inconclusive")):
        values: Values = {
            "score": {"ours": part(380, 400)},
            "harm": {"ours": harm},
            "undecided": {"ours": part(undecided, 400)},
        }
        assert rule(spec, task(values)).status == status
    assert rule({"metric": "undecided", "comparison": "below", "threshold": 0.2}, task(values)).status == "pass"


def test_a_baseline_that_took_no_part_decides_nothing() -> None:
    found = rule({"baseline": "base"}, task({"score": {"ours": part(3, 4)}}))
    assert (found.status, found.estimate, found.detectable) == ("inconclusive", None, None)
    assert found.reason == "t: ours - base has no value on any item; base has no score on this task"


# Power


def test_the_reason_tells_the_power() -> None:
    found = rule({"baseline": "base", "minEffect": 0.02}, task({"score": {"ours": part(42, 80), "base": part(40, 80)}}))
    assert found.status == "inconclusive"
    assert found.detectable is not None
    assert found.items_for_effect is not None
    difference = statistics.paired_difference(part(42, 80), part(40, 80), 0.95)
    assert found.detectable == statistics.detectable_effect(difference.spread, 80, 0.95)
    assert found.items_for_effect == statistics.items_needed(0.02, difference.spread, 0.95)
    assert f"these 80 show a distance of {found.detectable:.3f}" in found.reason
    assert f"{found.items_for_effect:,} would show one of 0.02 (80 % power)" in found.reason


def test_eighty_items_cannot_show_a_small_gain() -> None:
    """A win rate of one half on 80 items is known to about 11 points."""
    found = rule({"threshold": 0.5}, task({"score": {"ours": part(42, 80)}}))
    assert found.estimate is not None
    assert (found.estimate.high - found.estimate.low) / 2 == pytest.approx(0.107, abs=0.002)
    assert found.status == "inconclusive"


def test_the_effect_that_is_detectable_is_detected_four_times_in_five() -> None:
    rng = random.Random(5)
    n, passed = 200, 0
    effect = statistics.detectable_effect(0.5, n, 0.95)
    for _ in range(300):
        values = [float(rng.random() < 0.5 + effect) for _ in range(n)]
        passed += rule({"threshold": 0.5}, task({"score": {"ours": values}})).status == "pass"
    assert 0.74 < passed / 300 < 0.88


# Whatever the order

scores_of = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=40, max_size=40)


def evaluated(ours: Sequence[float], base: Sequence[float], order: Sequence[int], models: Sequence[str]) -> Verdict:
    samples = []
    for i in order:
        values = {"ours": ours[i], "base": base[i]}
        scores = {name: Score(values[name], "x", {"first": values[name]} if i < 30 else {}) for name in models}
        item = Item(f"q{i}", user("?"), "", groups={"part": "abc"[i % 3]}, cluster=f"c{i // 2}" if i < 20 else "")
        samples.append(Sample("t", item, {name: Reply("x", "stop") for name in models}, scores))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 30)
        results = conclude(
            samples,
            candidate="ours",
            baselines=["base"],
            gates=[GateSpec.model_validate({"task": "t"} | spec) for spec in RULES],
            confidence=0.9,
            exposures={"t": Exposure((), frozenset(["q3", "q7"]))},
            figures={"t": lambda items, scores: {"share": sum(s.value for s in scores) ** 2 / len(scores) ** 2}},
        )
    assert results.verdict is not None
    return results.verdict


RULES: list[dict[str, Any]] = [
    {"baseline": "base"},
    {"threshold": 0.4},
    {"metric": "first", "baseline": "base", "minEffect": -0.1},
    {"metric": "macro", "baseline": "base", "minEffect": -0.2, "confidence": 0.99},
    {"metric": "part=b", "comparison": "below", "threshold": 0.9, "contaminated": "accept"},
    {"metric": "share", "threshold": 0.1},
]


@settings(max_examples=15, deadline=None)
@given(scores_of, scores_of, st.permutations(range(40)), st.permutations(["ours", "base"]))
def test_the_order_of_items_and_models_changes_nothing(
    ours: list[float], base: list[float], order: list[int], models: list[str]
) -> None:
    assert evaluated(ours, base, order, models) == evaluated(ours, base, range(40), ["base", "ours"])


@settings(max_examples=25, deadline=None)
@given(scores_of, scores_of, st.permutations(RULES[:5]))
def test_the_order_of_rules_changes_no_verdict(ours: list[float], base: list[float], rules: list[dict[str, Any]]) -> None:
    scores = task(
        {"score": {"ours": ours, "base": base}, "first": {"ours": ours, "base": base}}, groups={"part": ["a", "b"] * 20}
    )

    def verdict(specs: Sequence[dict[str, Any]]) -> Verdict:
        found = decide([GateSpec.model_validate({"task": "t"} | one) for one in specs], {"t": scores}, "ours", 0.9)
        assert found is not None
        return found

    shuffled, straight = verdict(rules), verdict(RULES[:5])
    assert shuffled.status == straight.status
    assert sorted(one.reason for one in shuffled.rules) == sorted(one.reason for one in straight.rules)


@settings(max_examples=50, deadline=None)
@given(scores_of, scores_of, st.sampled_from([-0.3, -0.05, 0.0, 0.1]), st.booleans())
def test_candidate_and_baseline_exchanged_mirror_the_rule(
    ours: list[float], base: list[float], effect: float, clustered: bool
) -> None:
    names = [f"c{i // 4}" for i in range(40)] if clustered else []
    metrics = ("score", "macro")
    for metric in metrics:
        straight = rule(
            {"baseline": "base", "minEffect": effect, "metric": metric},
            task({"score": {"ours": ours, "base": base}}, clusters=names, groups={"part": ["a", "b"] * 20}),
        )
        exchanged = rule(
            {"baseline": "base", "minEffect": effect, "metric": metric, "comparison": "below"},
            task({"score": {"ours": base, "base": ours}}, clusters=names, groups={"part": ["a", "b"] * 20}),
        )
        assert straight.status == exchanged.status
        assert straight.estimate is not None
        assert exchanged.estimate is not None
        assert (straight.estimate.low, straight.estimate.value) == pytest.approx(
            (-exchanged.estimate.high, -exchanged.estimate.value), abs=1e-12
        )
        assert straight.detectable == pytest.approx(exchanged.detectable)


def test_few_clean_questions_or_a_lost_group_decide_nothing() -> None:
    right = {"score": {"ours": [1.0] * 40 + [0.0] * 60}}
    touched = frozenset(f"i{number:03d}" for number in range(40, 100))
    ids = [f"i{number:03d}" for number in range(100)]
    few = TaskScores(ids, right, exposure=Exposure(touched=touched))
    found = rule({"threshold": 0.5}, few)
    assert (found.status, found.basis) == ("inconclusive", "clean subset")
    assert "only 40 of 100 questions are proven clean" in found.reason
    groups = {"subject": ["law"] * 60 + ["anatomy"] * 40}
    lost = TaskScores(ids, right, groups=groups, exposure=Exposure(touched=frozenset(ids[60:])))
    found = rule({"metric": "macro", "threshold": 0.5}, lost)
    assert found.status == "inconclusive"
    assert "nothing is left of the groups anatomy" in found.reason
