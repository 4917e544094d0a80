"""Workers that hold a share of the histories each: together they take the steps of one. Two real processes, gloo between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.retrieval.group import ALONE, Group
from intently.retrieval.towers import TowerConfig
from intently.retrieval.training import (
    LearningConfig,
    Sampler,
    TowerObjective,
    TrainingConfig,
    build_towers,
    read_tower_data,
)

from tests.retrieval.world import NUM_USERS, write_world

CONFIG = TrainingConfig(
    towers=TowerConfig(dim=8, hidden=16, windows=(2, 4), dropout=0.0, token_buckets=64),
    learning=LearningConfig(batch_size=8, stretch=3, num_negatives=8, tag_batch_size=6),
)
READS = ("history_train", "item", "tag", "item_embedding", "tag_embedding")


def take_steps(group: Group, root: str) -> dict:
    """What a worker holds, draws in an epoch, and the gradients of its share of the first step."""
    workspace = Workspace.open(root)
    data = read_tower_data(workspace, {name: workspace.artifact(name).version for name in READS}, CONFIG, group)
    sampler = Sampler(data, CONFIG, torch.device("cpu"), group)
    batches = list(sampler.epoch(0))
    towers = build_towers(data, CONFIG).eval()
    gradients, losses = [], []
    for batch in batches:
        towers.zero_grad()
        total = TowerObjective(towers, CONFIG.learning, sampler.rates)(batch).total
        total.backward()
        losses.append(total.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in towers.parameters()]))
    held = {"events": len(data.past.items), "users": data.past.num_users, "pairs": data.pairs}
    return held | {"batches": batches, "losses": losses, "gradients": gradients}


def work(rank: int, root: str, folder: str) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(take_steps(Group(rank, 2), root), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_group_of_two_takes_the_steps_of_one_and_shares_the_histories(workspace: Workspace, tmp_path: Path) -> None:
    write_world(workspace)
    alone = take_steps(ALONE, workspace.root)
    torch.multiprocessing.spawn(work, (workspace.root, str(tmp_path)), nprocs=2)
    left, right = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert left["users"] == right["users"] == alone["users"] == NUM_USERS
    assert left["events"] + right["events"] == alone["events"] and min(left["events"], right["events"]) > 0
    assert (left["pairs"] == alone["pairs"]).all() and (right["pairs"] == alone["pairs"]).all()
    assert len(alone["batches"]) == len(left["batches"]) == len(right["batches"]) > 10
    for one, two, whole in zip(left["batches"], right["batches"], alone["batches"], strict=True):
        assert torch.equal(one.drawn, whole.drawn) and torch.equal(two.drawn, whole.drawn)
        assert sorted([*one.targets.tolist(), *two.targets.tolist()]) == sorted(whole.targets.tolist())
        assert sorted([*one.tagged.tolist(), *two.tagged.tolist()]) == sorted(whole.tagged.tolist())
        # The group takes the mean over workers of what each of them sums.
        assert (one.weights.sum() + two.weights.sum()).item() / 2 == pytest.approx(whole.weights.sum().item())
    # With steps this small some have stretches of one worker only, and the other still takes part.
    assert any(not len(batch.targets) for batch in [*left["batches"], *right["batches"]])
    for name in ("losses", "gradients"):
        for one, two, whole in zip(left[name], right[name], alone[name], strict=True):
            mean = (torch.as_tensor(one) + torch.as_tensor(two)) / 2
            assert torch.allclose(mean, torch.as_tensor(whole), atol=1e-6)


def test_group_larger_than_the_parts_is_refused(workspace: Workspace) -> None:
    write_world(workspace)
    with pytest.raises(ConfigError, match=r"num_workers = 6: history_train@\w+ has 5 part"):
        read_tower_data(workspace, {name: workspace.artifact(name).version for name in READS}, CONFIG, Group(0, 6))
