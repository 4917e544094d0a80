"""Fusion of user and tag vectors, and the choice of b."""

from __future__ import annotations

import numpy as np
import pytest
from intently.retrieval.fusion import FusedVectors, Point, choose, fuse, pareto_front, pool_tags


def test_fuse_weighs_user_and_tags() -> None:
    fused = fuse(np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32), 0.25)
    assert fused.tolist() == [[0.25, 0.75]]


def test_fuse_user_without_tags_keeps_user_vector() -> None:
    vectors = FusedVectors(np.array([[0.6, 0.8]], np.float32), np.zeros((1, 2), np.float32))
    assert vectors.at(0.0)[0].tolist() == pytest.approx([0.6, 0.8])
    assert vectors.tagged.tolist() == [False]


def test_fused_search_equals_weighted_scores_of_both() -> None:
    rng = np.random.default_rng(0)
    users, tags, items = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    assert fuse(users, tags, 0.3) @ items.T == pytest.approx(0.3 * users @ items.T + 0.7 * tags @ items.T, abs=1e-6)


def test_pool_tags_mean_is_brought_to_length_one() -> None:
    vectors = np.array([[1, 0], [0, 1]], np.float32)
    pooled = pool_tags(vectors, users=np.array([0, 0, 2, 2]), tags=np.array([0, 1, 1, -1]), num_users=3)
    assert pooled == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 0], [0, 1]]), abs=1e-6)


def test_choose_highest_accuracy_then_more_coverage() -> None:
    points = [Point(0.0, 0.1, 0.9), Point(0.5, 0.3, 0.4), Point(0.7, 0.3, 0.6), Point(1.0, 0.2, 0.5)]
    assert choose(points).beta == 0.7


def test_pareto_front_leaves_dominated_points_out() -> None:
    points = [Point(0.0, 0.1, 0.9), Point(0.5, 0.3, 0.4), Point(0.7, 0.3, 0.6), Point(1.0, 0.2, 0.5)]
    assert [point.beta for point in pareto_front(points)] == [0.7, 0.0]
