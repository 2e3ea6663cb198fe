"""One attempt at a stage: a RayJob with a cluster of its own."""

from __future__ import annotations

from plumbline.api import labels
from plumbline.api.report import run_key
from plumbline_operator import names
from plumbline_operator.builders import pods
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.ray_cluster import Marks, ray_cluster
from plumbline_operator.desired import StageJob


def ray_job(run: Run, job: StageJob) -> Object:
    """The RayJob. KubeRay starts the cluster, submits once over HTTP, and takes the cluster down as soon as the job ends.

    Retries and deadlines are the operator's, because a retry goes on from a checkpoint and must be fenced. Its Pods end at once
    when told to, for the next attempt waits for them; but those that train first save what they did.
    """
    stage = run.stage(job.stage)
    own = run.labels("stage", stage=job.stage, attempt=job.attempt, plan=job.generation)
    annotations = {labels.FINGERPRINT: job.fingerprint}
    name = names.ray_job(run.meta.name, job.stage, job.attempt)
    file = f"{pods.STATE}/{run_key(job.generation)}"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": run.metadata(name, own | run.queue_labels(), annotations),
        "spec": {
            "submissionMode": "HTTPMode",  # the others take the end of a log stream for the end of the job
            "entrypoint": f"python -m plumbline.stage {file} {job.stage} --attempt {job.attempt}",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 0,
            **({"suspend": True} if run.spec.queue_name else {}),  # Kueue starts it
            "rayClusterSpec": ray_cluster(run, stage, Marks(own, annotations)),
        },
    }
