"""The application in this process, without Ray: called without a network, or listening on the loopback interface."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
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


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application that listens in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        runner = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            runner.should_exit = True
            runner.force_exit = True
            thread.join()
