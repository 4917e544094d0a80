"""Builds the search index over item vectors. Reads item_vector; writes index (a FAISS file, its kind and the item ids).

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/build_index.py \\
    --config jobs/configs/build_index/demo.yaml
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.index import INDEX, INDEX_SETTINGS, IndexConfig, build_index, recall_against_exact
from pydantic import Field


class BuildIndexConfig(Config):
    """Settings of the job."""

    index: IndexConfig = Field(IndexConfig(), description="which kind and how")
    recall_at: int = Field(100, ge=1, description="k of the recall against exact search that the manifest notes")


def run(config: BuildIndexConfig, workspace: Workspace) -> Artifact:
    """Build, measure, store."""
    stage = JOB.stage(workspace, "index", config)
    table = workspace.artifact("item_vector").read()
    vectors = vectors_of(table)
    start = time.monotonic()
    index = build_index(vectors, config.index)
    seconds = time.monotonic() - start
    recall = recall_against_exact(index, vectors, config.recall_at)
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / INDEX)
        stage.put(INDEX, Path(folder) / INDEX)
    stage.put(INDEX_SETTINGS, json.dumps({"kind": index.kind, "item_ids": table["id"].to_pylist()}).encode())
    print(f"{index.kind} index over {len(vectors)} items in {seconds:.2f} s, recall@{config.recall_at} {recall:.4f}", flush=True)
    metrics = {f"recall{config.recall_at}": recall, "build_seconds": seconds, "num_items": len(vectors)}
    return stage.finish(metrics=metrics, notes={"kind": index.kind})


JOB = Job(name="build_index", config=BuildIndexConfig, reads=("item_vector",), writes={"index": None}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
