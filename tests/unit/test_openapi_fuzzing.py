"""The description of the HTTP interface against the interface: whatever is sent, answers are as described and never the server's fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.embeddings import EmbeddingModel
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from support.encoders import encoder_folder

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = 40  # of each operation and mode
OPERATIONS = {
    "POST /v1/chat/completions": "tiny",
    "POST /v1/completions": "tiny",
    "POST /v1/embeddings": "encoder",
    "GET /v1/models": None,
    "GET /v1/models/{name}": None,
    "GET /healthz": None,
    "GET /readyz": None,
}
"""Operation → the model that is asked; else all requests would be for models that do not exist."""


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chat = ChatModel.load(ServedModel("tiny", ModelReference(TINY), max_tokens=16), slots=4)
    folder = encoder_folder(tmp_path_factory.mktemp("encoder"))
    encoder = EmbeddingModel.load(ServedModel("encoder", ModelReference(str(folder)), max_tokens=8))
    models = Models.of({"tiny": chat, "encoder": encoder})
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(models))
    models.close()


def test_every_operation_is_fuzzed(schema: Any) -> None:
    assert {found.ok().label for found in schema.get_all_operations()} == set(OPERATIONS)


def agreeing(body: dict[str, Any]) -> dict[str, Any]:
    """Without what a description of single fields cannot forbid: that they do not fit each other or this model."""
    for message in body.get("messages", ()):
        message["content"] = message.get("content") or "x"
        message.pop("tool_calls", None)
        message["tool_call_id"] = "call"
    for name in ("best_of", "echo_from", "dimensions", "top_logprobs", "max_tokens", "max_completion_tokens"):
        body.pop(name, None)
    if isinstance(body.get("prompt", body.get("input")), list):
        body["prompt" if "prompt" in body else "input"] = [[7, 5]]
    return body


@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_are_as_described(schema: Any, operation: str) -> None:
    method, path = operation.split()
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if method == "POST" else [GenerationMode.POSITIVE]

    def check(case: Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = OPERATIONS[operation]
            if mode == GenerationMode.POSITIVE:
                case.body = agreeing(case.body)
        case.call_and_validate(checks=CHECKS)

    for mode in modes:
        strategy = schema[path][method].as_strategy(generation_mode=mode)
        whatever_is_slow = list(HealthCheck)
        options = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
        settings(options, suppress_health_check=whatever_is_slow)(given(strategy)(check))()
