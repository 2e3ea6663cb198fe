"""What the HTTP interface tells of itself: `/openapi.json`, and a page for people at `/docs` that needs no internet."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from plumbline.serving.http_errors import ErrorBody

PAGE = "openapi.html"
POLICY = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
ABOUT = """The models of this deployment, spoken to as OpenAI's. Fields that are not listed are ignored.

Errors have the body `{"error": {"message", "type", "param", "code"}}`."""

_WRONG = {
    400: "The request is wrong: `param` says where.",
    401: "The API key is missing or unknown, where keys are needed.",
    404: "There is no such model or path.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    429: "Too much at a time; `Retry-After` says when to try again.",
    500: "The server failed.",
    503: "There is no room, or the server is about to end; try again.",
    504: "The answer took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words} for status, words in _WRONG.items()
} | {"default": {"model": ErrorBody, "description": "Any other error."}}


def answers(whole: type[BaseModel], piece: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Answers of a route that gives one body, or server-sent events with `stream`."""
    events = (
        f"Server-sent events. The data of each is a {piece.__name__}, or an error object where the answer breaks off; "
        "the last is `[DONE]`."
    )
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"], "description": events}
    stream = {"text/event-stream": {"schema": event}}  # of each event, as OpenAPI 3.2 has it
    return {200: {"model": whole, "description": "The answer.", "content": stream}, **ERRORS}


def describe(app: FastAPI, *pieces: type[BaseModel]) -> None:
    """Serve the description and its page.

    Args:
        app: with all its routes.
        pieces: models that no route names, which are told of nevertheless.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            components = found.setdefault("components", {})
            for piece in pieces:
                schema = piece.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
                named = schema.pop("$defs", {}) | {piece.__name__: schema}
                components["schemas"] = named | components.get("schemas", {})
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}}
            found["security"] = [{"key": []}, {}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    page = (resources.files("plumbline.serving") / PAGE).read_text()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})
