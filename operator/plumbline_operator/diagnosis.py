"""Why a stage waits, and why an attempt failed: read from RayJobs, Pods and Workloads, told in their own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from plumbline.api.report import StageReport
from plumbline_operator.observed import Condition, Fault, PodView, RayJobView, WorkloadView
from plumbline_operator.status import Reason

EXIT_PERMANENT = 2  # of the stage program: the input is wrong (plumbline.errors)
LAST_LINES = 12
_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True)
class Cause:
    """Why something waits or failed.

    Attributes:
        permanent: trying again cannot help.
    """

    reason: str
    message: str
    permanent: bool = False


def of_fault(fault: Fault | None) -> Cause | None:
    return Cause(fault.reason, fault.message) if fault is not None else None


def of_missing(missing: Iterable[tuple[str, str]]) -> Cause | None:
    """What the run names and nobody has made yet."""
    words = [f"{kind} '{name}' does not exist in this namespace" for kind, name in missing]
    return Cause(Reason.MISSING, f"{'; '.join(words)}; create it and the run goes on by itself") if words else None


def of_pods(pods: Iterable[PodView]) -> Cause | None:
    """The first thing that keeps a Pod from running, the gravest first."""
    alive = sorted((pod for pod in pods if not pod.ended and pod.meta.deleted is None), key=lambda pod: pod.meta.name)
    for pod in alive:
        if pod.waiting is not None:
            container, reason, words = pod.waiting
            told = f"Pod {pod.meta.name}, container {container}: {reason}" + (f": {words}" if words else "")
            if reason in _IMAGE_REASONS:
                return Cause(Reason.IMAGE_PULL, told)
            if reason in _CONFIG_REASONS:
                return Cause(Reason.CONTAINER_CONFIG, told)
            if pod.terminated is not None:  # CrashLoopBackOff and the like
                return _of_terminated(pod) or Cause(Reason.POD_LOST, told)
    for pod in alive:
        if pod.unschedulable is not None:
            waiting = sum(other.unschedulable is not None for other in alive)
            others = f" (and {waiting - 1} more Pods)" if waiting > 1 else ""
            return Cause(Reason.UNSCHEDULABLE, f"Pod {pod.meta.name}{others}: {pod.unschedulable}")
    return None


def of_lost(pods: Iterable[PodView]) -> Cause | None:
    """The first Pod that ended though nobody told it to."""
    return next((lost for pod in pods if (lost := _of_terminated(pod) or _of_disruption(pod)) is not None), None)


def admitted_at(child: str, workloads: Iterable[WorkloadView]) -> float:
    """Since when Kueue lets a RayJob or RayService run; 0 where it has no say."""
    admissions = (one.conditions.get("Admitted") for one in workloads if one.owner_name == child)
    return max((one.since or 0.0 for one in admissions if one is not None and one.status == "True"), default=0.0)


def of_queue(child: str, workloads: Iterable[WorkloadView]) -> Cause | None:
    """What Kueue says of a RayJob or RayService that it holds back."""
    for workload in workloads:
        if workload.owner_name != child:
            continue
        conditions = workload.conditions
        if _true(conditions, "Admitted"):
            return None
        evicted = conditions.get("Evicted")
        if evicted is not None and evicted.status == "True":
            return Cause(Reason.PREEMPTED, f"Kueue: {evicted.reason}: {evicted.message}")
        reserved = conditions.get("QuotaReserved")
        words = f"{reserved.reason}: {reserved.message}" if reserved is not None else "the workload is in the queue"
        return Cause(Reason.QUOTA_PENDING, f"Kueue: {words}")
    return None


def of_cluster(job: RayJobView) -> Cause | None:
    """What KubeRay says of a Ray cluster that does not come up."""
    failure = job.cluster_conditions.get("ReplicaFailure")
    if failure is not None and failure.status == "True":
        quota = "exceeded quota" in failure.message
        reason = Reason.QUOTA_EXCEEDED if quota else Reason.CLUSTER_FAILED
        return Cause(reason, f"{failure.reason}: {failure.message}")
    return None


def of_waiting(job: RayJobView, pods: list[PodView], workloads: Iterable[WorkloadView]) -> Cause:
    """Why a RayJob does not run yet."""
    if job.suspended or job.deployment in ("Suspended", "Suspending"):
        held = of_queue(job.meta.name, workloads)
        if held is not None:
            return held
        if job.meta.labels.get("kueue.x-k8s.io/queue-name"):
            queue = job.meta.labels["kueue.x-k8s.io/queue-name"]
            return Cause(Reason.QUOTA_PENDING, f"waits for Kueue to admit it from queue '{queue}'")
        return Cause(
            Reason.SUSPENDED_BY_OTHERS, f"spec.suspend of RayJob '{job.meta.name}' is true; set it to false to go on"
        )
    found = of_cluster(job) or of_pods(pods)
    if found is not None:
        return found
    if not job.deployment:
        return Cause(Reason.STARTING, "waits for KubeRay to take up the RayJob")
    ready = sum(pod.ready for pod in pods)
    return Cause(Reason.STARTING, f"the Ray cluster starts: {ready} of {len(pods)} Pods are ready")


def of_failure(job: RayJobView, pods: list[PodView], report: StageReport | None) -> Cause:
    """Why a RayJob ended without success.

    What the program itself said is preferred; then what happened to its Pods; then KubeRay's words.

    Args:
        job: a RayJob that ended.
        pods: those of its attempt, as far as they are still there.
        report: the program's last word, if it is of this attempt.
    """
    if report is not None and report.error is not None:
        reason = Reason.INVALID_INPUT if report.error.permanent else Reason.PROGRAM_FAILED
        return Cause(reason, report.error.message, report.error.permanent)
    if job.deployment == "Complete" and job.job == "STOPPED":
        return Cause(Reason.STOPPED, "somebody stopped the Ray job")
    lost = of_lost(pods)
    if lost is not None:
        return lost
    words = last_lines(job.message)
    if job.deployment == "ValidationFailed":
        return Cause(Reason.CHILD_REJECTED, f"KubeRay refuses the RayJob: {words}", permanent=True)
    code = re.search(r"failed with exit code (-?\d+)", job.message)
    if code is not None:
        if int(code[1]) == EXIT_PERMANENT:
            return Cause(Reason.INVALID_INPUT, words, permanent=True)
        if int(code[1]) in (137, -9):
            return Cause(Reason.OUT_OF_MEMORY, f"the program was killed, most likely for memory: {words}")
        return Cause(Reason.PROGRAM_FAILED, words)
    match job.reason:
        case "SubmissionFailed":
            return Cause(Reason.SUBMISSION_FAILED, words)
        case "DeadlineExceeded" | "PreRunningDeadlineExceeded":
            return Cause(Reason.CLUSTER_FAILED, f"KubeRay: {job.reason}: {words}")
        case "JobStatusCheckTimeoutExceeded":
            return Cause(Reason.DASHBOARD_UNREACHABLE, f"KubeRay: {words}")
        case "AppFailed":
            return Cause(Reason.PROGRAM_FAILED, words)
    return Cause(Reason.CLUSTER_FAILED, f"KubeRay: {job.reason or job.deployment}: {words or 'no message'}")


def unreachable_since(job: RayJobView) -> float | None:
    """Since when nobody can say how a running job is: its dashboard does not answer, or its head Pod is gone.

    KubeRay before 1.7 does not say the first, and waits for ever; the second stands in for it.
    """
    if job.ended or job.deployment != "Running":
        return None
    if job.unreachable_since is not None:
        return job.unreachable_since
    head = job.cluster_conditions.get("HeadPodReady")
    return head.since if head is not None and head.status == "False" else None


def last_lines(text: str) -> str:
    """The end of a message that may hold a whole log."""
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    kept = lines[-LAST_LINES:]
    if len(lines) > LAST_LINES:
        kept.insert(0, lines[0])
    return "\n".join(line[:500] for line in kept)


def _of_terminated(pod: PodView) -> Cause | None:
    if pod.terminated is None:
        return None
    container, reason, code, words = pod.terminated
    where = f"Pod {pod.meta.name}, container {container}"
    if reason == "OOMKilled":
        return Cause(Reason.OUT_OF_MEMORY, f"{where}: OOMKilled: it used more than its memory limit; raise cluster memory")
    if pod.meta.deleted is not None or code in (143, -15):
        return None  # it was told to end
    told = last_lines(words)
    return Cause(Reason.POD_LOST, f"{where}: {reason or 'ended'}, exit code {code}" + (f": {told}" if told else ""))


def _of_disruption(pod: PodView) -> Cause | None:
    if pod.disrupted is None:
        return None
    reason, words = pod.disrupted
    lost = Reason.PREEMPTED if "reempt" in reason else Reason.POD_LOST
    return Cause(lost, f"Pod {pod.meta.name} on node {pod.node or '?'}: {reason}: {words}")


def _true(conditions: dict[str, Condition], name: str) -> bool:
    return name in conditions and conditions[name].status == "True"
