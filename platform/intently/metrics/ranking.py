"""How high the wanted item stands. Every function takes the ranks of N targets, one a user, 0 for the best place.

With one target a user, recall at k is the hit rate, and the ideal DCG is 1.
"""

from __future__ import annotations

import numpy as np


def ranks_of_targets(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target among all scores of its row: how many others score as high or higher.

    Ties count against the target: a model that scores everything alike then ranks every target last instead of first.

    Args:
        scores: [N, I], higher is better; −inf takes a candidate out, and a target that is taken out, or has no score (NaN), ranks last (I).
        targets: [N] columns.
    Returns:
        [N] int64.
    """
    rows = np.arange(len(targets))
    own = scores[rows, targets]
    # Others without a score count against the target as well.
    ranks = (~(scores < own[:, None])).sum(axis=1) - 1
    return np.where(np.isneginf(own) | np.isnan(own), scores.shape[1], ranks).astype(np.int64)


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """HR@k = (1/N) Σ [rank < k]; NaN for no ranks.

    Args:
        ranks: [N] from 0.
        k: cut-off.
    """
    return _mean(hits(ranks, k))


def ndcg(ranks: np.ndarray, k: int) -> float:
    """NDCG@k = (1/N) Σ [rank < k] / log2(rank + 2); NaN for no ranks.

    Args:
        ranks: [N] from 0.
        k: cut-off.
    """
    return _mean(gains(ranks, k))


def mean_reciprocal_rank(ranks: np.ndarray, k: int) -> float:
    """MRR@k = (1/N) Σ [rank < k] / (rank + 1); NaN for no ranks.

    Args:
        ranks: [N] from 0.
        k: cut-off.
    """
    return _mean(hits(ranks, k) / (ranks + 1))


def hits(ranks: np.ndarray, k: int) -> np.ndarray:
    """[N] float64: 1 where rank < k, else 0."""
    return (ranks < _positive(k)).astype(np.float64)


def gains(ranks: np.ndarray, k: int) -> np.ndarray:
    """[N] float64: 1 / log2(rank + 2) where rank < k, else 0."""
    return hits(ranks, k) / np.log2(ranks + 2.0)


def bootstrap_interval(values: np.ndarray, level: float = 0.95, num_samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-user values.

    Args:
        values: [N] such as `hits` or `gains`, N ≥ 1.
        level: share of resampled means inside the interval.
        num_samples: resamplings of N users with replacement.
        seed: of the resampling.
    Returns:
        lower and upper bound.
    """
    generator = np.random.default_rng(seed)
    # One resampling at a time: a matrix of all of them would hold N × num_samples numbers.
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(num_samples)]
    lower, upper = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def _positive(k: int) -> int:
    if k < 1:
        raise ValueError(f"k = {k}: must be at least 1")
    return k


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
