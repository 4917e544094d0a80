"""What the endpoints of one replica share: settings, tables, event store, sessions, counters, and the tasks that keep them fresh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property

from intently.core.workspace import Workspace
from redis import asyncio as aio

from serve.auth import Keys
from serve.events import EventLog, EventStore, FileStore
from serve.gate import Load
from serve.limits import Limiter
from serve.logs import start_logging
from serve.recommend import Recommender
from serve.reload import Reloader, name_of, undisturbed, versions_to_start_with
from serve.session import Sessions
from serve.settings import ServeConfig
from serve.state import State
from serve.stream import StreamStore, connect
from serve.telemetry import Telemetry

logger = logging.getLogger("serve")


class Service:
    """One replica's parts. `running` keeps them fresh; without it the tables stay as they were loaded."""

    def __init__(self, config: ServeConfig, workspace: Workspace, replica: str, replicas: int) -> None:
        """Use `open`."""
        self.config, self._workspace = config, workspace
        start_logging(config.log, replica)
        with undisturbed():
            state = self._load(versions_to_start_with(workspace))
        self.telemetry = Telemetry(replica, state.versions, config.log, config.tracing)
        self.load = Load(config.max_in_flight, self.telemetry)
        self.sessions = Sessions(config.session)
        self._redis: aio.Redis | None = connect(config.redis) if config.redis.url else None
        self.events: EventStore = self._open_events()
        self.keys = Keys(config.access) if config.access.has_keys else None
        self.limiter = Limiter(replicas, self._redis, config.redis.stream)
        self.use(state)

    @classmethod
    def open(cls, config: ServeConfig, replica: str, replicas: int = 1) -> Service:
        """Load the tables and open the event store.

        Args:
            config: settings.
            replica: this replica's name.
            replicas: how many there are; without Redis they share rate limits evenly.
        Raises:
            MissingArtifactError: a table does not stand in the workspace.
            WorkspaceError: the workspace or the event store cannot be used.
            ConfigError: a secret is not set, or Redis does not keep what it is told.
        """
        return cls(config, Workspace.open(config.workspace), replica, replicas)

    @property
    def state(self) -> State:
        """The tables in use. A request takes them once, so that all of its answer comes from one set."""
        return self.recommender.state

    def use(self, state: State) -> None:
        """Put other tables in place of those in use."""
        self.recommender = Recommender(state, self.telemetry, self.config.max_batch)
        self.tables = name_of(state.versions)
        self.telemetry.use_versions(state.versions)

    @cached_property
    def reloader(self) -> Reloader:
        """Looks for newer tables; made in the event loop that it runs in."""
        reloader = Reloader(self._workspace, self._load, self.state, self.use, self.config.watch_s)
        reloader.measure(self.telemetry.registry, self.telemetry.replica)
        return reloader

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the event store and the workspace while the block runs."""
        # Each by itself: a key that was revoked must not count on because the event store is away.
        ways = (self._keep("keys", self._follow_keys), self._keep("sessions", self._follow_events), self.reloader.watch())
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            # What ended a task is no reason to leave the rest open.
            await asyncio.gather(*tasks, return_exceptions=True)
            self.reloader.close()
            await self.events.close()
            if self._redis is not None:
                await self._redis.aclose()
            self.telemetry.tracing.close()

    async def _keep(self, what: str, follow: Callable[[], Awaitable[None]]) -> None:
        """Follow again and again; what goes wrong is logged once, until it goes well again."""
        away = False
        while True:
            (error,) = await asyncio.gather(follow(), return_exceptions=True)
            if error is not None and not away:
                logger.warning("%s stay as they were: %s: %s", what, type(error).__name__, error)
            away = error is not None
            await asyncio.sleep(self.config.session.follow_s)

    async def _follow_events(self) -> None:
        self.sessions.forget_old()
        await self.events.catch_up()

    async def _follow_keys(self) -> None:
        if self.keys is not None:
            self.keys.refresh()

    def _load(self, versions: Mapping[str, str]) -> State:
        return State.load(self._workspace, self.config.reasons, versions)

    def _open_events(self) -> EventStore:
        events = self.config.events
        if events.store == "files":
            return FileStore(EventLog(events.folder, events.dedupe_days), self.sessions.add)
        assert self._redis is not None, "ServeConfig asks for redis.url with this store"
        return StreamStore(self._redis, self.config.redis, events, self.config.session.hours, self.sessions.add)
