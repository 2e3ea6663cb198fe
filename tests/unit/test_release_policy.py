"""Releases without Ray: figures, guards, who gets the new model, the policy's steps, the record and its controller."""

from __future__ import annotations

import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline import local_endpoint
from plumbline.api.report import Rollback
from plumbline.api.run import AlignmentRun
from plumbline.api.stages.release import ReleaseJudgeSpec, ReleaseSpec, ShadowSpec
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan, make_plan
from plumbline.serving.chat import ServedModel
from plumbline.serving.release import policy
from plumbline.serving.release.controller import Controller, ReleaseArguments, Report, State
from plumbline.serving.release.figures import Figures, Window, bin_of
from plumbline.serving.release.guards import breach, doubt
from plumbline.serving.release.record import Record, Records, Version
from plumbline.serving.release.routing import chosen

RULES = ReleaseSpec(hold_seconds=10, min_requests=50, shadow=ShadowSpec(percent=10, min_requests=40))


def version(letter: str, name: str = "m") -> Version:
    """A version of a model whose artifact is not looked for."""
    model = asdict(ServedModel(name, ModelReference(TINY), 64))
    model["reference"]["fingerprint"] = letter * 20
    model["reference"] |= {"workspace": "memory://", "kind": "sft"}
    return Version(fingerprint=letter, model=model)


A, B, C = version("a"), version("b"), version("c")


def answers(n: int, tokens: int = 20, refusals: int = 0, seconds: float = 0.1, errors: int = 0) -> Figures:
    """Of two lengths and latencies, in turns."""
    told = n - errors
    half, rest = told // 2, told - told // 2
    latencies = {bin_of(seconds): rest} | ({bin_of(seconds * 1.2): half} if half else {})
    return Figures(
        requests=n,
        errors=errors,
        refusals=refusals,
        tokens=float(tokens * rest + (tokens + 2) * half),
        squares=float(tokens**2 * rest + (tokens + 2) ** 2 * half),
        latencies=latencies,
    )


def record(**changes: Any) -> Record:
    return policy.begin(None, A, None, "h", 0.0).model_copy(update=changes)


def releasing(rules: ReleaseSpec | None = RULES) -> Record:
    return policy.propose(record(), B, rules, 0.0)


def test_figures_add_up_and_tell_quantiles() -> None:
    half = [answers(100), answers(100, tokens=40, seconds=1.0)]
    both = half[0] + half[1]
    assert both.requests == both.answers == 200
    assert both.mean_tokens == pytest.approx(31)
    assert both.latency(0.5) == pytest.approx(0.12, rel=0.06)
    assert both.latency(0.95) == pytest.approx(1.2, rel=0.06)
    assert both.slower_than(0.5) == 100
    tokens = [20, 22] * 50 + [40, 42] * 50
    variance = sum((t - 31) ** 2 for t in tokens) / 199 / 200
    assert both.variance_of_mean_tokens == pytest.approx(variance)
    assert Figures.model_validate_json(both.model_dump_json()) == both


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (answers(200, errors=20), "errors: 10.0 % against 0.0 % before"),
        (answers(200, refusals=100), "refusals: 50.0 % against 0.0 % before"),
        (answers(200, tokens=60), r"longer answers: 61.0 tokens in the mean against 21.0 before"),
        (answers(200, tokens=4), r"shorter answers: 5.0 tokens"),
        (answers(200, seconds=0.4), r"latency: 0.486 s at the 95th percentile against 0.1"),
        (answers(12, errors=12), "errors: each of its 12 requests failed"),
    ],
)
def test_each_guard_trips(candidate: Figures, words: str) -> None:
    window = Window(stable=answers(500), candidate=candidate)
    assert re.match(words, breach(window, RULES) or "")


def test_a_judge_who_prefers_the_model_before_rolls_back_and_one_without_verdicts_holds() -> None:
    judge = ReleaseJudgeSpec(endpoint="http://judge/v1", model="wise", min_verdicts=30, min_win_rate=0.4)
    judged = RULES.model_copy(update={"judge": judge})
    shadow = policy.loaded(releasing(judged), 0.0)

    def look(wins: float, verdicts: int) -> Record:
        told = answers(100).model_copy(update={"judged": verdicts, "wins": wins})
        return policy.advance(shadow, Window(stable=answers(500), candidate=told), 20.0)

    assert look(0, 0).phase == look(10, 20).phase == "shadow"
    assert look(15, 30).phase == "canary"
    assert look(9, 30).phase == "canary"  # 30 %: chance may be why
    assert look(14, 60).phase == "shadow"  # in doubt
    few = judge.model_copy(update={"min_verdicts": 10})
    shadow = policy.loaded(releasing(RULES.model_copy(update={"judge": few})), 0.0)
    assert look(0, 10).phase == "shadow"  # the guard looks at as few verdicts as end the step
    shadow = policy.loaded(releasing(judged), 0.0)
    assert look(6, 60).reason == "judge: 10.0 % wins, ties as half, of 60 verdicts"


def test_guards_leave_an_equal_model_and_small_samples_alone() -> None:
    assert breach(Window(stable=answers(500), candidate=answers(300)), RULES) is None
    assert doubt(Window(stable=answers(500), candidate=answers(300)), RULES) is None
    assert breach(Window(stable=answers(500), candidate=answers(19, refusals=19)), RULES) is None
    few = Window(stable=answers(500), candidate=answers(60, errors=3))  # 5 %, and chance might be why
    assert breach(few, RULES) is None
    assert doubt(few, RULES) is not None


def test_chance_alone_seldom_trips_a_guard_though_they_look_at_every_request() -> None:
    draw = random.Random(0)

    def one() -> Figures:
        if draw.random() < 0.01:
            return Figures.of_error()
        return Figures.of_answer(int(draw.lognormvariate(4, 0.8)), draw.random() < 0.05, draw.lognormvariate(-1, 0.6))

    tripped = 0
    for _ in range(20):
        window = Window()
        for i in range(300):
            window += Window(stable=one(), candidate=one())
            if i % 5 == 0 and breach(window, RULES):
                tripped += 1
                break
    assert tripped == 0


@given(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100), st.text())
def test_who_has_the_new_model_keeps_it_while_the_share_grows(caller: str, one: float, other: float, salt: str) -> None:
    if chosen(caller, min(one, other), salt):
        assert chosen(caller, max(one, other), salt)
    assert chosen(caller, 100, salt)
    assert not chosen(caller, 0, salt)


def test_shares_are_what_they_say_and_differ_from_release_to_release() -> None:
    callers = [f"key-{i}" for i in range(4000)]
    first = {caller for caller in callers if chosen(caller, 25, "b")}
    second = {caller for caller in callers if chosen(caller, 25, "c")}
    assert len(first) == pytest.approx(1000, abs=110)
    assert len(first & second) == pytest.approx(250, abs=75)


def test_a_good_model_goes_through_every_step() -> None:
    state = policy.loaded(releasing(), 1.0)
    path = [(state.phase, state.percent)]
    good = Window(stable=answers(400), candidate=answers(60))
    for now in range(2, 200):
        state = policy.advance(state, good, float(now))
        if (state.phase, state.percent) != path[-1]:
            path.append((state.phase, state.percent))
    assert path == [("shadow", 0), ("canary", 5), ("canary", 25), ("full", 0)]
    assert (state.stable, state.previous, state.candidate) == (B, A, None)
    assert state.reason == "every guard held"


counts = st.integers(0, 400)
figures = st.builds(
    lambda n, errors, refusals, tokens, seconds: answers(
        n, errors=min(errors, n), refusals=min(refusals, n - min(errors, n)), tokens=tokens, seconds=seconds
    ),
    counts,
    counts,
    counts,
    st.integers(1, 200),
    st.floats(0.001, 10),
)
rules = st.builds(
    ReleaseSpec,
    steps=st.lists(st.integers(1, 100), min_size=1, max_size=5),
    shadow=st.builds(ShadowSpec, percent=st.integers(0, 100), min_requests=st.integers(1, 200)),
    hold_seconds=st.integers(0, 50),
    min_requests=st.integers(1, 200),
)
looks = st.lists(st.tuples(st.builds(lambda s, c: Window(stable=s, candidate=c), figures, figures), st.integers(0, 60)))


@settings(deadline=None, max_examples=150)
@given(rules, looks)
def test_no_step_is_skipped_or_taken_early_and_every_breach_rolls_back(rules: ReleaseSpec, looks: list[Any]) -> None:
    now, state = 0.0, policy.loaded(releasing(rules), 0.0)
    order = [0, *policy.steps(rules)]
    for window, seconds in looks:
        now += seconds
        before, state = state, policy.advance(state, window, now)
        if not before.releasing:
            assert state == before
        elif breach(window, rules):
            assert (state.phase, state.stable) == ("rolledBack", A)
            assert "b" in state.refused
        elif state.since != before.since or state.phase != before.phase:
            assert now - before.since >= rules.hold_seconds
            assert window.candidate.requests >= (
                rules.shadow.min_requests if before.phase == "shadow" else rules.min_requests
            )
            at = order.index(before.percent)
            assert state.phase == "full" if at + 1 == len(order) else state.percent == order[at + 1]
    enough = Window(stable=answers(1000), candidate=answers(1000))
    for _ in range(len(order) + 1):  # with good figures it always ends
        now += 60
        state = policy.advance(state, enough, now)
    assert state.phase in ("full", "rolledBack")
    assert len(state.history) <= 50


def test_without_rules_the_new_model_takes_over_once_it_is_loaded() -> None:
    state = policy.loaded(releasing(None), 1.0)
    assert (state.phase, state.stable, state.previous) == ("full", B, A)
    limit = A.model_copy(update={"fingerprint": "a2"})  # the same model, with another limit
    assert policy.loaded(policy.propose(record(), limit, RULES, 0.0), 1.0).stable == limit


def test_what_was_rolled_back_stays_so_until_it_is_asked_for() -> None:
    bad = policy.roll_back(policy.loaded(releasing(), 1.0), "latency", 2.0)
    for again in (policy.begin(bad, B, RULES, "h2", 3.0), policy.begin(bad, B, None, "h2", 3.0)):
        assert (again.phase, again.stable, again.reason) == ("rolledBack", A, "latency")
    assert policy.propose(bad, C, RULES, 3.0).phase == "loading"
    wanted = policy.obey(bad, Rollback.make("b"), 4.0)
    assert (wanted.phase, wanted.candidate, wanted.refused) == ("loading", B, {})
    assert policy.loaded(wanted, 5.0).stable == B


def test_rolling_back_by_hand_at_every_stage_of_a_release() -> None:
    asked = Rollback.make(None)
    for state in (releasing(), policy.loaded(releasing(), 1.0)):
        back = policy.obey(state, asked, 2.0)
        assert (back.phase, back.stable, back.refused) == ("rolledBack", A, {"b": "by hand"})
    full = policy.loaded(releasing(None), 1.0)
    back = policy.loaded(policy.obey(full, asked, 2.0), 3.0)
    assert (back.phase, back.stable, back.previous, back.refused) == ("full", A, B, {"b": "by hand"})
    again = policy.begin(back, B, RULES, "h", 4.0)
    assert (again.phase, again.stable) == ("rolledBack", A)
    assert again.words() == "b was rolled back, a serves (by hand)"
    only = policy.obey(record(), asked, 1.0)
    assert (only.phase, only.stable, only.obeyed) == ("full", A, asked.id)


def asked(second: int) -> Rollback:
    return Rollback(id=f"{second:010}.000-00000000")


def test_asking_twice_for_a_rollback_means_the_same() -> None:
    full = policy.loaded(releasing(None), 1.0)
    on_its_way = policy.obey(full, asked(2), 2.0)
    twice = policy.obey(on_its_way, asked(3), 3.0)
    assert (twice.phase, twice.candidate, twice.refused) == ("loading", A, {"b": "by hand"})
    back = policy.loaded(twice, 4.0)
    assert policy.obey(back, asked(5), 5.0).stable == A  # and not B again
    unable = policy.obey(policy.not_loaded(on_its_way, "no room", 3.0), asked(4), 4.0)
    assert (unable.phase, unable.candidate) == ("loading", A)


def test_a_rollback_that_a_guard_was_faster_than_touches_nothing_that_serves() -> None:
    promoted = policy.loaded(releasing(None), 1.0)
    bad = policy.roll_back(policy.propose(promoted, C, RULES, 2.0), "latency", 3.0)
    after = policy.obey(bad, asked(4), 4.0)
    assert (after.phase, after.stable, after.refused) == ("rolledBack", B, {"c": "latency"})


class Store:
    """A controller on a folder, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 1000.0
        self.records = Records(str(folder), "run", "live")

    def arguments(self, version: Version, rules: ReleaseSpec | None = RULES, holder: str = "one") -> str:
        made = ReleaseArguments(
            workspace=str(self.folder), run="run", stage="live", version=version, rules=rules, holder=holder
        )
        return made.model_dump_json(by_alias=True)

    def controller(self, version: Version, restarted: bool = False, serving: bool = True, **fields: Any) -> Controller:
        """Of an application whose replica `r` has loaded what was stable."""
        made = Controller(self.arguments(version, **fields), restarted, lambda: self.now)
        if serving and not restarted:
            tell(made, about=None, loaded=frozenset({made.state().stable.fingerprint}))
        return made

    def found(self) -> Record:
        found = self.records.read()
        assert found is not None
        return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    from plumbline.serving.release import controller

    monkeypatch.setattr(controller, "_is_there", lambda version: version.fingerprint != "gone")
    return Store(tmp_path)


def tell(controller: Controller, window: Window | None = None, replica: str = "r", **fields: Any) -> State:
    fields = {"about": "b", "loaded": frozenset("ab"), **fields}
    return controller.report(Report(replica, window=window or Window(), **fields))


def test_a_release_through_its_controller(store: Store) -> None:
    assert store.controller(A).state().phase == "full"
    controller = store.controller(B)
    assert controller.state().phase == "loading"
    assert tell(controller, loaded=frozenset("a"), replica="slow").phase == "loading"
    assert tell(controller).phase == "loading"  # not everywhere yet
    state = tell(controller, replica="slow")
    assert (state.phase, state.shadow_percent) == ("shadow", 10)
    good = Window(stable=answers(100), candidate=answers(30))
    assert tell(controller, good).phase == "shadow"
    store.now += 11
    assert tell(controller, good).percent == 5  # 60 of 40, from two reports
    assert store.found().phase == "canary"
    worse = Window(stable=answers(100), candidate=answers(50, refusals=50))
    assert tell(controller, worse, about="other").phase == "canary"  # about what was before
    assert tell(controller, worse).phase == "rolledBack"
    found = store.found()
    assert found.reason.startswith("refusals: 100.0 %")
    assert found.window.candidate.refusals == 50
    assert [line.phase for line in found.history] == ["full", "loading", "shadow", "canary", "rolledBack"]


def test_a_controller_that_was_killed_goes_on_where_the_record_is(store: Store) -> None:
    store.controller(A)
    first = store.controller(B)
    tell(first)
    store.now += 11
    tell(first, Window(stable=answers(100), candidate=answers(60)))
    again = store.controller(B, restarted=True)
    assert (again.state().phase, again.state().percent) == ("canary", 5)
    first.propose(C.model_dump_json(by_alias=True), None)
    assert store.controller(B, restarted=True).state().candidate == C  # in place: the actor's own arguments are older


def test_a_release_resumes_in_a_new_application_and_the_old_one_keeps_still(store: Store) -> None:
    store.controller(A)
    old = store.controller(B, holder="one")
    tell(old)
    new = store.controller(B, holder="two")
    assert new.state().phase == "shadow"
    store.now += 11
    assert tell(old, Window(stable=answers(100), candidate=answers(60))).phase == "shadow"
    assert store.found().holder == "two"
    assert tell(new, Window(stable=answers(100), candidate=answers(60))).phase == "canary"
    assert store.controller(B, restarted=True, holder="one").state().phase == "canary"


def test_an_application_that_never_serves_leaves_record_and_charge_to_the_one_before(store: Store) -> None:
    store.controller(A)
    old = store.controller(B, holder="one")
    before = store.found()
    for rules in (RULES, None):
        assert store.controller(C, serving=False, holder="two", rules=rules).state().phase in ("loading", "full")
    assert store.found() == before
    assert tell(old).phase == "shadow"
    assert store.controller(C, restarted=True, holder="two").state().stable == A  # killed before it served
    assert store.found().holder == "one"
    later = store.controller(C, holder="three", rules=None)
    assert (later.state().stable, store.found().previous) == (C, A)
    assert tell(old).phase == "shadow"  # from here on it keeps still


def test_what_was_released_while_a_new_application_came_up_counts(store: Store) -> None:
    store.controller(A)
    old = store.controller(B, rules=None, holder="one")
    new = store.controller(B, serving=False, rules=None, holder="two")
    assert new.state().stable == B
    store.records.ask(None)
    store.now += 3
    assert tell(old, loaded=frozenset("a")).stable == A
    assert tell(new, replica="new").stable == A


def test_a_candidate_that_takes_its_replicas_with_it_is_rolled_back(store: Store) -> None:
    store.controller(A)
    controller = store.controller(B)
    assert tell(controller).phase == "shadow"
    state = controller.state()
    for i in range(3):
        assert (state.phase, state.replicas) == ("shadow", 1)
        store.now += 31
        tell(controller, replica=f"next {i}")  # the one before is silent
        store.now += 11
        state = tell(controller, replica=f"next {i}")
    assert (state.phase, state.stable) == ("rolledBack", A)
    assert store.found().refused == {"b": "3 replicas died in this step"}


def test_replicas_that_say_good_bye_or_were_not_heard_for_a_while_have_not_died(store: Store) -> None:
    store.controller(A)
    controller = store.controller(B)
    assert tell(controller).phase == "shadow"
    for i in range(5):
        tell(controller, replica=f"scaled down {i}")
        controller.left(f"scaled down {i}")
    assert controller.state().replicas == 1
    for _ in range(5):
        store.now += 60  # the controller stood still: their reports come one after the other
        for i in range(5):
            assert tell(controller, replica=f"busy {i}").phase == "shadow"
        store.now += 1
        for i in range(5):
            tell(controller, replica=f"busy {i}")
    store.now += 60
    assert tell(controller, replica="busy 0").phase == "shadow"


def test_a_request_for_a_rollback_is_obeyed_once(store: Store) -> None:
    store.controller(A)
    controller = store.controller(B)
    tell(controller)
    store.records.ask(None)
    store.now += 3
    assert tell(controller).phase == "rolledBack"
    assert controller.propose(C.model_dump_json(by_alias=True), None).phase == "loading"
    store.now += 3
    assert tell(controller, about="c", loaded=frozenset("abc")).stable == C


def test_a_model_that_cannot_be_loaded_is_told_and_may_be_tried_again(store: Store) -> None:
    store.controller(A)
    controller = store.controller(B)
    assert tell(controller, loaded=frozenset("a"), failed={"b": "no space"}).words.endswith(
        "(it cannot be loaded: no space)"
    )
    assert store.controller(B).state().phase == "loading"


def test_what_cannot_be_written_has_not_happened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.controller(A)
    controller = store.controller(B)

    def full(self: Records, record: Record) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", full)
        assert tell(controller).phase == "loading"
    assert tell(controller).phase == "shadow"


def test_a_stable_model_that_is_gone_is_no_reason_not_to_serve(store: Store) -> None:
    store.controller(version("gone").model_copy(update={"fingerprint": "gone"}))
    assert store.controller(B).state().stable == B


def test_a_record_that_cannot_be_read_is_an_error_for_people(store: Store) -> None:
    store.controller(A)
    path = store.folder / "releases" / "run" / "live.json"
    path.write_text(path.read_text().replace('"phase": "full"', '"phase": "half"'))
    with pytest.raises(InvalidInput, match=r"live\.json is no release record of this version \(phase: .*; delete it"):
        store.controller(B)


def test_an_endpoint_takes_another_model_in_place_where_nothing_else_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_endpoint, "answers", lambda record: True)
    before = plan(modelName="ours", release={"steps": [5]})
    record = {"serve": before.graph["live"].spec.model_dump(mode="json", by_alias=True), "update": {"id": "", "error": None}}
    assert local_endpoint.can_take(record, plan(modelName="theirs", maxTokens=9, release={"steps": [50]}), "live")
    assert not local_endpoint.can_take(record, plan(replicas=2), "live")
    assert not local_endpoint.can_take(record, plan(port=8999), "live")
    del record["update"]  # of an endpoint that an older version started
    assert not local_endpoint.can_take(record, before, "live")


def test_an_endpoint_serves_what_is_wanted_only_if_its_release_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_endpoint, "answers", lambda record: True)
    wanted = plan()
    serve, print_ = wanted.graph["live"].spec.model_dump(mode="json", by_alias=True), wanted.fingerprints["live"]
    new, records = A.model_copy(update={"fingerprint": print_}), Records(wanted.workspace_uri, wanted.name, "live")
    on_its_way = policy.propose(record(stable=B), new, None, 0.0)
    for state, serves in (
        (on_its_way, True),
        (policy.loaded(on_its_way, 1.0), True),
        (policy.not_loaded(on_its_way, "no room", 1.0), False),  # not refused, and not served
        (policy.roll_back(on_its_way, "latency", 1.0), False),
    ):
        records.write(state)
        assert local_endpoint.serves({"fingerprint": print_, "serve": serve}, wanted, "live") is serves


def plan(**serve: Any) -> Plan:
    spec = {
        "model": {"base": TINY},
        "workspace": {"uri": "here"},
        "stages": [{"name": "live", "serve": {"ungated": True, **serve}}],
    }
    value = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "r"}, "spec": spec}
    return make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))
