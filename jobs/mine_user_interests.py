"""Asks a language model what each user wants, chunk after chunk. Reads chunk, item; writes user_interest.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/mine_user_interests.py \\
    --config jobs/configs/mine_user_interests/demo.yaml --workspace /shared/workspace

A killed run starts again at the first bucket that is not written; the manifest counts the questions and tokens of all buckets.
"""

from __future__ import annotations

from functools import reduce

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import USER_INTEREST
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.ensemble import EnsembleConfig
from intently.interests.usage import usage_metrics
from intently.interests.users import MiningConfig, chosen_users, user_order
from intently.interests.workers import UserMiner
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class MineUserInterestsConfig(Config):
    """Who is read, how, and by which models."""

    mining: MiningConfig = Field(MiningConfig(), description="how users are read")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that reads")
    others: tuple[EngineConfig, ...] = Field((), description="further models that read the same chunks side by side; agreement is kept")
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="when models agree, where there are others")
    encoder: EncoderConfig = Field(EncoderConfig(), description="compares interests with each other and with items")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: MineUserInterestsConfig, workspace: Workspace) -> Artifact:
    """Mine the buckets that are not written yet."""
    stage = JOB.stage(workspace, "user_interest", config)
    if stage.finished:
        return stage.reuse()
    chunks, items = workspace.artifact("chunk"), workspace.artifact("item")
    users = chunks.read(columns=["user_id"])["user_id"].unique().to_pylist()
    last_place = chosen_users(users, config.mining.max_users)
    arguments = {
        "stage": stage,
        "chunks": chunks,
        "items": items,
        "config": config.mining,
        "last_place": last_place,
        "engine": share_of(config.engine, config.resources.num_workers),
        "encoder": config.encoder,
        "others": tuple(share_of(other, config.resources.num_workers) for other in config.others),
        "ensemble": config.ensemble,
    }
    parts = chunks.parts()
    environment = reduce(lambda known, other: known | engine_environment(other), config.others, engine_environment(config.engine))
    map_parts(UserMiner, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    num_read = len(users) if last_place is None else sum(user_order(user) <= last_place for user in users)
    metrics = usage_metrics(total_counts(stage, parts)) | {"users_read": num_read, "users": len(users)}
    return stage.finish(metrics, {"users": f"{num_read} of the {len(users)} users that have chunks were read"})


JOB = Job(
    name="mine_user_interests",
    config=MineUserInterestsConfig,
    reads=("chunk", "item"),
    writes={"user_interest": USER_INTEREST},
    run=run,
    fingerprint=lambda config: TASKS["user_interests"].fingerprint,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
