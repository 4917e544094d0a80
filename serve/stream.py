"""The event log as a Redis stream, for replicas on several nodes.

One script stores an event and remembers its id, both or neither, so that an event sent again, also by a replica that lost its connection
before the answer came, is stored once. The answer comes after the server wrote it to its append-only file and synced: `connect` refuses a
server that is not set to `appendonly yes` and `appendfsync always`. While the server is away, events wait for `retry_s`, then are refused.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from intently.core.errors import ConfigError, WorkspaceError
from redis import asyncio as aio
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, RedisError, ResponseError, TimeoutError
from redis.retry import Retry

from serve.events import Listener, Record
from serve.settings import EventConfig, RedisConfig

FIELD = "event"
AWAY = (ConnectionError, TimeoutError, BusyLoadingError, NoScriptError)
PAGE = 1000
DAY_S = 86_400
STORE = """
local written = {}
for i = 2, #ARGV, 2 do
  if redis.call('SET', KEYS[1] .. ':id:' .. ARGV[i], '', 'NX', 'EX', ARGV[1]) then
    redis.call('XADD', KEYS[1], '*', 'event', ARGV[i + 1])
    written[#written + 1] = 1
  else
    written[#written + 1] = 0
  end
end
return written
"""


def connect(config: RedisConfig) -> aio.Redis:
    """A client of the server, checked.

    Raises:
        ConfigError: the server does not sync before it answers, or hides whether it does, or the password's variable is not set.
        WorkspaceError: the server does not answer.
    """
    settings: dict[str, Any] = {"password": config.password(), "socket_timeout": 5.0, "socket_connect_timeout": 1.0}
    if config.durability == "checked":
        with redis.Redis.from_url(config.url, **settings) as probe:
            _require_sync(probe, config.url)
    # Retries are ours: they stop when the event's time is up.
    return aio.Redis.from_url(config.url, retry=Retry(NoBackoff(), 0), **settings)


def _require_sync(probe: redis.Redis, url: str) -> None:
    try:
        found = {name: probe.config_get(name).get(name) for name in ("appendonly", "appendfsync")}
    except ResponseError as error:
        reason = f"the server at {url} hides its settings ({error}); 'trusted' takes its word for granted"
        raise ConfigError("redis.durability", "checked", reason) from error
    except RedisError as error:
        raise WorkspaceError(f"redis {url}: does not answer: {error}") from error
    if found != {"appendonly": "yes", "appendfsync": "always"}:
        raise ConfigError("redis.url", url, f"events must be on disk before they are acknowledged, but the server has {found}")


class StreamStore:
    """An EventStore over a Redis stream."""

    def __init__(self, client: aio.Redis, config: RedisConfig, events: EventConfig, session_hours: float, listener: Listener) -> None:
        self._client, self._config, self._events, self._listener = client, config, events, listener
        self._store = client.register_script(STORE)
        since = datetime.now(UTC) - timedelta(hours=session_hours)
        self._last = f"{int(since.timestamp() * 1000)}-0"

    async def append(self, records: Sequence[Record]) -> list[bool]:
        """As `EventStore.append`; what is new is told to the listener when `catch_up` meets it in the stream, and at once as well."""
        told: list[str | bytes | int] = [self._events.dedupe_days * DAY_S]
        for record in records:
            told += [record.event_id, record.line]
        answer = await self._patiently(lambda: self._store(keys=[self._config.stream], args=told))
        written = [bool(new) for new in answer]
        self._listener(json.loads(record.line) for record, new in zip(records, written, strict=True) if new)
        return written

    async def catch_up(self) -> None:
        """Read what was added to the stream since the last call."""
        while True:
            try:
                entries = await self._client.xrange(self._config.stream, min=f"({self._last}", count=PAGE)
            except RedisError as error:
                raise WorkspaceError(f"redis {self._config.url}: cannot be read: {error}") from error
            self._listener(_events_of(fields for _, fields in entries))
            if entries:
                self._last = entries[-1][0].decode()
            if len(entries) < PAGE:
                return

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> Any:
        until = time.monotonic() + self._events.retry_s
        pause = 0.02
        while True:
            try:
                return await call()
            except AWAY as error:
                # The script answers the same however often it runs, so that a lost answer is no reason to give up.
                if time.monotonic() + pause > until:
                    raise WorkspaceError(f"redis {self._config.url}: does not answer: {error}") from error
            except RedisError as error:
                raise WorkspaceError(f"redis {self._config.url}: refuses: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.25)


def _events_of(entries: Iterable[dict[bytes, bytes]]) -> list[dict]:
    events = []
    for fields in entries:
        try:
            event = json.loads(fields.get(FIELD.encode(), b""))
        except ValueError:
            continue  # not written by this service; the job that reads the stream says so in Reject
        if isinstance(event, dict):
            events.append(event)
    return events
