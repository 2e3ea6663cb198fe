"""Names of children. Deterministic, so that a repeated creation finds what the first one made."""

from __future__ import annotations

import hashlib
import re

MAX_CHILD_NAME = 47
"""KubeRay's bound for RayJob and RayService names."""


def plan_job(run: str, generation: int, attempt: int) -> str:
    return child_name(run, "plan", str(generation), str(attempt))


def ray_job(run: str, stage: str, attempt: int) -> str:
    return child_name(run, stage, str(attempt))


def ray_service(run: str, stage: str) -> str:
    return child_name(run, stage)


def state(run: str) -> str:
    """The run's ConfigMap."""
    return child_name(run, "state")


def stage_account(run: str) -> str:
    """ServiceAccount of the run's Pods; its Role and RoleBinding are called the same."""
    return child_name(run, "stage")


def network_policy(run: str) -> str:
    return child_name(run, "pods")


def number(name: str, run: str, *parts: str) -> int | None:
    """The number N of a child that is called `child_name(run, *parts, N)`, None of every other."""
    last = name.rpartition("-")[2]
    return int(last) if last.isdecimal() and len(last) <= 6 and child_name(run, *parts, last) == name else None


def child_name(run: str, *parts: str) -> str:
    """`RUN-PART-…` as a DNS-1035 label of at most 47 characters.

    What had to be changed or cut to get there is told apart by a hash of the whole.
    """
    whole = "-".join((run, *parts))
    label = re.sub(r"[^a-z0-9-]", "-", whole)
    if not label[0].isalpha():
        label = f"r-{label}"
    if label == whole and len(label) <= MAX_CHILD_NAME:
        return label
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    ending = f"-{digest}-{parts[-1]}" if len(parts[-1]) <= 6 else f"-{digest}"
    return label[: MAX_CHILD_NAME - len(ending)].rstrip("-") + ending
