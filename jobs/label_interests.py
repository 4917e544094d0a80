"""Labels what was mined: item interests by the source of choice (RLDI), user interests and tags by rules where they stand.

Reads item, item_interest and, where they stand, user_interest, chunk, tag, history_train; writes interest_verdict.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/label_interests.py \\
    --config jobs/configs/label_interests/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

import pyarrow as pa
from intently.core.config import Config, Resources, operational
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.schema import VERDICT
from intently.core.workspace import Artifact, Stage, Workspace
from intently.data.counts import total_counts
from intently.interests.labels import ItemLabeller, LabelConfig, check_tags, check_user_interests, shares_of_yes
from intently.interests.phrases import BrandFinder
from intently.interests.workers import TEXT_COLUMNS
from intently.judge.mined import MinedJudge, MinedJudgeConfig, refused
from intently.judge.rubrics import INTERESTS, TAGS
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class LabelInterestsConfig(Config):
    """Who labels."""

    labels: LabelConfig = Field(LabelConfig(), description="which source labels the interests of items")
    engine: EngineConfig | None = Field(None, description="the language model that labels, for the source llm; another than the miners")
    encoder: EncoderConfig = Field(EncoderConfig(), description="says how close an interest is to its item")
    judge: MinedJudgeConfig | None = Field(None, description="the language model that judges people's interests and tags; off without one")
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
        "engine": share_of(config.engine, config.resources.num_workers) if config.engine and config.labels.source == "llm" else None,
        "encoder": config.encoder,
    }
    parts = interests.parts()
    environment = engine_environment(config.engine) if config.engine else {}
    map_parts(ItemLabeller, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    checked = _check_people(workspace, stage)
    counts = total_counts(stage, parts) | {name: share for verdicts in checked.values() for name, share in shares_of_yes(verdicts).items()}
    return stage.finish(counts | (_judge(config, config.judge, workspace, stage, checked) if config.judge else {}))


def _check_people(workspace: Workspace, stage: Stage) -> dict[str, pa.Table]:
    """Check user interests and tags by rule where they stand; the artifact's name → verdicts."""
    checked = {}
    if workspace.latest_version("user_interest") and workspace.latest_version("chunk"):
        checked["user_interest"] = check_user_interests(workspace.artifact("user_interest").read(), workspace.artifact("chunk").read())
    if workspace.latest_version("tag") and workspace.latest_version("history_train"):
        items = workspace.artifact("item").read(columns=TEXT_COLUMNS)
        history = workspace.artifact("history_train").read()
        checked["tag"] = check_tags(workspace.artifact("tag").read(), history, items, BrandFinder.of_items(items))
    for part, verdicts in checked.items():
        stage.write(part, verdicts)
    return checked


def _judge(
    config: LabelInterestsConfig, judge: MinedJudgeConfig, workspace: Workspace, stage: Stage, checked: dict[str, pa.Table]
) -> dict[str, float]:
    """Ask the judge about what the rules let pass; counts by task, as 'tags/specificity_yes'."""
    artifacts = {name: workspace.artifact(name) for name in ("user_interest", "tag") if name in checked}
    if "user_interest" not in artifacts:
        return {}
    tasks = {"user_interest": INTERESTS.name, "tag": TAGS.name}
    parts = [f"judged-{tasks[name]}-{part}" for name, artifact in artifacts.items() for part in artifact.parts()]
    arguments = {
        "stage": stage,
        "config": judge.share(config.resources.num_workers),
        "interests": artifacts["user_interest"],
        "tags": artifacts.get("tag"),
        "chunks": workspace.artifact("chunk"),
        "refused": {tasks[name]: refused(checked[name], tasks[name]) for name in artifacts},
    }
    map_parts(MinedJudge, arguments, stage.pending(parts), config.resources, JOB.name, engine_environment(judge.engine))
    return total_counts(stage, parts)


JOB = Job(
    name="label_interests",
    config=LabelInterestsConfig,
    reads=("item", "item_interest"),
    writes={"interest_verdict": VERDICT},
    run=run,
    fingerprint=lambda config: "-".join(TASKS[name].fingerprint for name in ("item_interest_label", "interest_verdict", "tag_verdict")),
    optional=("user_interest", "chunk", "tag", "history_train"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
