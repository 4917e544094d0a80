"""Generated lists and dense scores in one ranking."""

from __future__ import annotations

import numpy as np
from intently.generative.fusion import fuse

FOUND = np.array([[2, 0, -1]])
LOG_PROBS = np.log([[0.5, 0.25, 0.1]])
DENSE = np.log([[0.1, 0.6, 0.1, 0.2]])


def test_fuse_mixture_adds_probabilities() -> None:
    fused = fuse(FOUND, LOG_PROBS, DENSE, 0.4, "mixture")
    np.testing.assert_allclose(fused, [[0.4 * 0.25 + 0.06, 0.36, 0.4 * 0.5 + 0.06, 0.12]], rtol=1e-6)


def test_fuse_ranks_adds_reciprocal_ranks() -> None:
    fused = fuse(FOUND, LOG_PROBS, DENSE, 0.25, "ranks")
    # Dense order: 1, 3, 0, 2 (ties in the order of items).
    expected = [0.25 / 21 + 0.75 / 22, 0.75 / 20, 0.25 / 20 + 0.75 / 23, 0.75 / 21]
    np.testing.assert_allclose(fused, [expected], rtol=1e-6)


def test_fuse_weights_at_the_ends_are_the_models_and_excluded_items_stay_out() -> None:
    dense = np.array([[1.0, -np.inf, 3.0, 2.0]])
    for method in ("mixture", "ranks"):
        assert np.argsort(-fuse(FOUND, LOG_PROBS, dense, 0.0, method)[0]).tolist()[:3] == [2, 3, 0]
        assert np.argsort(-fuse(FOUND, LOG_PROBS, dense, 1.0, method)[0]).tolist()[:2] == [2, 0]
        assert np.isneginf(fuse(FOUND, LOG_PROBS, dense, 0.5, method)[0, 1])
