"""What the HTTP interface tells of itself, to programs and to people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from support.browser import chromium, needs_browser
from support.patience import wait_for
from support.web import listening


@pytest.fixture(scope="module")
def api() -> Any:
    with TestClient(create_app(Models.of({}))) as client:
        return client.get("/openapi.json").json()


def validator(api: Any, name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": api["components"]})


def test_every_route_is_told_of_with_its_errors(api: Any) -> None:
    assert set(api["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/{name}", "/healthz", "/readyz",
    }  # fmt: skip
    for path, methods in api["paths"].items():
        for operation in methods.values():
            assert operation["description"]
            assert "422" not in operation["responses"]
            if path.startswith("/v1/"):
                for status in ("400", "401", "404", "413", "429", "500", "503"):
                    schema = operation["responses"][status]["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert set(api["paths"][path]["post"]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "ChatCompletionChunk" in api["components"]["schemas"]
    assert api["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_no_reference_leads_nowhere(api: Any) -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(api)))
    assert names <= set(api["components"]["schemas"])


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "user", "content": "a"}], "stop": "x", "seed": None},
            True,
        ),
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            True,
        ),
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "assistant", "content": None}], "unheard_of": 1},
            True,
        ),
        ("ChatCompletionRequest", {"model": "m", "messages": []}, False),
        ("ChatCompletionRequest", {"model": "m", "messages": [{"role": "user", "content": 5}]}, False),
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "user", "content": "a"}], "stop": list("abcde")},
            False,
        ),
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "user", "content": "a"}], "logit_bias": {"5": 1}},
            True,
        ),
        (
            "ChatCompletionRequest",
            {"model": "m", "messages": [{"role": "user", "content": "a"}], "logit_bias": {"the": 1}},
            False,
        ),
        ("CompletionRequest", {"model": "m", "prompt": [[1, 2], [3]], "temperature": None}, True),
        ("CompletionRequest", {"model": "m", "prompt": {"a": 1}}, False),
        ("EmbeddingRequest", {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}, True),
        ("EmbeddingRequest", {"model": "m", "input": []}, False),
    ],
)
def test_schemas_of_requests_are_true(api: Any, name: str, value: Any, valid: bool) -> None:
    assert validator(api, name).is_valid(value) is valid


def test_the_page_needs_nothing_from_elsewhere() -> None:
    with TestClient(create_app(Models.of({}))) as client:
        page = client.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"(?:https?:)?//\w", re.sub(r"^\s*//.*$", "", page.text, flags=re.MULTILINE))
        assert "innerHTML" not in page.text
        assert client.get("/redoc").status_code == 404


@needs_browser
def test_the_page_shows_every_route_in_a_browser(tmp_path: Path) -> None:
    with listening(create_app(Models.of({}))) as url, chromium(tmp_path) as browser:
        browser.listen()
        browser.open(f"{url}/docs")
        wait_for(lambda: browser.do("document.querySelectorAll('h2').length >= 8"))
        text = browser.text("main")
        for words in ("POST /v1/chat/completions", "POST /v1/embeddings", "GET /readyz", "tool_choice", "text/event-stream"):
            assert words in text
        assert browser.complaints() == []
        assert {asked.removeprefix(url) for asked in browser.asked()} <= {"/docs", "/openapi.json", "data:,"}
