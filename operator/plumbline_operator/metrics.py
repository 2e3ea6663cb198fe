"""Prometheus metrics. Series of a run go when the run goes, those of a stage when the run no longer has it."""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from plumbline.api.status import RunStatus, StageStatus
from plumbline_operator.observed import unix

REGISTRY = CollectorRegistry()
for _collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
    REGISTRY.register(_collector)

RUN = ("namespace", "run")
STAGE = (*RUN, "stage")
GATE = {"Passed": 1, "Inconclusive": 0, "Failed": -1}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

RUN_INFO = Gauge("plumbline_run_info", "1 for each run, in its phase.", (*RUN, "phase"), registry=REGISTRY)
STAGE_DURATION = Gauge(
    "plumbline_stage_duration_seconds",
    "From the begin of a stage's first attempt to its end.",
    (*STAGE, "kind"),
    registry=REGISTRY,
)
STAGE_RETRIES = Counter(
    "plumbline_stage_retries_total", "Attempts that failed, by why.", (*STAGE, "reason"), registry=REGISTRY
)
GATE_RESULT = Gauge("plumbline_gate_result", "Last verdict: 1 passed, 0 inconclusive, -1 failed.", RUN, registry=REGISTRY)
RECONCILE_DURATION = Histogram(
    "plumbline_reconcile_duration_seconds", "One reconcile of one run.", registry=REGISTRY, buckets=_SECONDS
)
RECONCILE_ERRORS = Counter("plumbline_reconcile_errors_total", "Reconciles that failed.", ("error",), registry=REGISTRY)
QUEUE_DEPTH = Gauge("plumbline_queue_depth", "Runs that wait for a worker.", registry=REGISTRY)
API_REQUESTS = Counter(
    "plumbline_api_requests_total",
    "Requests to the Kubernetes API without watches, by HTTP status (none: no answer).",
    ("verb", "resource", "code"),
    registry=REGISTRY,
)
LEADER = Gauge("plumbline_leader", "1 where this process leads.", registry=REGISTRY)
EVENT_LAG = Histogram(
    "plumbline_event_lag_seconds",
    "From an event to the end of the reconcile that answers it.",
    registry=REGISTRY,
    buckets=_SECONDS,
)
MISSED_EVENTS = Counter(
    "plumbline_missed_events_total",
    "Objects that the audit found other than the watch had told.",
    ("kind",),
    registry=REGISTRY,
)

_Metric = TypeVar("_Metric", Gauge, Counter)
_series: dict[tuple[str, str], set[tuple[Gauge | Counter, tuple[str, ...]]]] = {}


def observe(namespace: str, run: str, old: RunStatus, new: RunStatus) -> None:
    """A run's status went from `old` to `new`."""
    phase = new.phase or "Pending"
    stages = {stage.name for stage in new.stages or ()}
    for metric, values in list(_series.get((namespace, run), ())):
        removed = metric in (STAGE_DURATION, STAGE_RETRIES) and values[2] not in stages
        if removed or (metric is RUN_INFO and values[-1] != phase):
            _series[namespace, run].remove((metric, values))
            metric.remove(*values)
    _of_run(RUN_INFO, namespace, run, phase).set(1)
    if new.gate is not None:
        _of_run(GATE_RESULT, namespace, run).set(GATE[new.gate])
    before = {stage.name: stage for stage in old.stages or ()}
    for stage in new.stages or ():
        _observe_stage(namespace, run, before.get(stage.name), stage)


def forget(namespace: str, run: str) -> None:
    """The run is gone."""
    for metric, values in _series.pop((namespace, run), set()):
        metric.remove(*values)


def forget_all() -> None:
    """This process does not lead any more: the next leader tells of the runs."""
    for namespace, run in list(_series):
        forget(namespace, run)
    QUEUE_DEPTH.set(0)


def text() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)


def _observe_stage(namespace: str, run: str, old: StageStatus | None, new: StageStatus) -> None:
    if old is not None and new.failures > old.failures:
        retries = _of_run(STAGE_RETRIES, namespace, run, new.name, new.reason or "Unknown")
        retries.inc(new.failures - old.failures)
    begin, end = unix(new.start_time), unix(new.end_time)
    if begin is not None and end is not None:
        _of_run(STAGE_DURATION, namespace, run, new.name, new.kind).set(end - begin)


def _of_run(metric: _Metric, namespace: str, run: str, *values: str) -> _Metric:
    labels = (namespace, run, *values)
    _series.setdefault((namespace, run), set()).add((metric, labels))
    return metric.labels(*labels)
