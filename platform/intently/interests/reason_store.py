"""The reasons of an explanation table as a key-value store that serving reads: one record an item, the same bytes in LMDB and in Redis.

A record is JSON, interest → text, with the empty interest for the reason that fits anybody. LMDB (default) is one file beside the table,
written once and mapped into memory by as many processes as like. Redis holds the records of a version under the version's own prefix; the
key `current` names the version that readers go by, so that a publication becomes visible in one step, and versions before it expire later.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import lmdb
import pyarrow as pa
import redis
from redis.lock import Lock

from intently.core.errors import ConfigError, WorkspaceError

FILENAME = "reasons.lmdb"
FOLLOW_S = 1.0
"""How old a reader's notion of the current version may be; also how long a store that failed is left alone."""
BATCH = 1000
LOCK_S = 60
"""How long a publication that died keeps others out."""
PREFIX = r"^[A-Za-z0-9:_.-]+$"
"""What a prefix in Redis may be made of: nothing that a search for keys would read as a pattern."""

T = TypeVar("T")
_OPEN: WeakValueDictionary[str, lmdb.Environment] = WeakValueDictionary()
_OPENING = threading.Lock()


class ReasonStore(Protocol):
    """Where a replica looks reasons up."""

    def version(self) -> str:
        """What the records belong to; when it changes, everything remembered of the store is stale. Raises WorkspaceError."""

    def records(self, version: str, item_ids: Sequence[str]) -> list[dict[str, str]]:
        """Interest → text for each item of a version, empty for an item without reasons. Raises WorkspaceError."""


def write_reasons(explanations: pa.Table, path: Path) -> int:
    """Write the store's file.

    Args:
        explanations: EXPLANATION rows.
        path: where the file goes; replaced if it is there.
    Returns:
        number of items with reasons.
    Raises:
        WorkspaceError: the disk is full or the folder cannot be written.
    """
    records = sorted((_key(item_id), record) for item_id, record in _records(explanations))
    # Pages, branches and what compaction leaves: the file is compacted afterwards, so that room here costs nothing.
    room = (1 << 20) + 4 * sum(len(record) + 4096 * (len(record) > 2000) + 64 for _, record in records)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            with lmdb.open(folder, map_size=room, lock=False, sync=False) as environment:
                with environment.begin(write=True) as transaction:
                    for key, record in records:
                        transaction.put(key, record, append=True)
                compact = Path(folder) / "compact"
                compact.mkdir()
                environment.copy(str(compact), compact=True)
            shutil.move(compact / "data.mdb", path)
        except lmdb.Error as error:
            raise WorkspaceError(f"{path}: the reasons cannot be written: {error}") from error
    return len(records)


class LmdbReasons:
    """The file of `write_reasons`, mapped into memory; safe between threads.

    Args:
        path: the file; one that is open already in this process is shared, because LMDB maps a file once.
        version: version of the artifact that it is.
    Raises:
        WorkspaceError: there is no such file, or it is no store.
    """

    def __init__(self, path: Path, version: str) -> None:
        self._version = version
        with _OPENING:
            found = _OPEN.get(str(path))
            if found is None:
                found = _OPEN[str(path)] = _open(path)
        self._environment = found

    def version(self) -> str:
        """The artifact's version: the file never changes."""
        return self._version

    def records(self, version: str, item_ids: Sequence[str]) -> list[dict[str, str]]:
        """Interest → text for each item."""
        with self._environment.begin(buffers=True) as transaction:
            found = [transaction.get(_key(item_id)) for item_id in item_ids]
            return [{} if record is None else json.loads(bytes(record)) for record in found]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, record) of every item, by key."""
        with self._environment.begin() as transaction:
            yield from transaction.cursor()

    def __len__(self) -> int:
        return self._environment.stat()["entries"]


class RedisReasons:
    """Records published by `publish_reasons`; follows the current version within `FOLLOW_S`.

    Args:
        client: a connection with short timeouts; a lookup waits for it.
        prefix: what all keys begin with.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._client, self._prefix = client, prefix
        self._version = ""
        self._looked = self._failed = float("-inf")

    def version(self) -> str:
        """The version that `current` names, looked up at most once in `FOLLOW_S`. Raises WorkspaceError."""
        if not self._version or time.monotonic() - self._looked > FOLLOW_S:
            found = self._ask("get", f"{self._prefix}:current")
            if found is None:
                raise WorkspaceError(f"redis: nothing has been published under {self._prefix}:current")
            self._version, self._looked = found.decode(), time.monotonic()
        return self._version

    def records(self, version: str, item_ids: Sequence[str]) -> list[dict[str, str]]:
        """Interest → text for each item, in one round trip. Raises WorkspaceError."""
        found = self._ask("mget", [_redis_key(self._prefix, version, _key(item_id)) for item_id in item_ids])
        return [{} if record is None else json.loads(record) for record in found]

    def _ask(self, command: str, argument: Any) -> Any:
        # A server that is away must not cost every request its timeout.
        if time.monotonic() - self._failed < FOLLOW_S:
            raise WorkspaceError("redis: did not answer a moment ago")
        try:
            return self._client.mget(argument) if command == "mget" else self._client.get(argument)
        except redis.RedisError as error:
            self._failed = time.monotonic()
            raise WorkspaceError(f"redis: {error}") from error


def publish_reasons(path: Path, version: str, client: redis.Redis, prefix: str, keep_s: int) -> int:
    """Copy a store's file into Redis and let `current` name it.

    Readers see the old version whole until the last step and the new one whole after it. Versions before it expire `keep_s` later; a
    publication that was cut off is overwritten by the next one of its version, or expires with the one after.

    Returns:
        number of items.
    Raises:
        WorkspaceError: the file cannot be read, another publication is under way, or Redis failed; `current` is as it was.
    """
    store = LmdbReasons(path, version)
    versions = f"{prefix}:versions"
    # Two at once could expire each other's records.
    lock = client.lock(f"{prefix}:publishing", timeout=LOCK_S, blocking_timeout=0)
    try:
        with lock:
            # Noted first, so that what a publication leaves behind when it is killed is known to the next one.
            client.sadd(versions, version)
            for batch in _batches(store):
                client.mset({_redis_key(prefix, version, key): record for key, record in batch})
                lock.reacquire()
            client.set(f"{prefix}:current", version)
            for old in {name.decode() for name in client.smembers(versions)} - {version}:
                _expire(client, _redis_key(prefix, old, b""), keep_s, lock)
                client.srem(versions, old)
    except redis.RedisError as error:
        raise WorkspaceError(f"redis: {error}") from error
    return len(store)


def connect(url: str, password: str | None, timeout_s: float) -> redis.Redis:
    """A client for publishing or reading; nothing is sent yet.

    Raises:
        ConfigError: the URL is none.
    """
    try:
        return redis.Redis.from_url(url, password=password, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    except ValueError as error:
        raise ConfigError("redis_url", url, str(error)) from error


def _open(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise WorkspaceError(f"{path}: is no store of reasons: {error}") from error


def _records(explanations: pa.Table) -> Iterator[tuple[str, bytes]]:
    ordered = explanations.select(["item_id", "interest", "text"]).sort_by([("item_id", "ascending"), ("interest", "ascending")])
    item, texts = None, dict[str, str]()
    for batch in ordered.to_batches():
        for item_id, interest, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if item is not None and item_id != item:
                yield item, _encode(texts)
                texts = {}
            item = item_id
            texts[interest] = text
    if item is not None:
        yield item, _encode(texts)


def _encode(texts: dict[str, str]) -> bytes:
    return json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()


def _key(item_id: str) -> bytes:
    """16 bytes for any id: LMDB's keys may have 511."""
    return hashlib.blake2b(item_id.encode(), digest_size=16).digest()


def _redis_key(prefix: str, version: str, key: bytes) -> bytes:
    return f"{prefix}:{version}:".encode() + key


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(values)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _expire(client: redis.Redis, start: bytes, keep_s: int, lock: Lock) -> None:
    for keys in _batches(client.scan_iter(match=start + b"*", count=BATCH)):
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.expire(key, keep_s)
            pipeline.execute()
        lock.reacquire()
