"""Cut histories into chunks that an LLM can read: reliable events, L a chunk, compressed, within a token budget (HiT-LBM, CUBE).

Chunk 0 is the oldest. Boundaries are counted from the oldest event and dates are relative to the chunk's own last event, so a
history that grows leaves its full chunks as they were.

A chunk over the budget loses events until it fits: those that matter least, where an event matters by the strength of its
behaviour (its place in the policy, 0..1) plus its recency (its place in the chunk, 0..1). Events that were trimmed are in
no chunk's `event_ids`, and are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from intently.core.config import Config
from intently.core.schema import CHUNK
from intently.core.workspace import Artifact, Stage
from intently.data.compression import CompressionConfig, label_events, write_texts
from intently.data.counts import save_counts
from intently.data.extraction import ReliablePolicy, keep_reliable
from intently.data.flat import as_arrow, flatten, fold
from intently.data.item_names import NAME_COLUMNS, NameConfig, short_names
from intently.data.tokens import TokenCounter

TRIM_MARGIN = 0.95
"""Aim a little below the budget when trimming, since what an event adds to a text is only known roughly."""

OVER_BUDGET = "over its chunk's token budget"
TOO_OLD = "older than the chunks that are kept"


class ChunkConfig(Config):
    """How chunks are cut and written."""

    policy: ReliablePolicy = Field(ReliablePolicy(), description="which events count")
    names: NameConfig = Field(NameConfig(), description="item-level compression")
    compression: CompressionConfig = Field(CompressionConfig(), description="sequence-level compression")
    by: Literal["count", "tokens", "month"] = Field(
        "count", description="cut after num_events; before max_tokens is reached; or with each calendar month (and after num_events)"
    )
    num_events: int = Field(50, ge=1, description="L, events in a chunk at most; not used when cutting by tokens")
    max_tokens: int | None = Field(None, ge=16, description="token budget of a chunk's text; None sets none")
    max_chunks: int | None = Field(None, ge=1, description="chunks a user at most, the newest; None keeps all")
    tokenizer: str | None = Field(None, description="path of the tokenizer.json that counts; None counts words and signs")

    @model_validator(mode="after")
    def _budget_to_cut_by(self) -> ChunkConfig:
        if self.by == "tokens" and self.max_tokens is None:
            raise ValueError("by = 'tokens' needs max_tokens")
        return self


@dataclass(frozen=True)
class Chunked:
    """Chunks, and what did not get into them.

    Attributes:
        chunks: CHUNK rows, by user in the order of the histories, oldest chunk first.
        dropped: reason → number of events.
        trimmed_users: users that lost events to a budget.
    """

    chunks: pa.Table
    dropped: dict[str, int]
    trimmed_users: list[str]


@dataclass(frozen=True)
class _Written:
    """Events (column `chunk_id`) and the chunks that they are in (chunk_id, text, num_tokens), both by chunk_id."""

    events: pl.DataFrame
    chunks: pl.DataFrame


def build_chunks(history: pa.Table, items: pa.Table, config: ChunkConfig) -> pa.Table:
    """HISTORY rows → CHUNK rows: extraction, chunking, both compressions, token budget.

    Args:
        history: HISTORY rows.
        items: ITEM rows, at least the columns item_names.NAME_COLUMNS.
        config: how.
    """
    return Chunker(items, config).chunk(history).chunks


class Chunker:
    """`build_chunks` for many parts: the short names and the tokenizer are made once."""

    def __init__(self, items: pa.Table, config: ChunkConfig) -> None:
        self._config = config
        self._names = short_names(items, config.names)
        self._counter = TokenCounter(config.tokenizer)

    def chunk(self, history: pa.Table) -> Chunked:
        """HISTORY rows → chunks and what was dropped on the way."""
        reliable, dropped = keep_reliable(flatten(history), self._config.policy)
        fitting = self._fit(self._cut(reliable))
        newest = _newest(fitting, self._config.max_chunks)
        for reason, count in (
            (OVER_BUDGET, reliable.height - fitting.events.height),
            (TOO_OLD, fitting.events.height - newest.events.height),
        ):
            if count:
                dropped[reason] = count
        lost = _events_of(reliable, history.num_rows) != _events_of(newest.events, history.num_rows)
        trimmed = history["user_id"].filter(pa.array(lost)).to_pylist()
        return Chunked(_as_table(newest, history), dropped, trimmed)

    def _cut(self, events: pl.DataFrame) -> pl.DataFrame:
        """Flat events with the column chunk_id, 0.. over all users."""
        row = events["row"].to_numpy()
        begins = _changes(row)
        match self._config.by:
            case "count":
                begins |= _place_in_run(begins) % self._config.num_events == 0
            case "month":
                begins |= _changes(events["timestamp"].dt.truncate("1mo").to_numpy())
                begins |= _place_in_run(begins) % self._config.num_events == 0
            case "tokens":
                begins |= _changes(self._token_bins(events, begins))
        return events.with_columns(chunk_id=pl.Series(np.cumsum(begins) - 1, dtype=pl.Int64))

    def _token_bins(self, events: pl.DataFrame, begins: np.ndarray) -> np.ndarray:
        """[E] bins of each user's events, no bin dearer than the budget, whatever grouping saves."""
        assert self._config.max_tokens is not None
        if not events.height:
            return np.zeros(0, np.int64)
        labelled = label_events(events, self._names, np.zeros(events.height, np.int64), 1)
        name_tokens = np.append(self._counter.count(labelled.names), 0)  # NO_ITEM = -1 finds the 0
        frame_tokens = int(self._counter.count(["2024-12-28 (), \n | , "])[0])
        cost = name_tokens[labelled.name] + self._counter.count(labelled.labels)[labelled.label] + frame_tokens
        before = np.cumsum(cost) - cost
        first = np.flatnonzero(begins)
        spent = before - np.repeat(before[first], np.diff(np.append(first, len(cost))))
        return spent // max(self._config.max_tokens - int(cost.max()), 1)

    def _fit(self, pending: pl.DataFrame) -> _Written:
        """Write every chunk; trim and write again those that are over the budget, until none is."""
        budget = self._config.max_tokens
        written: list[_Written] = []
        while True:
            attempt = self._write(pending)
            if budget is None or not (over := attempt.chunks.filter(pl.col("num_tokens") > budget)).height:
                written.append(attempt)
                break
            fits = attempt.chunks.filter(pl.col("num_tokens") <= budget)
            written.append(_Written(pending.join(fits, on="chunk_id", how="semi", maintain_order="left"), fits))
            pending = self._trim(pending.join(over, on="chunk_id", how="inner", maintain_order="left"), budget)
        if len(written) == 1:
            return written[0]
        events = pl.concat([part.events for part in written]).sort("chunk_id", maintain_order=True)
        return _Written(events, pl.concat([part.chunks for part in written]).sort("chunk_id"))

    def _write(self, events: pl.DataFrame) -> _Written:
        chunk_ids, text = np.unique(events["chunk_id"].to_numpy(), return_inverse=True)
        texts = write_texts(label_events(events, self._names, text, len(chunk_ids)), self._config.compression)
        columns = {"chunk_id": chunk_ids, "text": texts, "num_tokens": self._counter.count(texts)}
        chunks = pl.from_arrow(pa.table(columns))
        assert isinstance(chunks, pl.DataFrame)
        return _Written(events, chunks)

    def _trim(self, over: pl.DataFrame, budget: int) -> pl.DataFrame:
        """Keep in each chunk the share of events that the budget is of its tokens, at least one event fewer than before."""
        size = pl.len().over("chunk_id")
        recency = (pl.int_range(pl.len()).over("chunk_id") + 1) / size
        kept = (size * budget * TRIM_MARGIN / pl.col("num_tokens")).floor().clip(upper_bound=size - 1)
        matters = (self._config.policy.strength() + recency).rank("ordinal", descending=True).over("chunk_id")
        return over.filter(matters <= kept).drop("text", "num_tokens")


class HistoryCompressor:
    """Compresses one bucket a call: reads a history part, writes the chunk part.

    Args:
        history: what is compressed.
        items: the artifact of ITEM.
        chunk: the stage of CHUNK.
        config: how.
    """

    def __init__(self, history: Artifact, items: Artifact, chunk: Stage, config: ChunkConfig) -> None:
        self._history, self._stage = history, chunk
        self._chunker = Chunker(items.read(columns=NAME_COLUMNS), config)

    def __call__(self, part: str) -> dict[str, int | float]:
        """Compress a bucket; figures about it. The stage keeps the reasons for which events were dropped."""
        history = self._history.read(part)
        chunked = self._chunker.chunk(history)
        counts: dict[str, int | float] = {
            "users": history.num_rows,
            "trimmed_users": len(chunked.trimmed_users),
            "chunks": chunked.chunks.num_rows,
            "events": pc.sum(pc.list_value_length(chunked.chunks["event_ids"])).as_py() or 0,
            "tokens": pc.sum(chunked.chunks["num_tokens"]).as_py() or 0,
        }
        save_counts(self._stage, part, counts | {f"dropped, {reason}": number for reason, number in chunked.dropped.items()})
        self._stage.write(part, chunked.chunks)
        return counts


def _newest(written: _Written, max_chunks: int | None) -> _Written:
    if max_chunks is None:
        return written
    rows = written.events.group_by("chunk_id", maintain_order=True).agg(pl.col("row").first())
    newest = rows.filter(pl.int_range(pl.len()).reverse().over("row") < max_chunks)
    return _Written(*(frame.join(newest, on="chunk_id", how="semi", maintain_order="left") for frame in (written.events, written.chunks)))


def _as_table(written: _Written, history: pa.Table) -> pa.Table:
    events, chunks = written.events, written.chunks
    begins = _changes(events["chunk_id"].to_numpy())
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(begins))[: len(first)] - 1
    row = events["row"].to_numpy()[first]
    timestamps = as_arrow(events["timestamp"])
    ids = {"event_ids": as_arrow(events["event_id"]), "item_ids": as_arrow(events["item_id"])}
    columns = {
        "user_id": history["user_id"].take(pa.array(row)),
        "bucket": history["bucket"].take(pa.array(row)),
        "chunk": _place_in_run(_changes(row)),
        **fold(np.cumsum(begins) - 1, len(first), ids),
        "start": timestamps.take(pa.array(first)),
        "end": timestamps.take(pa.array(last)),
        "text": as_arrow(chunks["text"]),
        "num_tokens": as_arrow(chunks["num_tokens"]),
    }
    return CHUNK.check(pa.table(columns))


def _changes(values: np.ndarray) -> np.ndarray:
    """[E] bool, whether a value differs from the one before; the first one does."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _place_in_run(begins: np.ndarray) -> np.ndarray:
    """[E] how many places after the latest `begins` an element stands."""
    places = np.arange(len(begins))
    return places - np.maximum.accumulate(np.where(begins, places, 0))


def _events_of(events: pl.DataFrame, num_rows: int) -> np.ndarray:
    """[U] how many events each history row has."""
    return np.bincount(events["row"].to_numpy(), minlength=num_rows)
