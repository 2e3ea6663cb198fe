"""The only file of training that knows Ray: a worker function → a group of Ray Train workers, restarted when one is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from plumbline.api.stages.training import ParallelismSpec
from plumbline.errors import PlumblineError, plain_cause
from plumbline.progress import Reporter
from plumbline.training.loop import ReportStep
from plumbline.training.world import World

Worker = Callable[[Any, World, ReportStep], None]


def launch(worker: Worker, job: Any, parallelism: ParallelismSpec, storage: str, report: Reporter) -> None:
    """Run `worker(job, world, report)` on `parallelism.workers` processes until all return.

    A lost worker ends the group; a new one starts from the newest checkpoint, `maxFailures` times. Errors that
    a person must mend are not retried.

    Args:
        worker: module-level function.
        job: what it works on; picklable plain values.
        parallelism: how many, and how many losses to bear.
        storage: URI that all nodes reach, for Ray Train's own notes.
        report: progress to the outside.

    Raises:
        PlumblineError: what a worker raised for people, or that workers were lost too often.
    """
    gpu = check_room(parallelism.workers)
    outbox = Queue(actor_options={"num_cpus": 0})
    try:
        for failures in range(parallelism.max_failures + 1):
            trainer = TorchTrainer(
                _work,
                train_loop_config={"worker": worker, "job": job, "outbox": outbox},
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=parallelism.workers,
                    use_gpu=gpu,
                    resources_per_worker={"CPU": 1, **({"GPU": 1} if gpu else {})},
                ),
                run_config=ray.train.RunConfig(name=f"group-{failures}", storage_path=f"{storage}/ray-train"),
            )
            try:
                with _Relay(outbox, report):
                    trainer.fit()
                return
            except ray.train.TrainingFailedError as error:
                known = plain_cause(error)
                if known is not None:
                    raise known from error
                if failures == parallelism.max_failures:
                    raise PlumblineError(
                        f"training failed {failures + 1} times, last: {_last_line(error)}; the last checkpoint is kept"
                    ) from error
                report.say(f"a worker was lost ({_last_line(error)}); going on from the last checkpoint")
    finally:
        outbox.shutdown()


def check_room(workers: int) -> bool:
    """Whether the workers get a GPU each. Refuses what would wait for ever: more workers than the cluster has room for.

    Raises:
        PlumblineError: too few CPUs or GPUs in the cluster.
    """
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    for name, found in (("CPU", int(resources.get("CPU", 0))), *([("GPU", gpus)] if gpus else [])):
        if found < workers:
            raise PlumblineError(
                f"parallelism.workers: {workers} workers need a {name} each, and this Ray cluster has {found}"
            )
    return gpus > 0


def _work(config: dict[str, Any]) -> None:
    outbox: Queue = config["outbox"]

    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        if world.rank == 0:
            outbox.actor.put_nowait.remote((step, total, metrics))  # not waited for: the loop must not

    world = World.current()
    config["worker"](config["job"], world, report)


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


def _last_line(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", {}) or {0: error}
    text = str(next(iter(failures.values()))).strip().splitlines()
    return text[-1].strip() if text else type(error).__name__
