"""API keys: who may ask for what. A key is shown once, when it is made; the service knows its SHA-256 only.

    python -m serve.auth shop --scopes read events --requests-per-s 50

prints the key, and the entry for the keys file: {"keys": [{"name": …, "sha256": …, "scopes": […], "requests_per_s": …, "burst": …}]}.
Keys are 256 random bits, so a plain hash cannot be reversed by guessing, and nothing slower is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intently.core.config import Config
from intently.core.errors import ConfigError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.settings import AccessConfig, Scope, secret

SCHEME = "key"
PICTURE = "/image"


class ApiKey(Config):
    """One key."""

    name: str = Field(min_length=1, max_length=100, description="whose it is; this is what logs and metrics say")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="hash of the key")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="read: recommendations and what is known of a user; events: send; admin")
    requests_per_s: float = Field(100.0, gt=0, description="rate over all replicas")
    burst: int = Field(200, ge=1, description="requests at once after a pause")


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    keys: list[ApiKey] = Field(min_length=1)


class Keys:
    """The keys that count now."""

    def __init__(self, config: AccessConfig) -> None:
        """Read them.

        Raises:
            ConfigError: the file or variable is not there, or does not hold keys; the message holds none of it.
        """
        self._config, self._read_at = config, 0
        self._by_hash: Mapping[str, ApiKey] = {}
        self.refresh()

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key as it was sent."""
        return self._by_hash.get(_hash(key))

    def refresh(self) -> None:
        """Read the file again if it changed. Raises ConfigError, and keeps what it knew."""
        if self._config.keys_env:
            if not self._by_hash:
                self._by_hash = _parse(secret(self._config.keys_env, "access.keys_env"), "access.keys_env", self._config.keys_env)
            return
        path = Path(self._config.keys_file)
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._read_at:
                self._by_hash = _parse(path.read_text(encoding="utf-8"), "access.keys_file", str(path))
                self._read_at = changed
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("access.keys_file", str(path), "cannot be read") from error


def scope_of(method: str, path: str) -> Scope | None:
    """What a request needs; None for what anybody may ask.

    Pictures are open because an <img> cannot send a key; health because a load balancer has none; the page itself is no secret.
    """
    if path == "/metrics" or path.startswith("/v1/admin/"):
        return "admin"
    if not path.startswith("/v1/") or (method == "GET" and path.startswith("/v1/items/") and path.endswith(PICTURE)):
        return None
    return "events" if path == "/v1/events" else "read"


def describe(document: dict[str, Any], refusals: Mapping[str, Any]) -> None:
    """Add the key, and the refusals that come with it, to an OpenAPI document.

    Args:
        document: changed in place.
        refusals: status → response object, for every operation that needs a key.
    """
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes[SCHEME] = {"type": "http", "scheme": "bearer", "description": "an API key; python -m serve.auth makes one"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if scope_of(method.upper(), path) is not None:
                operation["security"] = [{SCHEME: []}]
                operation["responses"] |= refusals


def make_key(name: str, scopes: tuple[Scope, ...], requests_per_s: float, burst: int) -> tuple[str, ApiKey]:
    """A new key and its entry."""
    key = secrets.token_urlsafe(32)
    return key, ApiKey(name=name, sha256=_hash(key), scopes=scopes, requests_per_s=requests_per_s, burst=burst)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _parse(text: str, field: str, place: str) -> dict[str, ApiKey]:
    try:
        keys = _KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(field, place, f"does not hold keys: {where}: {first['msg']}") from None
    return {key.sha256: key for key in keys}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m serve.auth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="whose key it is")
    parser.add_argument("--scopes", nargs="+", choices=["read", "events", "admin"], required=True)
    parser.add_argument("--requests-per-s", type=float, default=100.0)
    parser.add_argument("--burst", type=int, default=200)
    options = parser.parse_args()
    key, entry = make_key(options.name, tuple(options.scopes), options.requests_per_s, options.burst)
    print(f"key (shown only now): {key}\nentry: {entry.model_dump_json()}")


if __name__ == "__main__":
    main()
