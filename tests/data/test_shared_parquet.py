from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from intently.core.errors import SourceError
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import open_source

from tests.data.reading import read_all

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    interactions = {
        "user_id": [1, 1, 1, 1, 2, 3],
        "item_id": [1, 2, 1, 2, 1, 9],
        "pos": [0, 1, 2, 3, 0, 0],
        "timestamp": [86_400 * 10_000, None, 86_400 * 10_002, None, None, 86_400 * 10_000],
        "order_known": [True, True, True, True, True, False],
    }
    items = {
        "item_id": [1, 2, 9],
        "title": ["Polish", None, None],
        "brand": ["OPI", "Acme", None],
        "categories": ["Makeup > Nails", "Skin", None],
    }
    pq.write_table(pa.table(interactions), tmp_path / "interactions.parquet")
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    return tmp_path


@pytest.mark.parametrize("rows_per_block", [1, 3, 100])
def test_amazon_set_bounds_unknown_times_and_refuses_unknown_order(folder: Path, rows_per_block: int) -> None:
    events, rejects = read_all(open_source(SharedParquetConfig(path=str(folder), rows_per_block=rows_per_block)))
    first, second = datetime(1997, 5, 19, tzinfo=UTC), datetime(1997, 5, 21, tzinfo=UTC)
    assert events["event_id"].to_pylist() == ["1-0", "1-1", "1-2", "1-3"]
    assert events["timestamp"].to_pylist() == [first, second, second, second]
    assert set(events["behaviour"].to_pylist()) == {"purchase"}
    assert [(row["row"], row["reason"]) for row in rejects.to_pylist()] == [
        ("interactions.parquet:4", "bad timestamp"),
        ("interactions.parquet:5", "order unknown"),
    ]


def test_amazon_set_refuses_unknown_times_when_so_configured(folder: Path) -> None:
    events, rejects = read_all(open_source(SharedParquetConfig(path=str(folder), null_timestamps="reject")))
    assert events["event_id"].to_pylist() == ["1-0", "1-2"]
    assert pc.value_counts(rejects["reason"]).to_pylist() == [
        {"values": "bad timestamp", "counts": 3},
        {"values": "order unknown", "counts": 1},
    ]


def test_items_without_a_title_go_by_what_is_known(folder: Path) -> None:
    items = open_source(SharedParquetConfig(path=str(folder))).items
    assert items["title"].to_pylist() == ["Polish", "Acme Skin", "item 9"]
    assert items["category"].to_pylist() == ["Nails", "Skin", "unknown"]


def test_set_without_a_column_is_refused_by_name(folder: Path) -> None:
    table = pq.read_table(folder / "interactions.parquet").drop_columns(["pos"])
    pq.write_table(table, folder / "interactions.parquet")
    with pytest.raises(SourceError, match=r"interactions\.parquet: missing column\(s\) \['pos'\]"):
        open_source(SharedParquetConfig(path=str(folder)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the prepared Parquet sets are not on this machine")
def test_movielens_set_has_the_published_counts_and_is_in_order() -> None:
    source = open_source(SharedParquetConfig(path=str(SHARED / "movielens_1m")))
    events, rejects = read_all(source)
    assert (events.num_rows, rejects.num_rows, source.items.num_rows, source.users.num_rows) == (1_000_209, 0, 3_883, 6_040)
    stars = {row["values"]: row["counts"] for row in pc.value_counts(events["value"]).to_pylist()}
    assert stars == {5.0: 226_310, 4.0: 348_971, 3.0: 261_197, 2.0: 107_557, 1.0: 56_174}
    assert "upper bounds" in source.notes["timestamps"]
