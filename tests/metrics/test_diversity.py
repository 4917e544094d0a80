"""Diversity metrics against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from intently.metrics.diversity import category_coverage, exposure, gini, item_coverage, tail_share

CATEGORIES = np.array([0, 0, 1, 2])


def test_category_coverage_is_mean_share_of_distinct_categories() -> None:
    lists = np.array([[0, 1, 2], [1, 2, 3]])  # 2 of 3, then 3 of 3
    assert category_coverage(lists, CATEGORIES) == pytest.approx((2 / 3 + 1) / 2)


def test_category_coverage_empty_places_do_not_count() -> None:
    assert category_coverage(np.array([[0, 1, -1], [-1, -1, -1]]), CATEGORIES) == 0.5
    assert math.isnan(category_coverage(np.array([[-1]]), CATEGORIES))


def test_gini_all_alike_is_zero_and_one_takes_all_is_nearly_one() -> None:
    assert gini(np.array([3, 3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)


def test_gini_hand_computed() -> None:
    # x = 1, 2, 3: (−2·1 + 0·2 + 2·3) / (3·6)
    assert gini(np.array([3, 1, 2])) == pytest.approx(4 / 18)


def test_exposure_and_item_coverage_count_shown_items() -> None:
    lists = np.array([[0, 2], [2, -1]])
    assert exposure(lists, 4).tolist() == [1, 0, 2, 0]
    assert item_coverage(lists, 4) == 0.5


def test_tail_share_counts_places_outside_the_head() -> None:
    popularity = np.array([10, 1, 2, 3, 4])  # the head of 20 % is item 0
    assert tail_share(np.array([[0, 1], [0, 4]]), popularity) == 0.5
    assert tail_share(np.array([[1, -1]]), popularity) == 1
