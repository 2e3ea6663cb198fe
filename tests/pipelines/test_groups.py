"""Groups of training workers on one Ray: they wait for room, say so, and grow where a range lets them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray

from plumbline.api.ray_settings import GROWS_TO
from plumbline.api.stages.training import ParallelismSpec
from plumbline.errors import PlumblineError
from plumbline.progress import Event, Reporter
from plumbline.training import ray as groups
from plumbline.training.loop import Interrupted, ReportStep
from plumbline.training.world import World

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@ray.remote(num_cpus=3)
class Tenant:
    """Somebody else's work; it leaves one of the four CPUs."""

    def settled(self) -> None:
        """Answers once it has its place."""


@pytest.fixture
def tenant(ray_session: str) -> Iterator[ray.actor.ActorHandle]:
    tenant = Tenant.remote()
    ray.get(tenant.settled.remote())
    yield tenant
    ray.kill(tenant)


def work(parallelism: ParallelismSpec, folder: object, report: Reporter) -> None:
    """A group that is done when it has two workers, and waits for that."""

    def until_two(job: None, world: World, report: ReportStep) -> None:
        report(world.size, 2, {})
        while world.size < 2:
            if world.interrupted():
                raise Interrupted
            time.sleep(0.05)

    groups.launch(until_two, None, parallelism, f"file://{folder}", report)


def test_a_range_begins_with_what_there_is_and_grows(
    tenant: ray.actor.ActorHandle, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GRACE", 10.0)
    monkeypatch.setattr(groups, "GROW_AFTER", 0.0)
    events: list[Event] = []

    def sink(event: Event) -> None:
        events.append(event)
        if event.step == 1:
            ray.kill(tenant)

    work(ParallelismSpec(min_workers=1, max_workers=2, max_failures=0), tmp_path, Reporter("sft", sink))
    # How often it says that it waits, and whether it has waited for the second group, is the machine's business.
    waits = ("waiting for room", "starting workers")
    assert [event.message for event in events if event.step is None and not event.message.startswith(waits)] == [
        "starting 1 of 2 workers",
        "training",
        "there is room for 2 workers instead of 1; all is saved, a new group goes on",
        "training",
    ]
    assert [event.step for event in events if event.step is not None] == [1, 2]


def test_room_is_not_waited_for_for_ever(
    tenant: ray.actor.ActorHandle, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "PATIENCE", 10.0)
    quiet = Reporter("sft", lambda event: None)
    with pytest.raises(PlumblineError, match="no room for 2 training workers, only for 1"):
        work(ParallelismSpec(workers=2), tmp_path, quiet)
    with pytest.raises(PlumblineError, match=r"parallelism.workers: 6 workers need a CPU each, and this Ray cluster has 4"):
        work(ParallelismSpec(workers=6), tmp_path, quiet)
    monkeypatch.setenv(GROWS_TO, '{"CPU": 8, "GPU": 0}')
    with pytest.raises(PlumblineError, match="no room for 6 training workers"):
        work(ParallelismSpec(workers=6), tmp_path, quiet)
    with pytest.raises(PlumblineError, match=r"parallelism.minWorkers: 9 .* this Ray cluster grows to 8"):
        work(ParallelismSpec(min_workers=9, max_workers=10), tmp_path, quiet)
