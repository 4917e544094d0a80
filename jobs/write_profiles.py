"""Puts what is known of people together: interests of all their chunks, of their items, and what a model reads out of both.

Reads user_interest, history_train, item and, where it stands, item_interest; writes profile.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/write_profiles.py \\
    --config jobs/configs/write_profiles/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

from intently.core.config import Config, Resources, operational
from intently.core.job import Job, launch
from intently.core.schema import PROFILE
from intently.core.workspace import Artifact, Workspace
from intently.data.counts import total_counts
from intently.interests.profiles import ProfileConfig, ProfileWriter
from intently.interests.usage import usage_metrics
from intently.llm.encoder import EncoderConfig
from intently.llm.engines.build import EngineConfig, engine_environment, share_of
from intently.llm.tasks import TASKS
from intently.runtime.mapping import map_parts
from pydantic import Field


class WriteProfilesConfig(Config):
    """How profiles are put together, and by which model."""

    profiles: ProfileConfig = Field(ProfileConfig(), description="how profiles are put together")
    engine: EngineConfig | None = Field(None, description="the language model that adds patterns, lifestyle and guesses; off without one")
    encoder: EncoderConfig = Field(EncoderConfig(), description="says which phrases mean the same")
    resources: Resources = operational(Resources(), description="what one worker needs, and how many run")


def run(config: WriteProfilesConfig, workspace: Workspace) -> Artifact:
    """Write the profiles of the buckets that are not written yet."""
    stage = JOB.stage(workspace, "profile", config)
    if stage.finished:
        return stage.reuse()
    interests = workspace.artifact("user_interest")
    arguments = {
        "stage": stage,
        "interests": interests,
        "history": workspace.artifact("history_train"),
        "items": workspace.artifact("item"),
        "item_interests": workspace.artifact("item_interest") if workspace.latest_version("item_interest") else None,
        "config": config.profiles,
        "engine": share_of(config.engine, config.resources.num_workers) if config.engine else None,
        "encoder": config.encoder,
    }
    parts = interests.parts()
    environment = engine_environment(config.engine) if config.engine else {}
    map_parts(ProfileWriter, arguments, stage.pending(parts), config.resources, JOB.name, environment)
    return stage.finish(usage_metrics(total_counts(stage, parts)))


JOB = Job(
    name="write_profiles",
    config=WriteProfilesConfig,
    reads=("user_interest", "history_train", "item"),
    writes={"profile": PROFILE},
    run=run,
    fingerprint=lambda config: TASKS["user_profile"].fingerprint,
    optional=("item_interest",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
