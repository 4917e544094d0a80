"""Sequence-level compression: many events as few lines, and back (RecGPT §2.1.1).

A line is `Time1 (behaviourA, behaviourB), Time2 (behaviourA) | item1, item2`. Time is a day within the last month before the
reference, a month within the last year, a year beyond. Two aggregations make the lines: first things are grouped by one side,
then those with the same group on the other side share a line:

- `item_sets` (the paper's): items by (time, behaviour), then all (time, behaviour) with the same set of items share a line;
- `items`: (time, behaviour) by item, then all items with the same set of (time, behaviour) share a line, so that each
  item is written once.

Both are lossless for (item name, period, behaviour): `decompress` gives back that set. Groups are told apart by two 64-bit sums of
mixed codes, so everything runs over all events of all texts at once.

Escapes, so that any title can be read back: in an item `\\` → `\\\\`, line feed → `\\n`, and the comma of ", " → `\\,`; in a search
query `\\`, `"` and line feed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import Behaviour
from intently.data.flat import as_arrow, flatten, whole

NO_ITEM = -1


class CompressionConfig(Config):
    """How lines are made."""

    aggregation: Literal["item_sets", "items"] = Field("items", description="which side the first aggregation groups by, see the module")
    days_by_day: int = Field(30, ge=0, description="events at most this many days before the reference are dated by day")
    days_by_month: int = Field(365, ge=0, description="up to this many days before it by month, older ones by year")


@dataclass(frozen=True)
class Labelled:
    """Events ready to be written, as codes; E events of N texts.

    Attributes:
        text: [E] which text an event belongs to, 0..N-1, non-decreasing; events of a text oldest first.
        name: [E] index into `names`, NO_ITEM where there is no item.
        label: [E] index into `labels`.
        timestamp: [E] datetime64[us].
        names: distinct item names.
        labels: distinct behaviours as they are written, see `behaviour_labels`.
        num_texts: N.
    """

    text: np.ndarray
    name: np.ndarray
    label: np.ndarray
    timestamp: np.ndarray
    names: pa.Array
    labels: pa.Array
    num_texts: int


def compress(history: pa.Table, names: pl.DataFrame, config: CompressionConfig) -> pa.Array:
    """HISTORY rows → one text a row, an empty text for an empty history; time is relative to the row's last event.

    Args:
        history: HISTORY rows; every event is written (extract the reliable ones before).
        names: item_id and name, as `item_names.short_names` gives them; an item that is not in it goes by its identifier.
        config: how lines are made.
    """
    events = flatten(history)
    text = events["row"].to_numpy()
    return write_texts(label_events(events, names, text, history.num_rows), config)


def label_events(events: pl.DataFrame, names: pl.DataFrame, text: np.ndarray, num_texts: int) -> Labelled:
    """Flat events → codes.

    Args:
        events: E rows with item_id, behaviour, timestamp, value and query.
        names: item_id and name.
        text: [E] which text an event goes to, non-decreasing.
        num_texts: how many texts there are.
    """
    item_ids = as_arrow(events["item_id"])
    index = pc.index_in(item_ids, value_set=as_arrow(names["item_id"]))
    named = pc.coalesce(pc.take(as_arrow(names["name"]), index), item_ids)
    name = whole(named).dictionary_encode()
    label = as_arrow(events.select(behaviour_labels())["label"]).dictionary_encode()
    return Labelled(
        text=text.astype(np.int64),
        name=pc.fill_null(name.indices, NO_ITEM).to_numpy(zero_copy_only=False),
        label=label.indices.to_numpy(zero_copy_only=False),
        timestamp=events["timestamp"].dt.replace_time_zone(None).to_numpy().astype("datetime64[us]"),
        names=name.dictionary,
        labels=label.dictionary,
        num_texts=num_texts,
    )


def behaviour_labels() -> pl.Expr:
    """How a behaviour is written: its name, with the stars of a rating and the query of a search."""
    behaviour, value, query = pl.col("behaviour"), pl.col("value"), pl.col("query")
    stars = value.cast(pl.Float64).round(2).cast(pl.String).str.replace(r"\.0$", "")
    quoted = (
        query.str.replace_all("\\", "\\\\", literal=True)
        .str.replace_all('"', '\\"', literal=True)
        .str.replace_all("\n", "\\n", literal=True)
    )
    return (
        pl.when((behaviour == Behaviour.RATING) & value.is_not_null())
        .then(pl.concat_str(behaviour, pl.lit(" "), stars))
        .when((behaviour == Behaviour.SEARCH) & query.is_not_null())
        .then(pl.concat_str(behaviour, pl.lit(' "'), quoted, pl.lit('"')))
        .otherwise(behaviour)
        .alias("label")
    )


def write_texts(events: Labelled, config: CompressionConfig) -> pa.Array:
    """Codes → [N] texts, lines and what stands in them in the order of their first event."""
    if len(events.text) == 0:
        return pa.array([""] * events.num_texts, pa.string())
    lines = _aggregate(events, _periods(events, config), config)
    bare = pa.array(lines["bare"].to_numpy())
    entries = _write_entries(lines, events.labels)
    written = pc.if_else(bare, entries, pc.binary_join_element_wise(entries, _write_items(lines, events.names), " | "))
    return _join(written, lines["text"].to_numpy(), events.num_texts, "\n")


def _periods(events: Labelled, config: CompressionConfig) -> np.ndarray:
    """[E] the period of each event as a code: its first day, times 4, plus 0 for a year, 1 for a month, 2 for a day."""
    day = events.timestamp.astype("datetime64[D]")
    last = np.full(events.num_texts, np.iinfo(np.int64).min)
    np.maximum.at(last, events.text, day.astype(np.int64))
    age = last[events.text] - day.astype(np.int64)
    by_day, by_month = age <= config.days_by_day, age <= config.days_by_month
    month = day.astype("datetime64[M]").astype("datetime64[D]")
    year = day.astype("datetime64[Y]").astype("datetime64[D]")
    start = np.where(by_day, day, np.where(by_month, month, year)).astype(np.int64)
    return start * 4 + np.where(by_day, 2, np.where(by_month, 1, 0))


def _period_names(period: np.ndarray) -> pa.Array:
    """Codes of periods → '2024', '2024-05' or '2024-05-17'."""
    distinct, place = np.unique(period, return_inverse=True)
    days = np.datetime_as_string((distinct // 4).astype("datetime64[D]")).tolist()
    dates = [day[: (4, 7, 10)[kind]] for day, kind in zip(days, distinct % 4, strict=True)]
    return pc.take(pa.array(dates, pa.string()), pa.array(place))


def _aggregate(events: Labelled, period: np.ndarray, config: CompressionConfig) -> pl.DataFrame:
    """The two aggregations.

    Returns:
        One row a line in writing order: text, bare (no items), and the lists period, label (aligned) and name.
    """
    entry = ["period", "label"]
    left, right = (entry, ["name"]) if config.aggregation == "item_sets" else (["name"], entry)
    events_frame = pl.DataFrame({"text": events.text, "name": events.name, "period": period, "label": events.label})
    triples = events_frame.unique(["text", *left, *right], keep="first", maintain_order=True)
    mixed = _mix(*(triples[name].to_numpy() for name in right))
    # Events without an item (searches) share no line with items: their line has no right-hand side.
    triples = triples.with_columns(bare=pl.col("name") == NO_ITEM, mix=mixed, remix=_mix(mixed))
    groups = triples.group_by(["text", "bare", *left], maintain_order=True).agg(pl.col("mix", "remix").sum(), pl.col(right))
    return groups.group_by(["text", "bare", "mix", "remix"], maintain_order=True).agg(pl.col(left), pl.col(right).first())


def _mix(*codes: np.ndarray) -> np.ndarray:
    """Codes → well-spread uint64 (the finalizer of splitmix64), so that sums of them tell sets apart."""
    mixed = np.zeros(len(codes[0]), np.uint64)
    for code in codes:
        mixed = (mixed ^ code.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _write_entries(lines: pl.DataFrame, labels: pa.Array) -> pa.Array:
    """[L] 'Time1 (behaviourA, behaviourB), Time2 (behaviourA)': neighbours of one period share its brackets."""
    line = np.repeat(np.arange(lines.height), lines["period"].list.len())
    period, label = lines["period"].explode().to_numpy(), lines["label"].explode().to_numpy()
    begins = np.concatenate([[True], (line[1:] != line[:-1]) | (period[1:] != period[:-1])])
    run = np.cumsum(begins) - 1
    behaviours = _join(pc.take(labels, pa.array(label)), run, int(run[-1]) + 1, ", ")
    dated = pc.binary_join_element_wise(_period_names(period[begins]), " (", behaviours, ")", "")
    return _join(dated, line[begins], lines.height, ", ")


def _write_items(lines: pl.DataFrame, names: pa.Array) -> pa.Array:
    """[L] 'item1, item2'; null for a line that has none."""
    line = np.repeat(np.arange(lines.height), lines["name"].list.len())
    name = lines["name"].explode().to_numpy()
    escaped = pc.replace_substring(pc.replace_substring(names, "\\", "\\\\"), "\n", "\\n")
    escaped = pc.replace_substring(escaped, ", ", "\\, ")
    return _join(pc.take(escaped, pa.array(name, mask=name == NO_ITEM)), line, lines.height, ", ")


def _join(texts: pa.Array, group: np.ndarray, num_groups: int, separator: str) -> pa.Array:
    """Join neighbours of one group: [E] texts and their groups, non-decreasing → [num_groups] texts."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=num_groups))])
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), whole(texts)), separator)


@dataclass(frozen=True, order=True)
class Behaved:
    """What one line says of one item: (item name, period, behaviour as it is written); item is None for a bare search."""

    item: str | None
    period: str
    behaviour: str


ENTRY = re.compile(r'(?P<period>\d{4}(?:-\d\d){0,2}) \((?P<labels>(?:[^"()\\]|"(?:[^"\\]|\\.)*")*)\)')
LABEL = re.compile(r'[a-z_]+(?: "(?:[^"\\]|\\.)*"| -?[0-9.]+)?')
ITEM = re.compile(r"(?:[^\\,]|\\.|,(?! ))*")


def decompress(text: str) -> list[Behaved]:
    """The inverse of `compress` as a set: every (item, period, behaviour) that the text says, in its order.

    Raises:
        ValueError: a line that `compress` cannot have written; it names the line.
    """
    return [behaved for line in text.split("\n") if line for behaved in _read_line(line)]


def _read_line(line: str) -> list[Behaved]:
    entries: list[tuple[str, str]] = []
    place = 0
    while (match := ENTRY.match(line, place)) is not None:
        entries += [(match["period"], _unescape(label)) for label in LABEL.findall(match["labels"])]
        place = match.end()
        if not line.startswith(", ", place):
            break
        place += 2
    rest = line[place:]
    if not entries or (rest and not rest.startswith(" | ")):
        raise ValueError(f"not a line of compressed behaviours: {line!r}")
    items: list[str | None] = list(_read_items(rest[3:])) if rest else [None]
    return [Behaved(item, period, label) for item in items for period, label in entries]


def _read_items(text: str) -> list[str]:
    items, place = [], 0
    while True:
        match = ITEM.match(text, place)
        assert match is not None, "ITEM matches the empty string"
        items.append(_unescape(match.group()))
        if match.end() >= len(text):
            return items
        place = match.end() + 2


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
