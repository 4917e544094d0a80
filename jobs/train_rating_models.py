"""Trains the two rating models of tree search (Ray Train, DeepSpeed). Reads interest_rating; writes rating_model.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_rating_models.py \\
    --config jobs/configs/train_rating_models/demo.yaml --workspace /shared/workspace

The manifest says how well each head tells good from bad on users that taught nothing, how far its probabilities can be believed, and
what choosing by both is worth.
"""

from __future__ import annotations

import math

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.workspace import Artifact, Workspace
from intently.interests.rating import (
    RatingModelConfig,
    put_rating_models,
    rating_quality,
    read_rating_data,
    restore_heads,
    train_rating_heads,
)
from intently.runtime.train import WEIGHTS, TrainConfig, train
from pydantic import Field


class TrainRatingModelsConfig(Config):
    """Settings of the job."""

    model: RatingModelConfig = Field(RatingModelConfig(), description="shapes and learning")
    continuity_weight: float = Field(0.5, ge=0, le=1, description="a of S_final, as tree search has it; choosing is measured by it")
    harness: TrainConfig = Field(TrainConfig(), description="where and how the loop runs")


def run(config: TrainRatingModelsConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, then measure and write."""
    stage = JOB.stage(workspace, "rating_model", config)
    version = workspace.artifact("interest_rating").version
    checkpoints = f"rating_model/{stage.version}/training"
    arguments = {"workspace": workspace, "version": version, "config": config.model}
    with train(train_rating_heads, arguments, config.harness, workspace, checkpoints) as result:
        data = read_rating_data(workspace, version, config.model)
        heads = restore_heads(data, config.model, str(result.folder / WEIGHTS))
    put_rating_models(stage, heads, data, config.model)
    quality = rating_quality(heads, data, config.continuity_weight)
    known = {name: value for name, value in quality.items() if not math.isnan(value)}
    artifact = stage.finish(known | {"final_loss": result.history[-1]["loss"]})
    print(", ".join(f"{name} {value:.4g}" for name, value in quality.items()), flush=True)
    # Checkpoints are for a killed run; what they held stands in the artifact now.
    workspace.filesystem.delete_dir(workspace.path(checkpoints))
    return artifact


JOB = Job(
    name="train_rating_models",
    config=TrainRatingModelsConfig,
    reads=("interest_rating",),
    writes={"rating_model": None},
    run=run,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
