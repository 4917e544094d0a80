"""Turns what is said of items, and every distinct tag, into vectors. Reads item, tag; writes item_embedding, tag_embedding.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/embed_texts.py \\
    --config jobs/configs/embed_texts/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import EMBEDDING
from intently.core.workspace import Artifact, Workspace
from intently.llm.embedding import EmbedTexts, ItemTextConfig, TextSource
from intently.llm.encoder import EncoderConfig
from intently.runtime.mapping import map_parts
from pydantic import Field


class EmbedTextsConfig(Config):
    """Settings of the job."""

    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="which model encodes")
    item_text: ItemTextConfig = Field(default_factory=ItemTextConfig, description="what is said of an item")
    rows_per_part: int = Field(1024, ge=1, description="texts in one part; a killed run loses at most one part a worker")
    threads: int = operational(1, description="CPU threads of one worker", ge=1)
    resources: Resources = operational(Resources(), description="what one worker needs, and how many there are")


def run(config: EmbedTextsConfig, workspace: Workspace) -> Artifact:
    """Encode what is not encoded yet; returns item_embedding."""
    sources = {kind: _source(kind, config, workspace) for kind in ("item", "tag")}
    unfinished = [source for source in sources.values() if not source.stage.finished]
    pending = [f"{source.kind}/{part}" for source in unfinished for part in source.stage.pending(source.parts())]
    map_parts(
        EmbedTexts,
        {"encoder": config.encoder, "sources": sources},
        pending,
        config.resources,
        JOB.name,
        {"OMP_NUM_THREADS": str(config.threads)},
    )
    artifacts = [source.stage.reuse() if source.stage.finished else source.stage.finish() for source in sources.values()]
    return artifacts[0]


def _source(kind: str, config: EmbedTextsConfig, workspace: Workspace) -> TextSource:
    stage = JOB.stage(workspace, f"{kind}_embedding", config)
    return TextSource(kind, workspace.artifact(kind), stage, config.rows_per_part, config.item_text)


JOB = Job("embed_texts", EmbedTextsConfig, ("item", "tag"), {"item_embedding": EMBEDDING, "tag_embedding": EMBEDDING}, run)

if __name__ == "__main__":
    launch(JOB, __doc__)
