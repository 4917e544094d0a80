"""How well scores tell two classes apart, and whether they can be read as probabilities. N scores with labels 1 and 0."""

from __future__ import annotations

import numpy as np


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a 1 > score of a 0) + P(equal) / 2, by ranks; NaN where a class is missing.

    Args:
        scores: [N] float.
        labels: [N] 1 or 0.
    """
    positive = np.asarray(labels) > 0
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; equals share the mean of their places
    return float((rank[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """(1/N) Σ (p − y)²; NaN for no scores."""
    return float(np.mean((probabilities - labels) ** 2)) if len(labels) else float("nan")


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error: Σ over equal-width bins of (n_bin / N) · |mean p − mean y|; NaN for no scores.

    Args:
        probabilities: [N] in 0..1.
        labels: [N] 1 or 0.
        num_bins: bins of 0..1; 1 is in the last.
    """
    if not len(labels):
        return float("nan")
    place = np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)
    gap = np.bincount(place, probabilities, num_bins) - np.bincount(place, labels, num_bins)
    return float(np.abs(gap).sum() / len(labels))
