"""Which reason is found, in the embedded store and in a real Redis, and what happens while a store changes or is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from intently.core.errors import ConfigError, WorkspaceError
from intently.core.schema import EXPLANATION
from intently.interests.reason_store import LmdbReasons, RedisReasons, connect, publish_reasons, write_reasons

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port
from serve.reasons import Reasons, ReasonsConfig

ROWS = (("i", "x", "for x"), ("i", "y", "for y"), ("i", "", "for anybody"), ("j", "x", "j for x"), ("ü" * 300, "", "a long id"))


def write(path: Path, *rows: tuple[str, str, str]) -> Path:
    write_reasons(EXPLANATION.from_rows([{"item_id": i, "interest": n, "text": t, "model": "hand"} for i, n, t in rows]), path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path, free_port())
    yield running
    running.stop()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with connect(server.url, None, 5.0) as connected:
        yield connected


@pytest.fixture
def lmdb_reasons(tmp_path: Path) -> Reasons:
    return Reasons(LmdbReasons(write(tmp_path / "a.lmdb", *ROWS), "v1"), cache_items=2)


@pytest.fixture
def redis_reasons(tmp_path: Path, client: redis.Redis) -> Reasons:
    publish_reasons(write(tmp_path / "a.lmdb", *ROWS), "v1", client, "test", 60)
    return Reasons(RedisReasons(client, "test"), cache_items=2)


@pytest.mark.parametrize("kind", ["lmdb_reasons", "redis_reasons"])
def test_reason_is_the_first_interest_that_has_one_else_for_anybody_else_none(kind: str, request: pytest.FixtureRequest) -> None:
    reasons: Reasons = request.getfixturevalue(kind)
    found = reasons.find("i", ["z", "y", "x"])
    assert found is not None and (found.text, found.interest, found.fallback) == ("for y", "y", False)
    fallback = reasons.find("i", ["z"])
    assert fallback is not None and fallback.model_dump() == {"text": "for anybody", "interest": None, "fallback": True}
    assert reasons.find("j", ["y"]) is None and reasons.find("other", ["x"]) is None
    long = reasons.find("ü" * 300, [])
    assert long is not None and long.text == "a long id"


@pytest.mark.parametrize("kind", ["lmdb_reasons", "redis_reasons"])
def test_reasons_of_an_answer_come_in_its_order_and_are_remembered(kind: str, request: pytest.FixtureRequest) -> None:
    reasons: Reasons = request.getfixturevalue(kind)
    found = reasons.find_all(["j", "other", "i"], ["x"])
    assert [reason and reason.text for reason in found.reasons] == ["j for x", None, "for x"]
    assert (found.hits, found.misses, found.failed) == (0, 3, False)
    # Two records are kept, those asked for last.
    again = reasons.find_all(["i", "other", "j"], ["x"])
    assert (again.hits, again.misses) == (2, 1)


def test_lmdb_same_file_is_opened_twice_in_one_process(tmp_path: Path) -> None:
    path = write(tmp_path / "a.lmdb", *ROWS)
    first, second = LmdbReasons(path, "v1"), LmdbReasons(path, "v1")
    assert len(first) == 3
    del first
    assert second.records("v1", ["j", "none"]) == [{"x": "j for x"}, {}]


def test_lmdb_empty_table_is_a_store_that_knows_nothing(tmp_path: Path) -> None:
    assert LmdbReasons(write(tmp_path / "a.lmdb"), "v1").records("v1", ["i"]) == [{}]


def test_lmdb_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").write_bytes(b"no store" * 1000)
    for name in ("a.lmdb", "gone.lmdb"):
        with pytest.raises(WorkspaceError, match=name):
            LmdbReasons(tmp_path / name, "v1")


def test_lmdb_many_items_with_long_texts_fit(tmp_path: Path) -> None:
    rows = [(f"i{place}", interest, interest * 60) for place in range(3000) for interest in ("", "walking", "reading")]
    store = LmdbReasons(write(tmp_path / "a.lmdb", *rows), "v1")
    assert len(store) == 3000
    assert store.records("v1", ["i2999"]) == [{"": "", "walking": "walking" * 60, "reading": "reading" * 60}]


def test_redis_readers_see_the_new_version_in_one_step_and_the_old_one_expires(tmp_path: Path, client: redis.Redis) -> None:
    publish_reasons(write(tmp_path / "a.lmdb", *ROWS), "v1", client, "test", 60)
    reader = RedisReasons(client, "test")
    assert reader.version() == "v1"
    publish_reasons(write(tmp_path / "b.lmdb", ("i", "", "newer")), "v2", client, "test", 60)
    # A reader that still goes by v1 finds all of it.
    assert reader.records("v1", ["j", "i"])[0] == {"x": "j for x"}
    assert RedisReasons(client, "test").version() == "v2"
    assert RedisReasons(client, "test").records("v2", ["i", "j"]) == [{"": "newer"}, {}]
    lives = {key[:8]: client.ttl(key) for key in client.scan_iter("test:v?:*")}
    assert 0 < lives[b"test:v1:"] <= 60 and lives[b"test:v2:"] == -1


def test_redis_going_back_to_an_old_version_keeps_it(tmp_path: Path, client: redis.Redis) -> None:
    for name, version in (("a", "v1"), ("b", "v2"), ("a", "v1")):
        publish_reasons(write(tmp_path / f"{name}.lmdb", ("i", "", version)), version, client, "test", 60)
    reader = RedisReasons(client, "test")
    assert reader.records(reader.version(), ["i"]) == [{"": "v1"}]
    assert {client.ttl(key) for key in client.scan_iter("test:v1:*")} == {-1}


def test_redis_change_of_version_forgets_what_was_remembered(tmp_path: Path, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intently.interests.reason_store.FOLLOW_S", 0.0)
    publish_reasons(write(tmp_path / "a.lmdb", ("i", "", "old")), "v1", client, "test", 60)
    reasons = Reasons(RedisReasons(client, "test"), cache_items=9)
    assert reasons.find_all(["i"], []).misses == 1 and reasons.find_all(["i"], []).hits == 1
    publish_reasons(write(tmp_path / "b.lmdb", ("i", "", "new")), "v2", client, "test", 60)
    found = reasons.find_all(["i"], [])
    assert found.misses == 1 and found.reasons[0] is not None and found.reasons[0].text == "new"


def test_redis_away_costs_reasons_and_comes_back(
    tmp_path: Path, server: RedisServer, redis_reasons: Reasons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intently.interests.reason_store.FOLLOW_S", 0.0)
    assert redis_reasons.find("i", []) is not None
    server.stop()
    found = redis_reasons.find_all(["i", "j"], ["x"])
    # What is remembered is served on.
    assert [reason and reason.text for reason in found.reasons] == ["for x", None] and found.failed
    server.start()
    assert [reason and reason.text for reason in redis_reasons.find_all(["i", "j"], ["x"]).reasons] == ["for x", "j for x"]


def test_redis_away_is_left_alone_for_a_moment(redis_reasons: Reasons, server: RedisServer) -> None:
    server.stop()
    assert redis_reasons.find_all(["i"], []).failed
    server.start()
    assert redis_reasons.find_all(["i"], []).failed, "within a second the server is not asked again"


def test_redis_with_nothing_published_has_no_reasons_and_says_so(client: redis.Redis) -> None:
    assert Reasons(RedisReasons(client, "nothing"), 9).find_all(["i"], []).failed
    with pytest.raises(WorkspaceError, match="nothing:current"):
        RedisReasons(client, "nothing").version()


def test_redis_two_publications_at_once_are_refused(tmp_path: Path, client: redis.Redis) -> None:
    path = write(tmp_path / "a.lmdb", *ROWS)
    with client.lock("test:publishing", timeout=60), pytest.raises(WorkspaceError):
        publish_reasons(path, "v1", client, "test", 60)
    assert client.get("test:current") is None


def test_reasons_settings_refuse_a_password_in_the_address() -> None:
    with pytest.raises(ConfigError, match="redis_password_env"):
        ReasonsConfig.parse({"redis_url": "redis://:s3cret@host:6379/0"})


def test_file_that_cannot_be_read_any_more_costs_reasons_only(tmp_path: Path) -> None:
    store = LmdbReasons(write(tmp_path / "a.lmdb", *ROWS), "v1")
    reasons = Reasons(store, cache_items=2)
    assert reasons.find("i", ["x"]) is not None
    store._environment.close()
    found = reasons.find_all(["i", "j"], ["x"])
    assert found.failed and [one.text if one else None for one in found.reasons] == ["for x", None]
