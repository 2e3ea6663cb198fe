"""Errors of requests, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.serving.openai_answers import OpenAIError

SHOWN = 60  # characters of a value in a message


class ErrorDetail(BaseModel):
    """`param` is the request field at fault, `code` a reason for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer that is no success."""

    error: ErrorDetail


def add_error_handlers(app: FastAPI) -> None:
    """Every error that a route raises is answered in OpenAI's form."""
    for kind in (OpenAIError, RequestValidationError, HTTPException, PlumblineError, Exception):
        app.add_exception_handler(kind, _error_response)


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):  # of the router: no such path, or method
        words = f"{request.method} {request.url.path} is not served here; /docs lists what is"
        return error_response(OpenAIError(error.status_code, words), error.headers)
    return error_response(as_openai_error(error), error.headers if isinstance(error, HTTPException) else None)


def error_response(error: OpenAIError, headers: Mapping[str, str] | None = None) -> Response:
    """The error as it is sent. In ASCII: what a client made up may hold halves of characters."""
    return Response(json.dumps(error.body()), error.status, headers, "application/json")


def as_openai_error(error: Exception) -> OpenAIError:
    """Any error of a request, in OpenAI's form."""
    if isinstance(error, OpenAIError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_wrong_body(error)
    if isinstance(error, HTTPException):
        if error.status_code == 400:  # FastAPI's word for all that `json.loads` can raise
            return OpenAIError(400, "body: it is no JSON that can be read; give UTF-8 text that is not nested too deep")
        return OpenAIError(error.status_code, str(error.detail))
    if isinstance(error, PlumblineError):
        return OpenAIError(400 if isinstance(error, InvalidInput) else 500, str(error))
    return OpenAIError(
        500, f"The server failed on this request: {type(error).__name__}."
    )  # its words may hold what was asked


def _of_wrong_body(error: RequestValidationError) -> OpenAIError:
    first = error.errors()[0]
    where, words = first["loc"][1:], first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return OpenAIError(400, f"body: it is no JSON: {first['ctx']['error']} at character {where[0]}")
    if first["type"] in ("model_attributes_type", "missing") and not where:
        return OpenAIError(400, "body: give a JSON object, with the header Content-Type: application/json")
    field = ".".join(map(str, where)) or None
    given = first["input"]
    if (
        not first["type"].startswith(("value_error", "missing"))
        and isinstance(given, int | float | str)
        and len(str(given)) <= SHOWN
    ):
        words += f", not {json.dumps(given)}"
    return OpenAIError(400, f"{field or 'body'}: {words}", param=field)
