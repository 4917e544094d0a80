"""What the service needs to know at start: where the tables are, where events go, and the limits of a request."""

from __future__ import annotations

from intently.core.config import Config
from pydantic import Field


class ServeConfig(Config):
    """Arguments of the application builder, `args` in serve/local.yaml and serve/config.yaml."""

    workspace: str = Field("workspace", min_length=1, description="folder or object-store URI of the tables")
    event_log: str = Field(
        "workspace/event_log", min_length=1, description="local folder that events are appended to; replicas of a node share it"
    )
    dedupe_days: int = Field(7, ge=1, le=366, description="days for which an event id is remembered; a repeat within them is not written")
    max_events: int = Field(1000, ge=1, description="most events in one POST")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="largest request body")
    max_clock_ahead_s: float = Field(86_400.0, ge=0, description="how far in the future an event's timestamp may lie")
