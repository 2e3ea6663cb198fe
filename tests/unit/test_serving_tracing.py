"""A span for each request, in the caller's trace, without texts."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from plumbline.errors import InvalidInput
from plumbline.serving.metrics import Observed
from plumbline.serving.tracing import ENDPOINTS, Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SEEN = Observed(
    route="chat",
    model="tiny",
    version="f1",
    key="team-a",
    status=200,
    seconds=2.0,
    first_token_seconds=0.5,
    prompt_tokens=7,
    completion_tokens=5,
    cached_tokens=0,
    finish_reason="stop",
    text="a secret",
    headers=[(b"authorization", b"Bearer sk-secret"), (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())],
)


def spans(*seen: Observed) -> list:
    """What an exporter gets."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    for one in seen:
        tracing(one)
    return list(exporter.get_finished_spans())


def test_a_span_says_what_became_of_the_request_in_the_callers_trace() -> None:
    (span,) = spans(SEEN)
    assert span.name == "chat tiny"
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == PARENT
    assert span.end_time - span.start_time == 2_000_000_000
    assert dict(span.attributes) == {
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("stop",),
        "plumbline.model.fingerprint": "f1",
        "plumbline.key": "team-a",
        "plumbline.first_token_seconds": 0.5,
    }
    assert "secret" not in span.to_json()


def test_only_the_servers_failures_are_errors_and_what_is_unknown_is_left_out() -> None:
    refused = replace(
        SEEN, status=404, model="", version="", key="", first_token_seconds=None, finish_reason=None, headers=()
    )
    failed, refused = spans(replace(SEEN, status=500), refused)
    assert (failed.status.is_ok, refused.status.is_ok) == (False, True)
    assert refused.name == "chat"
    assert refused.parent is None
    assert not {"gen_ai.response.model", "plumbline.key"} & refused.attributes.keys()


def test_there_are_no_traces_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert Tracing.from_environment() is None


def test_a_collector_without_the_libraries_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidInput, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*plumbline\[otel\]"):
        Tracing.from_environment()
