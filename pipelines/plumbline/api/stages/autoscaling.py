"""`serve.autoscaling`: as many replicas as the load needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import WHOLE, NonNegativeInt, PositiveInt, SpecModel, validated_by

Replicas = Annotated[int, Field(ge=1, le=1000), WHOLE]
BOUNDS = "no more than maxReplicas"


class AutoscalingSpec(SpecModel):
    """Replicas between two bounds: as many as bring both the requests and the tokens of one replica to their targets.

    The delays are those of Ray Serve.
    """

    model_config = validated_by(("self.minReplicas <= self.maxReplicas", f"minReplicas: {BOUNDS}"))

    min_replicas: Annotated[int, Field(ge=0, le=1000), WHOLE] = 1
    """Fewest replicas. 0: none while nobody asks; the first request then waits for one to come up."""
    max_replicas: Replicas
    """Most replicas."""
    target_ongoing_requests: PositiveInt | None = None
    """Requests, waiting ones included, that one replica should have. Unset: half of `maxOngoingRequests`, which leaves the other half for
    the time that a further replica takes to come up."""
    target_tokens_in_flight: PositiveInt | None = None
    """Tokens of those requests, read and drawn so far, that one replica should have: what fills its cache where requests are long. Unset:
    only requests count."""
    upscale_delay_seconds: NonNegativeInt = 30
    """How long more replicas must have been needed."""
    downscale_delay_seconds: NonNegativeInt = 600
    """How long fewer replicas must have been enough."""
    downscale_to_zero_delay_seconds: NonNegativeInt | None = None
    """The same for the last replica. Unset: `downscaleDelaySeconds`."""
    look_back_seconds: PositiveInt = 30
    """Time over which load is averaged."""

    def problems(self) -> list[tuple[str, str]]:
        """What field types cannot say: (field path below the block, sentence) for each contradiction."""
        if self.min_replicas <= self.max_replicas:
            return []
        return [("minReplicas", f"{self.min_replicas} is above maxReplicas, which is {self.max_replicas}: {BOUNDS}")]
