"""Trains user, item and tag tower (Ray Train, DeepSpeed) and writes the vectors of all three.

Reads history_train, history_validation, history_test, item, tag, item_embedding, tag_embedding; writes towers, user_vector,
item_vector, tag_vector, tower_metric. User vectors stand for history_train alone.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train_towers.py \\
    --config jobs/configs/train_towers/demo.yaml
"""

from __future__ import annotations

from intently.core.config import Config
from intently.core.job import Job, launch
from intently.core.schema import EMBEDDING, METRIC
from intently.core.workspace import Artifact, Stage, Workspace
from intently.retrieval.evaluate import accuracy, metric_rows, rank, read_targets
from intently.retrieval.interactions import append_interactions, read_interactions
from intently.retrieval.towers import Towers
from intently.retrieval.trained import TrainedTowers, embedding_table, load_towers, put_towers, restore_towers
from intently.retrieval.training import TowerData, TrainingConfig, read_tower_data, train_towers
from intently.runtime.train import WEIGHTS, TrainConfig, train
from pydantic import Field


class TrainTowersConfig(Config):
    """Settings of the job."""

    training: TrainingConfig = Field(TrainingConfig(), description="data, shapes, losses")
    harness: TrainConfig = Field(TrainConfig(), description="where and how the loop runs")
    cutoffs: tuple[int, ...] = Field((10, 50), min_length=1, description="k of the metrics of the user tower")


def run(config: TrainTowersConfig, workspace: Workspace) -> Artifact:
    """Train, or go on training, then write vectors and metrics; returns towers."""
    stages = {name: JOB.stage(workspace, name, config) for name in JOB.writes}
    versions = {name: workspace.artifact(name).version for name in JOB.reads}
    checkpoints = f"towers/{stages['towers'].version}/training"
    arguments = {"workspace": workspace, "versions": versions, "config": config.training}
    with train(train_towers, arguments, config.harness, workspace, checkpoints) as result:
        data = read_tower_data(workspace, versions, config.training)
        towers = restore_towers(data, config.training, result.folder / WEIGHTS)
    put_towers(stages["towers"], towers, config.training, data)
    artifact = stages["towers"].finish(metrics=_learning_curve(result.history))
    _write_vectors(stages, data, towers, load_towers(artifact), str(artifact))
    _write_metrics(stages["tower_metric"], data, load_towers(artifact), towers, config, workspace)
    # Checkpoints are for a killed run; what they held stands in `towers` now.
    workspace.filesystem.delete_dir(workspace.path(checkpoints))
    return artifact


def _learning_curve(history: list[dict[str, float]]) -> dict[str, float]:
    epochs = {f"{key}_epoch_{number}": value for number, epoch in enumerate(history, 1) for key, value in epoch.items()}
    return epochs | {"train_seconds": sum(epoch["seconds"] for epoch in history), "num_epochs": len(history)}


def _write_vectors(stages: dict[str, Stage], data: TowerData, towers: Towers, trained: TrainedTowers, model: str) -> None:
    _, items = towers.item_vectors()
    vectors = {
        "user": (data.past.user_ids, trained.user_vectors(data.past)),
        "item": (data.catalogue.item_ids, items.numpy()),
        "tag": (data.tags.names, trained.tag_vectors(data.tags.names)),
    }
    for kind, (ids, matrix) in vectors.items():
        stages[f"{kind}_vector"].write("part-00000", embedding_table(kind, ids, matrix, model))
        stages[f"{kind}_vector"].finish()


def _write_metrics(
    stage: Stage, data: TowerData, trained: TrainedTowers, towers: Towers, config: TrainTowersConfig, workspace: Workspace
) -> None:
    """The user tower alone (b = 1): validation after history_train, test with the validation event behind it."""
    behaviours, item_ids, past = config.training.behaviours, data.catalogue.item_ids, data.past
    items = towers.item_vectors()[1].numpy()
    rows = []
    for split in ("validation", "test"):
        held_out = workspace.artifact(f"history_{split}").read()
        targets = read_targets(split, held_out, item_ids, past, behaviours)
        users = trained.user_vectors(past)
        for ranking in rank(lambda chosen, users=users: users[chosen] @ items.T, targets, max(config.cutoffs)):
            rows += metric_rows(
                "user_tower", split, ranking, accuracy(ranking, config.cutoffs), config.training.learning.seed, {"beta": 1.0}
            )
        past = append_interactions(past, read_interactions(held_out, item_ids, behaviours))
    stage.write("part-00000", METRIC.from_rows(rows))
    found = {row["name"]: row["value"] for row in rows if row["split"] == "test" and row["filter_seen"] and row["k"] == config.cutoffs[0]}
    stage.finish(metrics={f"{name.lower()}{config.cutoffs[0]}_user_tower": value for name, value in found.items()})
    print(f"user tower, test, seen items left out: {', '.join(f'{n}@{config.cutoffs[0]} {v:.4f}' for n, v in found.items())}", flush=True)


JOB = Job(
    name="train_towers",
    config=TrainTowersConfig,
    reads=("history_train", "history_validation", "history_test", "item", "tag", "item_embedding", "tag_embedding"),
    writes={"towers": None, "user_vector": EMBEDDING, "item_vector": EMBEDDING, "tag_vector": EMBEDDING, "tower_metric": METRIC},
    run=run,
)

if __name__ == "__main__":
    launch(JOB, __doc__)
