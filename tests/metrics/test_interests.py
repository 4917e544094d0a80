"""Interest quality and category hits, by hand."""

from __future__ import annotations

import numpy as np
from intently.metrics.interests import category_hits, interest_quality

EAST, NORTH, DIAGONAL = [1.0, 0.0], [0.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)]


def test_interest_quality_is_the_mean_cosine_of_all_pairs_of_a_user() -> None:
    interests, items = np.array([EAST, NORTH, EAST, DIAGONAL]), np.array([EAST, DIAGONAL, NORTH, EAST])
    quality = interest_quality(interests, np.array([0, 0, 1, 3]), items, np.array([0, 0, 1, 2]), 4)
    # User 0: cosines 1, .7071 (east) and 0, .7071 (north). User 1: east against north. User 2 has no interest, user 3 no later item.
    np.testing.assert_allclose(quality[:2], [(1 + 2 * np.sqrt(0.5)) / 4, 0.0], atol=1e-12)
    assert np.isnan(quality[2:]).all()


def test_interest_quality_equals_the_pairs_written_out() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    interests, items, whose, who = vectors[:25], vectors[25:], generator.integers(3, size=25), generator.integers(3, size=35)
    expected = [(interests[whose == user] @ items[who == user].T).mean() for user in range(3)]
    np.testing.assert_allclose(interest_quality(interests, whose, items, who, 3), expected)


def test_category_hits_look_at_the_first_k_tags_of_each_user() -> None:
    named = np.array([2, 0, -1, 1, 2, 1])
    named_user = np.array([0, 1, 0, 0, 1, 3])
    target = np.array([1, 2, 0, 1])
    assert category_hits(named, named_user, target, 3, 3).tolist() == [1, 1, 0, 1]
    assert category_hits(named, named_user, target, 2, 3).tolist() == [0, 1, 0, 1], "a tag without a category takes a place"
    assert category_hits(named, named_user, target, 1, 3).tolist() == [0, 0, 0, 1]
