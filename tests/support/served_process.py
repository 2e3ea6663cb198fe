"""A process with a Ray of its own that serves tiny models as a cluster does: by the fast proxy, with none to two replicas as load comes.

`python -m support.served_process` tells where, as JSON, and serves until its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from plumbline.ray_environment import start_local

MODEL = "tiny"
FINGERPRINT = "f1"
ENDLESS = "endless"  # says as much as it may
LONG = 4000  # tokens: more seconds than replicas have to go if nobody says how many
TARGET = 4  # requests of one replica
BEGINS = '{"url"'


def main() -> None:
    # Load and figures are told once a second and not every ten.
    os.environ |= {
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_metrics_report_interval_ms": "1000",
    }
    start_local(cpus=3, fast_proxy=True)
    import ray

    from plumbline.api.stages.autoscaling import AutoscalingSpec
    from plumbline.external import TINY
    from plumbline.models.reference import ModelReference
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.local import deployment
    from support.served import endless_model

    scaling = AutoscalingSpec(
        min_replicas=0,
        max_replicas=2,
        target_ongoing_requests=TARGET,
        upscale_delay_seconds=0,
        downscale_delay_seconds=3,
        downscale_to_zero_delay_seconds=10,
        look_back_seconds=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        models = [
            ServedModel(MODEL, ModelReference(TINY, fingerprint=FINGERPRINT), max_tokens=1000),
            ServedModel(ENDLESS, endless_model(Path(folder) / "model"), max_tokens=LONG),
        ]
        options = {"application": "test", "port": None, "replicas": 1, "max_ongoing_requests": 16}
        with deployment(models, **options, autoscaling=scaling, drain_seconds=120) as url:
            (node,) = ray.nodes()
            metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            print(json.dumps({"url": url, "metrics": metrics}), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
