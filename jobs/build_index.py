"""Builds the search index over item vectors in shards, side by side. Reads item_vector, user_vector; writes index.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_index.py \\
    --config jobs/configs/build_index/demo.yaml

The manifest notes the recall against exact search, with users' vectors as the queries. A killed build goes on with the shards that are
not written. New items are appended by jobs/update_vectors.py without building anew.
"""

from __future__ import annotations

import time

import numpy as np
from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.index import IndexConfig, VectorIndex, recall_against_exact
from intently.retrieval.index_files import IndexBuild, ShardBuilder
from intently.runtime.mapping import map_parts
from pydantic import Field


class BuildIndexConfig(Config):
    """Settings of the job."""

    index: IndexConfig = Field(IndexConfig(), description="which kind and how")
    recall_at: int = Field(100, ge=1, description="k of the recall against exact search that the manifest notes")
    recall_queries: int = Field(1000, ge=1, description="users whose vectors are the queries, evenly spaced, at most")
    threads: int = operational(1, ge=1, description="CPU threads of one worker")
    resources: Resources = operational(
        Resources(num_workers=2, cpus=1), description="what one worker needs, and how many build shards side by side"
    )


def run(config: BuildIndexConfig, workspace: Workspace) -> Artifact:
    """Build the shards that are not there, measure, store."""
    stage = JOB.stage(workspace, "index", config)
    table = workspace.artifact("item_vector").read()
    build = IndexBuild(stage, config.index, table.num_rows)
    start = time.monotonic()
    build.put_vectors(vectors_of(table), table["id"].combine_chunks())
    pending = build.pending
    if len(pending) == 1:
        ShardBuilder(build)(pending[0])  # not worth a process
    else:
        environment = {"OMP_NUM_THREADS": str(config.threads)}
        map_parts(ShardBuilder, {"build": build}, pending, config.resources, JOB.name, environment)
    index = build.finish()
    seconds = time.monotonic() - start
    metrics = measure(index, workspace, config) | {"build_seconds": seconds, "shards": len(index.shards)}
    figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print(f"{index.kind} index: {figures}", flush=True)
    return stage.finish(metrics=metrics, notes={"kind": index.kind, "queries": "user vectors"})


def measure(index: VectorIndex, workspace: Workspace, config: BuildIndexConfig) -> dict[str, float]:
    """What the manifest says of an index: items, and recall for users of user_vector."""
    users = vectors_of(workspace.artifact("user_vector").read())
    queries = users[np.linspace(0, len(users) - 1, min(config.recall_queries, len(users))).astype(int)]
    recall = recall_against_exact(index, queries, config.recall_at)
    return {f"recall{config.recall_at}": recall, "num_items": len(index.vectors)}


JOB = Job(name="build_index", config=BuildIndexConfig, reads=("item_vector", "user_vector"), writes={"index": None}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
