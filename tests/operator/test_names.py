"""Names of children: valid, different, always the same."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from plumbline.api import labels
from plumbline_operator import names
from plumbline_operator.builders import build
from plumbline_operator.desired import Access
from support.built import EVERY, PODS, meta, run_spec

RUN_NAME = st.from_regex(re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", re.ASCII), fullmatch=True).filter(
    lambda name: ".." not in name and ".-" not in name and "-." not in name
)
STAGE_NAME = st.from_regex(re.compile(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", re.ASCII), fullmatch=True)


@given(run=RUN_NAME, stage=STAGE_NAME, attempt=st.integers(1, 2**31 - 1))
def test_names_are_dns_labels_that_kuberay_takes(run: str, stage: str, attempt: int) -> None:
    found = [
        names.ray_job(run, stage, attempt),
        names.ray_service(run, stage),
        names.plan_job(run, attempt, attempt),
        names.state(run),
        names.stage_account(run),
        names.network_policy(run),
    ]
    for name in found:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name)


@given(run=RUN_NAME, stages=st.sets(STAGE_NAME, min_size=2, max_size=5), attempts=st.sets(st.integers(1, 120), min_size=1))
def test_names_of_a_run_are_different_and_stay_the_same(run: str, stages: set[str], attempts: set[int]) -> None:
    pairs = [(stage, attempt) for stage in stages for attempt in attempts]
    assert len({names.ray_job(run, *pair) for pair in pairs}) == len(pairs)
    assert [names.ray_job(run, *pair) for pair in pairs] == [names.ray_job(run, *pair) for pair in pairs]
    assert len({names.ray_service(run, stage) for stage in stages}) == len(stages)


@given(run=RUN_NAME)
def test_runs_of_odd_names_are_built(run: str) -> None:
    for desired in [*EVERY, Access()]:
        for value in build(desired, meta(run), run_spec(), PODS):
            assert value["metadata"]["labels"][labels.RUN] == run
            for text in value["metadata"]["labels"].values():
                assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", text)
