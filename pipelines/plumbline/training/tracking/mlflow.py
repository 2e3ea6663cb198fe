"""MLflow: a run on a server or in a database."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from plumbline.api.stages.tracking import MlflowSpec
from plumbline.training.tracking.tracker import Row, Subject, figures, flat

FINGERPRINT = "plumbline.fingerprint"
MLFLOW_METRICS, MLFLOW_PARAMETERS = 1000, 100  # most that one request may hold


class Mlflow:
    """A run of an experiment, found again by its tag."""

    def __init__(self, spec: MlflowSpec, subject: Subject) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take minutes; we come back ourselves
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to its makers
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=spec.uri)
        self._times: dict[int, int] = {}
        name = spec.experiment or subject.run
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        mine = f"tags.`{FINGERPRINT}` = '{subject.fingerprint}'"
        found = self._client.search_runs([number], filter_string=mine, max_results=1)
        tags = {FINGERPRINT: subject.fingerprint, "plumbline.run": subject.run, "plumbline.stage": subject.stage}
        run = found[0] if found else self._client.create_run(number, run_name=subject.name, tags=tags)
        self._id = run.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        if not run.data.params:  # they cannot be changed later, and how work is spread may differ between attempts
            parameters = [Param(key, value) for key, value in flat(subject.parameters).items()]
            for start in range(0, len(parameters), MLFLOW_PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + MLFLOW_PARAMETERS])
        self.last = max((metric.step for metric in self._client.get_metric_history(self._id, "loss")), default=0)

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for i, row in enumerate(rows):
            step = int(row["step"])
            when = self._times.setdefault(step, int(time.time() * 1000))  # an equal point, offered again, is no second one
            batch += [Metric(name, value, when, step) for name, value in figures(row).items()]
            if i + 1 == len(rows) or len(batch) + len(rows[i + 1]) > MLFLOW_METRICS:
                self._client.log_batch(self._id, metrics=batch)
                self.last, batch = step, []

    def close(self, ok: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if ok else "FAILED")
