"""The service: one Ray Serve deployment that holds the index and the tables and answers over HTTP.

    PYTHONPATH=platform RAY_AUTH_MODE=token serve run serve/local.yaml

Requests never leave the replica: a hop to another deployment costs more than the search itself. `create_app` makes the same application
without Ray, for a notebook or a plain ASGI server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from intently.core.workspace import Workspace
from ray import serve as ray_serve

from serve import problems
from serve.routes import event_routes, item_routes, operations_routes, user_routes
from serve.service import Service
from serve.settings import ServeConfig
from serve.state import TABLES
from serve.telemetry import Measured

PAGE = Path(__file__).parent / "page"
# The page loads nothing from elsewhere.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"


def create_app(service: Service) -> FastAPI:
    """The HTTP application over one replica's parts."""
    app = FastAPI(title="intently", version="1", summary="Recommendations with reasons, and the interests behind them.")
    problems.install(app)
    app.add_middleware(Measured, telemetry=service.telemetry, max_body_bytes=service.config.max_body_bytes)
    for routes in (user_routes, item_routes, event_routes, operations_routes):
        app.include_router(routes(service))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return app


@ray_serve.deployment(
    name="intently",
    max_ongoing_requests=64,
    max_queued_requests=128,
    backpressure_config={"status_code": 503, "retry_after_s": problems.RETRY_AFTER_S},
)
@ray_serve.ingress()
class Ingress:
    """A replica: loads what it needs when it starts, and takes requests after that."""

    def __init__(self, config: ServeConfig) -> None:
        self._service = Service.open(config, ray_serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray Serve puts behind its proxy."""
        return create_app(self._service)


def build(args: dict[str, Any]) -> ray_serve.Application:
    """The application of a config file; `args` are those of `ServeConfig`.

    Raises:
        ConfigError: an argument is unknown or of a wrong kind.
        MissingArtifactError: a table is not in the workspace; found here, so that nobody waits for replicas that cannot start.
    """
    config = ServeConfig.parse(args)
    workspace = Workspace.open(config.workspace)
    for name in TABLES:
        workspace.artifact(name)
    return Ingress.bind(config)  # type: ignore[attr-defined]
