"""Rewards that are functions of the answer, and the scorer that puts all of them together."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from plumbline.api.stages.rewards import MatchSpec, RewardSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.rollout.rewards import verifiable
from plumbline.rollout.rewards.scorer import UNSCORED, Answer, Scorer, key_variables, names, total
from plumbline.rollout.rewards.verifiable import READY, block_of, exact_match, json_schema, numeric_match, overlong, reward
from plumbline.sandbox import supported

ASKED = {"rewardModel", "judge", "http", "overlong"}
"""Rewards that need more than answer and reference."""
PROMPT: Any = [{"role": "user", "content": "Six times seven?"}]


def answers(*texts: str, tokens: int = 1) -> list[Answer]:
    return [Answer(text, tokens, cut=False) for text in texts]


def value(spec: RewardSpec, reply: str, reference: str = "") -> float:
    return READY[spec.type](spec, "here")(reply, reference)


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        ("a b", "a b", 1),
        (" a\n  b ", "a b", 1),
        ("a b", " a  b", 1),
        ("A b", "a b", 0),
        ("a b c", "a b", 0),
        ("", "a", 0),
        ("", "", 1),
    ],
)
def test_exact_match(reply: str, reference: str, value: float) -> None:
    assert exact_match(reply, reference) == value


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        ("The answer is 42.", "6 * 7 = 42", 1),
        ("first 41, then 42", "42", 1),
        ("42 or 41", "42", 0),
        ("1,234.50 dollars", "1234.5", 1),
        ("$1,234", "1234", 1),
        ("1,2,3", "123", 0),  # a list, not thousands
        ("1,2,3", "3", 1),
        ("-5", "-5", 1),
        ("−5", "-5", 1),
        ("5", "-5", 0),
        ("10-12", "12", 1),  # a range or a difference, not minus twelve
        (".5", "0.5", 1),
        ("9007199254740993", "9007199254740992", 0),  # equal as floats
        ("9" * 400, "8" * 400, 0),  # both infinite as floats
        ("none", "42", 0),
        ("42", "none", 0),
        ("", "", 0),
    ],
)
def test_numeric_match(reply: str, reference: str, value: float) -> None:
    assert numeric_match(reply, reference) == value


@pytest.mark.parametrize(
    ("pattern", "reply", "expected"),
    [
        (r"<answer>.*</answer>", "so <answer>4\n2</answer>", 1),
        (r"<answer>.*</answer>", "so 42", 0),
        (r"^The", "x\nThe", 0),
        (r"(?m)^The", "x\nThe", 1),
        (r"\A\s*\Z", "", 1),
    ],
)
def test_regex(pattern: str, reply: str, expected: float) -> None:
    assert value(RewardSpec(type="regex", pattern=pattern), reply) == expected


FOR_EVER, LONG = r"^(a|aa)+$", "a" * 60 + "!"
"""A pattern that tries 2⁴⁰ ways on this text."""


def test_a_pattern_that_backtracks_for_ever_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiable, "SEARCH", 0.1)
    assert value(RewardSpec(type="regex", pattern=FOR_EVER), LONG) == 0
    assert value(RewardSpec(type="regex", pattern=FOR_EVER), "aaa") == 1


SCHEMA = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/small"}},
    "required": ["n"],
    "$defs": {"small": {"maximum": 9}},
}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"n": 3}', 1),
        ('Here it is:\n```json\n{"n": 3}\n```\nDone.', 1),
        ('```\n{"n": 30}\n```\nNo:\n```\n{"n": 3}\n```', 1),
        ('```json\n{"n": 3}', 1),
        ('<think>```\n{"n": 30}\n```</think>{"n": 3}', 1),
        ('{"n": 30}', 0),
        ("{}", 0),
        ("[]", 0),
        ('{"n": NaN}', 0),
        ('{"n": 3} and more', 0),
        ("", 0),
        ("[" * 100_000, 0),
        ('{"n": ' + "9" * 5000 + "}", 0),
    ],
)
def test_json_schema(reply: str, expected: float) -> None:
    assert value(RewardSpec(type="jsonSchema", json_schema=json.dumps(SCHEMA)), reply) == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"x": {"pattern": FOR_EVER}}}, 0),
        ({"patternProperties": {FOR_EVER: False}}, 1),
        ({"patternProperties": {FOR_EVER: True}, "additionalProperties": {"type": "string"}}, 0),
    ],
)
def test_a_pattern_of_a_schema_cannot_hang(schema: dict[str, Any], expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiable, "SEARCH", 0.1)
    assert json_schema(schema, "here")(json.dumps({"x": LONG, LONG: 1}), "") == expected


def test_additional_properties_are_those_that_nothing_names() -> None:
    verify = json_schema({"properties": {"a": {}}, "patternProperties": {"^b": {}}, "additionalProperties": False}, "here")
    assert [verify(reply, "") for reply in ('{"a": 1, "b1": 2}', '{"c": 3}', "3")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": 3}, r"here\[0\]\.jsonSchema: \$\.type: 3 is not valid"),
        ({"$ref": "https://example.com/schema"}, "'https://example.com/schema' leads out of the schema"),
        ({"properties": {"a": {"items": {"$ref": "#/$defs/none"}}}}, "leads out of the schema"),
        ({"properties": {"a": {"pattern": "("}}}, "is not a 'regex'"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_before_any_rollout(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Scorer([RewardSpec(type="jsonSchema", json_schema=json.dumps(schema))], 9, "here", None)


def test_a_schema_may_name_itself_and_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    schema = {
        "$id": "https://example.com/tree",
        "properties": {"next": {"$ref": "tree"}, "of": {"$ref": "https://json-schema.org/draft/2020-12/schema"}},
        "additionalProperties": False,
    }
    verify = json_schema(schema, "here")
    assert verify('{"next": {"next": {}}, "of": {"type": "array"}}', "") == 1
    assert verify('{"next": {"other": {}}}', "") == 0
    assert verify('{"of": {"type": 3}}', "") == 0
    old = json_schema({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}, "here")
    assert (old("3", ""), old("4", "")) == (0, 1)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (60, 0), (70, -0.25), (80, -0.5), (100, -1)])
def test_overlong_is_equation_13_of_dapo(tokens: int, expected: float) -> None:
    assert overlong(tokens, max_tokens=100, buffer=40) == expected


@pytest.mark.parametrize(
    ("reply", "block"),
    [
        ("x = 1", "x = 1"),
        ("Say:\n```python\nx = 1\n```\nThat is it.", "x = 1\n"),
        ("```\nx = 1\n```\n```py\ny = 2\n```", "y = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("  ```python\n  x = 1\n  ```", "  x = 1\n"),
        ("inline ```x``` only", "inline ```x``` only"),
        ("<think>```\nno\n```</think>\nx = 1", "\nx = 1"),
    ],
)
def test_the_last_block_counts(reply: str, block: str) -> None:
    assert block_of(reply) == block


@pytest.mark.skipif(supported() is not None, reason=f"this host cannot isolate programs: {supported()}")
def test_unit_tests_run_the_answer_against_the_reference() -> None:
    scorer = Scorer([RewardSpec(type="unitTests", timeout_seconds=20)], 99, "here", None)
    replies = [
        "```python\ndef double(x):\n    return 2 * x\n```",
        "def double(x): return x",
        "import os; os._exit(0)",
        "I cannot.",
    ]
    parts = scorer.score(PROMPT, answers(*replies), "```python\nassert double(4) == 8\n```")
    scorer.close()
    assert [part["unitTests"] for part in parts] == [1, 0, 0, 0]


def test_matches_are_summed_by_weight() -> None:
    specs = [MatchSpec(type="exactMatch", weight=0.25), MatchSpec(type="numericMatch", weight=2.0)]
    assert reward(specs, "42", "42") == 2.25
    assert reward(specs, "it is 42", "42") == 2.0
    assert reward(specs, "it is 41", "42") == 0.0


def test_every_reward_of_the_contract_has_its_function() -> None:
    types = set(RewardSpec.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
    assert types == set(READY) | ASKED


def test_a_scorer_gives_each_value_unweighted_and_in_order() -> None:
    specs = [
        RewardSpec(type="numericMatch", weight=2.0),
        RewardSpec(type="regex", pattern="is", weight=0.5),
        RewardSpec(type="regex", pattern="!"),
        RewardSpec(type="overlong", buffer_tokens=4),
    ]
    scorer = Scorer(specs, 10, "here", None)
    group = [Answer("it is 42", 3, False), Answer("42!", 8, False), Answer("it is 42", 10, True)]
    parts = scorer.score(PROMPT, group, "42")
    scorer.close()
    assert parts == [
        {"numericMatch": 1, "regex": 1, "regex-2": 0, "overlong": 0, "unscored": 0},
        {"numericMatch": 1, "regex": 0, "regex-2": 1, "overlong": -0.5, "unscored": 0},
        {"numericMatch": 1, "regex": 1, "regex-2": 0, "overlong": -1, "unscored": 0},
    ]
    assert [total(specs, part) for part in parts] == [2.5, 2.5, 1.5]


def test_a_reward_model_is_given_whole_chats() -> None:
    seen: list[Any] = []

    def score(chats: list[Any]) -> list[float]:
        seen.extend(chats)
        return [float(len(chat[-1]["content"])) for chat in chats]

    scorer = Scorer([RewardSpec(type="rewardModel")], 10, "here", score)
    assert [part["rewardModel"] for part in scorer.score(PROMPT, answers("a", "bcd"), "")] == [1, 3]
    assert seen[1] == [*PROMPT, {"role": "assistant", "content": "bcd"}]


def test_what_is_too_long_for_the_reward_model_gets_its_groups_mean() -> None:
    scorer = Scorer([RewardSpec(type="rewardModel")], 10, "here", lambda chats: [1.0, None, 3.0])
    found = scorer.score(PROMPT, answers("a", "b", "c"), "")
    assert [part["rewardModel"] for part in found] == [1, 2, 3]
    assert [part.get(UNSCORED, 0) for part in found] == [0, 1, 0]


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_reward_model_that_gives_no_number_stops_the_run(scores: list[float]) -> None:
    scorer = Scorer([RewardSpec(type="rewardModel")], 10, "here", lambda chats: scores)
    with pytest.raises(PlumblineError, match=r"here\[0\]: the reward model gave .* for 2 answers"):
        scorer.score(PROMPT, answers("a", "b"), "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RewardSpec(type="rewardModel"), r"here\[1\]\.type: rewardModel scores by the input rewardModel"),
        (RewardSpec(type="overlong"), r"here\[1\]\.bufferTokens: 32 is more than sampling.maxTokens 10"),
        (RewardSpec(type="regex", pattern="("), r"here\[1\]\.pattern: '\(' is no regular expression"),
        (
            RewardSpec(type="http", url="http://x/", key_secret="s"),
            r"here\[1\]\.keySecret: .* PLUMBLINE_REWARD_KEY is not set",
        ),
    ],
)
def test_what_cannot_work_is_said_before_training(spec: RewardSpec, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLUMBLINE_REWARD_KEY", raising=False)
    with pytest.raises(InvalidInput, match=message):
        Scorer([RewardSpec(), spec], 10, "here", None)


def test_names_and_keys_are_counted_by_what_they_are() -> None:
    judge = RewardSpec(type="judge", url="http://x", model="m")
    http = RewardSpec(type="http", url="http://x")
    specs = [RewardSpec(), judge, RewardSpec(), http, judge]
    assert names(specs) == ["exactMatch", "judge", "exactMatch-2", "http", "judge-2"]
    keys = ["PLUMBLINE_REWARD_KEY", "PLUMBLINE_REWARD_KEY_2", "PLUMBLINE_REWARD_KEY_3"]
    assert key_variables(specs) == [None, keys[0], None, keys[1], keys[2]]
