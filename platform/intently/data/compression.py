"""Sequence-level compression: many events as few lines, and back (RecGPT §2.1.1).

A line is `Time1 (behaviourA, behaviourB), Time2 (behaviourA) | item1, item2`. Time is a day within the last month before the
reference, a month within the last year, a year beyond. Two aggregations make the lines: first things are grouped by one side,
then those with the same group on the other side share a line:

- `item_sets` (the paper's): items by (time, behaviour), then all (time, behaviour) with the same set of items share a line;
- `items`: (time, behaviour) by item, then all items with the same set of (time, behaviour) share a line, so that each
  item is written once.

Both are lossless for (item name, period, behaviour): `decompression.decompress` gives back that set. Groups are told apart by two
64-bit sums of mixed codes, so everything runs over all events of all texts at once. Lines, and what stands in them, are in
the order of their first event.

Escapes, so that any title can be read back: in an item `\\` → `\\\\`, line feed → `\\n`, and the comma of ", " → `\\,`; in a search
query `\\`, `"` and line feed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.data.coding import NO_ITEM, CodedEvents, FlatEvents, NameTable, encode_events
from intently.data.grouping import Lines, changes, group_lines
from intently.data.tokens import TokenCounter
from intently.data.writing import Layout, count_tokens, without_bare, write_layout

BY_YEAR, BY_MONTH, BY_DAY = range(3)


class CompressionConfig(Config):
    """How lines are made."""

    aggregation: Literal["item_sets", "items"] = Field("items", description="which side the first aggregation groups by, see the module")
    days_by_day: int = Field(30, ge=0, description="events at most this many days before the reference are dated by day")
    days_by_month: int = Field(365, ge=0, description="up to this many days before it by month, older ones by year")


@dataclass(frozen=True)
class Texts:
    """N texts and, where they were counted, how many tokens each has."""

    texts: pa.Array
    num_tokens: np.ndarray


def compress(history: pa.Table, names: pl.DataFrame, config: CompressionConfig) -> pa.Array:
    """HISTORY rows → one text a row, an empty text for an empty history; time is relative to the row's last event.

    Args:
        history: HISTORY rows; every event is written (extract the reliable ones before).
        names: item_id and name, as `item_names.short_names` gives them; an item that is not in it goes by its identifier.
        config: how lines are made.
    """
    events, table = FlatEvents.of(history), NameTable(names)
    coded = encode_events(events, np.arange(len(events.row)), table, {})
    return write_texts(coded, events.row, history.num_rows, table, config, None).texts


def write_texts(
    events: CodedEvents, text: np.ndarray, num_texts: int, names: NameTable, config: CompressionConfig, counter: TokenCounter | None
) -> Texts:
    """Codes → texts.

    Args:
        events: E events, those of a text oldest first.
        text: [E] which text an event belongs to, 0..num_texts-1, non-decreasing.
        num_texts: N.
        names: what codes of names mean.
        config: how lines are made.
        counter: counts tokens; None counts none.
    """
    if not len(events):
        return Texts(pa.array([""] * num_texts, pa.string()), np.zeros(num_texts, np.int32))
    texts, pieces, offset = write_layout(_lay_out(events, text, config), events, names, num_texts)
    return Texts(texts, count_tokens(texts, pieces, offset, counter) if counter else np.zeros(0, np.int32))


def write_plain(events: CodedEvents, text: np.ndarray, num_texts: int, names: NameTable, counter: TokenCounter | None) -> Texts:
    """`write_texts` without compression: one line an event, dated by day. What compression is measured against."""
    if not len(events):
        return Texts(pa.array([""] * num_texts, pa.string()), np.zeros(num_texts, np.int32))
    period, dates = _periods(events.day, text, CompressionConfig(days_by_day=10**6))
    line = np.arange(len(events))
    items, item_line = without_bare(events.name, line)
    lines = Lines(text, line, line, line, line)
    texts, pieces, offset = write_layout(Layout(lines, period, events.label, line, items, item_line, dates), events, names, num_texts)
    return Texts(texts, count_tokens(texts, pieces, offset, counter) if counter else np.zeros(0, np.int32))


def _lay_out(events: CodedEvents, text: np.ndarray, config: CompressionConfig) -> Layout:
    period, dates = _periods(events.day, text, config)
    entry, name = period * len(events.labels) + events.label, events.name - NO_ITEM
    # Events without an item (searches) share no line with items: their line has no right-hand side.
    bare = events.name == NO_ITEM
    if config.aggregation == "item_sets":
        lines = group_lines(text, entry * 2 + bare, name, bare)
        entries, entry_line, items, item_line = lines.lefts // 2, lines.left_line, lines.rights, lines.right_line
    else:
        lines = group_lines(text, name, entry, bare)
        entries, entry_line, items, item_line = lines.rights, lines.right_line, lines.lefts, lines.left_line
    items, item_line = without_bare(items + NO_ITEM, item_line)
    return Layout(lines, entries // len(events.labels), entries % len(events.labels), entry_line, items, item_line, dates)


def _periods(day: np.ndarray, text: np.ndarray, config: CompressionConfig) -> tuple[np.ndarray, pa.Array]:
    """([E] int64 index of each event's period, the distinct periods: '2024', '2024-05' or '2024-05-17')."""
    begin = np.flatnonzero(changes(text))
    last = np.repeat(np.maximum.reduceat(day, begin), np.diff(np.append(begin, len(day))))
    age = last - day
    lowest = int(day.min())
    calendar = np.arange(lowest, int(day.max()) + 1).astype("datetime64[D]")
    year, month = calendar.astype("datetime64[Y]"), calendar.astype("datetime64[M]")
    # By year, by month, by day: the first day of each period; one table a kind, so that a period's code is its place in them.
    firsts = [np.maximum(starts.astype("datetime64[D]").astype(np.int64) - lowest, 0) for starts in (year, month, calendar)]
    kind = np.where(age <= config.days_by_day, BY_DAY, np.where(age <= config.days_by_month, BY_MONTH, BY_YEAR))
    code = np.stack(firsts)[kind, day - lowest] * 3 + kind
    present = np.zeros(3 * len(calendar), bool)
    present[code] = True
    written = np.datetime_as_string(calendar[np.flatnonzero(present) // 3])
    kinds = np.flatnonzero(present) % 3
    dates = [date[: (4, 7, 10)[kind]] for date, kind in zip(written.tolist(), kinds.tolist(), strict=True)]
    return (np.cumsum(present) - 1)[code], pa.array(dates, pa.string())
