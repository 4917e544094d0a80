"""From raw blocks to History parts, in two steps that both work on bounded memory and both can be cut off.

1. `spill`: every block is judged (`raw.validate`), its events are hashed to buckets and written as one Arrow file with one record
   batch a bucket. That is the only shuffle of the whole system. Nothing but one block is held at a time.
2. `HistoryBuilder`: bucket by bucket, the batches of all spill files are put together, duplicates are refused, events are sorted and
   folded into one row a user. A bucket must fit into memory: choose `num_buckets` for a few million events each.

Rules. Duplicates: of events of one user with the same event_id the earliest by (timestamp, position) stays, the others go to
Reject. Order: by timestamp, then position in the source, then event_id. Late events, which come after newer ones of their user in
the source, are sorted into their place and counted. A killed run keeps the parts that are written; the spill is done again
unless it was finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc
from pyarrow.fs import FileType
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import WorkspaceError
from intently.core.schema import EVENT, HISTORY, REJECT, USER
from intently.core.workspace import Stage, Workspace
from intently.data.buckets import bucket_of, buckets_of, part_name
from intently.data.counts import save_counts
from intently.data.flat import EVENT_COLUMNS, as_arrow, fold
from intently.data.raw import Source, rejects_of, validate

DONE = "done.json"
DUPLICATE = "duplicate event_id"


class HistoryConfig(Config):
    """How events become histories."""

    num_buckets: int = Field(8, ge=1, le=99_999, description="parts of every per-user artifact; a few million events each is right")
    earliest: date = Field(date(1990, 1, 1), description="an event before this day has a bad timestamp")
    latest: date = Field(date(2100, 1, 1), description="an event after this day has a bad timestamp")

    @property
    def parts(self) -> list[str]:
        """The names of all parts."""
        return [part_name(bucket) for bucket in range(self.num_buckets)]


@dataclass(frozen=True)
class Spill:
    """Events by bucket, waiting to be put together. Picklable: workers read their bucket themselves."""

    workspace: Workspace
    folder: str
    num_buckets: int

    @classmethod
    def of(cls, stage: Stage, num_buckets: int) -> Spill:
        """The spill that belongs to a stage; it lies beside the stage's parts until it is removed."""
        return cls(stage.workspace, stage.workspace.path(stage.name, stage.version, "spill"), num_buckets)

    @property
    def finished(self) -> bool:
        """Whether all blocks of the source are in it."""
        return self.workspace.exists(f"{self.folder}/{DONE}")

    def write(self, kind: str, block: int, rows: pa.Table, bucket: np.ndarray) -> None:
        """Write a block of rows as one file, sorted by bucket, one record batch a bucket.

        Args:
            kind: 'events', 'rejects' or 'users'.
            block: number of the block; the same number again replaces the file.
            rows: N rows.
            bucket: [N] where each belongs.
        """
        order = np.argsort(bucket, kind="stable")
        ordered = rows.take(pa.array(order)).combine_chunks()
        ends = np.cumsum(np.bincount(bucket, minlength=self.num_buckets))
        sink = pa.BufferOutputStream()
        with ipc.new_file(sink, rows.schema, options=ipc.IpcWriteOptions(compression="lz4")) as writer:
            for begin, end in zip(np.append(0, ends), ends, strict=False):
                writer.write_batch(_one_batch(ordered.slice(begin, end - begin)))
        self.workspace.write_bytes(f"{self.folder}/{kind}/{block:06d}.arrow", sink.getvalue())

    def finish(self, num_blocks: int) -> None:
        """Say that blocks 0..num_blocks-1 are all there is."""
        self.workspace.write_bytes(f"{self.folder}/{DONE}", json.dumps({"num_blocks": num_blocks}).encode())

    def read(self, kind: str, bucket: int) -> Iterator[pa.RecordBatch]:
        """The batches of a bucket, in the order of the blocks.

        Raises:
            WorkspaceError: a file cannot be read.
        """
        num_blocks = json.loads(self.workspace.read_bytes(f"{self.folder}/{DONE}"))["num_blocks"]
        names = self.workspace.list_files(f"{self.folder}/{kind}")
        for name in names:
            if int(name.partition(".")[0]) >= num_blocks:
                continue  # of an earlier run that was killed, when the source had more blocks
            path = f"{self.folder}/{kind}/{name}"
            try:
                with self.workspace.filesystem.open_input_file(path) as file, ipc.open_file(file) as reader:
                    yield reader.get_batch(bucket)
            except (OSError, pa.ArrowInvalid) as error:
                raise WorkspaceError(f"{path}: cannot be read: {error}") from error

    def remove(self) -> None:
        """Delete it, if it is there; the histories are written."""
        filesystem = self.workspace.filesystem
        try:
            if filesystem.get_file_info(self.folder).type == FileType.Directory:
                filesystem.delete_dir(self.folder)
        except OSError as error:
            raise WorkspaceError(f"{self.folder}: cannot be removed: {error}") from error


def spill_source(source: Source, spill: Spill, config: HistoryConfig) -> None:
    """Step 1: read the whole source once, block after block.

    Raises:
        SourceError: the adapter cannot go on.
        WorkspaceError: a block cannot be written.
    """
    known_items = pc.unique(source.items["item_id"])
    num_blocks = num_events = num_refused = 0
    for block, raw in enumerate(source.events()):
        events, rejects = validate(raw, known_items, config.earliest, config.latest)
        spill.write("events", block, events, buckets_of(events["user_id"], config.num_buckets))
        # A refused row may have no user; which bucket reports it does not matter, as long as it is always the same.
        spill.write("rejects", block, rejects, buckets_of(rejects["row"], config.num_buckets))
        num_blocks, num_events, num_refused = block + 1, num_events + events.num_rows, num_refused + rejects.num_rows
        print(f"spill: block {num_blocks}, {num_events} events, {num_refused} refused", flush=True)
    spill.write("users", 0, source.users, buckets_of(source.users["user_id"], config.num_buckets))
    spill.finish(max(num_blocks, 1))


class HistoryBuilder:
    """Step 2 for one bucket a call: writes its part of `history` and of `user`.

    Args:
        history: the stage of HISTORY.
        user: the stage of USER.
        spill: what step 1 left.
    """

    def __init__(self, history: Stage, user: Stage, spill: Spill) -> None:
        self._history, self._user, self._spill = history, user, spill

    def __call__(self, part: str) -> dict[str, int | float]:
        """Put a bucket together; figures about it."""
        bucket = bucket_of(part)
        built, refused, counts = _put_together(self._spill, bucket)
        users = _with_unlisted(pa.Table.from_batches(self._spill.read("users", bucket), USER.schema), built.history["user_id"])
        counts = {"users": users.num_rows, **counts}
        # The history part goes last: where it stands, the rest stands too.
        self._user.write(part, users)
        save_counts(self._history, part, counts)
        self._history.write(part, built.history, refused)
        return counts


class DayBuilder:
    """Step 2 for one bucket of a day that is appended: writes its part of `history_day`.

    Args:
        day: the stage of HISTORY that holds the new events only.
        spill: what step 1 left.
    """

    def __init__(self, day: Stage, spill: Spill) -> None:
        self._day, self._spill = day, spill

    def __call__(self, part: str) -> dict[str, int | float]:
        """Put a bucket of the day together; figures about it."""
        built, refused, counts = _put_together(self._spill, bucket_of(part))
        counts = {"users": built.history.num_rows, **counts}
        save_counts(self._day, part, counts)
        self._day.write(part, built.history, refused)
        return counts


def _put_together(spill: Spill, bucket: int) -> tuple[Built, pa.Table, dict[str, int | float]]:
    """A bucket's histories, what was refused on the whole way, and counts."""
    events = pa.Table.from_batches(spill.read("events", bucket), EVENT.schema)
    refused = pa.Table.from_batches(spill.read("rejects", bucket), REJECT.schema)
    built = build_histories(events, bucket)
    rejects = pa.concat_tables([refused, built.rejects])
    counts = {"events": events.num_rows - built.rejects.num_rows, "late_events": built.num_late, "refused": rejects.num_rows}
    return built, rejects, counts


@dataclass(frozen=True)
class Built:
    """The histories of one bucket.

    Attributes:
        history: HISTORY, by user_id.
        rejects: REJECT, the duplicates.
        num_late: events that stood after newer ones of their user in the source.
    """

    history: pa.Table
    rejects: pa.Table
    num_late: int


def build_histories(events: pa.Table, bucket: int) -> Built:
    """EVENT rows of one bucket, in the source's order → HISTORY rows, sorted and without duplicates.

    Args:
        events: all events of the bucket's users.
        bucket: its number.
    """
    frame = pl.from_arrow(events)
    assert isinstance(frame, pl.DataFrame)
    num_late = int(frame.select((pl.col("timestamp") < pl.col("timestamp").cum_max().over("user_id")).sum()).item())
    ordered = frame.sort("user_id", "timestamp", "position", "event_id", maintain_order=True)
    again = pl.struct("user_id", "event_id").is_first_distinct().not_()
    judged = ordered.with_columns(again=again)
    kept = judged.filter(~pl.col("again"))
    duplicates = judged.filter(pl.col("again")).with_columns(
        place=pl.lit(None, pl.String), original=pl.lit(None, pl.String), reason=pl.lit(DUPLICATE)
    )
    user_ids = kept["user_id"].unique(maintain_order=True)
    row = kept["user_id"].rle_id().to_numpy()
    lists = fold(row, len(user_ids), {name: as_arrow(kept[column]) for name, column in EVENT_COLUMNS.items()})
    history = pa.table({"user_id": as_arrow(user_ids), "bucket": pa.array(np.full(len(user_ids), bucket, np.int32)), **lists})
    return Built(HISTORY.check(history), rejects_of(duplicates, "history"), num_late)


def refuse_repeated(events: pa.Table, seen: pa.Array) -> tuple[pa.Table, pa.Table]:
    """EVENT rows → (those whose event_id is new, REJECT rows of the others); of several with one id the first is new.

    Args:
        events: in the source's order.
        seen: event ids that came before.
    """
    frame = pl.from_arrow(events)
    assert isinstance(frame, pl.DataFrame)
    known = pl.Series("seen", seen, pl.String)
    again = frame["event_id"].is_first_distinct().not_() | frame["event_id"].is_in(known.implode())
    repeated = frame.filter(again).with_columns(place=pl.lit(None, pl.String), original=pl.lit(None, pl.String), reason=pl.lit(DUPLICATE))
    return events.filter(as_arrow(~again)), rejects_of(repeated, "event")


def _with_unlisted(listed: pa.Table, acting: pa.ChunkedArray) -> pa.Table:
    """The users that the source lists, and those that it does not but that have events; by user_id."""
    unlisted = acting.filter(pc.invert(pc.is_in(acting, value_set=pc.unique(listed["user_id"]))))
    attributes = pa.array([[]] * len(unlisted), USER.schema.field("attributes").type)
    others = pa.table({"user_id": unlisted, "attributes": attributes}, schema=USER.schema)
    return USER.check(pa.concat_tables([listed, others])).sort_by("user_id")


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    batches = rows.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=rows.schema)
