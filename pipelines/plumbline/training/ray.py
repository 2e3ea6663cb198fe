"""The only file of training that knows Ray: a worker function → a group of Ray Train workers, started again when one is
lost, when a node of theirs is about to go, and when there is room for more of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from plumbline.api.ray_settings import GROWS_TO
from plumbline.api.stages.training import ParallelismSpec
from plumbline.errors import PlumblineError, plain_cause
from plumbline.progress import Reporter
from plumbline.training.group import Group
from plumbline.training.world import World, backend

if TYPE_CHECKING:
    from plumbline.training.loop import ReportStep

Worker = Callable[[Any, World, "ReportStep"], None]
Bundle = dict[str, float]

PATIENCE = 600.0  # seconds to wait for room, such as for the replacement of a lost node
COLLECTIVE = 4 * 3600  # seconds that a rank waits for others, who may be tokenising; a lost one is found out at once
GRACE = 20.0  # seconds that an elastic group waits for all its workers before it begins with fewer
GROW_AFTER = 60.0  # seconds that a group works before it is stopped to grow: a new start costs ten or twenty
LOOK = 1.0  # seconds between two looks at the nodes


def launch(worker: Worker, job: Any, parallelism: ParallelismSpec, storage: str, report: Reporter, gpu: float = 1.0) -> None:
    """Run `worker(job, world, report)` on `parallelism.most` processes until all return.

    A lost worker ends the group. A new one, once there is room, goes on from the newest checkpoint; `maxFailures` times.
    Before a node goes that says so, and where a range has room for more workers, the group is asked to save and stop
    (`World.interrupted`), and a new one goes on: no failure. Errors that a person must mend are not retried.

    Args:
        worker: module-level function.
        job: what it works on; picklable plain values.
        parallelism: how many, and how many losses to bear.
        storage: URI that all nodes reach, for Ray Train's own notes.
        report: progress to the outside.
        gpu: what a worker takes of one.

    Raises:
        PlumblineError: what a worker raised for people, that workers were lost too often, or that there is no room for them.
    """
    bundle = check_room(parallelism)
    if "GPU" in bundle:
        bundle["GPU"] = gpu
    room = _Room(bundle)
    outbox = Queue(actor_options=_here())
    # As bytes: Ray's controller only passes it on, and would import all that the worker needs.
    work = cloudpickle.dumps((worker, job))
    failures = 0
    try:
        for number in count():
            size = room.wait(parallelism, report)
            group = ray.remote(Group).options(**_here()).remote()
            trainer = TorchTrainer(
                _work,
                train_loop_config={"work": work, "outbox": outbox, "group": group},
                torch_config=TorchConfig(backend=backend("GPU" in bundle), timeout_s=COLLECTIVE),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=size,
                    use_gpu="GPU" in bundle,
                    resources_per_worker=bundle,
                    placement_strategy="PACK" if "GPU" in bundle else "SPREAD",  # CPUs of the whole Pod for each
                ),
                run_config=ray.train.RunConfig(
                    name=f"group-{number}",
                    storage_path=f"{storage}/ray-train",
                    # Every new start is ours, so that it finds room first and is counted once.
                    failure_config=ray.train.FailureConfig(
                        max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                    ),
                ),
            )
            watch = _Watch(group, room, size, parallelism.most)
            try:
                with _Relay(outbox, report), watch:
                    if trainer.fit().return_value:
                        return
                report.say(f"{watch.why}; all is saved, a new group goes on")
            except ray.train.TrainingFailedError as error:
                known = plain_cause(error)
                if known is not None:
                    raise known from error
                if _taken_away(error):
                    report.say("a node was taken away; going on from the last checkpoint")
                    continue
                failures += 1
                if failures > parallelism.max_failures:
                    raise PlumblineError(
                        f"training failed {failures} times, last: {_last_line(error)}; the last checkpoint is kept"
                    ) from error
                report.say(f"a worker was lost ({_last_line(error)}); going on from the last checkpoint")
            finally:
                ray.kill(group)
    finally:
        room.release()
        outbox.shutdown()


def check_room(parallelism: ParallelismSpec) -> Bundle:
    """What each worker gets: a CPU, and a GPU where the cluster has some or may get some.

    Refuses what would wait for ever: more workers than the cluster has room for and, where it grows by itself, can get room for.

    Raises:
        PlumblineError: too few CPUs or GPUs in the cluster.
    """
    found, limit = ray.cluster_resources(), json.loads(os.environ.get(GROWS_TO, "{}"))
    most = {name: int(max(found.get(name, 0), limit.get(name, 0))) for name in ("CPU", "GPU")}
    for name, amount in most.items():
        if amount < parallelism.least and (name == "CPU" or amount):
            field = "workers" if parallelism.min_workers is None else "minWorkers"
            raise PlumblineError(
                f"parallelism.{field}: {parallelism.least} workers need a {name} each, and this Ray cluster "
                f"{'grows to' if amount > found.get(name, 0) else 'has'} {amount}"
            )
    return {"CPU": 1.0, **({"GPU": 1.0} if most["GPU"] else {})}


class _Room:
    """Places for workers. Each is asked of Ray as a placement group of its own: those that it grants are free and now held,
    the others are what its autoscaler sees as demand."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._asked: list[PlacementGroup] = []

    def ask(self, places: int) -> None:
        """Ask for this many, instead of any asked for before."""
        self.release()
        self._asked = [placement_group([self._bundle]) for _ in range(places)]

    def free(self) -> int:
        """How many are granted."""
        table = placement_group_table() if self._asked else {}
        return sum(table.get(place.id.hex(), {}).get("state") == "CREATED" for place in self._asked)

    def release(self) -> None:
        """Give them all back, and ask for none."""
        for place in self._asked:
            remove_placement_group(place)
        self._asked = []

    def wait(self, parallelism: ParallelismSpec, report: Reporter) -> int:
        """Wait until there is room: for all workers or, after a while, for the least of a range; returns for how many.

        Raises:
            PlumblineError: there was none for too long.
        """
        least, most = parallelism.least, parallelism.most
        self.ask(most)
        began, said = time.monotonic(), -1
        while True:
            free, waited = self.free(), time.monotonic() - began
            if free == most or (waited > GRACE and free >= least):
                self.release()
                if said >= 0:
                    report.say("starting workers" if free == most else f"starting {free} of {most} workers")
                return free
            if waited > PATIENCE:
                raise PlumblineError(
                    f"for {PATIENCE / 60:g} minutes there was no room for {least} training workers, only for {free}; "
                    "the last checkpoint is kept. Add nodes or free some"
                )
            if waited > LOOK and free != said:
                report.say(f"waiting for room for {most} workers; there is room for {free}")
                said = free
            time.sleep(0.1)


class _Watch:
    """While a group runs: asks it to save and stop when a node of its is about to go, or when there is room for more workers.

    Attributes:
        why: the reason, for people.
    """

    def __init__(self, group: ActorHandle, room: _Room, size: int, most: int) -> None:
        self.why = "the group stopped"
        self._group, self._room, self._size, self._most = group, room, size, most
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        grow_at, free = float("inf"), 0
        while not self._over.wait(LOOK):
            nodes = ray.get(self._group.nodes.remote())
            if len(nodes) < self._size:  # still starting
                continue
            going = set(nodes.values()) & set(ray._private.state.state.get_draining_nodes())
            if going:
                return self._stop(f"{len(going)} of its nodes {'is' if len(going) == 1 else 'are'} about to go")
            if self._size < self._most and grow_at == float("inf"):
                self._room.ask(self._most - self._size)
                grow_at = time.monotonic() + GROW_AFTER
            if time.monotonic() > grow_at:
                before, free = free, self._room.free()
                if 0 < free == before:  # no other joins at this moment
                    return self._stop(f"there is room for {self._size + free} workers instead of {self._size}")

    def _stop(self, why: str) -> None:
        self.why = why
        ray.get(self._group.stop.remote())


def _here() -> dict[str, Any]:
    """Options of an actor that must not go before the driver does."""
    node = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _work(config: dict[str, Any]) -> bool:
    """One worker. Whether all is done; if not, it was asked to stop, and did."""
    from plumbline.training.loop import Interrupted

    worker, job = cloudpickle.loads(config["work"])
    outbox: Queue = config["outbox"]
    group: ActorHandle = config["group"]

    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        if world.rank == 0:
            outbox.actor.put_nowait.remote((step, total, metrics))  # not waited for: the loop must not

    world = World.current()
    group.join.remote(world.rank, ray.get_runtime_context().get_node_id())
    if world.rank == 0:
        asked = group.stopped.remote()
        world = replace(world, interrupted=lambda: bool(ray.wait([asked], timeout=0)[0]))
    try:
        worker(job, world, report)
    except Interrupted:
        return False
    return True


class _Relay:
    """Passes the workers' reports on while the group runs."""

    def __init__(self, outbox: Queue, report: Reporter) -> None:
        self._outbox, self._report = outbox, report
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _pass_on(self) -> None:
        began = False
        while True:
            last = self._over.is_set()
            try:
                while True:
                    step = self._outbox.get_nowait()
                    if not began:
                        self._report.say("training")
                    began = True
                    self._report.step(*step)
            except Empty:
                pass
            if last:
                return
            self._over.wait(0.3)


def _taken_away(error: BaseException) -> bool:
    """Whether Ray knew before that the node of a lost worker would go."""
    failures = getattr(error, "worker_failures", {}).values()
    return any(getattr(getattr(one, "health_check_failure", one), "preempted", False) for one in failures)


def _last_line(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", {}) or {0: error}
    text = str(next(iter(failures.values()))).strip().splitlines()
    return text[-1].strip() if text else type(error).__name__
