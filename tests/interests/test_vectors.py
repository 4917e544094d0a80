"""Nearest rows against brute force; an encoder that remembers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from intently.interests import vectors
from intently.interests.vectors import RememberingEncoder, nearest


class CountingEncoder:
    """Encodes a text as its length and notes what it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        return np.array([[len(text)] for text in texts], np.float32)


def test_nearest_masked_and_blocked_equals_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_CELLS", 40)
    draw = np.random.default_rng(0)
    queries, rows = draw.normal(size=(7, 4)).astype(np.float32), draw.normal(size=(13, 4)).astype(np.float32)
    allowed = draw.random((7, 13)) < 0.4
    indices, scores = nearest(queries, rows, 3, allowed)
    for query in range(7):
        expected = sorted(np.flatnonzero(allowed[query]), key=lambda row: -float(queries[query] @ rows[row]))[:3]
        found = indices[query][np.isfinite(scores[query])].tolist()
        assert found == expected
        np.testing.assert_allclose(scores[query][: len(found)], rows[found] @ queries[query], rtol=1e-5)


def test_nearest_fewer_rows_than_k_returns_them_all() -> None:
    indices, scores = nearest(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 5)
    assert indices.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1, 0], [1, 0]]


def test_remembering_encoder_known_texts_are_not_encoded_again() -> None:
    inner = CountingEncoder()
    encoder = RememberingEncoder(inner)
    assert encoder.encode(["a", "bbb", "a"]).tolist() == [[1], [3], [1]]
    assert encoder.encode(["bbb", "cc"]).tolist() == [[3], [2]]
    assert inner.asked == [["a", "bbb"], ["cc"]]


def test_remembering_encoder_over_its_limit_starts_anew() -> None:
    inner = CountingEncoder()
    encoder = RememberingEncoder(inner, max_texts=2)
    encoder.encode(["a", "bb"])
    assert encoder.encode(["a", "ccc"]).tolist() == [[1], [3]]
    assert inner.asked == [["a", "bb"], ["a", "ccc"]]
