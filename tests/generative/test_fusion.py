"""Lists of several models in one ranking."""

from __future__ import annotations

import numpy as np
import pytest
from intently.core.errors import ConfigError
from intently.generative.fusion import METHODS, fuse, measure_weights, pool, ranks_in_pool

FOUND = (np.array([[2, 0, -1]]), np.array([[0.5, 0.25, 0.0]]))
DENSE = (np.array([[1, 3, 0, 2]]), np.array([[0.6, 0.2, 0.1, 0.1]]))


def by_item(method: str, weights: list[float]) -> dict[int, float]:
    """Scores of the two lists above by item, best first."""
    candidates = pool([FOUND, DENSE])
    (scores,), (items,) = fuse(candidates, weights, method), candidates.items
    return {int(items[place]): float(scores[place]) for place in np.argsort(-scores, kind="stable") if np.isfinite(scores[place])}


def test_fuse_roots_adds_roots_of_probabilities() -> None:
    mixed = by_item("mixture", [1.0, 0.0])
    assert by_item("roots", [1.0, 0.0]) == pytest.approx({item: value**0.5 for item, value in mixed.items()})
    both = [by_item("roots", weights) for weights in ([1.0, 0.0], [0.0, 1.0])]
    assert by_item("roots", [0.4, 0.6]) == pytest.approx({item: 0.4 * both[0][item] + 0.6 * both[1][item] for item in both[0]})


def test_fuse_mixture_adds_probabilities() -> None:
    assert by_item("mixture", [0.4, 0.6]) == pytest.approx({1: 0.36, 2: 0.26, 0: 0.16, 3: 0.12})


def test_fuse_ranks_adds_reciprocal_ranks() -> None:
    expected = {0: 0.25 / 21 + 0.75 / 22, 1: 0.75 / 20, 2: 0.25 / 20 + 0.75 / 23, 3: 0.75 / 21}
    assert by_item("ranks", [0.25, 0.75]) == pytest.approx(expected)


def test_fuse_rerank_orders_what_the_first_model_found_by_both() -> None:
    expected = {2: 0.5 * np.log(0.5) + 0.5 * np.log(0.1), 0: 0.5 * np.log(0.25) + 0.5 * np.log(0.1)}
    assert by_item("rerank", [0.5, 0.5]) == pytest.approx(expected, rel=1e-5)


def test_fuse_weights_at_the_ends_are_the_models() -> None:
    for method in METHODS:
        assert list(by_item(method, [1.0, 0.0]))[:2] == [2, 0]
    for method in ("mixture", "ranks"):
        assert list(by_item(method, [0.0, 1.0]))[:2] == [1, 3]


def test_ranks_in_pool_of_a_target_that_nobody_named_is_behind_all() -> None:
    candidates = pool([FOUND, DENSE])
    scores = fuse(candidates, [0.4, 0.6], "mixture")
    assert [int(ranks_in_pool(candidates, scores, np.array([item]))[0]) for item in (1, 2, 0, 3, 9)] == [0, 1, 2, 3, 7]
    assert measure_weights({"method": 0.0, "weight_0": 0.4, "weight_1": 0.6}, {"all": (candidates, np.array([2]))})["hr10_all"] == 1.0


def test_fuse_wrong_number_of_weights_is_an_error() -> None:
    with pytest.raises(ConfigError, match="weights"):
        fuse(pool([FOUND, DENSE]), [1.0], "mixture")
