"""Generated lists beside a dense model's scores of every item: one ranking of both.

Shapes: N users, k generated items of each, I items.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Method = Literal["mixture", "ranks"]
_RANK_OFFSET = 20


def fuse(found: np.ndarray, log_probs: np.ndarray, dense: np.ndarray, weight: float, method: Method) -> np.ndarray:
    """Scores of all items: weight · generator + (1 − weight) · dense.

    Args:
        found: [N, k] generated rows, best first; −1 where there is none.
        log_probs: [N, k] their scores.
        dense: [N, I] scores of the other model, −inf for what may not be found.
        weight: of the generator, 0 to 1.
        method: mixture adds probabilities, w · exp(log_prob) + (1 − w) · softmax(dense); ranks adds 1 / (20 + rank), which needs no scale
            (reciprocal rank fusion, Cormack et al. 2009).
    Returns:
        [N, I] float64; −inf where dense is.
    """
    rows, places = np.nonzero(found >= 0)
    generated, lost = np.zeros(dense.shape), np.isneginf(dense)
    if method == "mixture":
        generated[rows, found[rows, places]] = np.exp(log_probs[rows, places])
        likely = np.exp(dense - dense.max(axis=1, keepdims=True))
        other = likely / likely.sum(axis=1, keepdims=True)
    else:
        generated[rows, found[rows, places]] = 1 / (_RANK_OFFSET + places)
        order = np.argsort(-dense, axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(dense.shape[1]), dense.shape), axis=1)
        other = 1 / (_RANK_OFFSET + ranks)
    return np.where(lost, -np.inf, weight * generated + (1 - weight) * other)
