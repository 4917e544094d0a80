"""What the service kept of people's behaviour: day files of JSON lines, or a Redis stream of the same lines.

A line is an event as `serve` stored it: the columns of Event but for position, the request that showed the item, and when it came in. Lines
that a killed process left unfinished were never acknowledged; they are refused as unreadable. Days are those of arrival (UTC).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import redis
from pydantic import Field, model_validator

from intently.core.config import Config, operational
from intently.core.errors import ConfigError, SourceError
from intently.core.schema import ITEM, USER
from intently.data.raw import UNREADABLE, Source, as_timestamp, raw_block

PREFIX, SUFFIX = "events-", ".jsonl"
TEXTS = ("event_id", "user_id", "item_id", "behaviour", "timestamp", "query")
NUMBERS = ("value", "dwell_s")
SCHEMA = pl.Schema(dict.fromkeys(TEXTS, pl.String) | dict.fromkeys(NUMBERS, pl.Float64))


class Days(Config):
    """Which days of a log."""

    first: date | None = Field(None, description="earliest day of arrival; none takes all there are")
    last: date | None = Field(None, description="latest day of arrival; none takes all there are")
    rows_per_block: int = operational(100_000, ge=1, description="lines read at a time")


class EventLogConfig(Days):
    """Day files of one node: events-2026-01-31.jsonl."""

    kind: Literal["event_log"] = Field("event_log", description="which adapter")
    folder: str = Field(description="the folder that the service appends to")


class EventStreamConfig(Days):
    """A Redis stream."""

    kind: Literal["event_stream"] = Field("event_stream", description="which adapter")
    url: str = Field(description="redis://host:port/database, without a password")
    password_env: str = Field("", description="environment variable that holds the password; empty: none is needed")
    stream: str = Field("intently:events", description="key of the stream")
    keep_days: float | None = operational(
        None,
        gt=0,
        description="older entries are dropped once they stand in the tables; more than the service's sessions look back; None drops none",
    )

    @model_validator(mode="after")
    def _drops_only_what_is_read(self) -> EventStreamConfig:
        if self.keep_days is not None and self.first is not None:
            raise ValueError(f"keep_days = {self.keep_days:g} would drop days before first = {self.first}, which are not read")
        return self


def log_files(config: EventLogConfig) -> list[Path]:
    """The day files that are read, oldest first. Raises SourceError when the folder is not there."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    first, last = (day and f"{PREFIX}{day.isoformat()}{SUFFIX}" for day in (config.first, config.last))
    files = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))
    return [file for file in files if (not first or file.name >= first) and (not last or file.name <= last)]


def open_event_log(config: EventLogConfig) -> Source:
    """Day files → Source, without items and users. Raises SourceError."""
    return _source(lambda: _file_lines(log_files(config), config.rows_per_block))


def open_event_stream(config: EventStreamConfig) -> Source:
    """A stream → Source, without items and users. Raises SourceError when the server does not answer."""
    return _source(lambda: _stream_lines(config))


def stream_fingerprint(config: EventStreamConfig) -> str:
    """What the stream holds right now, as 12 hex digits. Raises SourceError."""
    try:
        with _connect(config) as client:
            newest = client.xrevrange(config.stream, count=1)
            held = [client.xlen(config.stream), newest[0][0].decode() if newest else ""]
    except redis.RedisError as error:
        raise SourceError(f"redis {config.url}: {error}") from error
    return hashlib.sha256(json.dumps([config.stream, *held]).encode()).hexdigest()[:12]


def trim_event_stream(config: EventStreamConfig, read: datetime) -> int:
    """Drop what is older than `keep_days`, after a job that began to read at `read` has put it into tables; how many entries.

    Raises:
        SourceError: the server does not answer; nothing is lost, and the next run drops more.
    """
    if config.keep_days is None:
        return 0
    until = int((read - timedelta(days=config.keep_days)).timestamp() * 1000)
    if config.last:
        until = min(until, _milliseconds(config.last + timedelta(days=1)))
    try:
        with _connect(config) as client:
            return client.xtrim(config.stream, minid=str(until), approximate=False)
    except redis.RedisError as error:
        raise SourceError(f"redis {config.url}: {error}") from error


def _source(lines: Callable[[], Iterator[tuple[list[str], list[bytes]]]]) -> Source:
    return Source(ITEM.empty(), USER.empty(), lambda: _blocks(lines()))


def _file_lines(files: list[Path], rows: int) -> Iterator[tuple[list[str], list[bytes]]]:
    """(places, lines) in blocks."""
    for file in files:
        places: list[str] = []
        lines: list[bytes] = []
        with file.open("rb") as content:
            for number, line in enumerate(content, 1):
                places.append(f"{file.name}:{number}")
                lines.append(line.strip())
                if len(lines) == rows:
                    yield places, lines
                    places, lines = [], []
        if lines:
            yield places, lines


def _stream_lines(config: EventStreamConfig) -> Iterator[tuple[list[str], list[bytes]]]:
    start = f"{_milliseconds(config.first)}" if config.first else "-"
    stop = f"{_milliseconds(config.last + timedelta(days=1)) - 1}" if config.last else "+"
    try:
        with _connect(config) as client:
            while entries := client.xrange(config.stream, min=start, max=stop, count=config.rows_per_block):
                yield [key.decode() for key, _ in entries], [fields.get(b"event", b"") for _, fields in entries]
                start = f"({entries[-1][0].decode()}"
    except redis.RedisError as error:
        raise SourceError(f"redis {config.url}: {error}") from error


def _blocks(lines: Iterator[tuple[list[str], list[bytes]]]) -> Iterator[pa.Table]:
    position = 0
    for places, block in lines:
        whole, broken = _parse(block)
        at = pl.Series("place", places, pl.String)
        columns = whole.with_columns(
            place=at.gather(whole["row"]),
            position=whole["row"].cast(pl.Int64) + position,
            timestamp=as_timestamp(pl.col("timestamp"), "iso"),
        )
        yield raw_block(columns.drop("row"))
        if broken:
            original = [block[row].decode(errors="replace") for row in broken]
            yield raw_block(pl.DataFrame({"place": at.gather(broken), "original": original}).with_columns(refused=pl.lit(UNREADABLE)))
        position += len(block)


def _parse(lines: list[bytes]) -> tuple[pl.DataFrame, list[int]]:
    """Lines → (SCHEMA and `row`, the place of a line in the block; rows of lines that are no events)."""
    try:
        frame = pl.read_ndjson(b"\n".join(lines), schema=SCHEMA)
        if frame.height == len(lines):
            return frame.with_row_index("row"), []
    except pl.exceptions.PolarsError:
        pass
    # Some line is broken: find out which, one by one.
    rows, broken = [], []
    for row, line in enumerate(lines):
        event = _event(line)
        if event is None:
            broken.append(row)
        else:
            rows.append({"row": row, **event})
    return pl.DataFrame(rows, schema={"row": pl.UInt32, **SCHEMA}), broken


def _event(line: bytes) -> dict[str, str | float | None] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    texts = {name: found.get(name) for name in TEXTS}
    numbers = {name: found.get(name) for name in NUMBERS}
    if not all(value is None or isinstance(value, str) for value in texts.values()):
        return None
    if not all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in numbers.values()):
        return None
    return texts | numbers


def _connect(config: EventStreamConfig) -> redis.Redis:
    password = os.environ.get(config.password_env) if config.password_env else None
    if config.password_env and not password:
        raise ConfigError("password_env", config.password_env, "this environment variable is not set")
    return redis.Redis.from_url(config.url, password=password, socket_timeout=30.0)


def _milliseconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
