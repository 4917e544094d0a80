"""Fusing what users did with what their tags say: h = b·h_u + (1 − b)·h_t (RecGPT, user-item-tag retrieval).

A user's several tags are mean-pooled and the mean is brought back to length 1, so that b weighs two vectors of one length.
Users without tags are searched with h_u alone, whatever b is. One search with h then equals b·y_col + (1 − b)·y_sem.

Shapes: U users, T tags, D width, N (user, tag) rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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


def pool_tags(vectors: np.ndarray, users: np.ndarray, tags: np.ndarray, num_users: int) -> np.ndarray:
    """h_t of every user: the mean of their tags' vectors, of length 1.

    Args:
        vectors: [T, D] of distinct tags.
        users: [N] user rows.
        tags: [N] tag rows; −1 where a tag has no vector.
        num_users: U.
    Returns:
        [U, D] float32, zero for users without tags.
    """
    known = tags >= 0
    sums = np.zeros((num_users, vectors.shape[1]), np.float32)
    np.add.at(sums, users[known], vectors[tags[known]])
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Point:
    """One b of the sweep, measured on validation.

    Attributes:
        beta: weight of h_u.
        accuracy: NDCG@10.
        coverage: category coverage of the lists.
    """

    beta: float
    accuracy: float
    coverage: float


def choose(points: Sequence[Point]) -> Point:
    """The rule: highest NDCG@10 on validation; among equals the one of more category coverage, then the larger b."""
    return max(points, key=lambda point: (point.accuracy, point.coverage, point.beta))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in accuracy without losing coverage, by falling accuracy."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.accuracy, -point.coverage)):
        if not front or point.coverage > front[-1].coverage:
            front.append(point)
    return front
