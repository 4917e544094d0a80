"""How well scores tell two classes apart, and whether they can be read as chances. Every function takes N predictions and their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLOOR = 1e-7
"""Predictions are kept this far from 0 and 1, so that one sure mistake does not make the log loss infinite."""


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting half.

    AUC = Σ_p Σ_n w_p w_n ([s_p > s_n] + ½ [s_p = s_n]) / (Σ w_p · Σ w_n)

    Args:
        scores: [N], higher means likelier; any monotone scale.
        labels: [N] 0 or 1.
        weights: [N] ≥ 0, how often each row counts; None counts each once.
    Returns:
        NaN where one of the classes is missing.
    """
    return _area(_Order(scores, labels), weights)


def log_loss(chances: np.ndarray, labels: np.ndarray) -> float:
    """Binary cross-entropy in nats: −(1/N) Σ y ln p + (1 − y) ln(1 − p); NaN for no rows.

    Args:
        chances: [N] in 0..1.
        labels: [N] 0 or 1.
    """
    if not len(chances):
        return float("nan")
    p = np.clip(chances.astype(np.float64), FLOOR, 1 - FLOOR)
    return float(-np.where(labels > 0, np.log(p), np.log1p(-p)).mean())


def brier(chances: np.ndarray, labels: np.ndarray) -> float:
    """(1/N) Σ (p − y)²; NaN for no rows.

    Args:
        chances: [N] in 0..1.
        labels: [N] 0 or 1.
    """
    return float(np.mean((chances - labels) ** 2)) if len(labels) else float("nan")


def calibration_error(chances: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error over equal-width bins: Σ_b (n_b / N) |mean chance − mean label|; NaN for no rows.

    Args:
        chances: [N] in 0..1.
        labels: [N] 0 or 1.
        num_bins: bins of 0..1.
    """
    if not len(chances):
        return float("nan")
    place = np.minimum((chances * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(place, chances.astype(np.float64) - labels, num_bins)
    return float(np.abs(gaps).sum() / len(chances))


def paired_auc_gain(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    level: float = 0.95,
    num_samples: int = 400,
    seed: int = 0,
) -> tuple[float, float, float]:
    """By how much the mean AUC of several runs exceeds that of others on the same rows, with a bootstrap interval over groups.

    Groups (users) are drawn with replacement, all rows of one together, because their rows are alike; so are the runs of each side, because
    a model trained once more scores otherwise.

    Args:
        ours, theirs: [N] scores of each run (seed); the two sides may have different numbers of runs.
        labels: [N] 0 or 1.
        groups: [N] which user each row belongs to.
        level: share of resampled gains inside the interval.
        num_samples: resamplings.
        seed: of the resampling.
    Returns:
        gain, lower and upper bound.
    """
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max()) + 1 if len(group) else 0
    sides = [[_Order(scores, labels) for scores in side] for side in (ours, theirs)]
    generator = np.random.default_rng(seed)

    def areas(weights: np.ndarray | None) -> list[np.ndarray]:
        return [np.array([_area(order, weights) for order in side]) for side in sides]

    drawn = []
    for _ in range(num_samples):
        counts = np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
        first, second = (side[generator.integers(len(side), size=len(side))].mean() for side in areas(counts[group]))
        drawn.append(first - second)
    lower, upper = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    first, second = (float(side.mean()) for side in areas(None))
    return first - second, float(lower), float(upper)


class _Order:
    """Rows sorted by score once, so that many weightings of them are cheap."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.order = np.argsort(scores, kind="stable")
        self.positive = labels[self.order] > 0
        ordered = scores[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.empty(0, np.int64)


def _area(order: _Order, weights: np.ndarray | None) -> float:
    ordered = np.ones(len(order.order)) if weights is None else weights[order.order].astype(np.float64)
    if not len(ordered):
        return float("nan")
    positive, all_rows = (np.add.reduceat(values, order.starts) for values in (ordered * order.positive, ordered))
    negative = all_rows - positive
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + 0.5 * negative)).sum() / total) if total > 0 else float("nan")
