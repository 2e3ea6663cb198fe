"""What answers are rewarded for."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from plumbline.api.base import ObjectName, PositiveFloat, PositiveInt, SpecModel, validated_by
from plumbline.api.options import foreign_options, option, option_rules
from plumbline.api.synthesis.teacher import EndpointUrl

Option = float | bool | str | None

REWARD_OPTIONS: dict[str, dict[str, Option]] = {
    "exactMatch": {},
    "numericMatch": {},
    "regex": {"pattern": None},
    "jsonSchema": {"json_schema": None},
    "unitTests": {"timeout_seconds": 10, "allow_unsandboxed": False},
    "rewardModel": {},
    "judge": {"url": None, "model": None, "key_secret": None, "rubric": None, "timeout_seconds": 120},
    "http": {"url": None, "key_secret": None, "timeout_seconds": 60},
    "overlong": {"buffer_tokens": 32},
}
"""The options of each reward and what they are where the run does not say."""

NEEDED = {"regex": ["pattern"], "jsonSchema": ["json_schema"], "judge": ["url", "model"], "http": ["url"]}
"""Options that have no default."""
REWARD_KEY = "PLUMBLINE_REWARD_KEY"
"""Environment variable that holds the key of a judge or an endpoint; the second such reward reads PLUMBLINE_REWARD_KEY_2, and so on."""


class MatchSpec(SpecModel):
    """A reward that is a comparison with the reference answer; several are summed by weight."""

    type: Literal["exactMatch", "numericMatch"] = "exactMatch"
    """`exactMatch`: 1 if the answer is the reference answer up to white space. `numericMatch`: 1 if their last numbers are equal."""
    weight: PositiveFloat = 1.0
    """Weight in the sum."""


class RewardSpec(SpecModel):
    """One reward; several are summed by weight. All but rewardModel, judge and http are verifiable: functions of the answer and of the
    row's reference answer."""

    model_config = validated_by(
        *option_rules("type", REWARD_OPTIONS),
        *(
            (f"self.type != '{kind}' || has(self.{to_camel(name)})", f"{kind} needs {to_camel(name)}")
            for kind, names in NEEDED.items()
            for name in names
        ),
    )

    type: Literal[
        "exactMatch", "numericMatch", "regex", "jsonSchema", "unitTests", "rewardModel", "judge", "http", "overlong"
    ] = "exactMatch"
    """`exactMatch`: 1 if the answer is the reference answer up to white space. `numericMatch`: 1 if their last numbers are equal.
    `regex`: 1 if `pattern` is found. `jsonSchema`: 1 if the answer is JSON that `jsonSchema` allows. `unitTests`: 1 if the Python code in
    the answer passes the reference, which is test code, in a sandbox. `rewardModel`: of the input `rewardModel`. `judge`: a model behind an
    endpoint rates the answer, 0 to 1. `http`: an endpoint of yours says. `overlong`: 0 down to -1 over the last `bufferTokens` before
    `sampling.maxTokens` (DAPO's soft punishment)."""
    weight: PositiveFloat = 1.0
    """Weight in the sum."""
    pattern: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """regex: Python's syntax; `.` matches line ends too."""
    json_schema: Annotated[str, Field(min_length=2, max_length=20000)] | None = None
    """jsonSchema: the schema, written as JSON."""
    url: EndpointUrl | None = None
    """judge: base URL of an OpenAI-compatible API. http: where `{"items": [{prompt, answer, reference}]}` is posted to, and `{"rewards": [number]}` comes from."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """judge: model name at the endpoint."""
    rubric: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """judge: completes the sentence "Rate …"; accuracy, helpfulness and completeness if unset."""
    key_secret: ObjectName | None = None
    """judge, http: name of the Secret whose `apiKey` is the endpoint's key. A local run reads PLUMBLINE_REWARD_KEY (PLUMBLINE_REWARD_KEY_2 for
    the second such reward, and so on)."""
    timeout_seconds: PositiveInt | None = None
    """One run of the tests: 10 (unitTests). One try of a call: 120 (judge), 60 (http)."""
    allow_unsandboxed: bool | None = None
    """unitTests: run answers where the host cannot isolate them, false."""
    buffer_tokens: PositiveInt | None = None
    """overlong: length of the slope, 32."""

    def option(self, name: str) -> Any:
        """An option of the reward's type, as set or by default."""
        return option(self, self.type, name, REWARD_OPTIONS)

    def problems(self) -> list[tuple[str, str]]:
        """What the types cannot say: (field, sentence)."""
        found = foreign_options(self, self.type, REWARD_OPTIONS)
        found += [
            (to_camel(name), f"{self.type} needs {to_camel(name)}")
            for name in NEEDED.get(self.type, [])
            if getattr(self, name) is None
        ]
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                found.append(("pattern", f"'{self.pattern}' is no regular expression: {error}"))
        if self.json_schema is not None:
            try:
                whole = isinstance(json.loads(self.json_schema), dict)
            except ValueError as error:
                found.append(("jsonSchema", f"is not JSON: {error}"))
            else:
                if not whole:
                    found.append(("jsonSchema", "must be a JSON object"))
        return found
