"""What Prometheus is told of serving, by way of Ray: every node's agent is scraped, and Ray puts `ray_` before each name.

Ray adds the labels `application`, `deployment` and `replica`. Ours have few values: models and versions that are served, routes, statuses.
Means must not be taken from histograms: Ray hands on buckets, and of their sums only a guess. Quantiles are as fine as the buckets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray.serve.metrics import Counter, Gauge, Histogram

from plumbline.serving.metrics import Observed

if TYPE_CHECKING:
    from plumbline.serving.models import AnyModel

PREFIX = "plumbline_serving_"
SERVED: Any = ("model", "version")  # Ray says that there can be but one label
COUNTERS = {
    "requests": ("Requests for an answer that are finished, whatever became of them.", ("route", *SERVED, "status")),
    "prompt_tokens": ("Tokens of prompts.", SERVED),
    "cached_tokens": ("Tokens of prompts that were in the cache, and not read again.", SERVED),
    "completion_tokens": ("Tokens drawn.", SERVED),
}
HISTOGRAMS = {
    "request_seconds": (
        "From a request's first byte to its answer's last, of those answered.",
        [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300],
        ("route", *SERVED),
    ),
    "first_token_seconds": (
        "To the first token of a stream.",
        [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30],
        SERVED,
    ),
    "token_seconds": (
        "Mean time between the tokens of a stream after its first.",
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
        SERVED,
    ),
}
GAUGES = {
    "requests_running": ("Requests, and texts to score, that an engine works on or has waiting.", SERVED),
    "requests_waiting": ("Those of them that an engine has not begun with: the rest are its batch.", SERVED),
    "tokens_in_flight": ("Tokens of all those: their prompts, and what was drawn of their answers.", SERVED),
}


class ServingMetrics:
    """An observer of requests that counts them, and a reader of engines. Belongs to one replica."""

    def __init__(self) -> None:
        self._count = {name: Counter(PREFIX + name, text, labels) for name, (text, labels) in COUNTERS.items()}
        self._time = {
            name: Histogram(PREFIX + name, text, edges, labels) for name, (text, edges, labels) in HISTOGRAMS.items()
        }
        self._now = {name: Gauge(PREFIX + name, text, labels) for name, (text, labels) in GAUGES.items()}
        self._read: set[tuple[str, str]] = set()

    def __call__(self, observed: Observed) -> None:
        served = {"model": observed.model, "version": observed.version}
        self._count["requests"].inc(tags=served | {"route": observed.route, "status": str(observed.status)})
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            if tokens := getattr(observed, name):
                self._count[name].inc(tokens, tags=served)
        if observed.ok:
            self._time["request_seconds"].observe(observed.seconds, tags=served | {"route": observed.route})
        if observed.first_token_seconds is not None:
            self._time["first_token_seconds"].observe(observed.first_token_seconds, tags=served)
        if observed.token_seconds is not None:
            self._time["token_seconds"].observe(observed.token_seconds, tags=served)

    def read(self, models: Iterable[AnyModel]) -> None:
        """What the engines are doing. To be called every few seconds."""
        found = {}
        for model in models:
            served = model.served.name, model.served.reference.fingerprint or ""
            found[served] = {
                "requests_running": model.engine.running,
                "requests_waiting": model.engine.waiting,
                "tokens_in_flight": model.engine.tokens_in_flight,
            }
        for gone in self._read - found.keys():
            found[gone] = dict.fromkeys(GAUGES, 0)
        self._read |= found.keys()
        for (name, version), values in found.items():
            for gauge, value in values.items():
                self._now[gauge].set(value, tags={"model": name, "version": version})
