"""Cuts histories into chunks and compresses them to text for a language model. Reads history_train, item, and item_name
where that stands (a language model's names, see compress_items); writes chunk.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/compress_histories.py \\
    --config jobs/configs/compress_histories/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import CHUNK
from intently.core.workspace import Artifact, Workspace
from intently.data.chunking import ChunkConfig, HistoryCompressor
from intently.data.counts import total_counts
from intently.runtime.mapping import map_parts
from pydantic import Field


class CompressHistoriesConfig(Config):
    """How chunks are cut and written, and with what."""

    chunks: ChunkConfig = Field(ChunkConfig(), description="which events count, how they are cut, written and counted")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many compress buckets")


def run(config: CompressHistoriesConfig, workspace: Workspace) -> Artifact:
    """Compress the buckets that are not compressed yet."""
    stage = JOB.stage(workspace, "chunk", config)
    history = workspace.artifact("history_train")
    arguments = {
        "history": history,
        "items": workspace.artifact("item"),
        "chunk": stage,
        "config": config.chunks,
        "item_names": workspace.artifact("item_name") if workspace.latest_version("item_name") else None,
    }
    parts = history.parts()
    map_parts(HistoryCompressor, arguments, stage.pending(parts), config.resources, JOB.name)
    return stage.finish(total_counts(stage, parts))


JOB = Job(
    name="compress_histories",
    config=CompressHistoriesConfig,
    reads=("history_train", "item"),
    writes={"chunk": CHUNK},
    run=run,
    optional=("item_name",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
