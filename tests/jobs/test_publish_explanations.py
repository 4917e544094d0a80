"""From the store that a job wrote into a real Redis, as replicas read it; with a password, and without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import publish_explanations
import pytest
from intently.core.config import Config
from intently.core.errors import ConfigError, WorkspaceError
from intently.core.schema import EXPLANATION
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.interests.reason_store import FILENAME, write_reasons

from benchmarks.redis_server import RedisServer
from benchmarks.serving_world import free_port
from serve.reasons import Reasons, ReasonsConfig


class Made(Config):
    """What tells two stores apart."""

    text: str


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path, free_port())
    yield running
    running.stop()


def write_store(workspace: Workspace, text: str) -> Artifact:
    stage = open_stage(workspace, "explanation_store", None, {}, Made(text=text))
    path = Path(workspace.root) / f"{text}.lmdb"
    path.parent.mkdir(exist_ok=True)
    write_reasons(EXPLANATION.from_rows([{"item_id": "i", "interest": "", "text": text, "model": "hand"}]), path)
    stage.put(FILENAME, path)
    return stage.finish()


def found(server: RedisServer, store: Artifact) -> str | None:
    reason = Reasons.open(store, ReasonsConfig(redis_url=server.url)).find("i", [])
    return reason and reason.text


def test_publish_each_run_puts_the_latest_store_where_replicas_look(workspace: Workspace, server: RedisServer) -> None:
    config = publish_explanations.JOB.config(redis_url=server.url)
    for text in ("first", "second"):
        store = write_store(workspace, text)
        assert publish_explanations.JOB.execute(config, workspace) == store
        assert found(server, store) == text


def test_publish_without_a_server_or_a_password_says_what_is_missing(
    workspace: Workspace, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_store(workspace, "first")
    monkeypatch.delenv("INTENTLY_TEST_REDIS", raising=False)
    with pytest.raises(ConfigError, match="INTENTLY_TEST_REDIS"):
        publish_explanations.run(publish_explanations.JOB.config(redis_url=server.url, redis_password_env="INTENTLY_TEST_REDIS"), workspace)
    server.stop()
    with pytest.raises(WorkspaceError, match="redis"):
        publish_explanations.run(publish_explanations.JOB.config(redis_url=server.url), workspace)
    server.start()
    assert found(server, store) is None
