"""Alerts and dashboard speak of metrics that the operator has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from plumbline.api.labels import RUN, STAGE
from plumbline.api.status import Phase
from plumbline_operator.status import Reason
from support.chart import CHART, Object, one, render

ENABLED: Object = {
    "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")}
}
NAME = re.compile(r"\b(?:ray_)?(?:plumbline|process)_[a-z_]+")
SELECTOR = re.compile(r"((?:ray_)?(?:plumbline|process)_[a-z_]+)\{([^}]*)\}")
TARGET_LABELS = {"job", "instance", "pod", "namespace", "container", "endpoint", "service", "le"}
POD_LABELS = {"run", "stage"}  # by the PodMonitor
REPLICA_LABELS = {"application", "deployment", "replica"}  # by Ray Serve
DASHBOARDS = {"plumbline.json": "dashboard.json", "plumbline-serving.json": "serving.json"}


def known() -> dict[str, set[str]]:
    """Names of the series of operator and replicas, and the labels of each."""
    from plumbline_operator import metrics

    registry = next(value for value in vars(metrics).values() if isinstance(value, CollectorRegistry))
    found: dict[str, set[str]] = {"process_resident_memory_bytes": set(), "process_cpu_seconds_total": set()}
    for collector in set(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in registry._collector_to_names[collector]:
            found[name] = labels
    return found | served()


def served() -> dict[str, set[str]]:
    """The same of replicas, as Ray exports them."""
    from plumbline.serving.prometheus import COUNTERS, GAUGES, HISTOGRAMS, PREFIX

    names = {f"{name}_total": labels for name, (_, labels) in COUNTERS.items()}
    names |= {f"{name}_bucket": labels for name, (_, _, labels) in HISTOGRAMS.items()}
    names |= {name: labels for name, (_, labels) in GAUGES.items()}
    return {f"ray_{PREFIX}{name}": {*labels, *REPLICA_LABELS, *POD_LABELS} for name, labels in names.items()}


def alerts() -> list[Object]:
    groups = one(render(ENABLED), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard(file: str = "dashboard.json") -> Object:
    value: Object = json.loads((CHART / "files" / file).read_text())
    return value


def queries(value: Any) -> Iterator[str]:
    """Every PromQL text of the dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "definition") and isinstance(inner, str):
                yield inner
            else:
                yield from queries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from queries(inner)


def check(expression: str) -> None:
    series = known()
    names = NAME.findall(expression)
    unknown = set(names) - series.keys()
    assert not unknown, f"{expression} names {unknown}; there are {sorted(series)}"
    for name, selector in SELECTOR.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
        assert labels <= series[name] | TARGET_LABELS, expression
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    if names:
        assert grouped <= set().union(*(series[name] for name in names)) | TARGET_LABELS, expression


def test_alerts_use_metrics_and_labels_that_exist() -> None:
    for rule in alerts():
        check(rule["expr"])
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def test_messages_use_labels_that_the_expression_leaves() -> None:
    for rule in alerts():
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        left = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in group.split(",")}
        assert used <= left, rule["alert"]


def test_what_the_issue_asks_for_is_watched() -> None:
    assert {rule["alert"] for rule in alerts()} >= {
        "PlumblineRunFailed",
        "PlumblineGateNotPassed",
        "PlumblineOperatorDown",
        "PlumblineNotOneLeader",
        "PlumblineReconcileErrors",
        "PlumblineQueueGrowing",
        "PlumblineMissedEvents",
        "PlumblineServingErrors",
        "PlumblineServingOverloaded",
        "PlumblineServingSlow",
    }


def test_phases_are_those_of_the_status() -> None:
    text = json.dumps(dashboard()) + "".join(rule["expr"] for rule in alerts())
    assert set(re.findall(r'phase=\\?"(\w+)', text)) <= set(Phase.__args__)


def test_verdicts_have_the_numbers_that_the_operator_gives_them() -> None:
    from plumbline_operator.metrics import GATE

    assert GATE == {"Passed": 1, "Inconclusive": 0, "Failed": -1}


def test_alerts_look_at_the_job_that_the_service_monitor_makes() -> None:
    objects = render(ENABLED, name="other")
    service = one(objects, "Service")["metadata"]["name"]
    for group in one(objects, "PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            replicas = "ray_" in rule["expr"]  # those are scraped by Pod
            assert set(re.findall(r'job="([^"]*)"', rule["expr"])) == (set() if replicas else {service})


@pytest.mark.parametrize(("name", "file"), DASHBOARDS.items())
def test_dashboard_is_whole_and_uses_metrics_that_exist(name: str, file: str) -> None:
    value = dashboard(file)
    assert f"{value['uid']}.json" == name
    found = list(queries(value))
    assert len(found) > 15
    for expression in found:
        check(expression)
    panels = value["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie over one another"
    assert all(x < 24 for x, _ in cells)


@pytest.mark.parametrize(
    ("file", "chosen"), [("dashboard.json", {"job", "namespace"}), ("serving.json", {"namespace", "run", "model"})]
)
def test_dashboard_takes_its_data_source_from_a_variable(file: str, chosen: set[str]) -> None:
    value = dashboard(file)
    assert {variable["name"] for variable in value["templating"]["list"]} == {"datasource", *chosen}
    for panel in value["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_the_config_map_holds_the_dashboard() -> None:
    found = one(render(ENABLED), "ConfigMap", "plumbline-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        name: dashboard(file) for name, file in DASHBOARDS.items()
    }


def test_every_metric_of_replicas_is_on_their_dashboard() -> None:
    assert {name for query in queries(dashboard("serving.json")) for name in NAME.findall(query)} == served().keys()


def test_pods_of_runs_are_watched_by_the_labels_that_the_dashboard_chooses_from() -> None:
    assert not [value for value in render() if value["kind"] == "PodMonitor"]
    spec = one(render(ENABLED), "PodMonitor")["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    assert spec["selector"]["matchExpressions"] == [{"key": RUN, "operator": "Exists"}]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    meta = {
        label: "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", key) for label, key in (("run", RUN), ("stage", STAGE))
    }
    assert {one["targetLabel"]: one["sourceLabels"][0] for one in endpoint["relabelings"]} == meta
    assert meta.keys() == POD_LABELS


def test_the_operations_page_speaks_of_what_there_is() -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(plumbline_[a-z_]+)`", page)) <= known().keys()
    assert set(re.findall(r"^\| (Plumbline\w+)", page, re.MULTILINE)) <= {rule["alert"] for rule in alerts()}
    table = page[page.index("| reason | means") :]
    reasons = {name for cell in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    assert len(reasons) > 20
    assert reasons <= set(Reason)
