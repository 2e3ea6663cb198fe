"""The `import_path` of a RayService: `plumbline.serving.cluster:build`, the application of one serve stage."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve

from plumbline.api.cluster import overridden
from plumbline.api.report import rollback_key
from plumbline.api.run import RunSpec, Stage
from plumbline.api.stages.serve import ServeSpec
from plumbline.errors import InvalidInput
from plumbline.plan import Plan
from plumbline.serving import application
from plumbline.serving.adapters import ServedAdapters
from plumbline.serving.admission.gate import AdmissionSettings
from plumbline.serving.application import ServingArguments
from plumbline.serving.chat import ServedModel
from plumbline.serving.release.controller import ReleaseArguments
from plumbline.serving.release.record import Records

REPLICA_CPUS = 1.0  # the engine; what stands before it takes a fifth of another
MOUNT_SECONDS = 180.0  # kubelet brings a new key of a ConfigMap into a running Pod within a minute or two


class EndpointArguments(BaseModel):
    """What `build` takes.

    Attributes:
        run: path of the RUN.json.
        stage: the serve stage.
        fingerprint: what is to be served.
    """

    model_config = ConfigDict(extra="forbid")

    run: Path
    stage: str
    fingerprint: str


def build(args: EndpointArguments | dict[str, Any]) -> serve.Application:
    """The application of a serve stage.

    Raises:
        pydantic.ValidationError: the arguments are not those of `EndpointArguments`.
        InvalidInput: the plan has no such stage, or would serve something else.
        PlumblineError: the model is not there.
    """
    args = EndpointArguments.model_validate(args)
    _wait_for(args.run, MOUNT_SECONDS)
    plan = Plan.load(args.run)
    found = plan.fingerprints.get(args.stage)
    if found != args.fingerprint:
        raise InvalidInput(
            f"{args.run} plans {found or 'nothing'} for stage '{args.stage}', and {args.fingerprint} is to be served"
        )
    asked = args.run.parent / rollback_key(args.stage)
    release = ReleaseArguments.of(plan, args.stage, ServedModel.of(plan, args.stage), _holder(), asked)
    Records(release.workspace, release.run, release.stage).read()  # what cannot be read is told before anything starts
    spec = plan.graph[args.stage].spec
    assert isinstance(spec, ServeSpec)
    stage = next(stage for stage in plan.run.spec.stages if stage.name == args.stage)
    return application.build(
        ServingArguments(
            release=release,
            adapters=ServedAdapters.of(plan, args.stage),
            replicas=spec.replicas,
            max_ongoing_requests=spec.max_ongoing_requests,
            num_cpus=REPLICA_CPUS,
            num_gpus=1 if has_gpus(plan.run.spec, stage) else 0,
            admission=AdmissionSettings.of(spec, args.stage),
            autoscaling=spec.autoscaling,
            drain_seconds=spec.drain_seconds,
        )
    )


def _holder() -> str:
    """What tells this Ray cluster from the one that it takes the place of."""
    return os.environ.get("RAY_CLUSTER_NAME") or uuid.uuid4().hex  # KubeRay names it


def has_gpus(run: RunSpec, stage: Stage) -> bool:
    """Whether the stage's Ray cluster has GPUs; what the stage says goes before what the run says, field by field."""
    cluster = overridden(run.cluster, stage.cluster)
    return any(pod.gpus for pod in [*(cluster.workers or []), *([cluster.head] if cluster.head else [])])


def _wait_for(path: Path, seconds: float) -> None:
    """An application that is updated in place may name a file that is on its way."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
