"""Kubernetes objects from plain values. Pure: no I/O, no clock."""

from __future__ import annotations

from plumbline.api.run import RunSpec
from plumbline_operator.builders.access import access
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.plan_job import plan_job
from plumbline_operator.builders.ray_job import ray_job
from plumbline_operator.builders.ray_service import ray_service, restored_service
from plumbline_operator.desired import Access, Desired, Endpoint, PlanJob, Restored, StageJob
from plumbline_operator.observed import Meta
from plumbline_operator.settings import StagePods


def build(desired: Desired, run: Meta, spec: RunSpec, pods: StagePods) -> list[Object]:
    """The objects that `desired` stands for, whole, in the order in which they are to be made."""
    source = Run(run, spec, pods)
    match desired:
        case Access():
            return access(source)
        case PlanJob():
            return [plan_job(source, desired)]
        case StageJob():
            return [ray_job(source, desired)]
        case Endpoint():
            return [ray_service(source, desired)]
        case Restored():
            return [restored_service(source, desired)]
