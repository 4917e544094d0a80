"""From the service's log to Event rows and histories: nothing lost, repeats once, what is broken in Reject."""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path

import ingest_events
import ingest_log
import pyarrow as pa
import pytest
import redis
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.data.days import open_histories
from intently.data.histories import DUPLICATE
from intently.data.raw import UNREADABLE, validate
from intently.data.sources import open_source

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port

pytestmark = pytest.mark.usefixtures("ray_session")

WORLD = ingest_events.IngestEventsConfig.parse(
    {
        "source": {"kind": "simulator", "num_users": 6, "num_items": 70, "events_per_user": 20, "pictures": False},
        "histories": {"num_buckets": 2},
    }
)


@pytest.fixture
def standing(workspace: Workspace) -> Workspace:
    """A workspace with histories of six people."""
    ingest_events.JOB.execute(WORLD, workspace)
    return workspace


def event(event_id: str, user_id: str, item_id: str, **changes: object) -> bytes:
    told = {"event_id": event_id, "user_id": user_id, "item_id": item_id, "behaviour": "cart", "timestamp": "2026-02-01T08:00:00Z"}
    return json.dumps(told | changes).encode()


def log_config(folder: Path, **settings: object) -> ingest_log.IngestLogConfig:
    return ingest_log.IngestLogConfig.parse({"source": {"kind": "event_log", "folder": str(folder), **settings}})


def ingest(folder: Path, workspace: Workspace, **settings: object) -> None:
    ingest_log.JOB.execute(log_config(folder, **settings), workspace)


def stored(workspace: Workspace) -> list[str]:
    return workspace.artifact("event").read()["event_id"].to_pylist()


def ids_of(workspace: Workspace, user_id: str) -> list[str]:
    rows = [row for _, part in open_histories(workspace).iter_parts() for row in part.to_pylist()]
    return next((row["event_ids"] for row in rows if row["user_id"] == user_id), [])


def test_log_becomes_events_and_histories_and_says_what_it_refused(standing: Workspace, tmp_path: Path) -> None:
    user = standing.artifact("user").read()["user_id"][0].as_py()
    item = standing.artifact("item").read()["item_id"][0].as_py()
    before = ids_of(standing, user)
    log = tmp_path / "log"
    log.mkdir()
    first = [event("n1", user, item), b'{"event_id": "torn', event("n2", user, "not-in-the-catalogue"), event("n1", user, item)]
    (log / "events-2026-02-01.jsonl").write_bytes(b"\n".join(first) + b"\n")
    (log / "events-2026-02-02.jsonl").write_bytes(event("n3", "somebody-new", item) + b"\n" + event("n1", user, item) + b"\n")
    ingest(log, standing)
    written = standing.artifact("event")
    assert sorted(written.read()["event_id"].to_pylist()) == ["n1", "n2", "n3"]
    assert written.manifest.reject_reasons == {UNREADABLE: 1, DUPLICATE: 2}
    assert set(written.rejects()["stage"].to_pylist()) == {"event"}
    assert ids_of(standing, user) == [*before, "n1"] and ids_of(standing, "somebody-new") == ["n3"]
    assert standing.artifact("history_day").manifest.reject_reasons["unknown item"] == 1


def test_log_that_grew_is_appended_once(standing: Workspace, tmp_path: Path) -> None:
    user = standing.artifact("user").read()["user_id"][0].as_py()
    item = standing.artifact("item").read()["item_id"][0].as_py()
    before = ids_of(standing, user)
    file = tmp_path / "events-2026-02-01.jsonl"
    file.write_bytes(event("n1", user, item) + b"\n")
    ingest(tmp_path, standing)
    file.write_bytes(file.read_bytes() + event("n2", user, item, timestamp="2026-02-01T09:00:00.5Z") + b"\n")
    ingest(tmp_path, standing)
    versions = [standing.latest_version(name) for name in ("event", "history_day")]
    ingest(tmp_path, standing)
    assert [standing.latest_version(name) for name in ("event", "history_day")] == versions, "there was nothing to do"
    assert ids_of(standing, user) == [*before, "n1", "n2"]
    assert stored(standing) == ["n1", "n2"]
    assert standing.artifact("event").manifest.rejects == 0, "what stands already is no repeat in the log"


def test_log_that_is_read_day_by_day_becomes_one_table_of_all_days(standing: Workspace, tmp_path: Path) -> None:
    item = standing.artifact("item").read()["item_id"][0].as_py()
    days = {
        "2026-02-01": [event("n1", "u", item), b"torn"],
        "2026-02-02": [event("n2", "u", item), event("n1", "u", item)],
        "2026-02-03": [b"torn"],
    }
    for day, lines in days.items():
        (tmp_path / f"events-{day}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for day, reasons in zip(days, ({UNREADABLE: 1}, {}, {UNREADABLE: 1}), strict=True):
        ingest(tmp_path, standing, first=day, last=day)
        assert standing.artifact("event").manifest.reject_reasons == reasons
    assert stored(standing) == ["n1", "n2"]
    ingest(tmp_path, standing)
    assert stored(standing) == ["n1", "n2"]
    assert standing.artifact("event").manifest.reject_reasons == {UNREADABLE: 2, DUPLICATE: 1}
    assert ids_of(standing, "u") == ["n1", "n2"]


def test_log_whose_run_was_killed_is_read_in_larger_blocks_and_every_event_is_there_once(standing: Workspace, tmp_path: Path) -> None:
    item = standing.artifact("item").read()["item_id"][0].as_py()
    lines = [event(f"n{number}", "u", item) for number in range(6)]
    (tmp_path / "events-2026-02-01.jsonl").write_bytes(b"\n".join([*lines, b"torn", lines[0]]) + b"\n")
    config = log_config(tmp_path, rows_per_block=2)
    stage = ingest_log.JOB.stage(standing, "event", config)
    for block, raw in enumerate(open_source(config.source).events()):
        events, refused = validate(raw, pa.array([item]), date(2026, 1, 1), date(2027, 1, 1))
        stage.write(f"part-{block:05d}", events, refused)
    ingest(tmp_path, standing, rows_per_block=100)
    assert standing.artifact("event").version == stage.version
    assert stored(standing) == [f"n{number}" for number in range(6)]
    assert standing.artifact("event").manifest.reject_reasons == {UNREADABLE: 1, DUPLICATE: 1}


def test_stream_keeps_only_its_last_days_once_all_of_it_stands_in_the_tables(standing: Workspace, tmp_path: Path) -> None:
    user = standing.artifact("user").read()["user_id"][0].as_py()
    item = standing.artifact("item").read()["item_id"][0].as_py()
    before, now = ids_of(standing, user), int(time.time() * 1000)
    server = RedisServer(tmp_path, free_port())
    config = ingest_log.IngestLogConfig.parse({"source": {"kind": "event_stream", "url": server.url, "keep_days": 7}})
    try:
        with redis.Redis(port=server.port) as client:
            for name, days in (("old", 8), ("late", 6)):
                client.xadd("intently:events", {"event": event(name, user, item)}, id=f"{now - days * 86_400_000}-0")
            ingest_log.JOB.execute(config, standing)
            assert standing.artifact("event").read()["event_id"].to_pylist() == ["old", "late"]
            assert [json.loads(fields[b"event"])["event_id"] for _, fields in client.xrange("intently:events")] == ["late"]
            client.xadd("intently:events", {"event": event("new", user, item, timestamp="2026-02-02T08:00:00Z")})
            ingest_log.JOB.execute(config, standing)
            assert stored(standing) == ["old", "late", "new"], "also what the stream has no longer"
    finally:
        server.stop()
    assert ids_of(standing, user) == [*before, "old", "late", "new"]


def test_stream_that_would_drop_days_it_does_not_read_is_refused() -> None:
    source = {"kind": "event_stream", "url": "redis://127.0.0.1", "keep_days": 7, "first": "2026-01-31"}
    with pytest.raises(ConfigError, match="keep_days = 7 would drop days before first = 2026-01-31"):
        ingest_log.IngestLogConfig.parse({"source": source})


def test_log_without_a_line_gives_no_events(standing: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, standing)
    assert standing.artifact("event").manifest.rows == 0
