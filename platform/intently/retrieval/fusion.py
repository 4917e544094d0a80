"""Fusing what users did with what their tags say: h = b·h_u + (1 − b)·h_t (RecGPT, user-item-tag retrieval).

A user's several tags are pooled (mean, or the maximum of each coordinate) and brought back to length 1, so that b weighs two vectors
of one length. Users without tags are searched with h_u alone, whatever b is. One search with h then equals b·y_col + (1 − b)·y_sem.

Shapes: U users, T tags, D width, N (user, tag) rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class FusedVectors:
    """Both sides of the fusion.

    Attributes:
        users: [U, D] h_u, length 1.
        tags: [U, D] h_t, length 1, or zero for users without tags.
    """

    users: np.ndarray
    tags: np.ndarray

    @property
    def tagged(self) -> np.ndarray:
        """[U] whether the user has tags."""
        return self.tags.any(axis=1)

    def at(self, beta: float, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """h of some user rows for one b, float32."""
        return fuse(self.users[rows], self.tags[rows], beta)


def fuse(users: np.ndarray, tags: np.ndarray, beta: float) -> np.ndarray:
    """h_u [n, D] and h_t [n, D] (zero where there are no tags) → h [n, D]."""
    weight = np.where(tags.any(axis=1, keepdims=True), np.float32(beta), np.float32(1))
    return weight * users + (1 - weight) * tags


def pool_tags(vectors: np.ndarray, users: np.ndarray, tags: np.ndarray, num_users: int, pooling: Pooling = "mean") -> np.ndarray:
    """h_t of every user: their tags' vectors in one, of length 1.

    Args:
        vectors: [T, D] of distinct tags.
        users: [N] user rows.
        tags: [N] tag rows; −1 where a tag has no vector.
        num_users: U.
        pooling: mean of the vectors, or the maximum of each coordinate.
    Returns:
        [U, D] float32, zero for users without tags.
    """
    known = tags >= 0
    shape = num_users, vectors.shape[1]
    match pooling:
        case "mean":
            pooled = np.zeros(shape, np.float32)
            np.add.at(pooled, users[known], vectors[tags[known]])
        case "max":
            pooled = np.full(shape, -np.inf, np.float32)
            np.maximum.at(pooled, users[known], vectors[tags[known]])
            pooled[np.isneginf(pooled)] = 0
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Point:
    """One b of the sweep, measured on validation; all but b are better when higher.

    Attributes:
        beta: weight of h_u.
        accuracy: NDCG@10.
        coverage: category coverage of the lists.
        tail: share of shown places that go to items outside the most popular fifth.
    """

    beta: float
    accuracy: float
    coverage: float
    tail: float

    @property
    def aims(self) -> tuple[float, float, float]:
        """What is traded off."""
        return self.accuracy, self.coverage, self.tail


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in accuracy, coverage or tail without losing another of them, by falling accuracy."""
    aims = np.array([point.aims for point in points]).reshape(-1, 3)
    better = (aims[:, None] >= aims).all(axis=2) & (aims[:, None] > aims).any(axis=2)  # [i, j]: i dominates j
    front = [point for point, dominated in zip(points, better.any(axis=0), strict=True) if not dominated]
    return sorted(front, key=lambda point: point.aims, reverse=True)


def choose(points: Sequence[Point], concession: float = 0.0) -> Point:
    """The rule: of the front, the points within `concession` of the best accuracy; of these most coverage, then most tail, then larger b.

    Args:
        points: the sweep.
        concession: share of the best accuracy that may be given up for diversity.
    """
    front = pareto_front(points)
    enough = (1 - concession) * front[0].accuracy
    return max((point for point in front if point.accuracy >= enough), key=lambda point: (point.coverage, point.tail, point.beta))
