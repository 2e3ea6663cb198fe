"""How many replicas the load needs, told to Ray Serve's autoscaler."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from plumbline.api.stages.autoscaling import AutoscalingSpec

TOKENS = "tokens_in_flight"
"""Name of the figure that each replica records beside its requests, which Serve counts itself."""


def needed(requests: float, tokens: float, *, target_requests: float, target_tokens: float | None) -> float:
    """Replicas, as a fraction, that bring both requests and tokens of each to no more than their targets; 0 with no load.

    Args:
        requests: of all replicas, waiting ones included.
        tokens: of those requests.
        target_requests: of one replica.
        target_tokens: of one replica; None: tokens do not count.
    """
    return max(requests / target_requests, tokens / target_tokens if target_tokens else 0.0)


class Policy:
    """Serve's autoscaling policy. Serve itself adds bounds and delays, and brings up the first replica of none.

    Args:
        target_tokens: see `needed`.
    """

    def __init__(self, target_tokens: int | None = None) -> None:
        self._target_tokens = target_tokens

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        assert context.config is not None
        if not context.current_num_replicas:
            # The first are on their way: a model that takes longer to load than idle replicas may stay would never come up.
            return context.target_num_replicas, {}
        found = needed(
            context.total_num_requests,
            sum((context.aggregated_metrics or {}).get(TOKENS, {}).values()),
            target_requests=context.config.get_target_ongoing_requests(),
            target_tokens=self._target_tokens,
        )
        return found, {}


def number_of_replicas(spec: AutoscalingSpec | None, replicas: int, max_ongoing_requests: int) -> dict[str, Any]:
    """The options of a Serve deployment that say how many replicas it has.

    Args:
        spec: None: always `replicas`.
        replicas: how many, or how many to begin with; the bounds of `spec` go before it.
        max_ongoing_requests: requests that one replica works on at the same time.
    """
    if spec is None:
        return {"num_replicas": replicas}
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]
        policy_function=f"{__name__}:{Policy.__name__}", policy_kwargs={"target_tokens": spec.target_tokens_in_flight}
    )
    config = AutoscalingConfig(
        min_replicas=spec.min_replicas,
        initial_replicas=min(max(replicas, spec.min_replicas), spec.max_replicas),
        max_replicas=spec.max_replicas,
        target_ongoing_requests=spec.target_ongoing_requests or max(max_ongoing_requests / 2, 1),
        upscale_delay_s=spec.upscale_delay_seconds,
        downscale_delay_s=spec.downscale_delay_seconds,
        downscale_to_zero_delay_s=spec.downscale_to_zero_delay_seconds,
        look_back_period_s=spec.look_back_seconds,
        policy=policy,
    )
    return {"autoscaling_config": config}
