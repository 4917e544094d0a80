"""Towers, losses and what a step draws."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.retrieval.interactions import Interactions
from intently.retrieval.losses import log_inclusion, same_category, softmax_loss
from intently.retrieval.towers import Sizes, TowerConfig, UserTower, Window, WindowCutter
from intently.retrieval.training import LearningConfig, Sampler, TowerData, TowerObjective, TrainingConfig, build_towers, read_tower_data

from tests.retrieval.world import write_world

CONFIG = TrainingConfig(
    towers=TowerConfig(dim=8, hidden=16, windows=(2, 4), dropout=0.0, token_buckets=64),
    learning=LearningConfig(batch_size=32, num_negatives=8, tag_batch_size=6),
)
PAST = Interactions(pa.array(["u", "v"]), np.array([0, 3, 5]), np.array([4, 5, 6, 7, 8]), np.array([0, 1, 0, 1, 1]))


@pytest.fixture
def data(workspace: Workspace) -> TowerData:
    write_world(workspace)
    names = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
    return read_tower_data(workspace, {name: workspace.artifact(name).version for name in names}, CONFIG)


def test_window_cutter_takes_events_before_the_place_of_one_user() -> None:
    window = WindowCutter(PAST, 4, torch.device("cpu")).window(torch.tensor([0, 1, 1]), torch.tensor([2, 5, 3]))
    assert window.valid.tolist() == [[True, True, False, False], [True, True, False, False], [False] * 4]
    assert window.items[:2, :2].tolist() == [[5, 4], [8, 7]]
    assert window.behaviours[0, :2].tolist() == [1, 0]


def test_pooling_means_of_recent_events_and_of_each_behaviour() -> None:
    sizes = Sizes(num_users=2, num_items=9, num_categories=1, num_brands=1, text_dim=0, num_behaviours=2)
    tower = UserTower(TowerConfig(windows=(1, 4)), sizes)
    window = Window(
        items=torch.zeros(1, 4, dtype=torch.long),
        behaviours=torch.tensor([[1, 1, 0, 0]]),
        valid=torch.tensor([[True, True, True, False]]),
        users=torch.tensor([0]),
    )
    assert tower.pooling(window)[0].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0.5, 0.5, 0, 0]]


def test_user_tower_vectors_have_length_one_and_tell_known_from_unknown(data: TowerData) -> None:
    towers = build_towers(data, CONFIG).eval()
    representations, items = towers.item_vectors()
    users = towers.user.vectors(data.past, representations)
    assert torch.linalg.norm(users, dim=1).tolist() == pytest.approx([1.0] * 72, abs=1e-5)
    assert torch.linalg.norm(items, dim=1).tolist() == pytest.approx([1.0] * 36, abs=1e-5)
    cutter = WindowCutter(data.past, 4, torch.device("cpu"))
    window = cutter.window(torch.tensor([0]), torch.tensor([4]))
    known = towers.user(window, representations[window.items])
    stranger = towers.user(window._replace(users=torch.tensor([-1])), representations[window.items])
    assert torch.allclose(known[0], users[0])
    assert not torch.allclose(known, stranger)


def test_tower_config_falling_windows_refused() -> None:
    with pytest.raises(ConfigError, match="rising"):
        TowerConfig.parse({"windows": [10, 3]})


def test_softmax_loss_equals_hand_computed() -> None:
    queries, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    loss = softmax_loss(queries, candidates, torch.tensor([0]), torch.tensor([0.0, 0.0, -1.0]), temperature=0.5)
    # logits 2, 0 and −2 + 1
    expected = -2 + np.log(np.exp(2) + 1 + np.exp(-1))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_softmax_loss_weights_and_no_queries() -> None:
    queries, candidates = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(5, 4), dim=1)
    positives, zero = torch.tensor([0, 3, 1]), torch.zeros(5)
    each = [softmax_loss(queries[n : n + 1], candidates, positives[n : n + 1], zero, 0.1).item() for n in range(3)]
    weighted = softmax_loss(queries, candidates, positives, zero, 0.1, weights=torch.tensor([1.0, 0.0, 3.0]))
    assert weighted.item() == pytest.approx((each[0] + 3 * each[2]) / 4, rel=1e-5)
    assert softmax_loss(queries[:0], candidates, positives[:0], zero, 0.1).item() == 0


def test_same_category_hides_peers_but_never_the_positive() -> None:
    hidden = same_category(torch.tensor([0, 0, 1, 0]), torch.tensor([1, 2]))
    assert hidden.tolist() == [[True, False, False, True], [False, False, False, False]]


def test_log_inclusion_matches_share_of_draws() -> None:
    # λ = 0.5: an item drawn Poisson(0.5) times is there at least once with 1 − e^−0.5.
    assert log_inclusion(torch.tensor([0.5])).exp().item() == pytest.approx(0.393469, abs=1e-6)


def test_sampler_rates_match_what_it_draws(data: TowerData) -> None:
    sampler = Sampler(data, CONFIG, rank=0, world_size=1, device=torch.device("cpu"))
    drawn, steps = torch.zeros(36), 0
    for epoch in range(60):
        for batch in sampler.epoch(epoch):
            rows = torch.cat([batch.targets, batch.tagged, batch.peers, batch.negatives])
            drawn += torch.bincount(rows, minlength=36)
            steps += 1
    assert torch.allclose(drawn / steps, sampler.rates, rtol=0.15)


def test_sampler_window_never_holds_the_target(data: TowerData) -> None:
    repeated = Interactions(data.past.user_ids[:1], np.array([0, 3]), np.array([7, 9, 7]), np.array([0, 0, 5]))
    sampler = Sampler(TowerData(data.catalogue, repeated, data.tags, data.pairs[:0]), CONFIG, 0, 1, torch.device("cpu"))
    batch = next(sampler.epoch(0))
    assert sorted(batch.targets.tolist()) == [7, 9]
    assert not (batch.window.valid & (batch.window.items == batch.targets[:, None])).any()


def test_sampler_workers_share_an_epoch_without_overlap(data: TowerData) -> None:
    workers = [Sampler(data, CONFIG, rank, 2, torch.device("cpu")) for rank in range(2)]
    seen = [[batch.window.users.tolist() for batch in worker.epoch(0)] for worker in workers]
    whole = [batch.window.users.tolist() for batch in Sampler(data, CONFIG, 0, 1, torch.device("cpu")).epoch(0)]
    assert [sorted(left + right) for left, right in zip(*seen, strict=True)] == [sorted(step) for step in whole]


def test_objective_total_weighs_tag_and_category_loss(data: TowerData) -> None:
    config = CONFIG.model_copy(update={"learning": CONFIG.learning.model_copy(update={"alpha": 0.3})})
    sampler = Sampler(data, config, 0, 1, torch.device("cpu"))
    objective = TowerObjective(build_towers(data, config), config.learning, sampler.rates)
    losses = objective(next(sampler.epoch(0)))
    expected = losses.collaborative + 0.3 * losses.tag + 0.7 * losses.category
    assert losses.total.item() == pytest.approx(expected.item())
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_objective_without_tags_learns_from_behaviour_alone(data: TowerData) -> None:
    bare = TowerData(data.catalogue, data.past, data.tags, data.pairs[:0])
    sampler = Sampler(bare, CONFIG, 0, 1, torch.device("cpu"))
    losses = TowerObjective(build_towers(bare, CONFIG), CONFIG.learning, sampler.rates)(next(sampler.epoch(0)))
    assert (losses.tag.item(), losses.category.item()) == (0, 0)
    assert losses.total.item() == losses.collaborative.item() > 0
