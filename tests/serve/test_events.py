"""The event log: durable, once each, also after a kill, a torn line or a full disk."""

from __future__ import annotations

import asyncio
import fcntl
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from intently.core.errors import WorkspaceError

from serve.events import EventLog, FileStore, Record, read_events

WRITER = """
import sys
from serve.events import EventLog, Record
log = EventLog(sys.argv[1], 7)
for number in range(1_000_000):
    log.append([Record(f"e{number}", b'{"event_id": "e%d"}' % number)])
    print(number, flush=True)
"""


def record(event_id: str, **fields: object) -> Record:
    return Record(event_id, json.dumps({"event_id": event_id, **fields}).encode())


def ids(folder: Path) -> list[str]:
    return [event["event_id"] for event in read_events(folder)]


@contextmanager
def disk_full_after(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond `num_bytes` while the block runs: writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_log_same_id_twice_writes_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path, dedupe_days=7)
    assert log.append([record("a"), record("b"), record("a")]) == [True, True, False]
    assert log.append([record("b"), record("c")]) == [False, True]
    assert ids(tmp_path) == ["a", "b", "c"]


def test_log_of_another_replica_knows_what_the_first_wrote(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path, dedupe_days=7), EventLog(tmp_path, dedupe_days=7)
    assert first.append([record("a")]) == [True]
    assert second.append([record("a"), record("b")]) == [False, True]
    assert first.append([record("b")]) == [False]
    assert EventLog(tmp_path, dedupe_days=7).append([record("b")]) == [False]
    assert ids(tmp_path) == ["a", "b"]


def test_log_after_torn_line_keeps_what_stands_and_goes_on(tmp_path: Path) -> None:
    log = EventLog(tmp_path, dedupe_days=7)
    log.append([record("a")])
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"event_id": "b", "user')
    assert log.append([record("b"), record("a")]) == [True, False]
    assert ids(tmp_path) == ["a", "b"]
    assert len(segment.read_bytes().splitlines()) == 3


def test_log_on_full_disk_writes_nothing_of_the_block_and_recovers(tmp_path: Path) -> None:
    log = EventLog(tmp_path, dedupe_days=7)
    log.append([record("a")])
    (segment,) = tmp_path.glob("*.jsonl")
    before = segment.read_bytes()
    with disk_full_after(len(before) + 10), pytest.raises(WorkspaceError, match=str(tmp_path)):
        log.append([record("b"), record("c")])
    assert segment.read_bytes() == before
    assert log.append([record("b"), record("c")]) == [True, True]
    assert ids(tmp_path) == ["a", "b", "c"]


def test_log_in_a_place_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="file/log"):
        EventLog(tmp_path / "file" / "log", dedupe_days=7)


def test_log_forgets_ids_of_days_beyond_the_window(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    for age, event_id in ((1, "yesterday"), (9, "long ago")):
        (tmp_path / f"events-{today - timedelta(days=age)}.jsonl").write_bytes(record(event_id).line + b"\n")
    assert EventLog(tmp_path, dedupe_days=7).append([record("yesterday"), record("long ago")]) == [False, True]


def test_log_of_killed_process_holds_every_acknowledged_event(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        env={"PYTHONPATH": f"{root}:{root / 'platform'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    with writer, writer.stdout:
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    logged = ids(tmp_path)
    assert logged[: len(acknowledged)] == [f"e{number}" for number in acknowledged]
    assert len(set(logged)) == len(logged) <= len(acknowledged) + 1


def test_writer_requests_side_by_side_each_get_their_own_answer(tmp_path: Path) -> None:
    async def send() -> list[list[bool]]:
        writer = FileStore(EventLog(tmp_path, dedupe_days=7), heard.extend)
        return await asyncio.gather(*(writer.append([record(f"e{number}"), record("shared")]) for number in range(40)))

    heard: list[dict] = []
    answers = asyncio.run(send())
    assert [event["event_id"] for event in heard] == ids(tmp_path)
    assert all(first for first, _ in answers)
    assert sum(second for _, second in answers) == 1
    assert sorted(ids(tmp_path)) == sorted([f"e{number}" for number in range(40)] + ["shared"])


def test_writer_on_full_disk_tells_everybody_who_waits(tmp_path: Path) -> None:
    async def send() -> list[list[bool] | BaseException]:
        writer = FileStore(EventLog(tmp_path, dedupe_days=7), heard.extend)
        return await asyncio.gather(*(writer.append([record(f"e{number}")]) for number in range(5)), return_exceptions=True)

    heard: list[dict] = []

    with disk_full_after(4):
        answers = asyncio.run(send())
    assert [type(answer) for answer in answers] == [WorkspaceError] * 5
    assert ids(tmp_path) == [] == heard


def test_store_closed_in_the_middle_of_a_look_waits_for_its_end(tmp_path: Path) -> None:
    async def look_and_close() -> None:
        store = FileStore(EventLog(tmp_path, dedupe_days=7), lambda events: None)
        with (tmp_path / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            look = asyncio.create_task(store.catch_up())
            await asyncio.sleep(0.1)
            look.cancel()
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0.1)
            assert not closing.done()
        await asyncio.wait_for(closing, 10)

    asyncio.run(look_and_close())


def test_store_tells_of_what_another_replica_wrote_once_and_in_order(tmp_path: Path) -> None:
    async def send() -> None:
        first, second = (FileStore(EventLog(tmp_path, dedupe_days=7), heard.extend) for heard in (ours, theirs))
        await first.append([record("a"), record("b")])
        await second.append([record("c"), record("a")])
        await first.catch_up()
        await first.catch_up()

    ours: list[dict] = []
    theirs: list[dict] = []
    asyncio.run(send())
    assert [event["event_id"] for event in ours] == ["a", "b", "c"]
    assert [event["event_id"] for event in theirs] == ["a", "b", "c"]


def test_store_that_opens_a_log_tells_of_its_recent_events(tmp_path: Path) -> None:
    EventLog(tmp_path, dedupe_days=7).append([record("a")])
    heard: list[dict] = []
    FileStore(EventLog(tmp_path, dedupe_days=7), heard.extend)
    assert [event["event_id"] for event in heard] == ["a"]
