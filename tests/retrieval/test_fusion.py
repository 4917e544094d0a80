"""Fusion of user and tag vectors, and the choice of b."""

from __future__ import annotations

import numpy as np
import pytest
from intently.retrieval.fusion import FusedVectors, Point, choose, fuse, pareto_front, pool_tags
from intently.retrieval.sweep import front_table


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


def test_pool_tags_max_takes_the_highest_of_each_coordinate() -> None:
    vectors = np.array([[0.6, -0.8], [-0.6, 0.8], [-0.6, -0.8]], np.float32)
    pooled = pool_tags(vectors, users=np.array([0, 0, 2, 3]), tags=np.array([0, 1, 2, -1]), num_users=4, pooling="max")
    assert pooled == pytest.approx(np.array([[0.6, 0.8], [0, 0], [-0.6, -0.8], [0, 0]]), abs=1e-6)


POINTS = [
    Point(0.0, 0.1, 0.9, 0.2),
    Point(0.5, 0.3, 0.4, 0.2),
    Point(0.7, 0.3, 0.6, 0.2),
    Point(0.9, 0.297, 0.7, 0.1),
    Point(1.0, 0.2, 0.5, 0.3),
]


def test_choose_highest_accuracy_then_more_coverage() -> None:
    assert choose(POINTS).beta == 0.7


def test_choose_gives_up_the_conceded_share_of_accuracy_for_coverage() -> None:
    assert choose(POINTS, concession=0.009).beta == 0.7  # 0.297 is 1 % below the best
    assert choose(POINTS, concession=0.011).beta == 0.9
    assert choose(POINTS, concession=0.999).beta == 0.0


def test_choose_equal_points_takes_the_larger_b() -> None:
    assert choose([Point(0.2, 0.1, 0.5, 0.5), Point(0.8, 0.1, 0.5, 0.5)]).beta == 0.8


def test_pareto_front_leaves_dominated_points_out_and_keeps_one_that_is_best_in_the_tail_alone() -> None:
    assert [point.beta for point in pareto_front(POINTS)] == [0.7, 0.9, 1.0, 0.0]


def test_front_table_marks_front_and_choice() -> None:
    lines = front_table(POINTS, choose(POINTS)).splitlines()
    assert lines[0] == "beta,ndcg,category_coverage,tail_share,on_front,chosen"
    assert lines[1] == "0.7,0.3000,0.6000,0.2000,yes,yes"
    assert "0.5,0.3000,0.4000,0.2000,," in lines
    assert len(lines) == 6
