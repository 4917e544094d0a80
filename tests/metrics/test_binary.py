"""AUC, log loss, Brier score, calibration and paired gains, against values by hand and an obvious reference."""

from __future__ import annotations

import numpy as np
import pytest
from intently.metrics.binary import auc, brier, calibration_error, log_loss, paired_auc_gain


def test_auc_counts_pairs_in_the_right_order_and_ties_by_half() -> None:
    scores, labels = np.array([0.9, 0.4, 0.4, 0.1]), np.array([1, 0, 1, 0])
    # pairs: .9 over .4 and .1, .4 ties .4, .4 over .1
    assert auc(scores, labels) == pytest.approx(3.5 / 4)
    assert auc(-scores, labels) == pytest.approx(0.5 / 4)
    assert auc(np.ones(4), labels) == 0.5


def test_auc_of_one_class_or_of_nothing_is_not_a_number() -> None:
    assert np.isnan(auc(np.array([0.2, 0.3]), np.array([1, 1])))
    assert np.isnan(auc(np.empty(0), np.empty(0)))


def test_auc_equals_all_pairs_compared_one_by_one() -> None:
    rng = np.random.default_rng(1)
    scores, labels, weights = rng.integers(0, 12, 80) / 12, rng.integers(0, 2, 80), rng.integers(0, 4, 80)
    won = total = 0.0
    for p in np.flatnonzero(labels == 1):
        for n in np.flatnonzero(labels == 0):
            pair = weights[p] * weights[n]
            total += pair
            won += pair * ((scores[p] > scores[n]) + 0.5 * (scores[p] == scores[n]))
    assert auc(scores, labels, weights) == pytest.approx(won / total)


def test_log_loss_by_hand_and_finite_for_a_sure_mistake() -> None:
    assert log_loss(np.array([0.8, 0.25]), np.array([1, 0])) == pytest.approx(-(np.log(0.8) + np.log(0.75)) / 2)
    assert 10 < log_loss(np.array([0.0]), np.array([1])) < 20


def test_brier_score_by_hand_and_of_nothing_is_not_a_number() -> None:
    assert brier(np.array([0.1, 0.2, 0.7, 1.0]), np.array([0, 1, 1, 1])) == pytest.approx((0.01 + 0.64 + 0.09 + 0) / 4)
    assert np.isnan(brier(np.empty(0), np.empty(0)))


def test_calibration_error_weighs_bins_by_their_rows() -> None:
    chances = np.array([0.05, 0.05, 0.05, 0.95])
    assert calibration_error(chances, np.array([0, 0, 0, 1])) == pytest.approx(0.05)
    # the lower bin says .05 where .333 happened, the upper .95 where 0 did
    assert calibration_error(chances, np.array([1, 0, 0, 0])) == pytest.approx(0.75 * (1 / 3 - 0.05) + 0.25 * 0.95)


def test_paired_gain_of_a_better_score_is_above_zero_and_of_the_same_score_is_zero() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 2000), np.repeat(np.arange(100), 20)
    noisy, clear = labels + rng.normal(0, 2, 2000), labels + rng.normal(0, 1, 2000)
    gain, lower, upper = paired_auc_gain([clear], [noisy], labels, groups, num_samples=50)
    assert gain == pytest.approx(auc(clear, labels) - auc(noisy, labels))
    assert 0 < lower < gain < upper
    assert paired_auc_gain([clear], [clear], labels, groups, num_samples=5) == (0, 0, 0)


def test_paired_gain_of_runs_that_differ_is_less_sure_than_of_one_run() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 2000), np.repeat(np.arange(100), 20)
    base = labels + rng.normal(0, 2, 2000)
    lucky, unlucky = base + 0.3 * labels, base - 0.3 * labels
    _, lower, upper = paired_auc_gain([lucky, unlucky], [base], labels, groups, num_samples=50)
    _, best_lower, best_upper = paired_auc_gain([lucky], [base], labels, groups, num_samples=50)
    assert lower < 0 < upper and upper - lower > 2 * (best_upper - best_lower)
