from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from intently.core.errors import SourceError
from intently.data.files import FilesConfig
from intently.data.sources import open_source

from tests.data.reading import read_all

LOG = """uid,sku,kind,at,secs
u1,i1,pv,2024-05-01T10:00:00,12
u1,i2,buy,2024-05-01 10:05:00,
u2,i1,gaze,2024-05-01T10:00:00,1
u2,i1,pv,soon,1
u3,i1,pv,2024-05-01T10:00:00,1,too many
,i1,pv,2024-05-01T10:00:00,1
"""
ITEMS = """sku,name,path,colour
i1,Tent,Outdoor|Camping,green
i2,Lamp,Home,
i2,Lamp again,Home,
i3,,Home,
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "users.csv").write_text("id,town\nu1,Oslo\nu2,\n")
    return {
        "events": str(tmp_path / "log.csv"),
        "columns": {"user_id": "uid", "item_id": "sku", "behaviour": "kind", "timestamp": "at", "dwell_s": "secs"},
        "behaviours": {"pv": "detail_view", "buy": "purchase"},
        "timestamp_unit": "iso",
        "items": str(tmp_path / "items.csv"),
        "item_columns": {"item_id": "sku", "title": "name", "categories": "path"},
        "attributes": ["colour"],
        "users": str(tmp_path / "users.csv"),
        "user_id": "id",
    }


def test_csv_log_is_read_by_its_mapping_and_broken_rows_are_refused(settings: dict[str, Any]) -> None:
    source = open_source(FilesConfig.parse(settings))
    events, rejects = read_all(source)
    assert events["behaviour"].to_pylist() == ["detail_view", "purchase"]
    assert events["timestamp"].to_pylist() == [datetime(2024, 5, 1, 10, tzinfo=UTC), datetime(2024, 5, 1, 10, 5, tzinfo=UTC)]
    assert events["dwell_s"].to_pylist() == [12.0, None]
    assert sorted((row["reason"], row["row"]) for row in rejects.to_pylist()) == [
        ("bad timestamp", "log.csv:3"),
        ("missing user_id", "log.csv:4"),
        ("unknown behaviour", "log.csv:2"),
        ("unreadable row", "log.csv: a row"),
    ]
    assert "u3,i1,pv,2024-05-01T10:00:00,1,too many" in rejects["detail"].to_pylist()


def test_csv_items_and_users_are_read_and_doubtful_items_refused(settings: dict[str, Any]) -> None:
    source = open_source(FilesConfig.parse(settings))
    tent, lamp = source.items.to_pylist()
    assert (tent["title"], tent["category"], tent["categories"], tent["attributes"]) == (
        "Tent",
        "Camping",
        ["Outdoor", "Camping"],
        ["colour: green"],
    )
    assert (lamp["title"], lamp["attributes"]) == ("Lamp", [])
    assert [row["reason"] for row in source.rejects.to_pylist()] == ["duplicate item_id", "missing title"]
    assert source.users.to_pylist() == [{"user_id": "u1", "attributes": ["town: Oslo"]}, {"user_id": "u2", "attributes": []}]


def test_parquet_folder_with_real_types_is_read_file_after_file(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for number, day in enumerate((1, 2)):
        table = {"user": [7], "item": ["i1"], "when": pa.array([datetime(2024, 5, day)], pa.timestamp("ms")), "id": [number]}
        pq.write_table(pa.table(table), folder / f"part-{number}.parquet")
    mapping = {"user_id": "user", "item_id": "item", "timestamp": "when", "event_id": "id"}
    config = FilesConfig.parse(settings | {"events": str(folder), "columns": mapping, "behaviours": {}, "behaviour": "purchase"})
    events, rejects = read_all(open_source(config))
    assert rejects.num_rows == 0
    assert events["event_id"].to_pylist() == ["0", "1"]
    assert events["user_id"].to_pylist() == ["7", "7"]
    assert events["timestamp"].to_pylist() == [datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)]
    assert events["position"].to_pylist() == [0, 1]


def test_rows_without_an_event_id_are_known_by_their_files_content(settings: dict[str, Any], tmp_path: Path) -> None:
    def ids(folder: str, *rows: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "day.csv").write_text("\n".join(["uid,sku,kind,at,secs", *rows]) + "\n")
        config = FilesConfig.parse(settings | {"events": str(tmp_path / folder / "day.csv")})
        return read_all(open_source(config))[0]["event_id"].to_pylist()

    monday = ids("monday", "u1,i1,pv,2024-05-01,1", "u1,i1,pv,2024-05-01,1")
    tuesday = ids("tuesday", "u1,i2,pv,2024-05-02,1", "u1,i1,pv,2024-05-02,1")
    assert len({*monday, *tuesday}) == 4
    assert ids("again", "u1,i1,pv,2024-05-01,1", "u1,i1,pv,2024-05-01,1") == monday


def test_file_whose_columns_are_named_like_ours_is_read_by_its_mapping(settings: dict[str, Any]) -> None:
    Path(settings["events"]).write_text("position,place,at\nu1,i1,2024-05-01\n")
    columns = {"user_id": "position", "item_id": "place", "timestamp": "at"}
    config = FilesConfig.parse(settings | {"columns": columns, "behaviour": "cart", "behaviours": {}})
    (event,) = read_all(open_source(config))[0].to_pylist()
    assert (event["user_id"], event["item_id"], event["position"]) == ("u1", "i1", 0)


def test_csv_log_of_several_blocks_with_quoted_line_breaks_is_read_whole(settings: dict[str, Any]) -> None:
    rows, query = 40_000, "one line\n" * 30
    lines = "".join(f'u{row},i1,pv,2024-05-01,"{query}"\n' for row in range(rows))
    Path(settings["events"]).write_text("uid,sku,kind,at,words\n" + lines)
    columns = {"user_id": "uid", "item_id": "sku", "behaviour": "kind", "timestamp": "at", "query": "words"}
    events, rejects = read_all(open_source(FilesConfig.parse(settings | {"columns": columns})))
    assert (events.num_rows, rejects.num_rows) == (rows, 0)
    assert events["query"].unique().to_pylist() == [query]


def test_csv_row_with_bytes_that_are_no_text_is_refused_alone(settings: dict[str, Any]) -> None:
    Path(settings["events"]).write_bytes(
        "uid,sku,kind,at,secs\nu1,i1,pv,2024-05-01,1\nJosé,i1,pv,2024-05-01,\n".encode("latin-1") + b"u2,i2,buy,2024-05-01,\n"
    )
    events, rejects = read_all(open_source(FilesConfig.parse(settings)))
    assert events["user_id"].to_pylist() == ["u1", "u2"]
    assert [(row["reason"], row["detail"]) for row in rejects.to_pylist()] == [("unreadable row", "Jos\ufffd,i1,pv,2024-05-01,")]


def test_users_and_items_that_are_left_out_are_refused_with_their_reason(settings: dict[str, Any]) -> None:
    Path(settings["users"]).write_text("id,town\nu1,Oslo\nu1,Rome\n,Bonn\nu2,\nu3,Bern,3000\n")
    Path(settings["items"]).write_text("sku,name,path,colour\ni1,Tent,Outdoor,\ni2,Lamp,Home,,1 of 2\n")
    source = open_source(FilesConfig.parse(settings))
    assert source.users["user_id"].to_pylist() == ["u1", "u2"]
    assert source.items["item_id"].to_pylist() == ["i1"]
    assert source.rejects.to_pylist() == [
        {"stage": "item", "row": "items.csv: a row", "reason": "unreadable row", "detail": "i2,Lamp,Home,,1 of 2"},
        {"stage": "user", "row": "users.csv:1", "reason": "duplicate user_id", "detail": "u1, town: Rome"},
        {"stage": "user", "row": "users.csv:2", "reason": "missing user_id", "detail": "town: Bonn"},
        {"stage": "user", "row": "users.csv: a row", "reason": "unreadable row", "detail": "u3,Bern,3000"},
    ]


def test_csv_words_that_elsewhere_mean_nothing_are_names_like_others(settings: dict[str, Any]) -> None:
    Path(settings["items"]).write_text("sku,name,path,colour\nNA,null,NULL,nan\n")
    Path(settings["events"]).write_text("uid,sku,kind,at,secs\nnull,NA,pv,2024-05-01,\n")
    source = open_source(FilesConfig.parse(settings))
    (item,) = source.items.to_pylist()
    assert (item["item_id"], item["title"], item["category"], item["attributes"]) == ("NA", "null", "NULL", ["colour: nan"])
    events, _ = read_all(source)
    assert events.select(["user_id", "item_id", "dwell_s"]).to_pylist() == [{"user_id": "null", "item_id": "NA", "dwell_s": None}]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_csv_files_with_a_header_alone_are_no_rows(settings: dict[str, Any], end: str) -> None:
    for name, header in (("events", "uid,sku,kind,at,secs"), ("items", "sku,name,path,colour"), ("users", "id,town")):
        Path(settings[name]).write_bytes((header + end).encode())
    source = open_source(FilesConfig.parse(settings))
    assert (source.items.num_rows, source.users.num_rows, source.rejects.num_rows) == (0, 0, 0)
    assert read_all(source)[0].num_rows == 0


def test_parquet_items_without_a_row_are_none(settings: dict[str, Any], tmp_path: Path) -> None:
    nothing = pa.table({name: pa.array([], pa.string()) for name in ("sku", "name", "path", "colour")})
    pq.write_table(nothing, tmp_path / "items.parquet")
    assert open_source(FilesConfig.parse(settings | {"items": str(tmp_path / "items.parquet")})).items.num_rows == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "Empty CSV file"),
        ("items.csv", b"", "Empty CSV file"),
        ("users.csv", b"", "Empty CSV file"),
        ("items.csv", b"sku,name,path,colour,\xe9tat\n", "can't decode byte 0xe9"),
        ("items.csv", b'sku,name,path,colour\ni1,"' + b"no end\n" * 2_500_000, "straddles two block boundaries"),
        ("items.parquet", b"sku,name\n", "Parquet"),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(
    settings: dict[str, Any], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    changed = {"items": str(tmp_path / name)} if name.startswith("items") else {}
    with pytest.raises(SourceError, match=f"{name}: cannot be read: .*{message}"):
        open_source(FilesConfig.parse(settings | changed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": {"user_id": "uid", "item_id": "sku", "behaviour": "kind", "timestamp": "when"}},
            r"log\.csv: missing column\(s\) \['when'\]",
        ),
        ({"columns": {"user_id": "uid", "item_id": "sku", "behaviour": "kind"}}, r"columns: missing \['timestamp'\]"),
        ({"columns": {"user_id": "uid", "item_id": "sku", "behaviour": "kind", "timestamp": "at", "mood": "x"}}, r"unknown \['mood'\]"),
        ({"item_columns": {"item_id": "sku", "title": "label"}}, r"items\.csv: missing column\(s\) \['label'\]"),
        ({"user_id": "uuid"}, r"users\.csv: missing column\(s\) \['uuid'\]"),
        ({"events": "nowhere.csv"}, r"nowhere\.csv: no such file"),
        ({"events": __file__}, r"reads \.parquet and \.csv"),
    ],
)
def test_files_that_do_not_fit_the_mapping_are_refused_by_name(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(FilesConfig.parse(settings | change))
