"""A source's log as what a teacher may read of it: accepted rows by user and time, marked where a person's training part ends."""

from __future__ import annotations

from datetime import date

import polars as pl
import pyarrow as pa

from intently.core.schema import Behaviour
from intently.data.flat import as_arrow
from intently.data.raw import Source, validate

EARLIEST, LATEST = date(1990, 1, 1), date(2100, 1, 1)


def read_log(source: Source, min_rating: float) -> pa.Table:
    """All rows of a log that the pipeline would accept, by user, time and position, with `liked` and `later` (of `mark_log`).

    Args:
        source: an opened source.
        min_rating: stars from which a rating is liking.
    """
    known = source.items["item_id"].combine_chunks()
    good = pa.concat_tables([validate(block, known, EARLIEST, LATEST)[0] for block in source.events()])
    return mark_log(good.sort_by([(name, "ascending") for name in ("user_id", "timestamp", "position")]), min_rating)


def mark_log(events: pa.Table, min_rating: float) -> pa.Table:
    """EVENT rows by user and time → the same rows with bool columns `liked` and `later`.

    A rating is liked from `min_rating` on, every other behaviour is. A person's last tenth of events is later, and at least the last two:
    a split that leaves the last or the last two out asks for nothing that comes before.
    """
    frame = pl.from_arrow(events.select(["user_id", "behaviour", "value"]))
    assert isinstance(frame, pl.DataFrame)
    left = pl.len() - pl.max_horizontal(2, (0.1 * pl.len()).ceil().cast(pl.Int64))
    unrated = pl.col("behaviour") != str(Behaviour.RATING)
    marks = frame.select(
        liked=unrated | (pl.col("value") >= min_rating).fill_null(False),
        later=pl.int_range(pl.len()).over("user_id") >= left.over("user_id"),
    )
    return events.append_column("liked", as_arrow(marks["liked"])).append_column("later", as_arrow(marks["later"]))
