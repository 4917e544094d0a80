"""Lists of several models in one ranking: what a generator found, what a dense model scores best, what neighbours say.

Shapes: N users, S models, k candidates of a model, M candidates of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from intently.core.errors import ConfigError
from intently.metrics.ranking import hit_rate, ndcg

Method = Literal["mixture", "ranks", "rerank", "roots"]
METHODS: tuple[Method, ...] = get_args(Method)
_RANK_OFFSET = 20
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Pool:
    """Candidates of all models, each once.

    Attributes:
        items: [N, M] rows of the catalogue; −1 where there is none.
        probabilities: [S, N, M] float32; 0 where a model did not name the item.
        ranks: [S, N, M] int64 from 0; M where a model did not name it.
    """

    items: np.ndarray
    probabilities: np.ndarray
    ranks: np.ndarray


def pool(lists: Sequence[tuple[np.ndarray, np.ndarray]]) -> Pool:
    """Put lists together.

    Args:
        lists: of each model [N, k] items, best first and −1 where there is none, and [N, k] their probabilities; k may differ.
    """
    named = np.concatenate([items for items, _ in lists], axis=1)
    order = np.argsort(named, axis=1, kind="stable")
    ordered = np.take_along_axis(named, order, axis=1)
    number = np.cumsum(np.diff(ordered, axis=1, prepend=ordered[:, :1]) != 0, axis=1)
    columns, items = np.empty_like(order), np.full(named.shape, -1)
    np.put_along_axis(columns, order, number, axis=1)
    np.put_along_axis(items, columns, named, axis=1)
    probabilities = np.zeros((len(lists), *named.shape), np.float32)
    ranks = np.full(probabilities.shape, named.shape[1])
    start = 0
    for model, (found, likely) in enumerate(lists):
        own = columns[:, start : start + found.shape[1]]
        np.put_along_axis(probabilities[model], own, likely.astype(np.float32), axis=1)
        np.put_along_axis(ranks[model], own, np.broadcast_to(np.arange(found.shape[1]), found.shape), axis=1)
        start += found.shape[1]
    return Pool(items, probabilities, ranks)


def fuse(candidates: Pool, weights: Sequence[float], method: Method) -> np.ndarray:
    """Scores of the candidates.

    Args:
        candidates: of S models.
        weights: [S], one a model.
        method: mixture adds probabilities, Σ w · p; roots adds Σ w · √p, so that one model's certainty outweighs the others less; ranks
            adds w / (20 + rank), which needs no scale (reciprocal rank fusion, Cormack et al. 2009); rerank orders what the first model
            named by Σ w · log p, the other models' smallest value standing for what they did not name.
    Returns:
        [N, M] float64; −inf for no candidate.
    """
    if len(weights) != len(candidates.probabilities):
        raise ConfigError("weights", list(weights), f"there are {len(candidates.probabilities)} models")
    scores, width = np.zeros(candidates.items.shape), candidates.items.shape[1]
    for weight, likely, ranks in zip(weights, candidates.probabilities, candidates.ranks, strict=True):
        match method:
            case "mixture":
                scores += weight * likely
            case "roots":
                scores += weight * np.sqrt(likely)
            case "ranks":
                scores += np.where(ranks < width, weight / (_RANK_OFFSET + ranks), 0)
            case "rerank":
                least = np.where(likely > 0, likely, np.inf).min(axis=1, keepdims=True)
                scores += weight * np.log(np.where(likely > 0, likely, np.where(np.isfinite(least), least, 1)).clip(min=_SMALLEST))
    open_to = candidates.items >= 0
    if method == "rerank":
        open_to = open_to & (candidates.ranks[0] < width)
    return np.where(open_to, scores, -np.inf)


def ranks_in_pool(candidates: Pool, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[N] places of the targets from 0, ties against them; M for those that are no candidate.

    Args:
        candidates: N users'.
        scores: [N, M] of `fuse`.
        targets: [N] rows of the catalogue.
    """
    own = np.where(candidates.items == targets[:, None], scores, -np.inf).max(axis=1)
    places = (scores >= own[:, None]).sum(axis=1) - 1
    return np.where(np.isneginf(own), candidates.items.shape[1], places)


def measure_weights(point: Mapping[str, float], data: Mapping[str, tuple[Pool, np.ndarray]]) -> dict[str, float]:
    """One point of a sweep (runtime.tune): how well a method and its weights rank the targets.

    Args:
        point: `method`, its number among METHODS, and `weight_0`, `weight_1`, …
        data: name → candidates and targets.
    Returns:
        HR@10 and NDCG@10 by name.
    """
    weights = [value for key, value in sorted(point.items()) if key.startswith("weight_")]
    figures = {}
    for name, (candidates, targets) in data.items():
        ranks = ranks_in_pool(candidates, fuse(candidates, weights, METHODS[int(point["method"])]), targets)
        figures |= {f"hr10_{name}": hit_rate(ranks, 10), f"ndcg10_{name}": ndcg(ranks, 10)}
    return figures
