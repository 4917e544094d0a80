"""Mapping over parts: real Ray Data, tiny workers."""

from __future__ import annotations

import os

import pytest
from intently.core.config import Config, Resources
from intently.core.errors import EngineError, SchemaError
from intently.core.schema import USER
from intently.core.workspace import Stage, Workspace, open_stage
from intently.runtime.mapping import map_parts

pytestmark = pytest.mark.usefixtures("ray_session")


class WriteUsers:
    """Writes one user a part, named after the part and an environment variable of the actor."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __call__(self, part: str) -> dict[str, int]:
        self.stage.write(part, USER.from_rows([{"user_id": f"{part}-{os.environ['GREETING']}", "attributes": []}]))
        return {"users": 1}


class Refuse:
    """Fails as a stage's door does."""

    def __call__(self, part: str) -> dict[str, int]:
        raise SchemaError(f"part {part} is broken")


class NeverBuilt:
    """Cannot be set up, as an engine without its model."""

    def __init__(self) -> None:
        raise EngineError("no model")

    def __call__(self, part: str) -> dict[str, int]:
        return {}


def test_map_parts_pending_parts_writes_each_once(workspace: Workspace) -> None:
    stage = open_stage(workspace, "user", USER, {}, Config())
    stage.write("bucket-00001", USER.empty())
    pending = stage.pending([f"bucket-{i:05d}" for i in range(3)])
    summaries = map_parts(WriteUsers, {"stage": stage}, pending, Resources(num_workers=2), "users", {"GREETING": "hello"})
    assert summaries == [{"users": 1}, {"users": 1}]
    assert sorted(stage.finish().read()["user_id"].to_pylist()) == ["bucket-00000-hello", "bucket-00002-hello"]


def test_map_parts_no_parts_starts_nothing() -> None:
    assert map_parts(Refuse, {}, [], Resources(), "nothing") == []


def test_map_parts_error_in_worker_comes_back_as_our_error() -> None:
    with pytest.raises(SchemaError, match="part bucket-00000 is broken"):
        map_parts(Refuse, {}, ["bucket-00000"], Resources(), "refuse")


def test_map_parts_error_in_constructor_comes_back_as_our_error() -> None:
    with pytest.raises(EngineError, match="no model"):
        map_parts(NeverBuilt, {}, ["bucket-00000"], Resources(), "never")
