"""Alerts and dashboard speak of metrics that the operator has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from plumbline.api.status import Phase
from plumbline_operator.status import Reason
from support.chart import CHART, Object, one, render

ENABLED: Object = {"metrics": {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboard")}}
NAME = re.compile(r"\b(?:plumbline|process)_[a-z_]+")
SELECTOR = re.compile(r"((?:plumbline|process)_[a-z_]+)\{([^}]*)\}")
TARGET_LABELS = {"job", "instance", "pod", "namespace", "container", "endpoint", "service", "le"}


def known() -> dict[str, set[str]]:
    """Names of the operator's series, and the labels of each."""
    from plumbline_operator import metrics

    registry = next(value for value in vars(metrics).values() if isinstance(value, CollectorRegistry))
    found: dict[str, set[str]] = {"process_resident_memory_bytes": set(), "process_cpu_seconds_total": set()}
    for collector in set(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in registry._collector_to_names[collector]:
            found[name] = labels
    return found


def alerts() -> list[Object]:
    groups = one(render(ENABLED), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Object:
    value: Object = json.loads((CHART / "files" / "dashboard.json").read_text())
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
            assert set(re.findall(r'job="([^"]*)"', rule["expr"])) == {service}


def test_dashboard_is_whole_and_uses_metrics_that_exist() -> None:
    value = dashboard()
    assert value["uid"] == "plumbline"
    found = list(queries(value))
    assert len(found) > 20
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


def test_dashboard_takes_its_data_source_from_a_variable() -> None:
    value = dashboard()
    assert {variable["name"] for variable in value["templating"]["list"]} == {"datasource", "job", "namespace"}
    for panel in value["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_the_config_map_holds_the_dashboard() -> None:
    found = one(render(ENABLED), "ConfigMap", "plumbline-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["data"]["plumbline.json"]) == dashboard()


def test_the_operations_page_speaks_of_what_there_is() -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(plumbline_[a-z_]+)`", page)) <= known().keys()
    assert set(re.findall(r"^\| (Plumbline\w+)", page, re.MULTILINE)) <= {rule["alert"] for rule in alerts()}
    table = page[page.index("| reason | means") :]
    reasons = {name for cell in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}
    assert len(reasons) > 20
    assert reasons <= set(Reason)
