"""The tables' contracts: what `check` and `from_rows` let through, and how they refuse."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from intently.core.errors import SchemaError
from intently.core.schema import EMBEDDING, HISTORY, ITEM, METRIC, REJECT, TABLES, USER


def test_check_columns_in_another_order_come_back_in_the_contracts_order_and_types() -> None:
    rows = pa.table(
        {"attributes": pa.array([["age: 30"]], pa.large_list(pa.large_string())), "user_id": pa.array(["u"], pa.large_string())}
    )
    checked = USER.check(rows)
    assert checked.schema.equals(USER.schema)
    assert checked.to_pylist() == [{"user_id": "u", "attributes": ["age: 30"]}]


def test_check_missing_column_is_refused_with_table_and_column() -> None:
    with pytest.raises(SchemaError, match=r"table user: missing column\(s\) \['attributes'\]; got \['user_id'\]"):
        USER.check(pa.table({"user_id": ["u"]}))


def test_check_unknown_column_is_refused_by_name() -> None:
    rows = pa.table({"user_id": ["u"], "attributes": [["a: b"]], "age": [3]})
    with pytest.raises(SchemaError, match=r"table user: unknown column\(s\) \['age'\]"):
        USER.check(rows)


def test_check_value_that_cannot_be_cast_is_refused_with_column_and_types() -> None:
    rows = METRIC.empty().drop_columns("k").append_column("k", pa.array([], pa.string()))
    assert METRIC.check(rows).num_rows == 0
    filled = pa.Table.from_pylist([_metric()], schema=METRIC.schema)
    place = filled.schema.get_field_index("k")
    with pytest.raises(SchemaError, match=r"table metric, column k: string cannot become int32: .*ten"):
        METRIC.check(filled.set_column(place, "k", pa.array(["ten"])))


def test_check_integer_that_overflows_is_refused_instead_of_wrapped() -> None:
    filled = pa.Table.from_pylist([_metric()], schema=METRIC.schema)
    place = filled.schema.get_field_index("seed")
    with pytest.raises(SchemaError, match="column seed: int64 cannot become int32"):
        METRIC.check(filled.set_column(place, "seed", pa.array([2**40])))


def test_check_type_without_a_cast_is_refused_as_a_schema_error() -> None:
    rows = pa.table({"user_id": pa.array([{"a": 1}]), "attributes": [["a: b"]]})
    with pytest.raises(SchemaError, match="table user, column user_id: struct"):
        USER.check(rows)


def test_check_null_where_none_may_be_is_refused_with_its_first_row() -> None:
    rows = pa.table({"user_id": pa.array(["a", None, None]), "attributes": pa.array([[], [], []], pa.list_(pa.string()))})
    with pytest.raises(SchemaError, match=r"table user, column user_id: 2 null\(s\), first in row 1"):
        USER.check(rows)


def test_check_null_in_a_nullable_column_and_inside_a_list_is_kept() -> None:
    row = {
        "user_id": "u",
        "bucket": 0,
        "event_ids": ["e"],
        "item_ids": [None],
        "behaviours": ["search"],
        "timestamps": [datetime(2026, 1, 1, tzinfo=UTC)],
        "values": [None],
        "queries": ["lamp"],
        "dwell_s": [None],
    }
    assert HISTORY.from_rows([row]).to_pylist() == [row]


def test_from_rows_unknown_key_in_any_row_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"table user: unknown column\(s\) \['name'\]"):
        USER.from_rows([{"user_id": "a", "attributes": []}, {"user_id": "b", "attributes": [], "name": "B"}])


def test_from_rows_absent_key_is_null_and_refused_where_null_may_not_be() -> None:
    item = {"item_id": "i", "title": "Lamp", "category": "home", "categories": [], "attributes": []}
    assert ITEM.from_rows([item])["price"].to_pylist() == [None]
    with pytest.raises(SchemaError, match=r"table item, column title: 1 null\(s\), first in row 0"):
        ITEM.from_rows([{key: value for key, value in item.items() if key != "title"}])


def test_from_rows_value_of_a_wrong_kind_is_a_schema_error_that_names_the_table() -> None:
    with pytest.raises(SchemaError, match="table user"):
        USER.from_rows([{"user_id": 7, "attributes": []}])
    with pytest.raises(SchemaError, match="table metric"):
        METRIC.from_rows([_metric() | {"k": "ten"}])


def test_from_rows_of_nothing_is_the_empty_table() -> None:
    assert REJECT.from_rows([]).equals(REJECT.empty())


def test_hash_changes_with_names_types_and_nullability_but_not_with_words() -> None:
    first, *others = EMBEDDING.columns
    variants = [
        type(first)("other", first.type, first.doc),
        type(first)(first.name, pa.int32(), first.doc),
        type(first)(first.name, first.type, first.doc, nullable=True),
    ]
    hashes = {type(EMBEDDING)("embedding", "", ("id",), (column, *others)).hash for column in variants}
    assert len(hashes | {EMBEDDING.hash}) == 4
    reworded = type(first)(first.name, first.type, "in other words")
    assert type(EMBEDDING)("embedding", "", ("id",), (reworded, *others)).hash == EMBEDDING.hash


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_documents_each_column_and_is_keyed_by_columns_that_are_never_null(name: str) -> None:
    table = TABLES[name]
    columns = {column.name: column for column in table.columns}
    assert len(columns) == len(table.columns), "a column is listed twice"
    assert all(column.doc for column in table.columns)
    assert set(table.key) <= set(columns), f"key {table.key} is not among the columns"
    assert not any(columns[part].nullable for part in table.key)
    assert table.check(table.empty()).schema.equals(table.schema)


def _metric() -> dict[str, object]:
    return {
        "subject": "towers",
        "split": "test",
        "name": "HR",
        "k": 10,
        "value": 0.25,
        "setting": "{}",
        "filter_seen": True,
        "num_users": 4,
        "seed": 0,
    }
