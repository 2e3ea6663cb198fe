"""Verifiable rewards: functions of an answer and its reference. A new one is one function and one line of `READY`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import regex
from jsonschema import ValidationError, validators
from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator
from jsonschema_specifications import REGISTRY
from referencing import Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from plumbline.api.stages.rewards import MatchSpec, RewardSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.gsm8k import last_number
from plumbline.evaluation.judges.rating import REASONING
from plumbline.sandbox import require, run_tests

Verify = Callable[[str, str], float]
"""(answer, reference) → value."""

SEARCH = 1.0  # seconds that one pattern may search one answer
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def exact_match(reply: str, reference: str) -> float:
    """1 if equal up to surrounding and repeated white space."""
    return float(" ".join(reply.split()) == " ".join(reference.split()))


def numeric_match(reply: str, reference: str) -> float:
    """1 if the last numbers in both are equal, read as benchmark `gsm8k` reads them: what is rewarded is what is scored."""
    ours, theirs = last_number(reply), last_number(reference)
    return float(ours is not None and theirs is not None and Decimal(ours) == Decimal(theirs))


def pattern_found(pattern: regex.Pattern[str], text: str) -> bool:
    """Whether a pattern is in a text; not found in time is not found: some patterns try for ever on some texts."""
    try:
        return pattern.search(text, timeout=SEARCH, concurrent=True) is not None
    except TimeoutError:
        return False


def overlong(tokens: int, max_tokens: int, buffer: int) -> float:
    """Soft punishment of long answers: 0 up to `max_tokens - buffer`, then a slope down to -1 at `max_tokens` (DAPO, Yu et al.
    2025, arXiv 2503.14476, equation 13).

    Args:
        tokens: length of the answer.
        max_tokens: longest answer.
        buffer: length of the slope in tokens.
    """
    return max(-1.0, min(0.0, (max_tokens - buffer - tokens) / buffer))


def block_of(reply: str) -> str:
    """The last block between ``` fences, without what was thought aloud; all of the reply if it has none."""
    said = REASONING.sub("", reply)
    blocks = _FENCE.findall(said)
    return blocks[-1] if blocks else said


def _compiled(pattern: str, field: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise InvalidInput(f"{field}: '{pattern}' is no regular expression: {error}") from error


def _regex(spec: RewardSpec, where: str) -> Verify:
    pattern = _compiled(spec.option("pattern"), f"{where}.pattern")
    return lambda reply, reference: float(pattern_found(pattern, reply))


def json_schema(schema: dict[str, Any], where: str) -> Verify:
    """1 if the answer, or its last ``` block, is JSON that a schema allows.

    References are followed within the schema and to the published meta-schemas, never over the network. Patterns may search for
    `SEARCH` seconds (those that `unevaluatedProperties` looks at, for as long as they like).

    Args:
        schema: of the draft that its `$schema` names, 2020-12 if none.
        where: field path of the reward, for messages.

    Raises:
        InvalidInput: it is no schema, or refers to what is not in it.
    """
    field = f"{where}.jsonSchema"
    kind = validators.validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidInput(f"{field}: {error.json_path}: {error.message}; give a JSON Schema") from error
    try:
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        uri = resource.id() or ""
        _check(REGISTRY.with_resource(uri, resource).resolver(uri), resource, field)
    except Unresolvable as error:
        raise InvalidInput(
            f"{field}: the reference '{error.ref}' leads out of the schema, and nothing is fetched; put it under $defs"
        ) from error
    timed = validators.extend(kind, TIMED)
    validator = timed(schema, registry=REGISTRY)

    def verify(reply: str, reference: str) -> float:
        try:
            return float(validator.is_valid(json.loads(block_of(reply), parse_constant=_no_json)))
        except (ValueError, RecursionError):
            return 0.0

    return verify


def _check(resolver: Any, resource: Any, field: str) -> None:
    """Follow each reference once and compile each pattern."""
    schema = resource.contents
    if isinstance(schema, dict):
        if "$ref" in schema:
            resolver.lookup(schema["$ref"])
        for pattern in [*schema.get("patternProperties", ()), *([schema["pattern"]] if "pattern" in schema else [])]:
            _compiled(pattern, field)
    for part in resource.subresources():
        _check(resolver.in_subresource(part), part, field)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not pattern_found(regex.compile(pattern), instance):
        yield ValidationError(f"{pattern} is not found")


def _pattern_properties(validator: Any, properties: dict[str, Any], instance: Any, schema: Any) -> Iterator[ValidationError]:
    for pattern, part in properties.items() if isinstance(instance, dict) else ():
        for name, value in instance.items():
            if pattern_found(regex.compile(pattern), name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    for name, value in instance.items() if isinstance(instance, dict) else ():
        patterns = schema.get("patternProperties", ())
        if name not in schema.get("properties", ()) and not any(pattern_found(regex.compile(p), name) for p in patterns):
            yield from validator.descend(value, part, path=name)


TIMED = {"pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional_properties}
"""Keywords whose own implementation could search for ever."""


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def unit_tests(seconds: float, allow_unsandboxed: bool) -> Verify:
    """1 if the code of the answer, its last ``` block or all of it, passes the reference, which is test code.

    Args:
        seconds: for code and tests together.
        allow_unsandboxed: see `plumbline.sandbox`, which says what the code can do and what it cannot.
    """

    def verify(reply: str, reference: str) -> float:
        code, tests = block_of(reply), block_of(reference)
        return float(run_tests(code, tests, seconds=seconds, allow_unsandboxed=allow_unsandboxed).passed)

    return verify


def _unit_tests(spec: RewardSpec, where: str) -> Verify:
    require(where, spec.option("allow_unsandboxed"))
    return unit_tests(spec.option("timeout_seconds"), spec.option("allow_unsandboxed"))


MATCHES: dict[str, Verify] = {"exactMatch": exact_match, "numericMatch": numeric_match}
READY: dict[str, Callable[[RewardSpec, str], Verify]] = {
    "exactMatch": lambda spec, where: exact_match,
    "numericMatch": lambda spec, where: numeric_match,
    "regex": _regex,
    "jsonSchema": lambda spec, where: json_schema(json.loads(spec.option("json_schema")), where),
    "unitTests": _unit_tests,
}
"""(spec, field path) → the reward's function; raises InvalidInput where it cannot work."""


def reward(specs: Sequence[MatchSpec], reply: str, reference: str) -> float:
    """The weighted sum of comparisons with the reference."""
    return sum((spec.weight * MATCHES[spec.type](reply, reference) for spec in specs), 0.0)
