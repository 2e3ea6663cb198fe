"""Who answers a synthesis stage, and how calls are made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import ObjectName, PositiveInt, SpecModel, validated_by

TEACHER_KEY, JUDGE_KEY = "PLUMBLINE_TEACHER_KEY", "PLUMBLINE_JUDGE_KEY"
"""Environment variables that hold the keys of endpoints."""

EndpointUrl = Annotated[str, Field(pattern=r"^https?://[^/@?#\s]+(/[^@?#\s]*)?$", max_length=1024)]
"""Base URL of an API, without a user, a password or a query: a key belongs into a Secret."""


class TeacherSpec(SpecModel):
    """A model behind an OpenAI-compatible endpoint. Nothing given: the stage's model input, served in the stage's own cluster;
    with an endpoint the stage takes no model by itself."""

    model_config = validated_by(
        (
            "has(self.endpoint) == has(self.model)",
            "give endpoint and model together, or neither for the stage's model input",
        ),
        ("!has(self.keySecret) || has(self.endpoint)", "keySecret goes with an endpoint"),
    )

    endpoint: EndpointUrl | None = None
    """Base URL; `/chat/completions` is appended to it. OpenAI's own is https://api.openai.com/v1. No key in it: see `keySecret`."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Model name at the endpoint."""
    key_secret: ObjectName | None = None
    """Name of the Secret whose `apiKey` is the endpoint's key. A local run reads the environment variable
    PLUMBLINE_TEACHER_KEY (PLUMBLINE_JUDGE_KEY for a judge) instead."""

    def problems(self) -> list[tuple[str, str]]:
        """What the types cannot say: (field, sentence)."""
        if (self.endpoint is None) != (self.model is None):
            missing = "model" if self.model is None else "endpoint"
            return [(missing, "give endpoint and model together, or neither for the stage's model input")]
        if self.key_secret is not None and self.endpoint is None:
            return [("keySecret", f"'{self.key_secret}' goes with an endpoint, and none is given")]
        return []


class CallsSpec(SpecModel):
    """How calls are made. Nothing here changes what a deterministic teacher's answers become."""

    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Calls in flight."""
    requests_per_minute: PositiveInt | None = None
    """At most this many calls a minute, evenly spread, to teacher and judge each. Unset: no limit of ours."""
    tokens_per_minute: PositiveInt | None = None
    """At most this many tokens a minute (prompt and longest answer, corrected when the answer is there)."""
    timeout_seconds: PositiveInt = 600
    """A call without a whole answer after this long is tried again, twice at most (the OpenAI client's limit is 600)."""
