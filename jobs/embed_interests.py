"""Turns the interests of each chunk into one vector, for ranking. Reads user_interest; writes interest_embedding.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/embed_interests.py \\
    --config jobs/configs/embed_interests/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import EMBEDDING
from intently.core.workspace import Artifact, Workspace
from intently.llm.embedding import INTEREST_ENCODER, EmbedTexts, ItemTextConfig, TextSource
from intently.llm.encoder import EncoderConfig
from intently.runtime.mapping import map_parts
from pydantic import Field


class EmbedInterestsConfig(Config):
    """Settings of the job."""

    encoder: EncoderConfig = Field(INTEREST_ENCODER, description="which model encodes")
    rows_per_part: int = Field(4096, ge=1, description="chunks in one part; a killed run loses at most one part a worker")
    threads: int = operational(1, description="CPU threads of one worker", ge=1)
    resources: Resources = operational(Resources(), description="what one worker needs, and how many there are")


def run(config: EmbedInterestsConfig, workspace: Workspace) -> Artifact:
    """Encode what is not encoded yet."""
    stage = JOB.stage(workspace, "interest_embedding", config)
    source = TextSource("interest", workspace.artifact("user_interest"), stage, config.rows_per_part, ItemTextConfig())
    pending = [f"interest/{part}" for part in stage.pending(source.parts())]
    arguments = {"encoder": config.encoder, "sources": {"interest": source}}
    map_parts(EmbedTexts, arguments, pending, config.resources, JOB.name, {"OMP_NUM_THREADS": str(config.threads)})
    return stage.finish()


JOB = Job("embed_interests", EmbedInterestsConfig, ("user_interest",), {"interest_embedding": EMBEDDING}, run)

if __name__ == "__main__":
    launch(JOB, __doc__)
