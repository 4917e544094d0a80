"""Asks whether mined interests foretell what people liked next. Reads interest_node, chunk, history_train, item, and item_name where
that stands; writes interest_rating.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/label_interest_ratings.py \\
    --config jobs/configs/label_interest_ratings/demo.yaml --workspace /shared/workspace

A killed run starts again at the first bucket that is not written; answers that were paid for are not asked again.
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import INTEREST_RATING
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.data.item_names import NAME_COLUMNS, NameConfig, names_of
from intently.interests.rating_labels import RatingLabelConfig
from intently.interests.usage import usage_metrics
from intently.interests.users import chosen_users
from intently.interests.workers import RatingLabeller
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.engines.vllm import VLLMConfig
from intently.llm.tasks import ITEM_LIKING
from intently.runtime.mapping import map_parts
from pydantic import Field


class LabelInterestRatingsConfig(Config):
    """Which candidates are judged, and by which model."""

    labels: RatingLabelConfig = Field(RatingLabelConfig(), description="which chunks are judged, and by which items")
    names: NameConfig = Field(NameConfig(), description="how items are called; as in compress_histories")
    engine: EngineConfig = Field(VLLMConfig(), description="the language model that is asked, best the one that mined")
    resources: Resources = operational(Resources(), description="what one engine needs, and how many run")


def run(config: LabelInterestRatingsConfig, workspace: Workspace) -> Artifact:
    """Judge the buckets that are not written yet."""
    stage = JOB.stage(workspace, "interest_rating", config)
    nodes, chunks = workspace.artifact("interest_node"), workspace.artifact("chunk")
    nodes.require_input("chunk", chunks.version)
    users = nodes.read(columns=["user_id"])["user_id"].unique().to_pylist()
    written = workspace.artifact("item_name").read() if workspace.latest_version("item_name") else None
    names = names_of(workspace.artifact("item").read(columns=NAME_COLUMNS), config.names, written)
    arguments = {
        "stage": stage,
        "nodes": nodes,
        "chunks": chunks,
        "history": workspace.artifact("history_train"),
        "names": dict(names.iter_rows()),
        "config": config.labels,
        "last_place": chosen_users(users, config.labels.max_users),
        "engine": share_of(config.engine, config.resources.num_workers),
    }
    parts = nodes.parts()
    map_parts(RatingLabeller, arguments, stage.pending(parts), config.resources, JOB.name, engine_environment(config.engine))
    return stage.finish(usage_metrics(total_counts(stage, parts)))


JOB = Job(
    name="label_interest_ratings",
    config=LabelInterestRatingsConfig,
    reads=("interest_node", "chunk", "history_train", "item"),
    writes={"interest_rating": INTEREST_RATING},
    run=run,
    fingerprint=lambda config: ITEM_LIKING.fingerprint,
    optional=("item_name",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
