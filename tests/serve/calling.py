"""The application in this process, without Ray and without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from intently.core.workspace import Workspace

from serve.app import create_app
from serve.service import Service
from serve.settings import ServeConfig


def config(workspace: Workspace, log: Path, **settings: object) -> ServeConfig:
    """Settings for a service over these tables that keeps events in `log` unless told otherwise."""
    events = {"folder": str(log)} | dict(settings.pop("events", {}))  # type: ignore[call-overload]
    return ServeConfig.parse({"workspace": workspace.root, "events": events, "session": {"follow_s": 0.02}} | settings)


@asynccontextmanager
async def calling(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running application."""
    app = create_app(service)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client
