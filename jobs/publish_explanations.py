"""Puts the reasons into Redis, for replicas that look them up there. Reads explanation_store; writes nothing to the workspace.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/publish_explanations.py \\
    --config jobs/configs/publish_explanations/demo.yaml --workspace /shared/workspace

Readers change over in one step, when all records are there; the version before expires `keep_s` seconds later.
"""

from __future__ import annotations

import os

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.interests.reason_store import FILENAME, PREFIX, connect, publish_reasons
from pydantic import Field


class PublishExplanationsConfig(Config):
    """Which Redis, and how long the version before stays."""

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="where to, as redis://host:port/database")
    redis_password_env: str | None = Field(None, description="environment variable that holds the password; None for a server without one")
    redis_prefix: str = Field("intently:reasons", pattern=PREFIX, description="what all keys begin with, in the service's settings as well")
    timeout_s: float = Field(10.0, gt=0, description="longest wait for one answer of Redis")
    keep_s: int = Field(600, ge=10, description="seconds that the version before is kept for readers that still look at it")


def run(config: PublishExplanationsConfig, workspace: Workspace) -> Artifact:
    """Publish the latest store."""
    password = os.environ.get(config.redis_password_env) if config.redis_password_env else None
    if config.redis_password_env and not password:
        raise ConfigError("redis_password_env", config.redis_password_env, "the environment holds no such variable, or it is empty")
    store = workspace.artifact("explanation_store")
    client = connect(config.redis_url, password, config.timeout_s)
    items = publish_reasons(store.fetch(FILENAME), store.version, client, config.redis_prefix, config.keep_s)
    client.close()
    print(f"{JOB.name}: {config.redis_prefix}:current is {store.version}, {items} items", flush=True)
    return store


JOB = Job(name="publish_explanations", config=PublishExplanationsConfig, reads=("explanation_store",), writes={}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
