"""The service: one Ray Serve deployment that holds the index and the tables and answers over HTTP.

    PYTHONPATH=platform RAY_AUTH_MODE=token serve run serve/local.yaml

Requests never leave the replica: a hop to another deployment costs more than the search itself. `create_app` makes the same application
without Ray, for a notebook or a plain ASGI server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from ray import serve as ray_serve

# Serve says nowhere else which address its proxies listen on.
from ray.serve.context import _get_global_client as get_global_client

from serve import one_write, problems
from serve.auth import describe
from serve.gate import Gate
from serve.reload import newest_versions
from serve.routes import TABLES_HEADER, event_routes, item_routes, operations_routes, user_routes
from serve.service import Service
from serve.settings import ServeConfig
from serve.telemetry import Measured

PAGE = Path(__file__).parent / "page"
PAGES = {"/": "index.html", "/console": "console.html", "/docs": "docs.html"}
# The page loads nothing from elsewhere.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


def create_app(service: Service) -> FastAPI:
    """The HTTP application over one replica's parts; while it runs it follows newer events and tables."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="intently",
        version="1",
        summary="Recommendations with reasons, and the interests behind them.",
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    config = service.config
    # The last that is added is the outermost: origins, then measuring, then the gate.
    app.add_middleware(Gate, keys=service.keys, limiter=service.limiter, load=service.load, timeout_s=config.timeout_s)
    app.add_middleware(Measured, telemetry=service.telemetry, max_body_bytes=config.max_body_bytes)
    if config.access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.access.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", TABLES_HEADER, "Retry-After"],
        )
    for routes in (user_routes, item_routes, event_routes, operations_routes):
        app.include_router(routes(service))
    if service.keys is not None:
        document_keys(app)

    for path, name in PAGES.items():
        app.add_api_route(path, partial(_page, name), include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


async def _page(name: str) -> FileResponse:
    return FileResponse(PAGE / name, headers={"Content-Security-Policy": PAGE_POLICY})


def document_keys(app: FastAPI) -> None:
    """Let the OpenAPI document say which operations need a key, and how they refuse."""
    make = app.openapi

    def with_keys() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe(make(), {str(status): problems.response_object(status) for status in (401, 403, 429)})
        return make()

    app.openapi = with_keys  # type: ignore[method-assign]


# Shedding is the gate's work (`ServeConfig.max_in_flight`), which answers with a problem: Ray's own limits only have to be wider.
@ray_serve.deployment(name="intently", max_ongoing_requests=1000, max_queued_requests=-1, health_check_period_s=2)
@ray_serve.ingress()
class Ingress:
    """A replica: loads what it needs when it starts, and takes requests after that."""

    def __init__(self, config: ServeConfig) -> None:
        """
        Raises:
            ConfigError: the proxies listen beyond the loopback interface, and there are no keys.
        """
        context = ray_serve.get_replica_context()
        if not config.access.has_keys:
            require_loopback(proxy_host())
        one_write.install()  # Ray starts the replica's server after this
        self._service = Service.open(config, context.replica_id.unique_id, context.world_size or 1)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray Serve puts behind its proxy."""
        return create_app(self._service)


def proxy_host() -> str:
    """The address that Serve's proxies listen on, as its controller has it."""
    host = get_global_client().http_config.host
    return host if host is not None else "127.0.0.1"


def require_loopback(host: str) -> None:
    """Raise ConfigError for an address that other machines reach."""
    if host != "localhost" and not ip_address(host).is_loopback:
        raise ConfigError("http_options.host", host, "without API keys (access.keys_file or access.keys_env) only 127.0.0.1 is served")


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application of a config file; `args` are those of `ServeConfig`.

    Raises:
        ConfigError: an argument is unknown or of a wrong kind; or the proxies listen beyond the loopback interface, and there are no keys.
        MissingArtifactError: a table is not in the workspace; found here, so that nobody waits for replicas that cannot start.
    """
    return bind(ServeConfig.parse(args), {})


def bind(config: ServeConfig, options: dict[str, Any]) -> ray_serve.Application:
    """The application with these settings; `options` are those of a Ray Serve deployment. Raises as `build`."""
    newest_versions(Workspace.open(config.workspace))
    # Said at once where Serve runs already; else the replicas say it when they start.
    client = get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is not None and not config.access.has_keys:
        require_loopback(proxy_host())
    return Ingress.options(**options).bind(config)  # type: ignore[attr-defined]
