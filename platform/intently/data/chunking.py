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
from intently.data.coding import CodedEvents, FlatEvents, NameTable, encode_events
from intently.data.compression import CompressionConfig, write_texts
from intently.data.counts import save_counts
from intently.data.extraction import ReliablePolicy, reliable
from intently.data.flat import flat_columns, fold
from intently.data.grouping import changes
from intently.data.item_names import NAME_COLUMNS, NameConfig, names_of
from intently.data.tokens import TokenCounter

TRIM_MARGIN = 0.95
"""Aim a little below the budget when trimming, since what an event adds to a text is only known roughly."""

OVER_BUDGET = "over its chunk's token budget"
TOO_OLD = "older than the chunks that are kept"
UNFINISHED = "in a last chunk that waits for more events"


class ChunkConfig(Config):
    """How chunks are cut and written."""

    policy: ReliablePolicy = Field(ReliablePolicy(), description="which events count")
    names: NameConfig = Field(NameConfig(), description="item-level compression")
    compression: CompressionConfig = Field(CompressionConfig(), description="sequence-level compression")
    by: Literal["count", "tokens", "month"] = Field(
        "count", description="cut after num_events; before max_tokens is reached; or with each calendar month (and after num_events)"
    )
    num_events: int = Field(50, ge=1, description="L, events in a chunk at most; not used when cutting by tokens")
    min_events: int = Field(1, ge=1, description="events that a user's last chunk waits for; num_events takes full chunks alone")
    max_tokens: int | None = Field(None, ge=16, description="token budget of a chunk's text; None sets none")
    max_chunks: int | None = Field(None, ge=1, description="chunks a user at most, the newest; None keeps all")
    tokenizer: str | None = Field(None, description="tokenizer.json that counts, or all-MiniLM-L6-v2; None counts words and signs")

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
    """Events and the chunks that they are in, both by chunk_id.

    Attributes:
        events: E events.
        chunk: [E] chunk_id of each event.
        chunk_ids: [C] distinct.
        texts: [C].
        num_tokens: [C].
    """

    events: CodedEvents
    chunk: np.ndarray
    chunk_ids: np.ndarray
    texts: pa.Array
    num_tokens: np.ndarray

    def keep(self, which: np.ndarray) -> _Written:
        """Only those of the chunks, [C] bool."""
        mask = which[np.searchsorted(self.chunk_ids, self.chunk)]
        return _Written(
            self.events.take(mask), self.chunk[mask], self.chunk_ids[which], self.texts.filter(pa.array(which)), self.num_tokens[which]
        )


def build_chunks(history: pa.Table, items: pa.Table, config: ChunkConfig) -> pa.Table:
    """HISTORY rows → CHUNK rows: extraction, chunking, both compressions, token budget.

    Args:
        history: HISTORY rows.
        items: ITEM rows, at least the columns item_names.NAME_COLUMNS.
        config: how.
    """
    return Chunker(items, config).chunk(history).chunks


class Chunker:
    """`build_chunks` for many parts: the short names and the tokenizer are made once.

    Args:
        items: ITEM rows, at least the columns item_names.NAME_COLUMNS.
        config: how.
        written: ITEM_NAME rows, which go before the names made by rule; None has none.
    """

    def __init__(self, items: pa.Table, config: ChunkConfig, written: pa.Table | None = None) -> None:
        self._config = config
        self._names = NameTable(names_of(items, config.names, written))
        self._counter = TokenCounter(config.tokenizer)

    def chunk(self, history: pa.Table) -> Chunked:
        """HISTORY rows → chunks and what was dropped on the way."""
        flat = FlatEvents.of(history)
        kept, dropped = reliable(flat, self._config.policy)
        index = np.flatnonzero(kept)
        every = encode_events(flat.take(index), index, self._names, self._config.policy.strength())
        chunk = self._cut(every)
        finished = _finished(every, chunk, self._config.min_events)
        events = every.take(finished)
        fitting = self._fit(events, chunk[finished])
        newest = _newest(fitting, self._config.max_chunks)
        for reason, count in (
            (UNFINISHED, len(every) - len(events)),
            (OVER_BUDGET, len(events) - len(fitting.events)),
            (TOO_OLD, len(fitting.events) - len(newest.events)),
        ):
            if count:
                dropped[reason] = count
        # Who waits loses nothing.
        lost = np.bincount(events.row, minlength=history.num_rows) != np.bincount(newest.events.row, minlength=history.num_rows)
        trimmed = history["user_id"].filter(pa.array(lost)).to_pylist()
        return Chunked(_as_table(newest, history), dropped, trimmed)

    def _cut(self, events: CodedEvents) -> np.ndarray:
        """[E] chunk_id of each event, 0.. over all users."""
        begins = changes(events.row)
        match self._config.by:
            case "count":
                begins |= _place_in_run(begins) % self._config.num_events == 0
            case "month":
                begins |= changes(events.day.astype("datetime64[D]").astype("datetime64[M]"))
                begins |= _place_in_run(begins) % self._config.num_events == 0
            case "tokens":
                begins |= changes(self._token_bins(events, begins))
        return np.cumsum(begins) - 1

    def _token_bins(self, events: CodedEvents, begins: np.ndarray) -> np.ndarray:
        """[E] bins of each user's events, no bin dearer than the budget, whatever grouping saves."""
        assert self._config.max_tokens is not None
        if not len(events):
            return np.zeros(0, np.int64)
        called = pa.concat_arrays([self._names.texts, events.unnamed])
        name_tokens = np.append(self._counter.count_pieces(called), 0)  # NO_ITEM = -1 finds the 0
        frame_tokens = int(self._counter.count(["2024-12-28 (), \n | , "])[0])
        cost = name_tokens[events.name] + self._counter.count_pieces(events.labels)[events.label] + frame_tokens
        before = np.cumsum(cost) - cost
        first = np.flatnonzero(begins)
        spent = before - np.repeat(before[first], np.diff(np.append(first, len(cost))))
        return spent // max(self._config.max_tokens - int(cost.max()), 1)

    def _fit(self, events: CodedEvents, chunk: np.ndarray) -> _Written:
        """Write every chunk; trim and write again those that are over the budget, until none is."""
        budget = self._config.max_tokens
        done: list[_Written] = []
        while True:
            attempt = self._write(events, chunk)
            if budget is None or not (over := attempt.num_tokens > budget).any():
                done.append(attempt)
                return done[0] if len(done) == 1 else _merge(done)
            done.append(attempt.keep(~over))
            events, chunk = self._trim(attempt.keep(over), budget)

    def _write(self, events: CodedEvents, chunk: np.ndarray) -> _Written:
        begins = changes(chunk)
        chunk_ids = chunk[begins]
        text = np.cumsum(begins) - 1
        written = write_texts(events, text, len(chunk_ids), self._names, self._config.compression, self._counter)
        return _Written(events, chunk, chunk_ids, written.texts, written.num_tokens)

    def _trim(self, over: _Written, budget: int) -> tuple[CodedEvents, np.ndarray]:
        """Keep in each chunk the share of events that the budget is of its tokens, at least one event fewer than before."""
        tokens = over.num_tokens[np.searchsorted(over.chunk_ids, over.chunk)]
        frame = pl.DataFrame({"chunk_id": over.chunk, "strength": over.events.strength, "num_tokens": tokens})
        size = pl.len().over("chunk_id")
        recency = (pl.int_range(pl.len()).over("chunk_id") + 1) / size
        kept = (size * budget * TRIM_MARGIN / pl.col("num_tokens")).floor().clip(upper_bound=size - 1)
        matters = (pl.col("strength") + recency).rank("ordinal", descending=True).over("chunk_id")
        mask = frame.select(matters <= kept).to_series().to_numpy()
        return over.events.take(mask), over.chunk[mask]


class HistoryCompressor:
    """Compresses one bucket a call: reads a history part, writes the chunk part.

    Args:
        history: what is compressed.
        items: the artifact of ITEM.
        chunk: the stage of CHUNK.
        config: how.
        item_names: the artifact of ITEM_NAME, None where there is none.
    """

    def __init__(self, history: Artifact, items: Artifact, chunk: Stage, config: ChunkConfig, item_names: Artifact | None = None) -> None:
        self._history, self._stage = history, chunk
        self._chunker = Chunker(items.read(columns=NAME_COLUMNS), config, item_names.read() if item_names else None)

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


def _merge(parts: list[_Written]) -> _Written:
    """Chunks of several rounds → all of them by chunk_id."""
    first = parts[0].events
    chunk = np.concatenate([part.chunk for part in parts])
    chunk_ids = np.concatenate([part.chunk_ids for part in parts])
    order, by_id = np.argsort(chunk, kind="stable"), np.argsort(chunk_ids)
    columns = {
        name: np.concatenate([getattr(part.events, name) for part in parts])[order]
        for name in ("index", "row", "name", "label", "day", "strength")
    }
    events = CodedEvents(**columns, labels=first.labels, unnamed=first.unnamed)
    texts = pa.concat_arrays([part.texts for part in parts]).take(pa.array(by_id))
    return _Written(events, chunk[order], chunk_ids[by_id], texts, np.concatenate([part.num_tokens for part in parts])[by_id])


def _finished(events: CodedEvents, chunk: np.ndarray, min_events: int) -> np.ndarray:
    """[E] bool: everything but users' last chunks that are too short."""
    if not len(events):
        return np.zeros(0, bool)
    size = np.bincount(chunk)
    last = np.append(np.diff(events.row[changes(chunk)]) != 0, True)  # [C]
    return ~(last & (size < min_events))[chunk]


def _newest(written: _Written, max_chunks: int | None) -> _Written:
    if max_chunks is None or not len(written.events):
        return written
    row = written.events.row[changes(written.chunk)]
    ends = np.cumsum(np.bincount(row))[row]
    return written.keep(ends - np.arange(len(row)) <= max_chunks)


def _as_table(written: _Written, history: pa.Table) -> pa.Table:
    events = written.events
    first = np.flatnonzero(changes(written.chunk))
    last = np.append(first[1:], len(written.chunk))[: len(first)] - 1
    row = events.row[first]
    _, flat = flat_columns(history, ("event_ids", "item_ids", "timestamps"))
    chosen = pa.array(events.index)
    ids = {"event_ids": flat["event_id"].take(chosen), "item_ids": flat["item_id"].take(chosen)}
    columns = {
        "user_id": history["user_id"].take(pa.array(row)),
        "bucket": history["bucket"].take(pa.array(row)),
        "chunk": _place_in_run(changes(row)),
        **fold(np.cumsum(changes(written.chunk)) - 1, len(first), ids),
        "start": flat["timestamp"].take(pa.array(events.index[first])),
        "end": flat["timestamp"].take(pa.array(events.index[last])),
        "text": written.texts,
        "num_tokens": written.num_tokens,
    }
    return CHUNK.check(pa.table(columns))


def _place_in_run(begins: np.ndarray) -> np.ndarray:
    """[E] how many places after the latest `begins` an element stands."""
    places = np.arange(len(begins))
    return places - np.maximum.accumulate(np.where(begins, places, 0))
