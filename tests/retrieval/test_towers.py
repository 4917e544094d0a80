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
from intently.retrieval.training import (
    LearningConfig,
    Sampler,
    TowerData,
    TowerObjective,
    TrainingConfig,
    _own_items,
    build_towers,
    read_tower_data,
)

from tests.retrieval.world import write_world

CONFIG = TrainingConfig(
    towers=TowerConfig(dim=8, hidden=16, windows=(2, 4), dropout=0.0, token_buckets=64),
    learning=LearningConfig(batch_size=32, stretch=3, num_negatives=8, tag_batch_size=6),
)
PAST = Interactions(pa.array(["u", "v"]), np.array([0, 3, 5]), np.array([4, 5, 6, 7, 8]), np.array([0, 1, 0, 1, 1]))


@pytest.fixture
def data(workspace: Workspace) -> TowerData:
    write_world(workspace)
    names = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
    return read_tower_data(workspace, {name: workspace.artifact(name).version for name in names}, CONFIG)


def test_window_cutter_takes_events_before_the_place_of_one_user() -> None:
    window = WindowCutter(PAST, 4, torch.device("cpu")).window(torch.tensor([0, 1, 1]), torch.tensor([2, 5, 3]))
    assert window.valid.tolist() == [[False, False, True, True], [False, False, True, True], [False] * 4]
    assert window.items[:2, 2:].tolist() == [[4, 5], [7, 8]]
    assert window.behaviours[0, 2:].tolist() == [0, 1]


def test_window_cutter_stretch_stays_within_the_user() -> None:
    # Queries for places 1, 2 and 3 of the first user, who has only 0, 1 and 2.
    window = WindowCutter(PAST, 2, torch.device("cpu")).window(torch.tensor([0]), torch.tensor([1]), num_queries=3)
    assert window.valid.tolist() == [[False, True, True, True]]
    assert window.items[0, 1:].tolist() == [4, 5, 6]


SIZES = Sizes(num_users=2, num_items=9, num_categories=1, num_brands=1, text_dim=0, num_behaviours=2)


def test_user_tower_means_of_recent_events_and_of_each_behaviour() -> None:
    tower = UserTower(TowerConfig(windows=(1, 4)), SIZES)
    window = Window(
        items=torch.tensor([[0, 1, 2, 3, 4]]),
        behaviours=torch.tensor([[0, 0, 1, 1, 0]]),
        valid=torch.tensor([[False, True, True, True, True]]),
        users=torch.tensor([0]),
        hidden=torch.tensor([[7, 2]]),  # the second query may not see item 2
    )
    distance, visible = tower.past(window)
    assert distance.tolist() == [[4, 3, 2, 1, 0], [5, 4, 3, 2, 1]]
    assert visible[0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 1, 1]]
    latest, first, second = tower.means(window, distance, visible)[0]
    assert latest.tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert first.tolist() == [[0, 1, 0, 0, 0], [0, 0.5, 0, 0, 0.5]]
    assert second.tolist() == [[0, 0, 0.5, 0.5, 0], [0, 0, 0, 1, 0]]


def test_user_tower_queries_of_a_stretch_equal_windows_cut_one_by_one() -> None:
    torch.manual_seed(3)
    tower = UserTower(TowerConfig(dim=8, heads=2, windows=(1, 3)), SIZES).eval()
    cutter, table = WindowCutter(PAST, 3, torch.device("cpu")), torch.randn(9, 8)
    stretches = cutter.window(torch.tensor([0, 1]), torch.tensor([0, 3]), num_queries=3)
    asked = torch.tensor([[True, True, True], [True, True, False]])
    together = tower(stretches, table[stretches.items], asked)
    alone = cutter.window(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 4]))
    assert torch.allclose(together, tower(alone, table[alone.items]), atol=1e-6)


def test_user_tower_order_of_events_matters_to_the_attention_alone() -> None:
    window = Window(
        torch.tensor([[1, 2, 3, 4]]), torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0])
    )
    turned, table = window._replace(items=torch.tensor([[2, 1, 3, 4]])), torch.randn(9, 8)
    for heads, same in ((0, True), (2, False)):
        tower = UserTower(TowerConfig(dim=8, heads=heads, windows=(2, 4)), SIZES).eval()
        if heads:
            torch.nn.init.normal_(tower.attention.bias)
        assert torch.allclose(tower(window, table[window.items]), tower(turned, table[turned.items]), atol=1e-5) == same


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
    weighted = softmax_loss(queries, candidates, positives, zero, 0.1, weights=torch.tensor([0.25, 0.0, 0.75]))
    assert weighted.item() == pytest.approx((each[0] + 3 * each[2]) / 4, rel=1e-5)
    assert softmax_loss(queries[:0], candidates, positives[:0], zero, 0.1).item() == 0


def test_softmax_loss_hides_peers_of_a_category_but_never_the_positive() -> None:
    hidden = same_category(torch.tensor([0, 0, 1, 0]), torch.tensor([1]))
    assert hidden.tolist() == [[True, True, False, True]]
    query, candidates = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    loss = softmax_loss(query, candidates, torch.tensor([1]), torch.zeros(4), 1.0, hidden=hidden)
    assert loss.item() == pytest.approx(np.log(np.e + np.exp(-1)) - 1, abs=1e-6)


def test_softmax_loss_hardest_leaves_the_highest_scored_to_compete() -> None:
    query, candidates = torch.tensor([[1.0, 0.0]]), F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [1.0, 3.0]]), dim=1)
    scores = (candidates @ query[0]).tolist()
    for positive, hard in ((0, [1]), (2, [0]), (1, [0])):
        loss = softmax_loss(query, candidates, torch.tensor([positive]), torch.zeros(4), 1.0, num_hardest=1)
        expected = np.log(np.exp([scores[positive], *(scores[row] for row in hard)]).sum()) - scores[positive]
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    everybody = softmax_loss(query, candidates, torch.tensor([2]), torch.zeros(4), 1.0)
    assert softmax_loss(query, candidates, torch.tensor([2]), torch.zeros(4), 1.0, num_hardest=3).item() == everybody.item()


def test_objective_hard_negatives_are_not_the_users_own(data: TowerData) -> None:
    config = CONFIG.model_copy(update={"learning": CONFIG.learning.model_copy(update={"hard_negatives": 3})})
    sampler = Sampler(data, config, torch.device("cpu"))
    batch = next(sampler.epoch(0))
    drawn = batch.drawn.unique()
    own = _own_items(batch, drawn, 36)
    past = data.past
    for row, (stretch, _) in zip(own, batch.asked.nonzero().tolist(), strict=True):
        user_row = batch.window.users[stretch]
        life = set(past.items[past.offsets[user_row] : past.offsets[user_row + 1]].tolist())
        assert {int(item) for item in drawn[row]} <= life
    assert own.any()
    losses = [TowerObjective(build_towers(data, c), c.learning, sampler.rates).eval()(batch).collaborative.item() for c in (CONFIG, config)]
    assert 0 < losses[1] < losses[0]


def test_log_inclusion_matches_share_of_draws() -> None:
    # λ = 0.5: an item drawn Poisson(0.5) times is there at least once with 1 − e^−0.5.
    assert log_inclusion(torch.tensor([0.5])).exp().item() == pytest.approx(0.393469, abs=1e-6)


def test_sampler_rates_match_what_it_draws(data: TowerData) -> None:
    sampler = Sampler(data, CONFIG, torch.device("cpu"))
    drawn, steps = torch.zeros(36), 0
    for epoch in range(60):
        for batch in sampler.epoch(epoch):
            drawn += torch.bincount(batch.drawn, minlength=36)
            steps += 1
    assert torch.allclose(drawn / steps, sampler.rates, rtol=0.15)


def test_sampler_past_never_holds_the_target(data: TowerData) -> None:
    repeated = Interactions(data.past.user_ids[:1], np.array([0, 4]), np.array([7, 9, 9, 8]), np.array([0, 0, 5, 5]))
    sampler = Sampler(TowerData(data.catalogue, repeated, data.tags, data.pairs[:0]), CONFIG, torch.device("cpu"))
    batch = next(sampler.epoch(0))
    # Views weigh 0.2, and 9 was also bought: its first event asks, with the weight of the purchase.
    assert sorted(batch.targets.tolist()) == [7, 8, 9]
    assert batch.weights.sum().item() == pytest.approx(1)
    assert batch.weights[batch.targets == 9].item() == pytest.approx(1 / 2.2)
    tower = UserTower(CONFIG.towers, SIZES)
    _, visible = tower.past(batch.window)
    asked = visible[batch.asked]
    seen = [set(items[row].tolist()) for items, row in zip(batch.window.items.repeat_interleave(batch.asked.sum(1), 0), asked, strict=True)]
    assert dict(zip(batch.targets.tolist(), seen, strict=True)) == {7: set(), 9: {7}, 8: {7, 9}}


def test_objective_total_weighs_tag_and_category_loss(data: TowerData) -> None:
    config = CONFIG.model_copy(update={"learning": CONFIG.learning.model_copy(update={"alpha": 0.3, "tag_weight": 0.5})})
    sampler = Sampler(data, config, torch.device("cpu"))
    objective = TowerObjective(build_towers(data, config), config.learning, sampler.rates)
    losses = objective(next(sampler.epoch(0)))
    expected = losses.collaborative + 0.15 * losses.tag + 0.35 * losses.category
    assert losses.total.item() == pytest.approx(expected.item())
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_objective_without_tags_learns_from_behaviour_alone(data: TowerData) -> None:
    bare = TowerData(data.catalogue, data.past, data.tags, data.pairs[:0])
    sampler = Sampler(bare, CONFIG, torch.device("cpu"))
    losses = TowerObjective(build_towers(bare, CONFIG), CONFIG.learning, sampler.rates)(next(sampler.epoch(0)))
    assert (losses.tag.item(), losses.category.item()) == (0, 0)
    assert losses.total.item() == losses.collaborative.item() > 0
