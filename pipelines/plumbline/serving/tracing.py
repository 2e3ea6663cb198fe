"""A span of OpenTelemetry for each request, where the environment names a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`). No texts in it.

Names are those of OpenTelemetry's conventions for generative AI, where they have one. A request that brings a `traceparent` (W3C) joins that trace.
The other variables of OpenTelemetry (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, …) mean what they always do.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from plumbline.errors import InvalidInput
from plumbline.serving.metrics import ROUTES, Observed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OPERATIONS = {"chat": "chat", "text": "text_completion", "embeddings": "embeddings"}
PATHS = {route: path for path, route in ROUTES.items()}


class Tracing:
    """An observer of requests that tells each as a span, which ends when it is told."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("plumbline.serving")

    @classmethod
    def from_environment(cls) -> Tracing | None:
        """To the collector of the environment; None where it names none.

        Raises:
            InvalidInput: the libraries for it are not installed.
        """
        named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
        if named is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidInput(f"{named} is set, and traces need `pip install plumbline[otel]`: {error}") from error
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # nobody has named it
            resource = resource.merge(Resource({"service.name": "plumbline"}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def __call__(self, observed: Observed) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode

        ends = time.time_ns()
        operation = OPERATIONS[observed.route]
        span = self._tracer.start_span(
            f"{operation} {observed.model}".rstrip(),
            context=extract({name.decode("latin-1"): value.decode("latin-1") for name, value in observed.headers}),
            kind=SpanKind.SERVER,
            start_time=ends - round(observed.seconds * 1e9),
            attributes=_attributes(observed, operation),
        )
        if observed.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ends)


def _attributes(observed: Observed, operation: str) -> dict[str, str | int | float | tuple[str, ...]]:
    found: dict[str, str | int | float | tuple[str, ...] | None] = {
        "http.route": PATHS[observed.route],
        "http.response.status_code": observed.status,
        "gen_ai.operation.name": operation,
        "gen_ai.response.model": observed.model or None,
        "gen_ai.usage.input_tokens": observed.prompt_tokens,
        "gen_ai.usage.output_tokens": observed.completion_tokens,
        "gen_ai.response.finish_reasons": (observed.finish_reason,) if observed.finish_reason else None,
        "plumbline.model.fingerprint": observed.version or None,
        "plumbline.key": observed.key or None,
        "plumbline.first_token_seconds": observed.first_token_seconds,
    }
    return {name: value for name, value in found.items() if value is not None}
