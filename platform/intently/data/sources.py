"""Where a log comes from: one adapter a format, chosen by `kind`. Each gives a `raw.Source`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field

from intently.data import amazon, event_log, files, movielens, shared_parquet
from intently.data.raw import RAW, Source
from intently.data.simulator import Simulation, SimulatorConfig, simulate


class SimulatorSource(SimulatorConfig):
    """A made-up marketplace."""

    kind: Literal["simulator"] = Field("simulator", description="which adapter")


SourceConfig = Annotated[
    SimulatorSource
    | movielens.MovieLensConfig
    | amazon.AmazonConfig
    | files.FilesConfig
    | shared_parquet.SharedParquetConfig
    | event_log.EventLogConfig
    | event_log.EventStreamConfig,
    Field(discriminator="kind"),
]
"""Which adapter, and what it reads."""


def open_source(config: SourceConfig) -> Source:
    """The source that the config names.

    Raises:
        SourceError: a file or a column that the adapter needs is missing; the message names it.
    """
    match config:
        case SimulatorSource():
            return _open_simulator(simulate(config))
        case movielens.MovieLensConfig():
            return movielens.open_movielens(config)
        case amazon.AmazonConfig():
            return amazon.open_amazon(config)
        case files.FilesConfig():
            return files.open_files(config)
        case shared_parquet.SharedParquetConfig():
            return shared_parquet.open_shared_parquet(config)
        case event_log.EventLogConfig():
            return event_log.open_event_log(config)
        case event_log.EventStreamConfig():
            return event_log.open_event_stream(config)


def open_items(config: SourceConfig) -> Source:
    """The source, opened for its items: of `files` neither log nor users are looked at, of other kinds all that they read.

    Raises:
        SourceError: a file or a column that the adapter needs is missing; the message names it.
    """
    return files.open_items(config) if isinstance(config, files.FilesConfig) else open_source(config)


def items_fingerprint(config: SourceConfig) -> str:
    """Like `fingerprint`, of what `open_items` reads.

    Raises:
        SourceError: a file is missing.
    """
    return _fingerprint(files.item_files(config)) if isinstance(config, files.FilesConfig) else fingerprint(config)


def fingerprint(config: SourceConfig) -> str:
    """What the source's files are right now (path, size, modification time), as 12 hex digits; 'simulator' for the simulator.

    Raises:
        SourceError: a file is missing.
    """
    match config:
        case SimulatorSource():
            return "simulator"
        case movielens.MovieLensConfig():
            return _fingerprint(movielens.source_files(config))
        case amazon.AmazonConfig():
            return _fingerprint(amazon.source_files(config))
        case files.FilesConfig():
            return _fingerprint(files.source_files(config))
        case shared_parquet.SharedParquetConfig():
            return _fingerprint(shared_parquet.source_files(config))
        case event_log.EventLogConfig():
            return _fingerprint(event_log.log_files(config))
        case event_log.EventStreamConfig():
            return event_log.stream_fingerprint(config)


def _fingerprint(paths: list[Path]) -> str:
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:12]


def _open_simulator(world: Simulation) -> Source:
    return Source(world.items, world.users, lambda: _as_raw(world), true_interests=world.true_interests)


def _as_raw(world: Simulation) -> Iterator[pa.Table]:
    for block in world.events():
        nothing = pa.nulls(block.num_rows, pa.string())
        columns = {"place": block["event_id"], "refused": nothing, "original": nothing}
        yield pa.table({**columns, **{name: block[name] for name in block.column_names}}, schema=RAW)
