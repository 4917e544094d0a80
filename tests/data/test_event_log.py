"""The service's event log as a source: day files and a Redis stream, broken lines included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
import redis
from intently.core.errors import SourceError
from intently.data.event_log import EventLogConfig, EventStreamConfig
from intently.data.raw import UNREADABLE
from intently.data.sources import fingerprint, open_source

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port


def line(event_id: str, **changes: object) -> bytes:
    event = {"event_id": event_id, "user_id": "ada", "item_id": "i1", "behaviour": "cart", "timestamp": "2026-01-10T12:00:00Z"}
    return json.dumps(event | {"value": None, "query": None, "dwell_s": None, "request_id": None, "received": "later"} | changes).encode()


def write(folder: Path, day: str, *lines: bytes) -> None:
    (folder / f"events-{day}.jsonl").write_bytes(b"".join(one + b"\n" for one in lines))


def read(config: EventLogConfig | EventStreamConfig) -> list[dict]:
    return pa.concat_tables(open_source(config).events()).to_pylist()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path, free_port())
    yield running
    running.stop()


def test_log_lines_become_rows_in_order_with_times_with_and_without_a_fraction(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-10", line("a"), line("b", timestamp="2026-01-10T12:00:01.250000Z", dwell_s=2.5, query="rain"))
    write(tmp_path, "2026-01-11", line("c", behaviour="rating", value=4))
    rows = read(EventLogConfig(folder=str(tmp_path)))
    assert [(row["event_id"], row["position"], row["place"]) for row in rows] == [
        ("a", 0, "events-2026-01-10.jsonl:1"), ("b", 1, "events-2026-01-10.jsonl:2"), ("c", 2, "events-2026-01-11.jsonl:1"),
    ]  # fmt: skip
    assert [row["timestamp"].isoformat() for row in rows[:2]] == ["2026-01-10T12:00:00+00:00", "2026-01-10T12:00:01.250000+00:00"]
    assert (rows[1]["dwell_s"], rows[1]["query"], rows[2]["value"]) == (2.5, "rain", 4.0)


@pytest.mark.parametrize("broken", [b'{"event_id": "torn", "us', b"", b"[1, 2]", b"\xff\xfe", b'{"value": true}'])
def test_log_broken_line_is_refused_and_its_neighbours_stay(tmp_path: Path, broken: bytes) -> None:
    write(tmp_path, "2026-01-10", line("a"), broken, line("b"))
    rows = read(EventLogConfig(folder=str(tmp_path)))
    assert sorted((row["event_id"], row["position"]) for row in rows if row["refused"] is None) == [("a", 0), ("b", 2)]
    (refused,) = [row for row in rows if row["refused"] is not None]
    assert (refused["refused"], refused["place"]) == (UNREADABLE, "events-2026-01-10.jsonl:2")
    assert refused["original"] == broken.decode(errors="replace")


def test_log_in_small_blocks_is_the_same(tmp_path: Path) -> None:
    write(tmp_path, "2026-01-10", *(line(f"e{number}") for number in range(10)))
    whole, blocks = (read(EventLogConfig(folder=str(tmp_path), rows_per_block=rows)) for rows in (100, 3))
    assert whole == blocks and len(whole) == 10


def test_log_days_and_fingerprint_are_those_asked_for(tmp_path: Path) -> None:
    for day in (10, 11, 12):
        write(tmp_path, f"2026-01-{day}", line(f"e{day}"))
    middle = EventLogConfig(folder=str(tmp_path), first=date(2026, 1, 11), last=date(2026, 1, 11))
    assert [row["event_id"] for row in read(middle)] == ["e11"]
    before = fingerprint(middle), fingerprint(EventLogConfig(folder=str(tmp_path)))
    write(tmp_path, "2026-01-12", line("e12"), line("e13"))
    after = fingerprint(middle), fingerprint(EventLogConfig(folder=str(tmp_path)))
    assert before[0] == after[0] and before[1] != after[1]


def test_log_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        fingerprint(EventLogConfig(folder=str(tmp_path / "nowhere")))


def test_stream_gives_the_same_rows_and_days_go_by_arrival(server: RedisServer) -> None:
    with redis.Redis(port=server.port) as client:
        for number, moment in enumerate((1768003200000, 1768089600000, 1768089600001)):  # midnight of 10 and 11 January 2026
            client.xadd("intently:events", {"event": line(f"e{number}")}, id=f"{moment}-0")
        client.xadd("intently:events", {"other": b"x"})
    config = EventStreamConfig(url=server.url, rows_per_block=2)
    rows = read(config)
    assert [row["event_id"] for row in rows if row["refused"] is None] == ["e0", "e1", "e2"]
    assert [row["refused"] for row in rows].count(UNREADABLE) == 1
    first_day = EventStreamConfig(url=server.url, first=date(2026, 1, 10), last=date(2026, 1, 10))
    assert [row["event_id"] for row in read(first_day)] == ["e0"]
    before = fingerprint(config)
    with redis.Redis(port=server.port) as client:
        client.xadd("intently:events", {"event": line("e4")})
    assert fingerprint(config) != before


def test_stream_of_a_server_that_is_away_is_an_error_that_names_it(server: RedisServer) -> None:
    server.stop()
    with pytest.raises(SourceError, match=server.url):
        read(EventStreamConfig(url=server.url))
