"""How widely recommendations spread over categories and over the catalogue.

Shapes: N users, k items a list, I items, C categories. Lists hold catalogue rows; −1 stands for an empty place.
"""

from __future__ import annotations

import numpy as np


def category_coverage(lists: np.ndarray, categories: np.ndarray) -> float:
    """Mean over users of |distinct categories in the list| / |items in the list|: 1 when all differ; NaN for no items.

    Args:
        lists: [N, k] catalogue rows.
        categories: [I] category codes from 0.
    """
    shown = np.where(lists >= 0, categories[lists], -1)
    ordered = np.sort(shown, axis=1)
    new = (ordered >= 0) & np.concatenate([np.ones((len(ordered), 1), bool), np.diff(ordered, axis=1) > 0], axis=1)
    lengths = (lists >= 0).sum(axis=1)
    filled = lengths > 0
    return float((new.sum(axis=1)[filled] / lengths[filled]).mean()) if filled.any() else float("nan")


def item_coverage(lists: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is in anybody's list.

    Args:
        lists: [N, k] catalogue rows.
        num_items: I.
    """
    return float((exposure(lists, num_items) > 0).mean())


def gini(counts: np.ndarray) -> float:
    """Gini coefficient G = Σᵢ (2i − n − 1) xᵢ / (n Σ xᵢ), x ascending, i from 1: 0 when all are shown alike, (n−1)/n when one takes all.

    Args:
        counts: [n] how often each item is shown; NaN when nothing is.
    """
    ordered = np.sort(counts.astype(np.float64))
    total, n = ordered.sum(), len(ordered)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total)) if total else float("nan")


def tail_share(lists: np.ndarray, popularity: np.ndarray, head: float = 0.2) -> float:
    """Share of shown places that go to items outside the most popular `head` of the catalogue; NaN when nothing is shown.

    Args:
        lists: [N, k] catalogue rows.
        popularity: [I] training events of each item.
        head: share of the catalogue, by popularity, that is not the tail.
    """
    in_head = np.zeros(len(popularity), bool)
    in_head[np.argsort(-popularity, kind="stable")[: round(head * len(popularity))]] = True
    shown = lists[lists >= 0]
    return float((~in_head[shown]).mean()) if len(shown) else float("nan")


def exposure(lists: np.ndarray, num_items: int) -> np.ndarray:
    """[I] how often each item is in a list.

    Args:
        lists: [N, k] catalogue rows.
        num_items: I.
    """
    return np.bincount(lists[lists >= 0], minlength=num_items)
