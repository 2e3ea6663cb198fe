"""A served model: a RayService."""

from __future__ import annotations

import json
import re

from plumbline.api import labels
from plumbline.api.ray_settings import FAST_PROXY
from plumbline.api.report import run_key
from plumbline.api.stages.serve import ServeSpec
from plumbline_operator import names
from plumbline_operator.builders import pods
from plumbline_operator.builders.metadata import Object, Run
from plumbline_operator.builders.ray_cluster import Marks, ray_cluster
from plumbline_operator.desired import Endpoint, Restored
from plumbline_operator.observed import HEALTHY, HEALTHY_FINGERPRINT, REFUSED, REPLACES, SHAPE

PORT = 8000
APPLICATION = "model"


def ray_service(run: Run, endpoint: Endpoint) -> Object:
    """The RayService of a serve stage.

    The Pods carry the fingerprint and the plan's generation, so that a change of either is a change of the cluster: KubeRay then
    starts a second one beside the first and moves the traffic once it is healthy.
    """
    own = run.labels("endpoint", stage=endpoint.stage, plan=endpoint.generation)
    fingerprint = {labels.FINGERPRINT: endpoint.fingerprint}
    annotations = {**fingerprint, SHAPE: endpoint.shape, REPLACES: endpoint.replaces}
    if endpoint.keep is not None and endpoint.keep_fingerprint is not None:
        annotations |= {HEALTHY: _compact(endpoint.keep), HEALTHY_FINGERPRINT: endpoint.keep_fingerprint}
    stage = run.stage(endpoint.stage)
    assert isinstance(stage.spec, ServeSpec)
    drain = stage.spec.drain_seconds  # when a node is drained, and when traffic moves to a new version
    marks = Marks(own, fingerprint, drain, {"PLUMBLINE_FINGERPRINT": endpoint.fingerprint}, settings=FAST_PROXY)
    cluster = ray_cluster(run, stage, marks)
    to_zero = stage.spec.autoscaling is not None and not stage.spec.autoscaling.min_replicas
    spec = {
        "serveConfigV2": _serve_config(endpoint),
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": drain,
        # A head that Ray places no work on has no replica, and requests would take one hop more; but where there may be no other Pod,
        # it takes the request that brings one up.
        "excludeHeadPodFromServeSvc": "num-cpus" in cluster["headGroupSpec"]["rayStartParams"] and not to_zero,
        "rayClusterConfig": cluster,
    }
    return _service(run, endpoint.stage, own, annotations, spec)


def restored_service(run: Run, restored: Restored) -> Object:
    """The RayService with the spec that served before."""
    annotations = {labels.FINGERPRINT: restored.fingerprint, REFUSED: restored.refused}
    own = run.labels("endpoint", stage=restored.stage, plan=_plan(restored.spec))
    return _service(run, restored.stage, own, annotations, restored.spec)


def _service(run: Run, stage: str, own: dict[str, str], annotations: dict[str, str], spec: Object) -> Object:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": run.metadata(names.ray_service(run.meta.name, stage), own | run.queue_labels(), annotations),
        "spec": spec,
    }


def _serve_config(endpoint: Endpoint) -> str:
    """Ray Serve's configuration file. JSON is YAML."""
    application = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "plumbline.serving.cluster:build",
        "args": {
            "run": f"{pods.STATE}/{run_key(endpoint.generation)}",
            "stage": endpoint.stage,
            "fingerprint": endpoint.fingerprint,
        },
    }
    http = {"host": "0.0.0.0", "port": PORT}
    return json.dumps({"proxy_location": "EveryNode", "http_options": http, "applications": [application]}, indent=2)


def _plan(spec: Object) -> int | None:
    """Generation of the plan that a spec reads; as long as the label names it, its file is kept."""
    found = re.search(r"run-(\d+)\.json", str(spec.get("serveConfigV2")))
    return int(found[1]) if found else None


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
