"""Ranking among all items, and the baselines."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from intently.core.schema import METRIC
from intently.retrieval.baselines import ItemKNN, popularity, score_by_popularity
from intently.retrieval.evaluate import accuracy, best, metric_rows, rank, read_targets
from intently.retrieval.interactions import BehaviourConfig, read_interactions

from tests.retrieval.world import history

ITEMS = pa.array(["a", "b", "c", "d"])
CONFIG = BehaviourConfig()
PAST = read_interactions(
    history(
        {
            "u": [("a", "purchase"), ("b", "purchase"), ("c", "detail_view")],
            "v": [("a", "purchase"), ("b", "cart"), ("d", "purchase")],
            "w": [("d", "rating")],
        }
    ),
    ITEMS,
    CONFIG,
)
TARGETS = read_targets("test", history({"w": [("a", "purchase")], "x": [("a", "purchase")], "u": [("d", "purchase")]}), ITEMS, PAST, CONFIG)


def test_read_targets_leaves_unknown_users_out() -> None:
    assert TARGETS.users.tolist() == [2, 0]
    assert TARGETS.items.tolist() == [0, 3]


def test_rank_filter_takes_seen_items_out() -> None:
    everybody = score_by_popularity(np.array([0.9, 0.8, 0.1, 0.5], np.float32))
    raw, filtered = rank(everybody, TARGETS, k=2)
    assert raw.ranks.tolist() == [0, 2]
    assert filtered.ranks.tolist() == [0, 0]  # u has taken a and b; c was only viewed
    assert raw.lists.tolist() == [[0, 1], [0, 1]]
    assert filtered.lists.tolist() == [[0, 1], [3, 2]]
    assert accuracy(filtered, [1])["HR", 1] == 1.0


def test_best_fewer_items_than_wanted_pads_with_minus_one() -> None:
    assert best(np.array([[0.2, -np.inf, 0.4]]), 4).tolist() == [[2, 0, -1, -1]]


def test_rank_no_targets_is_empty_and_yields_no_rows() -> None:
    nobody = read_targets("test", history({}), ITEMS, PAST, CONFIG)
    raw, _ = rank(score_by_popularity(np.ones(4, np.float32)), nobody, k=2)
    assert metric_rows("popularity", "test", raw, accuracy(raw, [10]), 0, {}) == []


def test_metric_rows_pass_the_contract() -> None:
    raw, _ = rank(score_by_popularity(np.ones(4, np.float32)), TARGETS, k=2)
    rows = METRIC.from_rows(metric_rows("popularity", "test", raw, accuracy(raw, [1, 10]), 3, {"beta": 0.5}))
    assert rows.num_rows == 6
    # All scores alike: the target ranks behind every other item.
    assert rows.filter(np.array(rows["name"].to_pylist()) == "HR")["value"].to_pylist() == [0, 1]


def test_popularity_counts_users_that_took_an_item() -> None:
    assert popularity(PAST, 4, CONFIG).tolist() == [2, 2, 0, 2]


@pytest.mark.parametrize("block", [1, 3, 100])
def test_item_knn_scores_are_sums_of_cosines(block: int) -> None:
    neighbours = ItemKNN(PAST, 4, CONFIG, num_neighbours=4, block=block)
    taken = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 1]])
    norms = np.sqrt(np.maximum(taken.sum(axis=0), 1))
    cosine = taken.T @ taken / np.outer(norms, norms)
    np.fill_diagonal(cosine, 0)
    assert neighbours.scorer(PAST)(np.array([2, 0])) == pytest.approx((taken @ cosine)[[2, 0]])


def test_item_knn_keeps_only_the_nearest() -> None:
    scores = ItemKNN(PAST, 4, CONFIG, num_neighbours=1).scorer(PAST)(np.array([2]))
    # w took d alone. cos(a, d) = cos(b, d) = 1/2, but the nearest neighbours of a and b are each other.
    assert scores[0].tolist() == [0, 0, 0, 0]
