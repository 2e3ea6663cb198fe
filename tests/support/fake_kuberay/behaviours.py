"""What may become of a RayJob: the good end and each documented trap. Tests put them together."""

from __future__ import annotations

import asyncio
import threading
from typing import Literal

from plumbline.api.report import Failure, Verdict
from plumbline.api.status import StageProgress
from support.fake_kuberay.kubelet import LEAD, condition, container, happens, now
from support.fake_kuberay.ray_jobs import Behaviour, RayJob, validation_failed

__all__ = ["validation_failed"]
TRACEBACK = 'Traceback (most recent call last):\n  File "/app/train.py", line 7, in step\nRuntimeError: loss is nan'
NEVER = 600
"""Seconds from now to the begin of a wait that no test sees the end of."""
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not eligible."
NO_IMAGE = 'Back-off pulling image "registry.example/none:1": ErrImagePull: not found'
QUOTA = 'pods "head" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=8, used: nvidia.com/gpu=4, limited: nvidia.com/gpu=8'


def succeed(
    verdict: Verdict | None = "Passed",
    metrics: dict[str, str] | None = None,
    steps: int = 0,
    until: threading.Event | None = None,
    result: Literal["reported", "missing", "rubbish"] = "reported",
    late: float = 0.0,
) -> Behaviour:
    """The stage program does its work, or finds it done.

    Args:
        verdict: of the gate, where the stage is an evaluation with gates.
        metrics: of the artifact.
        steps: how many steps of progress it reports.
        until: it works until this is set.
        result: what it leaves in the ConfigMap.
        late: seconds from the end of the job to the result.
    """

    async def play(job: RayJob) -> None:
        await job.start()
        plan = await job.plan()
        if plan is None:
            await crash(2, "RUN.json cannot be read")(job)
            return
        for step in range(1, steps + 1):
            progress = StageProgress(step=step, total=steps, eta_seconds=steps - step)
            await job.report(message="training", progress=progress, metrics={"loss": f"{1 / step:.4g}"})
            await asyncio.sleep(0.05)
        if until is not None:
            await happens(until)
        gated = bool(getattr(plan.graph[job.stage].spec, "gates", ()))
        words = f"skills: {verdict}" if gated and verdict else None
        made = job.artifact(
            plan, metrics=metrics or {"loss": "0.5"}, verdict=verdict if gated else None, verdict_reason=words
        )
        if result == "reported" and not late:
            await job.report(result=made)
        if result == "rubbish":
            await job.write('{"attempt": "one", "result": [')
        await job.end("Complete", "SUCCEEDED")
        if late:
            await asyncio.sleep(late)
            await job.report(result=made)

    return play


def crash(code: int = 1, words: str = TRACEBACK, reported: bool = True, after: threading.Event | None = None) -> Behaviour:
    """The stage program ends with an exit code; 2 is permanent. Where it was killed nothing is reported."""

    async def play(job: RayJob) -> None:
        if job.deployment != "Running":
            await job.start()
        if after is not None:
            await happens(after)
        if reported:
            await job.report(error=Failure(message=words, permanent=code == 2))
        message = (
            f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\n{words}"
        )
        await job.end("Failed", "FAILED", "AppFailed", message)

    return play


def stopped() -> Behaviour:
    """Somebody stopped the Ray job: it is `Complete` all the same."""

    async def play(job: RayJob) -> None:
        await job.start()
        await job.end("Complete", "STOPPED", message="Job was intentionally stopped.")

    return play


def submission_failed() -> Behaviour:
    async def play(job: RayJob) -> None:
        await job.begin()
        await job.ready()
        await job.end("Failed", None, "SubmissionFailed", "Failed to submit the Ray job: dashboard answered 500")

    return play


def deadline_exceeded() -> Behaviour:
    async def play(job: RayJob) -> None:
        await job.start()
        await job.end("Failed", "RUNNING", "DeadlineExceeded", "The RayJob has passed the activeDeadlineSeconds")

    return play


def unreachable(gives_up: bool = False, back: threading.Event | None = None) -> Behaviour:
    """The dashboard does not answer.

    Args:
        gives_up: as KubeRay 1.7 does after 300 s; earlier versions say `Running` for ever.
        back: it answers again, and the job succeeds.
    """
    # The operator waits 10 seconds. It shall lose patience soon, or not at all where something else is to end the wait.
    since = -7 if back is None and not gives_up else NEVER

    async def play(job: RayJob) -> None:
        await job.start()
        await job.status(jobStatusCheckFailureStartTime=now(since))
        if back is not None:
            await happens(back)
            await job.status(jobStatusCheckFailureStartTime=None)
            await _finish(job)
        elif gives_up:
            await job.end("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded", "Job status check timed out after 300s")
        else:
            await asyncio.Event().wait()

    return play


def image_pull(until: threading.Event | None = None, message: str = NO_IMAGE) -> Behaviour:
    """The image of the worker cannot be pulled; the job stays `Initializing` with no word about it."""

    async def play(job: RayJob) -> None:
        await job.begin()
        await job.cluster.kubelet.waiting(job.pods[-1], "ImagePullBackOff", message)
        await _resolved(job, until)

    return play


def unschedulable(until: threading.Event | None = None, message: str = NO_GPU) -> Behaviour:
    """The scheduler finds no node."""

    async def play(job: RayJob) -> None:
        await job.begin()
        await job.cluster.kubelet.unschedulable(job.pods[-1], message)
        await _resolved(job, until)

    return play


def quota_exceeded(until: threading.Event | None = None, message: str = QUOTA) -> Behaviour:
    """A ResourceQuota refuses the Pods; it is visible in the RayCluster's conditions only."""

    async def play(job: RayJob) -> None:
        await job.begin()
        await job.end_pods()
        await job.cluster_status("False", 0, [condition("ReplicaFailure", "True", "FailedCreateHeadPod", message)])
        if until is None:
            await asyncio.Event().wait()
        else:
            await happens(until)
            await job.begin()
            await job.ready()
            await job.submit()
            await _finish(job)

    return play


def out_of_memory(head: bool = True) -> Behaviour:
    """The kernel kills a Ray container; with the head the program dies, without a word of its own."""

    async def play(job: RayJob) -> None:
        await job.start()
        pod = (job.heads if head or not job.workers else job.workers)[0]
        killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": now(), "finishedAt": now()}}
        running = container(pod, {"running": {"startedAt": now()}}, restarts=1, last=killed)
        await job.cluster.kubelet.status(pod, phase="Running", containerStatuses=[running])
        await asyncio.sleep(LEAD)
        await job.end("Failed", "FAILED", "AppFailed", "Job supervisor actor died: The actor died unexpectedly")

    return play


def node_lost() -> Behaviour:
    """The head's node is gone, and the dashboard with it."""

    async def play(job: RayJob) -> None:
        await job.start()
        words = "Taint manager: deleting due to NoExecute taint"
        await job.cluster.kubelet.disrupted(job.heads[0], "DeletionByTaintManager", words)
        await job.status(jobStatusCheckFailureStartTime=now(NEVER))
        await asyncio.sleep(LEAD)  # for KubeRay's 300
        await job.end("Failed", "RUNNING", "JobStatusCheckTimeoutExceeded", "Job status check timed out after 300s")

    return play


def worker_lost(until: threading.Event) -> Behaviour:
    """A worker goes while the job runs: the cluster says `ready` all the same; a new worker comes."""

    async def play(job: RayJob) -> None:
        await job.start()
        await job.cluster.kubelet.disrupted(job.pods[-1], "PreemptionByScheduler", "preempted by a more important Pod")
        await job.cluster_status("True", len(job.workers) - 1)
        await happens(until)
        await job.cluster.kubelet.run(job.pods[-1])
        await _finish(job)

    return play


async def _resolved(job: RayJob, until: threading.Event | None) -> None:
    if until is None:
        await asyncio.Event().wait()
    else:
        await happens(until)
        await job.ready()
        await job.submit()
        await _finish(job)


async def _finish(job: RayJob) -> None:
    plan = await job.plan()
    assert plan is not None
    await job.report(result=job.artifact(plan, metrics={"loss": "0.5"}))
    await job.end("Complete", "SUCCEEDED")
