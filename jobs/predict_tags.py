"""Asks a language model which kinds of items each user would be glad to find. Reads user_interest, history_train, item; writes tag.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/predict_tags.py \\
    --config jobs/configs/predict_tags/demo.yaml --workspace /shared/workspace

A killed run starts again at the first bucket that is not written; the manifest counts the questions and tokens of all buckets.
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import TAG
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.tags import TagConfig
from intently.interests.usage import usage_metrics
from intently.interests.workers import TagPredictor
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class PredictTagsConfig(Config):
    """How tags are asked for, and by which models."""

    tags: TagConfig = Field(TagConfig(), description="how tags are asked for and checked")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that predicts")
    encoder: EncoderConfig = Field(EncoderConfig(), description="finds the interest and the category of a tag")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: PredictTagsConfig, workspace: Workspace) -> Artifact:
    """Predict the tags of the buckets that are not written yet."""
    stage = JOB.stage(workspace, "tag", config)
    if stage.finished:
        return stage.reuse()
    interests = workspace.artifact("user_interest")
    arguments = {
        "stage": stage,
        "interests": interests,
        "history": workspace.artifact("history_train"),
        "items": workspace.artifact("item"),
        "config": config.tags,
        "engine": share_of(config.engine, config.resources.num_workers),
        "encoder": config.encoder,
    }
    parts = interests.parts()
    map_parts(TagPredictor, arguments, stage.pending(parts), config.resources, JOB.name, engine_environment(config.engine))
    return stage.finish(usage_metrics(total_counts(stage, parts)))


JOB = Job(
    name="predict_tags",
    config=PredictTagsConfig,
    reads=("user_interest", "history_train", "item"),
    writes={"tag": TAG},
    run=run,
    fingerprint=lambda config: TASKS["item_tags"].fingerprint,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
