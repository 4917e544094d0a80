"""History rows ↔ one row an event: lists are cheap to hand on, flat columns are cheap to work on.

Both ways are a handful of Arrow calls, whatever the number of users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.errors import SchemaError
from intently.core.schema import HISTORY

EVENT_COLUMNS: dict[str, str] = {
    "event_ids": "event_id",
    "item_ids": "item_id",
    "behaviours": "behaviour",
    "timestamps": "timestamp",
    "values": "value",
    "queries": "query",
    "dwell_s": "dwell_s",
}
"""History's list column → the event column that it holds."""


def flatten(history: pa.Table) -> pl.DataFrame:
    """History rows → one row an event, users in the table's order, events oldest first.

    Args:
        history: U rows of HISTORY.
    Returns:
        Columns `row` (0..U-1, which history row) and those named by EVENT_COLUMNS.
    Raises:
        SchemaError: the lists of a row are not of one length.
    """
    row, columns = flat_columns(history, tuple(EVENT_COLUMNS))
    frame = pl.from_arrow(pa.table({"row": row.astype(np.uint32), **columns}))
    assert isinstance(frame, pl.DataFrame)
    return frame


def flat_columns(history: pa.Table, lists: Sequence[str]) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """Some list columns of History → ([E] int64 which row an event belongs to, event column → [E] values), without a copy.

    Args:
        history: U rows of HISTORY.
        lists: names of list columns, keys of EVENT_COLUMNS.
    Raises:
        SchemaError: the lists of a row are not of one length.
    """
    lengths = pc.list_value_length(history["event_ids"]).combine_chunks()
    columns: dict[str, pa.Array] = {}
    for name in lists:
        if not pc.list_value_length(history[name]).combine_chunks().equals(lengths):
            raise SchemaError(f"table history, column {name}: its lists are not as long as those of event_ids")
        columns[EVENT_COLUMNS[name]] = whole(pc.list_flatten(history[name]))
    return np.repeat(np.arange(history.num_rows), lengths.to_numpy(zero_copy_only=False)), columns


def fold(row: np.ndarray, num_rows: int, columns: Mapping[str, pa.Array]) -> dict[str, pa.ListArray]:
    """Flat columns → list columns, one list a row.

    Args:
        row: [E] which row an event belongs to, non-decreasing.
        num_rows: how many rows there are; one without events gets empty lists.
        columns: name → [E] values.
    """
    assert len(row) < 2**31, "a table this long must be cut into more buckets"
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))]).astype(np.int32))
    return {name: pa.ListArray.from_arrays(offsets, whole(values)) for name, values in columns.items()}


def refold(history: pa.Table, frame: pl.DataFrame) -> pa.Table:
    """The same users with other events: `frame` is some of `flatten(history)`, in its order."""
    columns = {list_name: as_arrow(frame[name]) for list_name, name in EVENT_COLUMNS.items()}
    lists = fold(frame["row"].to_numpy(), history.num_rows, columns)
    return HISTORY.check(pa.table({"user_id": history["user_id"], "bucket": history["bucket"], **lists}))


def as_arrow(values: pl.Series) -> pa.Array:
    """A polars column as an Arrow array of the type that core.schema uses for it."""
    array = values.to_arrow()
    if pa.types.is_string_view(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.string())
    return array


def whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A chunked column as one array."""
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
