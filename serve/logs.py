"""Log lines as JSON, one a line, each with the id of its request.

A line says what was asked of the service, never by whom or about whom: the route's pattern instead of the path, no query, no header, no
body, no address, no key. A failure is told by its type and where it happened; an exception's own words may quote data, so they stay out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal

from intently.core.config import Config
from intently.core.errors import ConfigError
from pydantic import Field

LOGGER = logging.getLogger("serve")
REQUEST = ContextVar[str]("request", default="")
"""Id of the request that is worked on."""
FIELDS = "fields"
FRAMES = 12
"""Places of a failure that are named, the innermost last."""


class LogConfig(Config):
    """What is logged, and where."""

    requests: Literal["failed", "all"] = Field(
        "failed", description="failed: a line for each 500, with where it happened; all: a line a request"
    )
    file: str = Field("", description="file that lines are appended to; empty: standard error")


class JsonLines(logging.Formatter):
    """A log record as a JSON object."""

    def __init__(self, replica: str) -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "replica": self._replica,
            "request_id": REQUEST.get() or None,
            **getattr(record, FIELDS, {}),
        }
        return json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False)


def start_logging(config: LogConfig, replica: str) -> logging.Handler:
    """Let everything that the service logs from now on be JSON lines, in place of the handlers that it had.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        handler = logging.FileHandler(config.file, encoding="utf-8") if config.file else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise ConfigError("log.file", config.file, f"cannot be written: {error.strerror}") from error
    handler.setFormatter(JsonLines(replica))
    for old in LOGGER.handlers[:]:
        LOGGER.removeHandler(old)
        old.close()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    return handler


def log_request(config: LogConfig, method: str, route: str, status: int, seconds: float, error: BaseException | None) -> None:
    """Log one request that was answered, or failed."""
    gone = isinstance(error, asyncio.CancelledError)
    failed = not gone and (error is not None or status == HTTPStatus.INTERNAL_SERVER_ERROR)
    if not failed and config.requests != "all":
        return
    fields: dict[str, object] = {"method": method, "route": route, "status": status, "ms": round(1e3 * seconds, 3)}
    if gone:
        fields["gone"] = True
    elif error is not None:
        fields["error"] = type(error).__name__
        fields["at"] = [f"{place.filename}:{place.lineno} {place.name}" for place in traceback.extract_tb(error.__traceback__)[-FRAMES:]]
    LOGGER.log(logging.ERROR if failed else logging.INFO, "request", extra={FIELDS: fields})
