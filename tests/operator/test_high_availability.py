"""Two replicas: one leads, and the other takes over."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from support import chart
from support.fake_kuberay.behaviours import crash, succeed
from support.installation import Installation
from support.operator_process import Operator
from support.project import DATA, SFT, Project, pipeline
from support.rest import LEASES

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def pair(installation: Installation) -> Iterator[Installation]:
    with installation.replica():
        yield installation


def _holder(pair: Installation) -> str:
    lease = pair.get(LEASES, chart.NAMESPACE, "plumbline") or {}
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _leader(pair: Installation) -> Operator | None:
    holder = _holder(pair)
    return next((one for one in pair.operators if one.name in holder), None)


def _leads_alone(pair: Installation) -> Operator | None:
    """The leader, where every replica says of itself whether it is that."""
    leader = _leader(pair)
    told = [list(one.metrics("plumbline_leader").values()) for one in pair.operators]
    return leader if told == [[one is leader] for one in pair.operators] else None


def _takes_over(pair: Installation, project: Project, end: str) -> None:
    go = threading.Event()
    project.fake.script(project.name, "data", succeed(until=go))
    project.fake.script(project.name, "sft", crash(1))
    project.apply(pipeline(DATA, SFT))
    project.wait_stage("data", "Running")
    first = project.wait(lambda: _leads_alone(pair))
    standby = next(one for one in pair.operators if one is not first)
    project.wait(lambda: (standby.probe("/healthz"), standby.probe("/readyz")) == (200, 200))
    first.kill() if end == "killed" else first.stop()
    go.set()
    project.wait(lambda: _leader(pair) is standby)
    project.wait_condition("Complete")
    assert [project.fake.attempts(project.name, stage) for stage in ("data", "sft")] == [[1], [1, 2]]
    first.start()


def test_a_stopped_leader(pair: Installation) -> None:
    with pair.project() as project:
        _takes_over(pair, project, "stopped")


def test_a_killed_leader(pair: Installation) -> None:
    with pair.project() as project:
        _takes_over(pair, project, "killed")


def test_a_leader_that_cannot_renew(pair: Installation) -> None:
    """It stops writing before the other one may begin."""
    with pair.project() as project:
        go = threading.Event()
        project.fake.script(project.name, "data", succeed(until=go))
        project.apply(pipeline(DATA))
        project.wait_stage("data", "Running")
        first = project.wait(lambda: _leader(pair))
        lease = pair.get(LEASES, chart.NAMESPACE, "plumbline")
        assert lease is not None
        # Somebody else takes the Lease by force.
        pair.patch(LEASES, chart.NAMESPACE, "plumbline", {"spec": {"holderIdentity": "intruder", "renewTime": None}})
        project.wait(lambda: list(first.metrics("plumbline_leader").values()) == [0])
        go.set()
        project.wait(lambda: _holder(pair) not in ("", "intruder"))
        project.wait_condition("Complete")
