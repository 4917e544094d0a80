"""The event log: an event is on disk before its sender is told so, and once, however often it is sent.

`EventStore` is what the endpoints know; here it is day files, in stream.py a Redis stream.

`{folder}/events-2025-01-31.jsonl` holds the events of a day (UTC, time of arrival), one JSON object a line. Replicas of one node share the
folder: whoever writes holds a file lock, first reads what others appended since, then appends what is new and syncs once for all
requests that wait (group commit). A line that a killed process left unfinished was never acknowledged; it is closed with a newline
and stays there as a broken row for the reader to reject.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Protocol

from intently.core.errors import WorkspaceError

PREFIX, SUFFIX = "events-", ".jsonl"

Listener = Callable[[Iterable[dict]], None]
"""Told of stored events, this replica's and the others', as the log has them, in the order in which they were stored."""


@dataclass(frozen=True)
class Record:
    """One line of the log.

    Attributes:
        event_id: what makes it the same event when it is sent again.
        line: the JSON object, without newline.
    """

    event_id: str
    line: bytes


class EventStore(Protocol):
    """Where events go."""

    async def append(self, records: Sequence[Record]) -> list[bool]:
        """Store the records whose id is new; returns once they are durable.

        Returns:
            For each record whether it was stored; False for one that stood already.
        Raises:
            WorkspaceError: they cannot be stored now; sending them again is safe.
        """

    async def catch_up(self) -> None:
        """Tell the listener of what other replicas stored. Raises WorkspaceError."""

    async def close(self) -> None:
        """Let go of threads and connections; what was handed over is stored when it returns."""


class EventLog:
    """Appends records to day files, each event id once. Blocking; safe between processes, not between threads."""

    def __init__(self, folder: str | Path, dedupe_days: int) -> None:
        """Open the folder, made if it is not there, and read the ids of the last days.

        Raises:
            WorkspaceError: the folder cannot be made, read or written.
        """
        self.folder = Path(folder).absolute()
        self._dedupe_days = dedupe_days
        self._known: dict[str, set[str]] = {}
        self._read_to: dict[str, int] = {}
        self._fresh: list[dict] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._catch_up(datetime.now(UTC).date())
        except OSError as error:
            raise WorkspaceError(f"event log {self.folder}: cannot be opened: {error}") from error

    def append(self, records: Sequence[Record]) -> list[bool]:
        """Write the records whose id is new, and sync.

        Returns:
            For each record whether it was written; False for one that stood already.
        Raises:
            WorkspaceError: they cannot be written; none of them counts as written.
        """
        today = datetime.now(UTC).date()
        try:
            with self._locked():
                self._catch_up(today)
                return self._write(_segment(today), records)
        except OSError as error:
            raise WorkspaceError(f"event log {self.folder}: cannot be written: {error}") from error

    def catch_up(self) -> None:
        """Read what others appended. Raises WorkspaceError."""
        try:
            with self._locked():
                self._catch_up(datetime.now(UTC).date())
        except OSError as error:
            raise WorkspaceError(f"event log {self.folder}: cannot be read: {error}") from error

    def take_fresh(self) -> list[dict]:
        """Events that were stored since the last call, whoever stored them; those of the last two days when the log was opened."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _write(self, segment: str, records: Sequence[Record]) -> list[bool]:
        seen: set[str] = set()
        written = []
        for record in records:
            written.append(record.event_id not in seen and not any(record.event_id in ids for ids in self._known.values()))
            seen.add(record.event_id)
        block = b"".join(record.line + b"\n" for record, new in zip(records, written, strict=True) if new)
        if block:
            self._append_synced(segment, block)
            self._known.setdefault(segment, set()).update(seen)
            self._fresh += _parse(block)
        return written

    def _append_synced(self, segment: str, block: bytes) -> None:
        path = self.folder / segment
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            try:
                view = memoryview(block)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                # Half a block must not be taken for events that were acknowledged.
                os.ftruncate(descriptor, size)
                raise
            self._read_to[segment] = size + len(block)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(self.folder)

    def _catch_up(self, today: date) -> None:
        """Read ids that others appended, and forget days that are too old."""
        oldest = _segment(today - timedelta(days=self._dedupe_days))
        for segment in [name for name in self._known if name < oldest]:
            del self._known[segment], self._read_to[segment]
        recent = _segment(today - timedelta(days=1))
        for path in sorted(self.folder.glob(f"{PREFIX}*{SUFFIX}")):
            if path.name >= oldest:
                events = self._read_new(path)
                self._fresh += events if path.name >= recent else []

    def _read_new(self, path: Path) -> list[dict]:
        ids = self._known.setdefault(path.name, set())
        start = self._read_to.setdefault(path.name, 0)
        if path.stat().st_size == start:
            return []
        with path.open("rb+") as file:
            file.seek(start)
            block = file.read()
            if not block.endswith(b"\n"):
                file.write(b"\n")
                file.flush()
                block += b"\n"
            # Its writer may have died between write and sync; a repeat will be told that the event stands.
            os.fsync(file.fileno())
        events = [event for event in _parse(block) if event["event_id"] not in ids]
        ids.update(event["event_id"] for event in events)
        self._read_to[path.name] = start + len(block)
        return events

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class FileStore:
    """An EventStore over day files: requests that arrive while the disk syncs share the next sync."""

    def __init__(self, log: EventLog, listener: Listener) -> None:
        self._log, self._listener = log, listener
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[list[bool]]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="event-log")
        self._draining: asyncio.Task[None] | None = None
        listener(log.take_fresh())

    async def append(self, records: Sequence[Record]) -> list[bool]:
        """As `EventLog.append`; returns once the records are on disk."""
        future: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def catch_up(self) -> None:
        """Read what other replicas of this node appended."""
        self._listener(await asyncio.get_running_loop().run_in_executor(self._thread, self._caught_up))

    async def close(self) -> None:
        """End the thread, and wait until it has written what waits: nothing touches the folder afterwards."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            together = [record for records, _ in batch for record in records]
            # An error is an answer here: whoever waits must get it, whatever it is.
            (outcome,) = await asyncio.gather(loop.run_in_executor(self._thread, self._appended, together), return_exceptions=True)
            if not isinstance(outcome, BaseException):
                outcome, fresh = outcome
                self._listener(fresh)
            start = 0
            for records, future in batch:
                stop = start + len(records)
                # A client that hung up has cancelled its future; its events are written all the same.
                if future.done():
                    pass
                elif isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome[start:stop])
                start = stop

    def _appended(self, records: Sequence[Record]) -> tuple[list[bool], list[dict]]:
        written = self._log.append(records)
        return written, self._log.take_fresh()

    def _caught_up(self) -> list[dict]:
        self._log.catch_up()
        return self._log.take_fresh()


def read_events(folder: str | Path) -> Iterator[dict]:
    """Every whole event of a log, oldest day first."""
    for path in sorted(Path(folder).glob(f"{PREFIX}*{SUFFIX}")):
        yield from _parse(path.read_bytes())


def _parse(block: bytes) -> Iterator[dict]:
    for line in block.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event_id"), str):
            yield event


def _segment(day: date) -> str:
    return f"{PREFIX}{day.isoformat()}{SUFFIX}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
