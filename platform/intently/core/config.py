"""Settings: frozen pydantic models, filled from YAML and `--set a.b=value`, that refuse keys they do not know.

A field made with `operational(...)` (cores, batch sizes, concurrency) does not change what is computed; it stays out of
`Config.identity()` and therefore out of an artifact's version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intently.core.errors import ConfigError


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    # A version, a name or an id may be all digits, which YAML reads as a number.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Self:
        """Defaults, then the YAML file, then values, then overrides.

        Args:
            path: the YAML file; None is none.
            overrides: such as `source.num_users=50`; what stands behind the sign is YAML.
            values: settings as a YAML file would hold them; a section of them is laid over the file's, key by key.
        Raises:
            ConfigError: names the field and the value that was refused, or the file that cannot be read.
        """
        settings = _laid_over(_read_yaml(Path(path)) if path is not None else {}, values or {})
        for override in overrides:
            _apply(settings, override)
        return cls.parse(settings)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """A plain dict → config; pydantic's error becomes a ConfigError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or cls.__name__
            reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
            raise ConfigError(field, first["input"], reason) from error

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-ready: everything but operational fields, at any depth."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational")):
                kept[name] = _identity_of(getattr(self, name))
        return kept


class Resources(Config):
    """What one worker of a stage needs of the cluster."""

    num_workers: int = Field(1, ge=1, description="how many workers run side by side")
    cpus: float = Field(0.5, ge=0, description="logical CPUs a worker holds")
    gpus: float = Field(0.0, ge=0, description="GPUs a worker holds")
    memory_gb: float = Field(0.0, ge=0, description="GiB a worker reserves; 0 reserves none")
    custom: dict[str, float] = Field(default_factory=dict, description="custom Ray resources, name to amount")


def operational(default: Any = ..., *, description: str, **bounds: Any) -> Any:
    """A pydantic field that does not change what is computed, so that it stays out of `Config.identity()`."""
    if isinstance(default, BaseModel):
        fixed = default
        return Field(default_factory=lambda: fixed, description=description, json_schema_extra={"operational": True})
    return Field(default, description=description, json_schema_extra={"operational": True}, **bounds)


def _identity_of(value: Any) -> Any:
    match value:
        case Config():
            return value.identity()
        case BaseModel():
            return value.model_dump(mode="json")
        case dict():
            return {str(key): _identity_of(item) for key, item in value.items()}
        case list() | tuple():
            return [_identity_of(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)


_INT, _DECIMAL = "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")


class _Loader(yaml.SafeLoader):
    """Of whole numbers only the decimal ones: YAML 1.1 makes octal or base 60 of a name such as 0123 or 12:30."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, _DECIMAL if tag == _INT else pattern) for tag, pattern in known]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("config", str(path), f"is not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError("config", str(path), f"is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("config", str(path), "must hold a mapping of field to value")
    return values


def _laid_over(below: Any, above: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(below) if isinstance(below, Mapping) else {}
    return kept | {key: _laid_over(kept.get(key), value) if isinstance(value, Mapping) else value for key, value in above.items()}


def _apply(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError("--set", override, "write it as field.subfield=value")
    *parents, leaf = path.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(path, text, f"{parent} is a value, not a section")
        values = child
    try:
        values[leaf] = _yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(path, text, f"is not YAML: {' '.join(str(error).split())}") from error
