"""Ranking metrics against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from intently.metrics.ranking import bootstrap_interval, gains, hit_rate, hits, mean_reciprocal_rank, ndcg, ranks_of_targets

RANKS = np.array([0, 1, 3, 12])


def test_ranks_of_targets_counts_better_items() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.1]])
    assert ranks_of_targets(scores, np.array([2, 0])).tolist() == [1, 0]


def test_ranks_of_targets_ties_count_against_target() -> None:
    assert ranks_of_targets(np.array([[0.5, 0.5, 0.5, 0.2]]), np.array([0])).tolist() == [2]


def test_ranks_of_targets_target_taken_out_ranks_last() -> None:
    assert ranks_of_targets(np.array([[0.5, -np.inf, -np.inf]]), np.array([1])).tolist() == [3]


def test_ranks_of_targets_without_a_score_are_last_and_others_without_one_count_against() -> None:
    scores = np.array([[np.nan, np.nan, np.nan], [0.5, np.nan, 0.2]])
    assert ranks_of_targets(scores, np.array([1, 0])).tolist() == [3, 1]


def test_hit_rate_three_of_four_ranks_below_ten() -> None:
    assert hit_rate(RANKS, 10) == 0.75
    assert hit_rate(RANKS, 1) == 0.25


def test_ndcg_sums_discounts_of_hits() -> None:
    expected = (1 + 1 / math.log2(3) + 1 / math.log2(5)) / 4
    assert ndcg(RANKS, 10) == pytest.approx(expected)
    assert gains(RANKS, 2).tolist() == pytest.approx([1, 1 / math.log2(3), 0, 0])


def test_mean_reciprocal_rank_ignores_ranks_beyond_cut() -> None:
    assert mean_reciprocal_rank(RANKS, 10) == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)


def test_metrics_no_users_are_nan() -> None:
    assert math.isnan(hit_rate(np.array([], int), 10))


def test_hits_k_zero_refused() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        hits(RANKS, 0)


def test_bootstrap_interval_constant_values_is_a_point() -> None:
    assert bootstrap_interval(np.full(20, 0.25)) == (0.25, 0.25)


def test_bootstrap_interval_of_fair_coin_matches_normal_width() -> None:
    values = np.tile([0.0, 1.0], 200)
    lower, upper = bootstrap_interval(values, seed=3)
    # Standard error of the mean of 400 coin flips: 0.5 / 20 = 0.025; 1.96 of it each side.
    assert lower == pytest.approx(0.5 - 0.049, abs=0.006)
    assert upper == pytest.approx(0.5 + 0.049, abs=0.006)
