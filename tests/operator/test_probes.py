"""Probes and metrics over HTTP; the settings file; series that go with their run."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from plumbline.api.status import RunStatus, StageStatus
from plumbline_operator import logs, metrics, probes
from plumbline_operator.settings import InvalidSettings, Settings, read


def fetched(alive: list[str], ready: list[str], path: str) -> tuple[int, str]:
    async def fetch() -> tuple[int, str]:
        async with TestClient(TestServer(probes.application(lambda: alive, lambda: ready))) as client:
            answer = await client.get(path)
            return answer.status, await answer.text()

    return asyncio.run(fetch())


def test_well() -> None:
    assert fetched([], [], "/healthz") == (200, "ok")
    assert fetched([], [], "/readyz") == (200, "ok")


def test_what_a_restart_puts_right_fails_both() -> None:
    assert fetched(["events of RayJob have been missed"], [], "/healthz") == (503, "events of RayJob have been missed")
    assert fetched(["events of RayJob have been missed"], [], "/readyz")[0] == 503


def test_not_ready_is_no_reason_for_a_restart() -> None:
    assert fetched([], ["listing"], "/healthz")[0] == 200
    assert fetched([], ["listing"], "/readyz") == (503, "listing")


def series(run: str) -> list[str]:
    return [line for line in metrics.text().decode().splitlines() if f'run="{run}"' in line and "_created" not in line]


def test_series_of_a_run_go_with_it() -> None:
    stage = StageStatus(name="sft", kind="sft", phase="Waiting", failures=0)
    begun = RunStatus(phase="Running", stages=[stage])
    failed = stage.model_copy(update={"failures": 2, "reason": "OutOfMemory"})
    times = {"phase": "Succeeded", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:01:30Z"}
    ended = RunStatus(phase="Succeeded", gate="Passed", stages=[failed.model_copy(update=times)])
    metrics.observe("ns", "mine", RunStatus(), begun)
    metrics.observe("ns", "other", RunStatus(), begun)
    metrics.observe("ns", "mine", begun, RunStatus(phase="Running", stages=[failed]))
    metrics.observe("ns", "mine", RunStatus(phase="Running", stages=[failed]), ended)
    assert sorted(series("mine")) == [
        'plumbline_gate_result{namespace="ns",run="mine"} 1.0',
        'plumbline_run_info{namespace="ns",phase="Succeeded",run="mine"} 1.0',
        'plumbline_stage_duration_seconds{kind="sft",namespace="ns",run="mine",stage="sft"} 90.0',
        'plumbline_stage_retries_total{namespace="ns",reason="OutOfMemory",run="mine",stage="sft"} 2.0',
    ]
    metrics.forget("ns", "mine")
    assert series("mine") == []
    assert series("other") != []
    metrics.forget_all()
    assert series("other") == []


def test_series_of_a_stage_that_is_edited_away_go() -> None:
    times = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:01:30Z"}
    for number in range(3):
        stage = StageStatus(name=f"sft-{number}", kind="sft", phase="Succeeded", **times)
        metrics.observe("ns", "edited", RunStatus(), RunStatus(phase="Running", stages=[stage]))
    assert [line for line in series("edited") if "stage=" in line] == [
        'plumbline_stage_duration_seconds{kind="sft",namespace="ns",run="edited",stage="sft-2"} 90.0'
    ]
    metrics.forget("ns", "edited")
    assert series("edited") == []


def test_metrics_are_served() -> None:
    status, text = fetched([], [], "/metrics")
    assert status == 200
    assert "plumbline_queue_depth" in text
    assert "process_resident_memory_bytes" in text


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    template = {"spec": {"hostNetwork": True}, "as_is": 1}
    path.write_text(json.dumps({"stagePods": {"podTemplate": template, "imagePullSecrets": ["a"]}, "auditInterval": 5}))
    found = read(path)
    assert found.stage_pods.pod_template == template
    assert found.stage_pods.image_pull_secrets == ("a",)
    assert found.audit_interval == 5.0
    assert read(None) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"patience": {"retrybase": 3}}', "patience.retrybase: unknown key; known are retryBase, "),
        ('{"progresInterval": 3}', "progresInterval: unknown key; known are stagePods, patience, "),
        ('{"patience": {"healthy": "long"}}', "patience.healthy: Input should be a valid number"),
        ("{", "not JSON"),
    ],
)
def test_wrong_settings_are_told(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match=words):
        read(path)


def test_a_settings_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="No such file"):
        read(tmp_path / "none.json")


def test_logs_are_json_lines_with_the_run() -> None:
    record = logging.makeLogRecord({"msg": "created %s", "args": ("x",), "levelname": "INFO", "fields": {"child": "Job/x"}})
    with logs.about(run="ns/a", reconcile=3):
        value = json.loads(logs.JsonLines().format(record))
        text = logs.Text().format(record)
    assert {"message": "created x", "run": "ns/a", "reconcile": 3, "child": "Job/x"}.items() <= value.items()
    assert text.endswith("created x run=ns/a reconcile=3 child=Job/x")
    assert "run" not in json.loads(logs.JsonLines().format(record))
