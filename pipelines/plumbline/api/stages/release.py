"""`serve.release`: how a new model takes the place of the one that serves."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import WHOLE, NonNegativeInt, ObjectName, PositiveInt, Share, SpecModel
from plumbline.api.synthesis.teacher import EndpointUrl

Percent = Annotated[int, Field(ge=1, le=100), WHOLE]
Ratio = Annotated[float, Field(ge=1, le=100)]


class ShadowSpec(SpecModel):
    """The new model answers copies of requests; nobody sees its answers."""

    percent: Annotated[int, Field(ge=0, le=100), WHOLE] = 10
    """Share of the chats that are copied to the new model. 0 leaves this step out."""
    min_requests: PositiveInt = 100
    """Copies that it must have answered before it gets requests of its own."""


class ReleaseJudgeSpec(SpecModel):
    """A model behind an OpenAI-compatible endpoint that compares answers of both models, in both orders. It sees what users ask."""

    endpoint: EndpointUrl
    """Base URL; `/chat/completions` is appended to it. No key in it: see `keySecret`."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """Model name at the endpoint."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the endpoint's key. A local run reads the environment variable PLUMBLINE_JUDGE_KEY instead."""
    percent: Percent = 20
    """Share of the shadow's copies that are judged; the model before answers each of these once more."""
    min_verdicts: PositiveInt = 30
    """Verdicts without which the shadow does not end."""
    min_win_rate: Share = 0.4
    """Guard: wins of the new model, ties as half, as a share of verdicts."""


class ReleaseSpec(SpecModel):
    """A changed model is released in steps, each guarded by figures of live requests, and rolled back by itself.

    Figures of both models are compared over the same time. A guard trips where the new model is worse by more than its bound and
    chance is no explanation; nothing goes on while that is in doubt.
    """

    shadow: ShadowSpec = ShadowSpec()
    """The step before users see anything of it."""
    steps: list[Percent] = Field(default=[5, 25, 100], min_length=1, max_length=20)
    """Shares of the callers, told apart by their API keys, that get the new model's answers, one after the other in growing order. After
    the last comes 100, at which the model before is unloaded."""
    hold_seconds: NonNegativeInt = 60
    """Shortest time of each step."""
    min_requests: PositiveInt = 100
    """Requests that the new model must have answered in each step, but at 100."""
    max_error_rate_increase: Share = 0.01
    """Guard: errors of the server, as a share of requests, above those of the model before."""
    max_latency_ratio: Ratio = 1.5
    """Guard: 95th percentile of the time to the first token (of unstreamed answers: to the answer), against the model before."""
    max_refusal_increase: Share = 0.1
    """Guard: refusals, as a share of answers, above those of the model before."""
    max_length_ratio: Ratio = 2.0
    """Guard: mean tokens of an answer, against the model before, in either direction."""
    judge: ReleaseJudgeSpec | None = None
    """Guard of the shadow: a judge of its answers. Unset, or without a shadow: none."""
