"""Who may ask, how much, and what happens when there is too much to do."""

from __future__ import annotations

import asyncio
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from intently.core.errors import ConfigError, WorkspaceError
from intently.core.workspace import Workspace

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port
from serve.app import require_loopback
from serve.auth import ApiKey, Keys, make_key
from serve.events import EventLog, FileStore, read_events
from serve.limits import Limiter
from serve.service import Service
from serve.settings import AccessConfig, RedisConfig
from serve.stream import connect
from tests.serve.calling import calling, config

ROOT = Path(__file__).parents[2]
CART = {"event_id": "e", "user_id": "ada", "item_id": "i03", "behaviour": "cart"}


def keys_file(path: Path, **keys: dict) -> dict[str, dict[str, str]]:
    """Write a keys file; name → the header that sends its key."""
    made = {
        name: make_key(name, entry["scopes"], entry.get("requests_per_s", 1000.0), entry.get("burst", 1000)) for name, entry in keys.items()
    }
    path.write_text(json.dumps({"keys": [json.loads(entry.model_dump_json()) for _, entry in made.values()]}))
    return {name: {"Authorization": f"Bearer {key}"} for name, (key, _) in made.items()}


def problem(response: httpx.Response, status: int, kind: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:intently:problem:{kind}"
    assert body["request_id"]
    return body


@contextmanager
def disk_that_hangs(log: Path) -> Iterator[None]:
    """Whoever holds the log's lock holds up every request that writes."""
    with (log / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


async def reached(gate_is: int, client: httpx.AsyncClient) -> None:
    """Wait until so many requests are in the application."""
    while True:
        await asyncio.sleep(0)  # nothing on the way to /metrics waits for anything, so that nobody else would have a turn
        text = (await client.get("/metrics")).text
        (value,) = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("intently_in_flight{")]
        if float(value) >= gate_is:
            return


def test_keys_no_key_is_401_wrong_scope_403_and_what_is_open_stays_open(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        sent = keys_file(tmp_path / "keys.json", shop={"scopes": ["read"]}, till={"scopes": ["events"]}, boss={"scopes": ["admin"]})
        service = Service.open(config(served, tmp_path / "log", access={"keys_file": str(tmp_path / "keys.json")}), "r")
        path = "/v1/users/ada/recommendations"
        async with calling(service) as client:
            refused = await client.get(path)
            problem(refused, 401, "no-key")
            assert refused.headers["www-authenticate"] == "Bearer"
            problem(await client.get(path, headers={"Authorization": "Bearer guessed"}), 401, "no-key")
            problem(await client.get(path, headers={"Authorization": "Basic " + sent["shop"]["Authorization"][7:]}), 401, "no-key")
            assert (await client.get(path, headers=sent["shop"])).status_code == 200
            assert "read is needed" in problem(await client.get(path, headers=sent["till"]), 403, "wrong-scope")["detail"]
            problem(await client.post("/v1/events", json=CART, headers=sent["shop"]), 403, "wrong-scope")
            assert (await client.post("/v1/events", json=CART, headers=sent["till"])).json()["written"] == 1
            for operation in (("GET", "/metrics"), ("POST", "/v1/admin/reload")):
                problem(await client.request(*operation), 401, "no-key")
                problem(await client.request(*operation, headers=sent["shop"]), 403, "wrong-scope")
                assert (await client.request(*operation, headers=sent["boss"])).status_code == 200
            for open_path in ("/healthz", "/readyz", "/", "/openapi.json", "/v1/items/i00/image"):
                assert (await client.get(open_path)).status_code == 200, open_path
            document = (await client.get("/openapi.json")).json()
        read = document["paths"]["/v1/users/{user_id}/recommendations"]["get"]
        assert read["security"] == [{"key": []}] and {"401", "403", "429"} <= set(read["responses"])
        assert "security" not in document["paths"]["/healthz"]["get"]

    asyncio.run(run())


def test_keys_over_the_limit_is_429_with_retry_after_for_that_key_only(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        slow = {"scopes": ["read"], "requests_per_s": 0.01, "burst": 3}
        sent = keys_file(tmp_path / "keys.json", slow=slow, other={"scopes": ["read"]})
        service = Service.open(config(served, tmp_path / "log", access={"keys_file": str(tmp_path / "keys.json")}), "r")
        async with calling(service) as client:
            answers = [await client.get("/v1/users/ada/tags", headers=sent["slow"]) for _ in range(5)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
            problem(answers[3], 429, "rate-limit")
            assert 90 <= int(answers[3].headers["retry-after"]) <= 100
            assert (await client.get("/v1/users/ada/tags", headers=sent["other"])).status_code == 200

    asyncio.run(run())


def test_keys_file_that_changes_counts_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = keys_file(path, shop={"scopes": ["read"]})["shop"]["Authorization"][7:]
    keys = Keys(AccessConfig(keys_file=str(path)))
    assert keys.find(first) is not None
    path.write_text("not JSON")
    with pytest.raises(ConfigError, match="does not hold keys"):
        keys.refresh()
    assert keys.find(first) is not None
    second = keys_file(path, shop={"scopes": ["read"]})["shop"]["Authorization"][7:]
    keys.refresh()
    assert keys.find(first) is None and keys.find(second) is not None


@pytest.mark.parametrize("error", [WorkspaceError("redis: cannot be read"), TypeError("of somewhere"), None])
def test_keys_that_are_revoked_stop_counting_while_the_event_store_is_away(
    served: Workspace, tmp_path: Path, error: Exception | None
) -> None:
    class Away(FileStore):
        """A store that nothing can be read from, or that hangs."""

        async def catch_up(self) -> None:
            if error is None:
                await asyncio.Event().wait()
            raise error

    async def run() -> None:
        path = tmp_path / "keys.json"
        sent = keys_file(path, shop={"scopes": ["read"]})["shop"]
        service = Service.open(config(served, tmp_path / "log", access={"keys_file": str(path)}), "r")
        service.events = Away(EventLog(tmp_path / "log", 1), service.sessions.add)
        async with calling(service) as client:
            assert (await client.get("/v1/users/ada/tags", headers=sent)).status_code == 200
            keys_file(path, other={"scopes": ["read"]})
            async with asyncio.timeout(10):
                while (await client.get("/v1/users/ada/tags", headers=sent)).status_code != 401:
                    await asyncio.sleep(0.01)  # the follower's turn

    asyncio.run(run())


def test_replica_that_ends_closes_everything_whatever_ended_its_tasks(served: Workspace, tmp_path: Path) -> None:
    async def end() -> None:
        raise RuntimeError("of somewhere")

    async def run() -> None:
        service = Service.open(config(served, tmp_path / "log"), "r")
        service.reloader.watch = end
        async with service.running():
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await service.events.catch_up()

    asyncio.run(run())


def test_keys_errors_and_entries_show_nothing_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, entry = make_key("shop", ("read",), 10.0, 10)
    assert key not in repr(entry) and key not in entry.model_dump_json()
    monkeypatch.setenv("SHOP_KEYS", json.dumps({"keys": [{"name": "shop", "sha256": key, "scopes": ["read"]}]}))
    with pytest.raises(ConfigError, match=r"access.keys_env = 'SHOP_KEYS'.*sha256") as refused:
        Keys(AccessConfig(keys_env="SHOP_KEYS"))
    assert key not in str(refused.value)
    with pytest.raises(ConfigError, match="holds a password"):
        RedisConfig.parse({"url": "redis://:hidden@host:6379/0"})
    with pytest.raises(ConfigError, match=r"NOT_SET.*not set"):
        RedisConfig(password_env="NOT_SET").password()


def test_keys_command_prints_a_key_whose_entry_the_service_takes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve.auth", "shop", "--scopes", "read", "events", "--requests-per-s", "5"]
    lines = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": "platform"}, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    key, entry = (line.partition(": ")[2] for line in lines)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [json.loads(entry)]}))
    found = Keys(AccessConfig(keys_file=str(tmp_path / "keys.json"))).find(key)
    assert found is not None and (found.scopes, found.requests_per_s) == (("read", "events"), 5.0)


def test_limits_of_two_replicas_are_one_bucket_in_redis_and_shares_without_it(tmp_path: Path) -> None:
    key = ApiKey(name="shop", sha256="0" * 64, scopes=("read",), requests_per_s=0.001, burst=40)

    async def granted(limiters: list[Limiter]) -> list[int]:
        return [sum([await limiter.wait_s(key) == 0.0 for _ in range(60)]) for limiter in limiters]

    async def run() -> None:
        server = RedisServer(tmp_path, free_port())
        client = connect(RedisConfig(url=server.url))
        shared = [Limiter(2, client, "t"), Limiter(2, client, "t")]
        assert sum(await granted(shared)) == 40
        server.stop()
        # The server is away: each grants its own half of the burst.
        assert await granted(shared) == [20, 20]
        await client.aclose()
        assert await granted([Limiter(2, None, "t"), Limiter(2, None, "t")]) == [20, 20]

    asyncio.run(run())


def test_limits_requests_that_come_together_share_the_lots_that_they_take(tmp_path: Path) -> None:
    key = ApiKey(name="shop", sha256="0" * 64, scopes=("read",), requests_per_s=100, burst=200)

    async def run() -> None:
        server = RedisServer(tmp_path, free_port())
        client = connect(RedisConfig(url=server.url))
        limiter = Limiter(1, client, "t")
        assert await asyncio.gather(*(limiter.wait_s(key) for _ in range(100))) == [0.0] * 100
        slow = key.model_copy(update={"sha256": "1" * 64, "requests_per_s": 0.001, "burst": 40})
        waits = await asyncio.gather(*(limiter.wait_s(slow) for _ in range(100)))
        assert waits.count(0.0) == 40 and 990 < min(wait for wait in waits if wait) <= 1000
        await client.aclose()
        server.stop()

    asyncio.run(run())


def test_limits_do_not_wait_for_a_redis_that_hangs(tmp_path: Path) -> None:
    key = ApiKey(name="shop", sha256="0" * 64, scopes=("read",), requests_per_s=0.001, burst=40)

    async def run() -> None:
        server = RedisServer(tmp_path, free_port())
        limiter = Limiter(2, connect(RedisConfig(url=server.url)), "t")
        server.hang()
        start = time.monotonic()
        assert [await limiter.wait_s(key) == 0.0 for _ in range(30)].count(True) == 20
        assert time.monotonic() - start < 2
        server.kill()

    asyncio.run(run())


def test_full_replica_refuses_with_503_and_answers_those_it_took(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(config(served, tmp_path / "log", max_in_flight=2), "r")
        async with calling(service) as client:
            with disk_that_hangs(tmp_path / "log"):
                taken = [asyncio.create_task(client.post("/v1/events", json=CART | {"event_id": f"e{number}"})) for number in range(2)]
                await reached(2, client)
                refused = [await client.post("/v1/events", json=CART | {"event_id": f"r{number}"}) for number in range(3)]
                refused.append(await client.get("/v1/users/ada/recommendations"))
                assert (await client.get("/healthz")).status_code == (await client.get("/readyz")).status_code == 200
            for answer in refused:
                problem(answer, 503, "busy")
                assert answer.headers["retry-after"] == "1"
            assert [(await task).status_code for task in taken] == [200, 200]
            assert (await client.get("/v1/users/ada/recommendations")).status_code == 200
        assert sorted(event["event_id"] for event in read_events(tmp_path / "log")) == ["e0", "e1"]

    asyncio.run(run())


def test_many_requests_at_once_are_answered_or_refused_quickly(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(config(served, tmp_path / "log", max_in_flight=8), "r")
        async with calling(service) as client:
            await client.get("/v1/users/ada/recommendations")
            start = time.monotonic()
            answers = await asyncio.gather(*(client.get("/v1/users/ada/recommendations") for _ in range(200)))
            assert time.monotonic() - start < 10
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 8
        assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}

    asyncio.run(run())


def test_request_that_takes_too_long_is_503_and_its_event_is_kept_once(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(config(served, tmp_path / "log", timeout_s=0.05), "r")
        async with calling(service) as client:
            with disk_that_hangs(tmp_path / "log"):
                refused = await client.post("/v1/events", json=CART)
            problem(refused, 503, "timed-out")
            assert refused.headers["retry-after"] == "1"
            again = await client.post("/v1/events", json=CART)
            while again.status_code == 503:
                again = await client.post("/v1/events", json=CART)
            assert again.json()["events"][0]["status"] in ("duplicate", "written")
        assert [event["event_id"] for event in read_events(tmp_path / "log")] == ["e"]

    asyncio.run(run())


def test_origins_by_config_may_call_and_others_may_not(served: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        sent = keys_file(tmp_path / "keys.json", shop={"scopes": ["read"]})
        access = {"keys_file": str(tmp_path / "keys.json"), "cors_origins": ["https://shop.example"]}
        service = Service.open(config(served, tmp_path / "log", access=access), "r")
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        async with calling(service) as client:
            allowed = await client.options("/v1/users/ada/tags", headers=asked | {"Origin": "https://shop.example"})
            assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://shop.example")
            refused = await client.options("/v1/users/ada/tags", headers=asked | {"Origin": "https://evil.example"})
            assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
            answer = await client.get("/v1/users/ada/tags", headers=sent["shop"] | {"Origin": "https://shop.example"})
            assert answer.headers["access-control-allow-origin"] == "https://shop.example"
            unkeyed = await client.get("/v1/users/ada/tags", headers={"Origin": "https://shop.example"})
            assert (unkeyed.status_code, unkeyed.headers["access-control-allow-origin"]) == (401, "https://shop.example")

    asyncio.run(run())


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::"])
def test_service_without_keys_refuses_hosts_that_others_reach(host: str) -> None:
    with pytest.raises(ConfigError, match="without API keys"):
        require_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_service_without_keys_takes_the_loopback_interface(host: str) -> None:
    require_loopback(host)
