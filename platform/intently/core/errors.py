"""What can go wrong, as a tree. Every message names the field or path and the value that was refused.

IntentlyError
├── ConfigError (ValueError)        a setting is wrong: unknown key, bad value
├── SchemaError (ValueError)        a table does not have the columns that its contract asks for
├── SourceError (ValueError)        an input file is missing or is not what its adapter reads
├── MissingArtifactError (LookupError)   a stage asks for a table that nobody has written yet
├── WorkspaceError (OSError)        the workspace cannot be read or written
└── EngineError (RuntimeError)      a language model engine cannot start or has died
"""

from __future__ import annotations


class IntentlyError(Exception):
    """Base of every error that intently raises on purpose."""


class ConfigError(IntentlyError, ValueError):
    """A setting is wrong."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field} = {value!r}: {reason}")
        self.field, self.value, self.reason = field, value, reason

    def __reduce__(self) -> tuple[type, tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.reason)


class SchemaError(IntentlyError, ValueError):
    """A table breaks its contract."""


class SourceError(IntentlyError, ValueError):
    """An input file is missing or malformed as a whole."""


class MissingArtifactError(IntentlyError, LookupError):
    """An input table does not stand in the workspace."""


class WorkspaceError(IntentlyError, OSError):
    """The workspace cannot be read or written."""


class EngineError(IntentlyError, RuntimeError):
    """A language model engine cannot start or has died."""
