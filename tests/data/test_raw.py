from __future__ import annotations

from datetime import UTC, date, datetime

import polars as pl
import pyarrow as pa
import pytest
from intently.core.schema import EVENT
from intently.data.raw import as_timestamp, raw_block, validate

GOOD = {
    "place": "log:1",
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "behaviour": "cart",
    "timestamp": datetime(2024, 5, 1, tzinfo=UTC),
    "position": 7,
}
EARLIEST, LATEST = date(1990, 1, 1), date(2100, 1, 1)


def judge(*rows: dict[str, object]) -> tuple[pa.Table, pa.Table]:
    block = raw_block(pl.DataFrame([GOOD | row for row in rows], infer_schema_length=None))
    return validate(block, pa.array(["i1"]), EARLIEST, LATEST)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_id": None}, "missing event_id"),
        ({"user_id": None}, "missing user_id"),
        ({"user_id": ""}, "missing user_id"),
        ({"behaviour": None}, "missing behaviour"),
        ({"behaviour": "stare"}, "unknown behaviour"),
        ({"item_id": None}, "missing item_id"),
        ({"item_id": ""}, "missing item_id"),
        ({"item_id": None, "behaviour": "search"}, "search without query or item"),
        ({"timestamp": None}, "bad timestamp"),
        ({"timestamp": datetime(1970, 1, 1, tzinfo=UTC)}, "bad timestamp"),
        ({"timestamp": datetime(2100, 1, 2, tzinfo=UTC)}, "bad timestamp"),
        ({"item_id": "i2"}, "unknown item"),
        ({"behaviour": "rating"}, "rating without a value"),
        ({"behaviour": "rating", "value": float("nan")}, "rating without a value"),
        ({"dwell_s": -1.0}, "negative dwell time"),
        ({"refused": "order unknown"}, "order unknown"),
        ({"user_id": None, "timestamp": None}, "missing user_id"),
    ],
)
def test_broken_row_is_refused_with_its_reason_and_the_good_ones_go_on(change: dict[str, object], reason: str) -> None:
    events, rejects = judge({}, {"place": "log:2"} | change)
    assert events["event_id"].to_pylist() == ["e1"]
    (reject,) = rejects.to_pylist()
    assert (reject["stage"], reject["row"], reject["reason"]) == ("history", "log:2", reason)
    assert "position=7" in reject["detail"]


def test_good_rows_come_out_as_events() -> None:
    search = {
        "event_id": "e2",
        "behaviour": "search",
        "item_id": None,
        "query": "tent",
        "timestamp": datetime(2100, 1, 1, 23, 59, tzinfo=UTC),
    }
    rating = {"event_id": "e3", "behaviour": "rating", "value": 4.5}
    events, rejects = judge({}, search, rating)
    assert rejects.num_rows == 0
    assert events.schema.equals(EVENT.schema)
    assert events["query"].to_pylist() == [None, "tent", None]
    assert events["value"].to_pylist() == [None, None, 4.5]


def test_reject_of_an_unreadable_row_holds_the_row_shortened() -> None:
    _, rejects = judge({"refused": "unreadable row", "original": "x" * 500})
    assert rejects["detail"].to_pylist() == ["x" * 200]


@pytest.mark.parametrize(
    ("text", "unit", "moment"),
    [
        ("978300760", "s", datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC)),
        ("978300760123", "ms", datetime(2000, 12, 31, 22, 12, 40, 123_000, tzinfo=UTC)),
        ("2024-05-01T10:00:00+02:00", "iso", datetime(2024, 5, 1, 8, tzinfo=UTC)),
        ("978300760123", "us", datetime(1970, 1, 12, 7, 45, 0, 760_123, tzinfo=UTC)),
        ("978300760123456789", "s", None),
        ("yesterday", "s", None),
        ("yesterday", "iso", None),
        (None, "s", None),
    ],
)
def test_timestamp_of_any_unit_is_read_and_nonsense_is_null(text: str | None, unit: str, moment: datetime | None) -> None:
    frame = pl.DataFrame({"time": [text]}, schema={"time": pl.String})
    assert frame.select(as_timestamp(pl.col("time"), unit)).item() == moment
