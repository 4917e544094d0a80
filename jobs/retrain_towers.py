"""Trains the towers anew, from all histories and items that came since, when the standing ones are fourteen days old. Daily, from cron.

Runs the stages of the line that follow from grown tables (`run`), each with the settings that run_pipeline would give it, and skips
what stands: splits, text embeddings, towers, fusion, index; by config also mining and tags, which take hours where a large model does
them. Serving takes the new versions with its next reload. Every training starts from fresh weights.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/retrain_towers.py \\
    --config jobs/configs/retrain_towers/demo.yaml [--set force=true]
"""

from __future__ import annotations

from datetime import UTC, datetime

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.runtime.session import ray_session
from pydantic import Field
from run_pipeline import JOBS, PipelineConfig, resolve

TOWERS = ("build_splits", "embed_texts", "train_towers", "sweep_fusion", "build_index")


class RetrainTowersConfig(Config):
    """When, and what."""

    every_days: float = Field(14, ge=0, description="age of the standing towers, by the end in their manifest, at which they are due")
    force: bool = Field(False, description="retrain whatever their age")
    run: tuple[str, ...] = Field(TOWERS, min_length=1, description="stages of run_pipeline that run, in the line's order")
    stages: dict[str, dict[str, object]] = Field(default_factory=dict, description="settings of stages, as in run_pipeline")


def run(config: RetrainTowersConfig, workspace: Workspace) -> Artifact:
    """Retrain if that is due, or was cut off; the index that stands then."""
    settings = resolve(PipelineConfig(stages=config.stages))
    unknown = sorted(set(config.run) - set(settings))
    if unknown:
        raise ConfigError("run", unknown, f"unknown stage; there are {list(settings)}")
    why = reason(config, workspace)
    print(f"retraining: {why}" if why else "not due: the standing towers are young enough", flush=True)
    if why:
        with ray_session():
            for job in JOBS:
                if job.name in config.run:
                    print(f"    {job.execute(settings[job.name], workspace)}", flush=True)
    return workspace.artifact("index")


def reason(config: RetrainTowersConfig, workspace: Workspace) -> str | None:
    """Why to retrain now; None where it is not due.

    Raises:
        MissingArtifactError: there are no towers yet: the line has to run first.
    """
    towers = workspace.artifact("towers")
    days = (datetime.now(UTC) - towers.manifest.ended).total_seconds() / 86_400
    if config.force:
        return "asked for"
    if days >= config.every_days:
        return f"{towers} is {days:.1f} days old"
    # Towers that stand while what follows from them does not: the last retraining was cut off.
    follows = (("fusion", "towers"), ("index", "user_vector"))
    newer = {name: workspace.artifact(name).version for _, name in follows}
    for name, made_from in follows:
        found = workspace.artifact(name).manifest.inputs
        if found.get(made_from) != newer[made_from]:
            return f"{name} was not made from {made_from}@{newer[made_from]}"
    return None


JOB = Job(name="retrain_towers", config=RetrainTowersConfig, reads=(), writes={}, run=run)

if __name__ == "__main__":
    launch(JOB, __doc__)
