"""Trains the model that writes semantic IDs (TRL on Ray Train, DeepSpeed) and measures it by constrained beam search.

Reads history_train, history_validation, history_test, item, semantic_id; writes generator, generator_metric. item_interest is read where
it stands, for examples about interests.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_generator.py \\
    --config jobs/configs/train_generator/demo.yaml
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from intently.core.config import Config, operational
from intently.core.job import Job, launch
from intently.core.schema import METRIC
from intently.core.workspace import Artifact, Workspace
from intently.generative.beam import BeamConfig
from intently.generative.evaluate import measure_generator
from intently.generative.generator import TrainedGenerator, put_generator
from intently.generative.training import GeneratorConfig, read_generator_data, train_generator, trained_folder
from intently.runtime.sft import MODEL
from intently.runtime.train import TrainConfig, train
from pydantic import Field, model_validator


class TrainGeneratorConfig(Config):
    """Settings of the job."""

    generator: GeneratorConfig = Field(GeneratorConfig(), description="model, examples, fine-tuning")
    harness: TrainConfig = Field(TrainConfig(), description="where and how the loop runs")
    beam: BeamConfig = Field(BeamConfig(), description="how items are searched for when it is measured")
    cutoffs: tuple[int, ...] = Field((5, 10), min_length=1, description="k of the metrics, none above the width of the beam")
    max_users: int = Field(5000, ge=1, description="users that metrics are a mean over, the first of the table; all where there are fewer")
    device: str = operational("cpu", description="where the model is when it is measured")

    @model_validator(mode="after")
    def _beam_is_wide_enough(self) -> TrainGeneratorConfig:
        if max(self.cutoffs) > self.beam.width:
            raise ValueError(f"cutoffs {self.cutoffs} ask for more items than the beam is wide, {self.beam.width}")
        return self


def run(config: TrainGeneratorConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, then keep the model and measure it; returns generator."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    standing = [name for name in JOB.optional if workspace.latest_version(name)]
    versions = {name: workspace.artifact(name).version for name in (*JOB.reads, *standing)}
    checkpoints = f"generator/{stages['generator'].version}/training"
    arguments = {"workspace": workspace, "versions": versions, "config": config.generator}
    with train(train_generator, arguments, config.harness, workspace, checkpoints) as result:
        data = read_generator_data(workspace, versions, config.generator)
        with tempfile.TemporaryDirectory() as scratch:
            folder = trained_folder(result.folder / MODEL, data, config.generator, Path(scratch))
            put_generator(stages["generator"], folder, data.trie, config.generator)
    losses = {f"loss_epoch_{number}": epoch["loss"] for number, epoch in enumerate(result.history, 1)}
    seconds = sum(epoch["seconds"] for epoch in result.history)
    artifact = stages["generator"].finish(metrics=losses | {"train_seconds": seconds, "num_epochs": len(result.history)})
    generator = TrainedGenerator.load(workspace, config.beam, config.device, {"generator": artifact.version})
    rows = measure_generator(generator, workspace, "generative", config.cutoffs, config.max_users, config.generator.sft.seed)
    stages["generator_metric"].write("part-00000", METRIC.from_rows(rows))
    found = {f"{row['name'].lower()}{row['k']}": row["value"] for row in rows if row["split"] == "test" and row["filter_seen"]}
    stages["generator_metric"].finish(metrics=found)
    print(f"test, seen items left out: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}", flush=True)
    # Checkpoints are for a killed run; what they held stands in `generator` now.
    workspace.filesystem.delete_dir(workspace.path(checkpoints))
    return artifact


JOB = Job(
    name="train_generator",
    config=TrainGeneratorConfig,
    reads=("history_train", "history_validation", "history_test", "item", "semantic_id"),
    writes={"generator": None, "generator_metric": METRIC},
    run=run,
    optional=("item_interest",),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
