"""Trains a ranking model and measures it (Ray Train, DeepSpeed). Reads ctr_train (and the history that it was cut from), ctr_validation,
ctr_test, item, and, where the model looks at them, chunk, user_interest, interest_embedding, item_embedding; writes ctr_model, ctr_metric.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_ctr.py \\
    --config jobs/configs/train_ctr/demo.yaml --workspace /shared/workspace
"""

from __future__ import annotations

import json

import torch
from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.schema import METRIC
from intently.core.workspace import Artifact, Workspace
from intently.ranking.training import BatchCutter, CtrTrainingConfig, figures, predict, read_ctr_data, restore_model, train_from_tables
from intently.runtime.train import WEIGHTS, TrainConfig, train
from pydantic import Field


class TrainCtrConfig(Config):
    """Settings of the job."""

    training: CtrTrainingConfig = Field(CtrTrainingConfig(), description="model, steps, which interests")
    harness: TrainConfig = Field(TrainConfig(), description="where and how the loop runs; more workers train data-parallel")


def run(config: TrainCtrConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, then measure validation and test; returns ctr_model."""
    model, metric = (JOB.stage(workspace, name, config) for name in JOB.writes)
    latest = {name: workspace.latest_version(name) for name in (*JOB.reads, *JOB.optional)}
    versions = {name: version for name, version in latest.items() if version}
    checkpoints = f"ctr_model/{model.version}/training"
    arguments = {"workspace": workspace, "versions": versions, "config": config.training}
    with train(train_from_tables, arguments, config.harness, workspace, checkpoints) as result:
        data = read_ctr_data(workspace, versions, config.training)
        trained = restore_model(data, config.training, result.folder / WEIGHTS)
        model.put(WEIGHTS, result.folder / WEIGHTS)
    rows, cpu = [], torch.device("cpu")
    for split in ("validation", "test"):
        cutter = BatchCutter(data, split, config.training.model, cpu)
        found = figures(predict(trained, cutter, data.tables(cpu)).numpy(), cutter.rows.labels.numpy())
        rows += [_metric(config, split, name, value, len(torch.unique(cutter.rows.users))) for name, value in found.items()]
        print(f"train_ctr: {split}, {', '.join(f'{name} {value:.4f}' for name, value in found.items())}", flush=True)
    metric.write("part-00000", METRIC.from_rows(rows))
    metric.finish(metrics={f"{row['name']}_{row['split']}": row["value"] for row in rows})
    curve = {f"{key}_epoch_{number}": value for number, epoch in enumerate(result.history, 1) for key, value in epoch.items()}
    artifact = model.finish(metrics=curve)
    # Checkpoints are for a killed run; the weights stand in `ctr_model` now.
    workspace.filesystem.delete_dir(workspace.path(checkpoints))
    return artifact


def _metric(config: TrainCtrConfig, split: str, name: str, value: float, num_users: int) -> dict:
    setting = json.dumps(config.training.model_dump(mode="json"), sort_keys=True)
    common = {"subject": str(config.training.model.backbone), "k": 0, "filter_seen": False, "seed": config.training.learning.seed}
    return {**common, "split": split, "name": name, "value": value, "setting": setting, "num_users": num_users}


JOB = Job(
    name="train_ctr",
    config=TrainCtrConfig,
    reads=("ctr_train", "ctr_validation", "ctr_test", "item"),
    writes={"ctr_model": None, "ctr_metric": METRIC},
    run=run,
    optional=("chunk", "user_interest", "interest_embedding", "item_embedding"),
)

if __name__ == "__main__":
    launch(JOB, __doc__)
