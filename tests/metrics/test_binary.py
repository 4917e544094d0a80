"""AUC, Brier score and calibration, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from intently.metrics.binary import auc, brier, calibration_error


def test_auc_counts_the_pairs_in_the_right_order_and_half_of_the_equal_ones() -> None:
    # Pairs of a 1 and a 0: (.9, .8) right, (.9, .4) right, (.4, .8) wrong, (.4, .4) equal: 2.5 of 4.
    assert auc(np.array([0.9, 0.8, 0.4, 0.4]), np.array([1, 0, 1, 0])) == 0.625


def test_auc_of_scores_that_are_all_alike_is_a_half_and_of_one_class_no_number() -> None:
    assert auc(np.full(5, 0.3), np.array([1, 0, 0, 1, 0])) == 0.5
    assert math.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1])))
    assert math.isnan(auc(np.array([]), np.array([])))


def test_brier_and_calibration_error_of_two_bins() -> None:
    probabilities, labels = np.array([0.1, 0.2, 0.7, 1.0]), np.array([0, 1, 1, 1])
    assert brier(probabilities, labels) == pytest.approx((0.01 + 0.64 + 0.09 + 0) / 4)
    # Halves of 0..1: mean .15 against share .5 of two rows, mean .85 against share 1 of two.
    assert calibration_error(probabilities, labels, num_bins=2) == pytest.approx(0.5 * 0.35 + 0.5 * 0.15)
