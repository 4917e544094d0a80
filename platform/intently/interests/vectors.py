"""Texts as vectors: an encoder that remembers, the text of an item, and the nearest rows.

Shapes: N texts or items, Q queries, D the encoder's dimension, K neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.protocols import TextEncoder
from intently.interests.phrases import normalise

BLOCK_CELLS = 1 << 24
"""Similarities held at once: 64 MiB of float32."""


class RememberingEncoder:
    """A TextEncoder that encodes each distinct text once.

    Interests repeat over users, and the same items stand in many chunks.

    Args:
        encoder: does the work.
        max_texts: when so many are remembered, the memory starts anew; 1.5 KB a text at 384 dimensions.
    """

    def __init__(self, encoder: TextEncoder, max_texts: int = 200_000) -> None:
        self._encoder, self._max_texts = encoder, max_texts
        self._vectors: dict[str, np.ndarray] = {}
        self._one_at_a_time = threading.Lock()

    @property
    def name(self) -> str:
        """The name of the encoder inside."""
        return self._encoder.name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """N texts → [N, D] float32, each row of length 1."""
        if not texts:
            return np.zeros((0, 0), np.float32)
        with self._one_at_a_time:  # tokenizers may not be used by two threads at once
            fresh = [text for text in dict.fromkeys(texts) if text not in self._vectors]
            if len(self._vectors) + len(fresh) > self._max_texts:
                self._vectors.clear()
                fresh = list(dict.fromkeys(texts))
            if fresh:
                self._vectors.update(zip(fresh, self._encoder.encode(fresh), strict=True))
            return np.stack([self._vectors[text] for text in texts])


def interests_vector(phrases: Sequence[str], encoder: TextEncoder) -> np.ndarray:
    """Interests → [D] of length 1.

    Each phrase is encoded by itself: the last bits of a vector depend on what it is encoded with, and scores must not depend on the order
    in which answers came. An encoder that remembers makes that cheap.
    """
    mean = np.concatenate([encoder.encode([normalise(phrase)]) for phrase in phrases]).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-6)


def item_texts(items: pa.Table) -> pa.ChunkedArray:
    """Item rows → [N] the text that stands for an item where meanings are compared: title and categories.

    Shorter than what the towers embed: a phrase is closer to few words than to many.
    """
    listed = pc.greater(pc.list_value_length(items["categories"]), 0)
    categories = pc.if_else(listed, pc.binary_join(items["categories"], ", "), items["category"])
    return pc.binary_join_element_wise(items["title"], categories, ", ")


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `vectors` most similar to each query.

    Args:
        queries: [Q, D] unit rows.
        vectors: [N, D] unit rows.
        k: how many; fewer come back when N < k.
        allowed: [Q, N] bool; the others are never found. None allows all.
    Returns:
        indices [Q, min(K, N)] and cosines of the same shape, best first, ties by lower index; not allowed ones have -inf.
    """
    k = min(k, len(vectors))
    indices, scores = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    if k == 0:
        return indices, scores
    step = max(1, BLOCK_CELLS // len(vectors))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        similarity = queries[block] @ vectors.T
        if allowed is not None:
            similarity = np.where(allowed[block], similarity, -np.inf)
        best = np.sort(np.argpartition(-similarity, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        indices[block] = np.take_along_axis(best, order, axis=1)
        scores[block] = np.take_along_axis(similarity, indices[block], axis=1)
    return indices, scores
