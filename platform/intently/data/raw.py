"""What an adapter hands over, and the one door where raw events become Event rows or Reject rows.

Adapters map their format to the columns of RAW, with nulls where a value is missing or cannot be read; `validate` judges, over
whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import polars as pl
import pyarrow as pa

from intently.core.schema import EVENT, REJECT, TRUE_INTEREST, Behaviour
from intently.data.flat import as_arrow

UNREADABLE = "unreadable row"
RAW = pa.schema(
    [
        pa.field("place", pa.string(), metadata={"doc": "where the row stands in the source, as 'ratings.dat:17'"}),
        pa.field("refused", pa.string(), metadata={"doc": "a reason to refuse the row that only the adapter can see, else null"}),
        pa.field("original", pa.string(), metadata={"doc": "the row itself where it could not be taken apart, else null"}),
        *(pa.field(column.name, column.type) for column in EVENT.columns),
    ]
)
DETAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Source:
    """A data set, opened.

    Attributes:
        items: ITEM.
        users: USER; may lack users that events name.
        events: gives the raw events from the beginning, in blocks of bounded size with the columns of RAW.
        rejects: REJECT, items and users that were refused; the stage is 'item' or 'user'.
        true_interests: TRUE_INTEREST, empty for real data.
        notes: what was done to the data that a reader of the result should know, name → sentence.
    """

    items: pa.Table
    users: pa.Table
    events: Callable[[], Iterator[pa.Table]]
    rejects: pa.Table = field(default_factory=REJECT.empty)
    true_interests: pa.Table = field(default_factory=TRUE_INTEREST.empty)
    notes: Mapping[str, str] = field(default_factory=dict)


def raw_block(columns: pl.DataFrame) -> pa.Table:
    """Some of RAW's columns → all of them; those that are not given are null."""
    missing = [pl.lit(None).alias(name) for name in RAW.names if name not in columns.columns]
    return columns.with_columns(missing).select(RAW.names).to_arrow().cast(RAW)


def as_timestamp(text: pl.Expr, unit: str) -> pl.Expr:
    """Numbers in s, ms or us since 1970, or ISO 8601 text ('iso') → timestamps; null where it is neither."""
    if unit == "iso":
        return text.cast(pl.String).str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    factor = {"s": 1_000_000, "ms": 1_000, "us": 1}[unit]
    number = text.cast(pl.Float64, strict=False)
    # Beyond the year 9999 the number is of another unit or broken; a cast would wrap round.
    micros = pl.when(number.abs() * factor < 253_402_300_800_000_000).then(number * factor)
    return micros.round().cast(pl.Int64).cast(pl.Datetime("us", "UTC"))


def validate(block: pa.Table, known_items: pa.Array, earliest: date, latest: date) -> tuple[pa.Table, pa.Table]:
    """Raw rows → (EVENT rows, REJECT rows); every raw row is in one of them.

    Args:
        block: the columns of RAW.
        known_items: item identifiers that events may name.
        earliest, latest: days between which (both included) a timestamp is believed.
    """
    rows = pl.from_arrow(block)
    assert isinstance(rows, pl.DataFrame)
    judged = rows.with_columns(reason=_refused_because(pl.Series(known_items), earliest, latest))
    good = judged.filter(pl.col("reason").is_null())
    bad = judged.filter(pl.col("reason").is_not_null())
    return _events(good), rejects_of(bad, "history")


def rejects_of(bad: pl.DataFrame, stage: str) -> pa.Table:
    """Raw rows with a column `reason` → REJECT rows."""
    told = [pl.concat_str(pl.lit(f"{name}="), pl.col(name).cast(pl.String)) for name in EVENT.schema.names]
    row = pl.concat_str(told, separator=" ", ignore_nulls=True)
    return REJECT.check(
        bad.select(
            stage=pl.lit(stage),
            row=pl.coalesce("place", "event_id", pl.lit("?")),
            reason="reason",
            detail=pl.coalesce("original", row).str.slice(0, DETAIL_CHARACTERS),
        ).to_arrow()
    )


def missing_or_repeated(key: str) -> pl.Expr:
    """Why a row of items or users cannot be known by its key: 'missing …', or 'duplicate …' of all but the first; null where it can."""
    repeated = pl.col(key).is_first_distinct().not_()
    return pl.when(_absent(key)).then(pl.lit(f"missing {key}")).when(repeated).then(pl.lit(f"duplicate {key}"))


def without_refused(rows: pl.DataFrame, stage: str) -> tuple[pl.DataFrame, pa.Table]:
    """Rows of items or users with the columns `place`, `reason` and `detail` → (the good ones without these, REJECT rows of the others)."""
    refused = pl.col("reason").is_not_null()
    bad = rows.filter(refused).select(
        stage=pl.lit(stage), row="place", reason="reason", detail=pl.col("detail").str.slice(0, DETAIL_CHARACTERS)
    )
    return rows.filter(~refused).drop("place", "reason", "detail"), REJECT.check(bad.to_arrow())


def _refused_because(known_items: pl.Series, earliest: date, latest: date) -> pl.Expr:
    """The first reason to refuse a raw row, null where there is none."""
    timestamp, item, behaviour = pl.col("timestamp"), pl.col("item_id"), pl.col("behaviour")
    first = datetime(earliest.year, earliest.month, earliest.day, tzinfo=UTC)
    last = datetime(latest.year, latest.month, latest.day, 23, 59, 59, 999_999, tzinfo=UTC)
    is_search = behaviour == Behaviour.SEARCH
    reasons = {
        "missing user_id": _absent("user_id"),
        "missing behaviour": _absent("behaviour"),
        "unknown behaviour": ~behaviour.is_in([str(value) for value in Behaviour]),
        "missing item_id": ~is_search & _absent("item_id"),
        "search without query or item": is_search & _absent("item_id") & pl.col("query").is_null(),
        "bad timestamp": timestamp.is_null() | ~timestamp.is_between(first, last),
        "rating without a value": (behaviour == Behaviour.RATING) & ~pl.col("value").is_finite().fill_null(False),
        "negative dwell time": pl.col("dwell_s") < 0,
        "missing event_id": _absent("event_id"),
        "unknown item": item.is_not_null() & (item != "") & ~item.is_in(known_items.implode()),
    }
    return pl.coalesce(pl.col("refused"), *[pl.when(refused).then(pl.lit(reason)) for reason, refused in reasons.items()])


def _absent(name: str) -> pl.Expr:
    return pl.col(name).is_null() | (pl.col(name) == "")


def _events(good: pl.DataFrame) -> pa.Table:
    tidy = good.with_columns(item_id=pl.when(pl.col("item_id") != "").then(pl.col("item_id")), position=pl.col("position").fill_null(0))
    return EVENT.check(pa.table({name: as_arrow(tidy[name]) for name in EVENT.schema.names}))
