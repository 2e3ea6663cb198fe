"""The small Job that plans a generation of a run before any cluster starts."""

from __future__ import annotations

import base64
import gzip
import json

from plumbline.api.cluster import ClusterSpec, PodShape
from plumbline.api.run import API_VERSION, KIND
from plumbline_operator import names
from plumbline_operator.builders import pods
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.desired import PlanJob

RESOURCES: Object = {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
MAX_PLAIN = 100_000
"""Bytes of a run that go into the environment as they are; Linux bounds one variable to 128 KiB."""


def plan_job(run: Run, job: PlanJob) -> Object:
    """The Job. It runs once: retries are the operator's, which read why it failed."""
    own = run.labels("plan", plan=job.generation, attempt=job.attempt)
    cluster = run.spec.cluster or ClusterSpec()
    plan = pods.PodPlan(
        container=pods.PLAN,
        image=cluster.image or run.pods.image,
        labels=own,
        annotations={},
        resources=RESOURCES,
        command=[
            *("python", "-m", "plumbline.planner"),
            *("--generation", str(job.generation), "--attempt", str(job.attempt)),
        ],
        environment={"PLUMBLINE_RUN": run_variable(run)},
        # Planning reads what stages read, so it needs the same account and volumes.
        shape=PodShape(template=cluster.head.template if cluster.head else None),
    )
    template = pods.pod_template(run, plan)
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": run.metadata(names.plan_job(run.meta.name, job.generation, job.attempt), own),
        "spec": {"backoffLimit": 0, "template": template},
    }


def run_variable(run: Run) -> str:
    """The run as JSON, or `gz:` and the base64 of its gzip where that is long."""
    value = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": run.meta.name, "namespace": run.meta.namespace},
        "spec": run.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    # Kubernetes would replace $(NAME) and $$ in the value. In JSON a $ stands only in strings, where it can be escaped.
    text = json.dumps(value, separators=(",", ":")).replace("$", "\\u0024")
    if len(text) <= MAX_PLAIN:
        return text
    return f"gz:{base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()}"
