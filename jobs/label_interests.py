"""Labels what was mined: item interests by the source of choice (RLDI), user interests and tags by rules where they stand.

Reads item, item_interest and, where they stand, user_interest, chunk, tag, history_train; writes interest_verdict.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/label_interests.py \\
    --config jobs/configs/label_interests/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.schema import VERDICT
from intently.core.workspace import Artifact, Stage, Workspace
from intently.data.counts import total_counts
from intently.interests.labels import ItemLabeller, LabelConfig, check_tags, check_user_interests, shares_of_yes
from intently.interests.phrases import BrandFinder
from intently.interests.workers import TEXT_COLUMNS
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class LabelInterestsConfig(Config):
    """Who labels."""

    labels: LabelConfig = Field(LabelConfig(), description="which source labels the interests of items")
    engine: EngineConfig | None = Field(None, description="the language model that labels, for the source llm; another than the miners")
    encoder: EncoderConfig = Field(EncoderConfig(), description="says how close an interest is to its item")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many run")


def run(config: LabelInterestsConfig, workspace: Workspace) -> Artifact:
    """Label the parts that are not labelled yet, then check what else stands."""
    stage = JOB.stage(workspace, "interest_verdict", config)
    if stage.finished:
        return stage.reuse()
    if config.labels.source == "llm" and config.engine is None:
        raise ConfigError("engine", None, "labels.source = llm needs a language model")
    interests = workspace.artifact("item_interest")
    arguments = {
        "stage": stage,
        "interests": interests,
        "items": workspace.artifact("item"),
        "config": config.labels,
        "engine": config.engine if config.labels.source == "llm" else None,
        "encoder": config.encoder,
    }
    parts = interests.parts()
    environment = engine_environment(config.engine) if config.engine else {}
    map_parts(ItemLabeller, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    shares = _check_people(workspace, stage)
    return stage.finish(total_counts(stage, parts) | shares)


def _check_people(workspace: Workspace, stage: Stage) -> dict[str, float]:
    """Check user interests and tags where they stand; 'tags/no_brand' → share of yes."""
    checked = {}
    if workspace.latest_version("user_interest") and workspace.latest_version("chunk"):
        checked["user_interest"] = check_user_interests(workspace.artifact("user_interest").read(), workspace.artifact("chunk").read())
    if workspace.latest_version("tag") and workspace.latest_version("history_train"):
        items = workspace.artifact("item").read(columns=TEXT_COLUMNS)
        history = workspace.artifact("history_train").read()
        checked["tag"] = check_tags(workspace.artifact("tag").read(), history, items, BrandFinder.of_items(items))
    shares: dict[str, float] = {}
    for part, verdicts in checked.items():
        stage.write(part, verdicts)
        shares |= shares_of_yes(verdicts)
    return shares


JOB = Job(
    name="label_interests",
    config=LabelInterestsConfig,
    reads=("item", "item_interest"),
    writes={"interest_verdict": VERDICT},
    run=run,
    fingerprint=lambda config: TASKS["item_interest_label"].fingerprint,
    optional=("user_interest", "chunk", "tag", "history_train"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
