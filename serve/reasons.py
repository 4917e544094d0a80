"""Why an item is put forward: lookups in the store of reasons, with the records of popular items remembered."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import lmdb
from intently.core.config import Config
from intently.core.errors import ConfigError, WorkspaceError
from intently.core.workspace import Artifact
from intently.interests.reason_store import FILENAME, PREFIX, LmdbReasons, ReasonStore, RedisReasons, connect
from pydantic import Field, field_validator

from serve.models import Reason

ANYBODY = ""


class ReasonsConfig(Config):
    """Where reasons are looked up."""

    redis_url: str | None = Field(
        None, description="redis://host:6379/0 with records put there by jobs/publish_explanations.py; none reads the workspace's own file"
    )
    redis_password_env: str | None = Field(None, description="environment variable that holds Redis' password")
    redis_prefix: str = Field("intently:reasons", pattern=PREFIX, description="what the keys in Redis begin with")
    redis_timeout_s: float = Field(0.05, gt=0, description="longest wait for Redis; then answers go without reasons for a second")
    cache_items: int = Field(20_000, ge=0, description="items whose reasons a replica remembers, those asked for last")

    @field_validator("redis_url")
    @classmethod
    def _holds_no_password(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).password is not None:
            raise ValueError("holds a password; name its environment variable in redis_password_env")
        return url


class Found(NamedTuple):
    """What a lookup came to.

    Attributes:
        reasons: one an item, None where there is none.
        hits: items that were remembered.
        misses: items that the store was asked for.
        failed: whether the store could not be asked; items that are not remembered have no reason then.
    """

    reasons: list[Reason | None]
    hits: int
    misses: int
    failed: bool


class Reasons:
    """Looks reasons up, all items of an answer in one question to the store, and all from one version.

    A store that cannot be reached costs reasons, never recommendations.

    Args:
        store: LMDB or Redis.
        cache_items: records that are remembered.
    """

    def __init__(self, store: ReasonStore, cache_items: int) -> None:
        self._store, self._cache_items = store, cache_items
        self._version = ""
        self._remembered: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, artifact: Artifact, config: ReasonsConfig) -> Reasons:
        """The reasons of an `explanation_store` artifact, or those in Redis.

        Raises:
            ConfigError: the environment does not hold Redis' password.
            WorkspaceError: the file cannot be read.
        """
        if config.redis_url is None:
            return cls(LmdbReasons(artifact.fetch(FILENAME), artifact.version), config.cache_items)
        password = os.environ.get(config.redis_password_env) if config.redis_password_env else None
        if config.redis_password_env and not password:
            raise ConfigError("redis_password_env", config.redis_password_env, "the environment holds no such variable, or it is empty")
        client = connect(config.redis_url, password, config.redis_timeout_s)
        return cls(RedisReasons(client, config.redis_prefix), config.cache_items)

    def find(self, item_id: str, interests: Iterable[str]) -> Reason | None:
        """The reason for the first interest that has one with this item, else the one that fits anybody, else None."""
        return self.find_all([item_id], interests).reasons[0]

    def find_all(self, item_ids: Sequence[str], interests: Iterable[str]) -> Found:
        """As `find`, for the items of one answer."""
        wanted = list(interests)
        with self._lock:
            failed = False
            try:
                self._forget_old_version()
                missing = [item_id for item_id in dict.fromkeys(item_ids) if item_id not in self._remembered]
                if missing:
                    self._remembered.update(zip(missing, self._store.records(self._version, missing), strict=True))
            except (WorkspaceError, lmdb.Error):
                failed, missing = True, [item_id for item_id in item_ids if item_id not in self._remembered]
            reasons = [_choose(self._remembered.get(item_id, {}), wanted) for item_id in item_ids]
            self._keep_latest(item_ids)
        return Found(reasons, len(item_ids) - len(missing), len(missing), failed)

    def _forget_old_version(self) -> None:
        version = self._store.version()
        if version != self._version:
            self._remembered.clear()
            self._version = version

    def _keep_latest(self, item_ids: Sequence[str]) -> None:
        for item_id in item_ids:
            if item_id in self._remembered:
                self._remembered.move_to_end(item_id)
        while len(self._remembered) > self._cache_items:
            self._remembered.popitem(last=False)


def _choose(texts: dict[str, str], interests: Sequence[str]) -> Reason | None:
    for interest in interests:
        if interest in texts:
            return Reason(text=texts[interest], interest=interest, fallback=False)
    return Reason(text=texts[ANYBODY], interest=None, fallback=True) if ANYBODY in texts else None
