"""Events in a real Redis: once each, synced, kept over a kill of the server, and followed by every replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from intently.core.errors import ConfigError, WorkspaceError
from intently.core.workspace import Workspace

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port
from serve.events import Record
from serve.service import Service
from serve.settings import EventConfig, RedisConfig
from serve.stream import StreamStore, connect
from tests.serve.calling import calling, config
from tests.serve.test_session import cart, items


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path, free_port())
    yield running
    running.stop()


def record(event_id: str) -> Record:
    return Record(event_id, json.dumps({"event_id": event_id}).encode())


def store(server: RedisServer, heard: list[dict], retry_s: float = 20.0) -> StreamStore:
    where = RedisConfig(url=server.url)
    return StreamStore(connect(where), where, EventConfig(store="redis", retry_s=retry_s), 24.0, heard.extend)


def stored(server: RedisServer) -> list[str]:
    with redis.Redis(port=server.port) as client:
        return [json.loads(fields[b"event"])["event_id"] for _, fields in client.xrange("intently:events")]


def test_stream_same_id_twice_is_stored_once(server: RedisServer) -> None:
    async def run() -> None:
        heard: list[dict] = []
        one, other = store(server, heard), store(server, [])
        assert await one.append([record("a"), record("b"), record("a")]) == [True, True, False]
        assert await other.append([record("b"), record("c")]) == [False, True]
        assert stored(server) == ["a", "b", "c"]
        await one.catch_up()
        # Told at once of its own, and of all when it reads on: who listens knows an event by its id.
        assert [event["event_id"] for event in heard] == ["a", "b", "a", "b", "c"]
        await one.close()
        await other.close()

    asyncio.run(run())


def test_stream_many_events_are_followed_to_the_end(server: RedisServer) -> None:
    async def run() -> None:
        heard: list[dict] = []
        writer, reader = store(server, []), store(server, heard)
        await writer.append([record(f"e{number}") for number in range(2500)])
        await reader.catch_up()
        assert [event["event_id"] for event in heard] == [f"e{number}" for number in range(2500)]
        await writer.append([record("last")])
        await reader.catch_up()
        assert len(heard) == 2501
        await writer.close()
        await reader.close()

    asyncio.run(run())


def test_stream_acknowledged_events_outlive_a_kill_and_requests_wait_for_the_server(server: RedisServer) -> None:
    async def run() -> None:
        writer = store(server, [])
        await writer.append([record("before")])
        server.kill()
        during = asyncio.create_task(writer.append([record("during")]))
        await asyncio.to_thread(server.start)
        assert await during == [True]
        assert await writer.append([record("before")]) == [False]
        assert stored(server) == ["before", "during"]
        await writer.close()

    asyncio.run(run())


def test_stream_away_for_too_long_is_an_error_that_names_it(server: RedisServer) -> None:
    async def run() -> None:
        writer = store(server, [], retry_s=0.1)
        server.stop()
        with pytest.raises(WorkspaceError, match=server.url):
            await writer.append([record("a")])
        with pytest.raises(WorkspaceError, match=server.url):
            await writer.catch_up()
        server.start()
        assert await writer.append([record("a")]) == [True]
        await writer.close()

    asyncio.run(run())


def test_stream_on_a_server_that_answers_before_it_syncs_is_refused(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, free_port(), appendfsync="everysec")
    try:
        with pytest.raises(ConfigError, match="'appendfsync': 'everysec'"):
            connect(RedisConfig(url=server.url))
        asyncio.run(connect(RedisConfig(url=server.url, durability="trusted")).aclose())
    finally:
        server.stop()


def test_service_over_redis_answers_503_while_it_is_away_and_shares_sessions(
    server: RedisServer, served: Workspace, tmp_path: Path
) -> None:
    async def run() -> None:
        settings = config(served, tmp_path / "log", events={"store": "redis", "retry_s": 0.1}, redis={"url": server.url})
        async with calling(Service.open(settings, "one")) as one, calling(Service.open(settings, "other")) as other:
            assert (await one.post("/v1/events", json=cart("r1", "i03"))).json()["written"] == 1
            assert "i03" not in await items(one)
            while "i03" in await items(other):
                await asyncio.sleep(0)  # the follower's turn
            server.stop()
            away = await other.post("/v1/events", json=cart("r2", "i03"))
            assert (away.status_code, away.json()["type"]) == (503, "urn:intently:problem:event-log-unavailable")
            assert away.headers["retry-after"] == "1"
            assert "i03" not in await items(other)
            server.start()
            assert (await other.post("/v1/events", json=cart("r2", "i03"))).json()["written"] == 1
        assert stored(server) == ["r1", "r2"]

    asyncio.run(run())
