"""What the service needs to know at start: where the tables are, where events go, who may ask, and the limits of a request."""

from __future__ import annotations

import os
from typing import Literal, Self
from urllib.parse import urlsplit

from intently.core.config import Config
from intently.core.errors import ConfigError
from pydantic import Field, field_validator, model_validator

from serve.logs import LogConfig
from serve.reasons import ReasonsConfig
from serve.tracing import TracingConfig

Scope = Literal["read", "events", "admin"]


class RedisConfig(Config):
    """A Redis server that all replicas share: the stream of events, and the rate limits."""

    url: str = Field("", description="redis://host:port/database or rediss://…, without a password; empty: none")
    password_env: str = Field("", description="environment variable that holds the password; empty: none is needed")
    stream: str = Field("intently:events", min_length=1, description="key of the stream; ids and limits lie under keys that begin with it")
    durability: Literal["checked", "trusted"] = Field(
        "checked",
        description="checked: refuse to start unless the server says appendonly yes and appendfsync always; "
        "trusted: for a server that hides its settings, whoever runs it vouches for it",
    )

    @field_validator("url")
    @classmethod
    def _holds_no_password(cls, url: str) -> str:
        if urlsplit(url).password is not None:
            raise ValueError("holds a password; name its environment variable in password_env")
        return url

    def password(self) -> str | None:
        """The password, read now. Raises ConfigError if it is named but not set."""
        return secret(self.password_env, "redis.password_env") if self.password_env else None


class EventConfig(Config):
    """How events are kept."""

    store: Literal["files", "redis"] = Field("files", description="files: day files of a folder of the node; redis: a stream")
    folder: str = Field("workspace/event_log", min_length=1, description="files: local folder; replicas of a node share it")
    dedupe_days: int = Field(7, ge=1, le=366, description="days for which an event id is remembered; a repeat within them is not written")
    max_events: int = Field(1000, ge=1, description="most events in one POST")
    max_clock_ahead_s: float = Field(86_400.0, ge=0, description="how far in the future an event's timestamp may lie")
    retry_s: float = Field(2.0, ge=0, description="redis: how long an event waits for a server that does not answer before it is refused")


class SessionConfig(Config):
    """What a replica remembers of events that are not in the tables yet."""

    follow_s: float = Field(0.5, gt=0, description="seconds between looks at what other replicas stored")
    hours: float = Field(24.0, gt=0, description="how long an event counts after it came in")
    max_users: int = Field(100_000, ge=1, description="most users remembered; who was quiet longest is forgotten first")
    max_events: int = Field(50, ge=1, description="most events of one user, and as many impressions beside them; the newest stay")


class AccessConfig(Config):
    """Who may ask for what, and how much. Without keys the service listens on the loopback interface only."""

    keys_file: str = Field("", description="JSON file with the keys' hashes, see serve/auth.py; read again when it changes; empty: none")
    keys_env: str = Field("", description="environment variable that holds that JSON instead; empty: none")
    cors_origins: tuple[str, ...] = Field((), description="origins whose pages may call, as https://shop.example; '*' is any")

    @model_validator(mode="after")
    def _has_one_place_of_keys(self) -> Self:
        if self.keys_file and self.keys_env:
            raise ValueError("keys_file and keys_env are both set; keep one")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether a key is asked for."""
        return bool(self.keys_file or self.keys_env)


class ServeConfig(Config):
    """Arguments of the application builder, `args` in serve/local.yaml and serve/config.yaml."""

    workspace: str = Field("workspace", min_length=1, description="folder or object-store URI of the tables")
    watch_s: float = Field(10.0, gt=0, description="seconds between looks for newer tables")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="largest request body")
    max_in_flight: int = Field(64, ge=1, description="requests that a replica works on at once; further ones are refused with 503")
    timeout_s: float = Field(5.0, gt=0, description="a request that takes longer is answered with 503")
    max_batch: int = Field(16, ge=1, description="users searched for in one call of the index; 1: each request on its own (see README)")
    events: EventConfig = Field(EventConfig(), description="how events are kept")
    session: SessionConfig = Field(SessionConfig(), description="how events change answers before the next run of the jobs")
    access: AccessConfig = Field(AccessConfig(), description="keys, limits, CORS")
    reasons: ReasonsConfig = Field(ReasonsConfig(), description="where reasons are looked up")
    log: LogConfig = Field(LogConfig(), description="what is logged, and where")
    tracing: TracingConfig = Field(TracingConfig(), description="OpenTelemetry spans; off unless an endpoint is set")
    redis: RedisConfig = Field(RedisConfig(), description="the server that replicas share, for events.store = redis and for limits")

    @model_validator(mode="after")
    def _has_the_redis_it_needs(self) -> Self:
        if self.events.store == "redis" and not self.redis.url:
            raise ValueError("events.store is redis, so redis.url is needed")
        return self


def secret(variable: str, field: str) -> str:
    """The value of an environment variable.

    Raises:
        ConfigError: it is not set; the message names the variable, never a value.
    """
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(field, variable, "this environment variable is not set")
    return value
