"""Asks a language model for several readings of each chunk and keeps the best, chunk after chunk (HiT-LBM). Reads chunk, item, and
rating_model where that stands; writes user_interest, interest_node.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/mine_interest_tree.py \\
    --config jobs/configs/mine_interest_tree/demo.yaml --workspace /shared/workspace

Without a rating model the first reading is kept: those trees are what label_interest_ratings judges, so that train_rating_models has
something to learn from. Then run this again. A killed run starts again at the first bucket that is not written, and within that bucket each
user at the first chunk that was not answered.
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import INTEREST_NODE, USER_INTEREST
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.tree import TreeConfig
from intently.interests.usage import usage_metrics
from intently.interests.users import chosen_users, user_order
from intently.interests.workers import TreeMiner
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class MineInterestTreeConfig(Config):
    """Who is read, how, and by which model."""

    tree: TreeConfig = Field(TreeConfig(), description="how users are read and trees searched")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that reads")
    encoder: EncoderConfig = Field(EncoderConfig(), description="compares interests; the one that the rating models were trained on")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: MineInterestTreeConfig, workspace: Workspace) -> Artifact:
    """Search the buckets that are not written yet; returns user_interest."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    stage, nodes = stages["user_interest"], stages["interest_node"]
    chunks = workspace.artifact("chunk")
    users = chunks.read(columns=["user_id"])["user_id"].unique().to_pylist()
    last_place = chosen_users(users, config.tree.mining.max_users)
    rating_model = workspace.artifact("rating_model") if workspace.latest_version("rating_model") else None
    arguments = {
        "stage": stage,
        "nodes": nodes,
        "chunks": chunks,
        "items": workspace.artifact("item"),
        "config": config.tree,
        "last_place": last_place,
        "engine": share_of(config.engine, config.resources.num_workers),
        "encoder": config.encoder,
        "rating_model": rating_model,
    }
    parts = chunks.parts()
    map_parts(TreeMiner, arguments, stage.pending(parts), config.resources, JOB.name, engine_environment(config.engine))
    num_read = len(users) if last_place is None else sum(user_order(user) <= last_place for user in users)
    notes = {
        "users": f"{num_read} of the {len(users)} users that have chunks were read",
        "choice": "by the rating models" if rating_model else "no rating model stood: the first reading was kept",
    }
    nodes.finish(notes=notes)
    return stage.finish(usage_metrics(total_counts(stage, parts)) | {"users_read": num_read, "users": len(users)}, notes)


JOB = Job(
    name="mine_interest_tree",
    config=MineInterestTreeConfig,
    reads=("chunk", "item"),
    writes={"user_interest": USER_INTEREST, "interest_node": INTEREST_NODE},
    run=run,
    fingerprint=lambda config: TASKS["user_interests"].fingerprint,
    optional=("rating_model",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
