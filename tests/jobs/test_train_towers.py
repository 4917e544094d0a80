"""The towers' loop on the real harness: two workers learn what one learns."""

from __future__ import annotations

import pytest
from intently.core.workspace import Workspace
from intently.retrieval.training import TrainingConfig, train_towers
from intently.runtime.train import TrainConfig, train

from tests.retrieval.world import write_world

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
# What is dropped at random differs between workers; without it the group takes one worker's steps.
CERTAIN = {"dim": 16, "hidden": 32, "windows": [1, 4], "token_buckets": 64, "dropout": 0.0, "user_dropout": 0.0, "item_dropout": 0.0}
CONFIG = TrainingConfig.parse(
    {"towers": CERTAIN, "learning": {"num_epochs": 4, "batch_size": 32, "num_negatives": 16, "tag_batch_size": 16}}
)


def test_train_towers_two_workers_learn_as_one(workspace: Workspace, ray_session: None) -> None:
    write_world(workspace)
    names = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
    arguments = {"workspace": workspace, "versions": {name: workspace.artifact(name).version for name in names}, "config": CONFIG}
    curves = []
    for num_workers in (1, 2):
        harness = TrainConfig.parse({"resources": {"num_workers": num_workers, "cpus": 0.5}, "checkpoint_every": 4})
        with train(train_towers, arguments, harness, workspace, f"towers/{num_workers}/training") as result:
            curves.append([[epoch[name] for name in ("total", "collaborative", "tag", "category")] for epoch in result.history])
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert curves[0][3][0] < 0.9 * curves[0][0][0]
