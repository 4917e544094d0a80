"""Errors as RFC 9457 problem details: every refusal names the field and the value."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from intently.core.errors import WorkspaceError
from pydantic import JsonValue
from starlette.exceptions import HTTPException

from serve.models import FieldError, Problem

MEDIA_TYPE = "application/problem+json"
SHOWN = 200
RETRY_AFTER_S = 1

TITLES = {
    "unknown-user": "The service does not know this user",
    "unknown-item": "The catalogue does not have this item",
    "no-image": "The item has no picture",
    "no-known-item": "The history holds no item of the catalogue",
    "strategy-not-built": "This strategy is not built yet",
    "body-too-large": "The request body is too large",
    "invalid-request": "The request is not valid",
    "no-key": "The request has no API key that the service knows",
    "wrong-scope": "The API key does not allow this",
    "rate-limit": "The API key asks too often",
    "busy": "The service is busy",
    "timed-out": "The service took too long",
    "event-log-unavailable": "Events cannot be stored at the moment",
    "internal-error": "The service failed",
}


class ProblemError(HTTPException):
    """A request that is refused."""

    def __init__(self, status: int, kind: str, detail: str, errors: list[FieldError] | None = None) -> None:
        super().__init__(status, detail)
        self.kind, self.errors = kind, errors or []


def refuse(status: int, kind: str, field: str, value: object, reason: str) -> ProblemError:
    """A refusal because of one field."""
    return ProblemError(status, kind, f"{field} = {shown(value)!r}: {reason}", [FieldError(field=field, value=shown(value), reason=reason)])


def shown(value: object) -> JsonValue:
    """A refused value as JSON can carry it, shortened."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def response_object(status: int) -> dict[str, Any]:
    """A refusal as OpenAPI describes it."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}


def install(app: FastAPI) -> None:
    """Let `app` answer every error as a problem."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(WorkspaceError, _on_event_log)
    app.add_exception_handler(Exception, _on_bug)


def respond(
    request: Request, status: int, kind: str, detail: str, errors: list[FieldError] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The response that says so."""
    problem = Problem(
        type=f"urn:intently:problem:{kind}",
        title=TITLES[kind] if kind in TITLES else HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request.headers.get("x-request-id") or "",
        errors=errors or [],
    )
    # ASCII, because a refused value may hold half a surrogate pair, which UTF-8 cannot carry.
    return Response(json.dumps(problem.model_dump()), status, headers, MEDIA_TYPE)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return respond(request, error.status_code, error.kind, error.detail, error.errors)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(found) for found in error.errors()]
    first = errors[0]
    return respond(request, 422, "invalid-request", f"{first.field} = {first.value!r}: {first.reason}", errors)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    return respond(request, error.status_code, kind, str(error.detail), headers=dict(error.headers or {}))


async def _on_event_log(request: Request, error: Exception) -> Response:
    return respond(request, 503, "event-log-unavailable", str(error), headers={"Retry-After": str(RETRY_AFTER_S)})


async def _on_bug(request: Request, error: Exception) -> Response:
    return respond(request, 500, "internal-error", f"{type(error).__name__}; the log has the rest under this request id")


def _field_error(found: dict) -> FieldError:
    # The first step says query, path or body; "one" and "many" are the two forms of a POST of events.
    steps = [str(step) for step in found["loc"] if step not in ("query", "path", "body", "one", "many")]
    value = None if found["type"] == "missing" else found.get("input")
    if isinstance(value, bytes):
        return FieldError(
            field="Content-Type", value=shown(value.decode(errors="replace")), reason="the body is read as application/json only"
        )
    reason = "unknown field" if found["type"] == "extra_forbidden" else found["msg"]
    return FieldError(field=".".join(steps) or "body", value=shown(value), reason=reason)
