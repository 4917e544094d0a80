"""The door: who may ask, how much, and how many requests a replica works on at once. Everything else is refused here, and cheaply.

An ASGI layer below the one that measures (`telemetry.Measured`), so that refusals have request ids and are counted like answers.
"""

from __future__ import annotations

import asyncio

from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from serve.auth import ApiKey, Keys, scope_of
from serve.limits import Limiter, retry_after
from serve.problems import RETRY_AFTER_S, respond
from serve.settings import Scope
from serve.telemetry import Telemetry

BEARER = "bearer "
# What a load balancer and an operator must see when the replica is full.
NEVER_SHED = ("/healthz", "/readyz", "/metrics")


class Load:
    """How many requests a replica works on.

    Args:
        most: further ones are refused.
        telemetry: where it is shown.
    """

    def __init__(self, most: int, telemetry: Telemetry) -> None:
        self.most, self.now = most, 0
        gauge = Gauge("intently_in_flight", "Requests in work.", ["replica"], registry=telemetry.registry)
        gauge.labels(telemetry.replica).set_function(lambda: float(self.now))


class Gate:
    """Answers 401, 403, 429 and 503; lets the rest through, for at most `timeout_s`."""

    def __init__(self, app: ASGIApp, keys: Keys | None, limiter: Limiter, load: Load, timeout_s: float) -> None:
        self._app, self._keys, self._limiter = app, keys, limiter
        self._load, self._timeout_s = load, timeout_s

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        needed = scope_of(scope["method"], path)
        if self._keys is not None and needed is not None:
            refusal = await self._refusal(self._keys, needed, scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        if path in NEVER_SHED:
            await self._app(scope, receive, send)
            return
        if self._load.now >= self._load.most:
            detail = f"the replica works on {self._load.most} requests already"
            await _unavailable(scope, "busy", detail)(scope, receive, send)
            return
        self._load.now += 1
        try:
            # One turn of the loop: every request that came in at the same time is counted before the first of them is worked on.
            await asyncio.sleep(0)
            await self._within_time(scope, receive, send)
        finally:
            self._load.now -= 1

    async def _within_time(self, scope: Connection, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                await self._app(scope, receive, noting_send)
        except TimeoutError:
            if started or not limit.expired():
                raise
            detail = f"no answer within {self._timeout_s:g} s"
            await _unavailable(scope, "timed-out", detail)(scope, receive, send)

    async def _refusal(self, keys: Keys, needed: Scope, scope: Connection) -> Response | None:
        request = Request(scope)
        sent = Headers(scope=scope).get("authorization", "")
        if not sent.lower().startswith(BEARER):
            return _unauthorised(request, "no API key; send it as 'Authorization: Bearer …'")
        key: ApiKey | None = keys.find(sent[len(BEARER) :].strip())
        if key is None:
            return _unauthorised(request, "the service does not know this API key")
        if needed not in key.scopes:
            detail = f"the key {key.name!r} has {', '.join(key.scopes)}; {needed} is needed"
            return respond(request, 403, "wrong-scope", detail)
        wait_s = await self._limiter.wait_s(key)
        if wait_s:
            detail = f"the key {key.name!r} may ask {key.requests_per_s:g} times a second"
            return respond(request, 429, "rate-limit", detail, headers={"Retry-After": retry_after(wait_s)})
        return None


def _unauthorised(request: Request, detail: str) -> Response:
    return respond(request, 401, "no-key", detail, headers={"WWW-Authenticate": "Bearer"})


def _unavailable(scope: Connection, kind: str, detail: str) -> Response:
    return respond(Request(scope), 503, kind, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
