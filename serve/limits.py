"""Rate limits: a token bucket a key, over all replicas.

With Redis the bucket lies there and a replica takes tokens from it in small lots (a twentieth of a second's worth), so that most requests
cost no round trip: together the replicas never grant more than the bucket holds; a lot that is not used up within a second is lost, which
can refuse a caller at most `replicas × lot` requests a second early. Without Redis, or while it does not answer, every replica grants its
own share, rate / replicas, which is the limit as far as the proxy spreads a caller's requests evenly.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from serve.auth import ApiKey

LOTS_PER_S = 20
LOT_LIFE_S = 1.0
PATIENCE_S = 0.2
"""How long a request waits for Redis to say whether it may pass."""
AWAY_S = 1.0
"""How long a server that did not is left alone."""
TAKE = """
local now = redis.call('TIME')
local at = tonumber(now[1]) + tonumber(now[2]) / 1e6
local rate, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = burst
if bucket[1] then tokens = math.min(burst, tonumber(bucket[1]) + (at - tonumber(bucket[2])) * rate) end
local granted = math.min(wanted, math.floor(tokens))
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens - granted), 'at', tostring(at))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * burst / rate) + 1000)
return {granted, tostring((1 - (tokens - granted)) / rate)}
"""


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class _Lot:
    tokens: int
    until: float


@dataclass
class _Refusal:
    at: float
    until: float


class Limiter:
    """Says whether a request of a key may pass. For one event loop."""

    def __init__(self, replicas: int, redis: Any | None, prefix: str) -> None:
        """
        Args:
            replicas: how many replicas share the limit when there is no Redis.
            redis: an asyncio client of the shared server, or None.
            prefix: of the keys there.
        """
        self._replicas, self._prefix = max(1, replicas), prefix
        self._take = redis.register_script(TAKE) if redis is not None else None
        self._buckets: dict[str, _Bucket] = {}
        self._lots: dict[str, _Lot] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._taking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._away_until = 0.0

    async def wait_s(self, key: ApiKey) -> float:
        """0 if the request may pass now, else how many seconds to wait before the next try."""
        if self._take is None:
            return self._local(key)
        came = time.monotonic()
        # Of requests that come together one takes a lot; the others, which waited for it, share it, or its refusal.
        async with self._taking[key.sha256]:
            return await self._shared(key, self._take, came)

    async def _shared(self, key: ApiKey, take: Any, came: float) -> float:
        now = time.monotonic()
        if now < self._away_until:
            return self._local(key)
        lot = self._lots.get(key.sha256)
        if lot is not None and lot.tokens > 0 and now < lot.until:
            lot.tokens -= 1
            return 0.0
        refusal = self._refusals.get(key.sha256)
        if refusal is not None and came <= refusal.at and now < refusal.until:
            return refusal.until - now
        wanted = max(1, min(key.burst, int(key.requests_per_s / LOTS_PER_S)))
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await take(keys=[f"{self._prefix}:limit:{key.sha256[:16]}"], args=[key.requests_per_s, key.burst, wanted])
        except (RedisError, TimeoutError):
            self._away_until = time.monotonic() + AWAY_S
            return self._local(key)
        granted, wait = answer
        if granted:
            self._lots[key.sha256] = _Lot(int(granted) - 1, now + LOT_LIFE_S)
            return 0.0
        seconds, told = max(float(wait), 0.001), time.monotonic()
        self._refusals[key.sha256] = _Refusal(told, told + seconds)
        return seconds

    def _local(self, key: ApiKey) -> float:
        rate, burst = key.requests_per_s / self._replicas, max(1.0, key.burst / self._replicas)
        now = time.monotonic()
        bucket = self._buckets.setdefault(key.sha256, _Bucket(burst, now))
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / rate


def retry_after(wait_s: float) -> str:
    """The Retry-After header: whole seconds, at least one."""
    return str(max(1, math.ceil(wait_s)))
