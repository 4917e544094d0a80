"""Where held-out items stand among ALL items, with and without those that the user has taken already.

Shapes: N targets, I items, k list length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from intently.metrics.diversity import category_coverage, exposure, gini, item_coverage, tail_share
from intently.metrics.ranking import hit_rate, mean_reciprocal_rank, ndcg, ranks_of_targets
from intently.retrieval.catalogue import Catalogue
from intently.retrieval.interactions import BehaviourConfig, Interactions, Seen, read_interactions, rows_of, seen_items

Scorer = Callable[[np.ndarray], np.ndarray]
"""[b] user rows → [b, I] scores, higher is better."""


@dataclass(frozen=True)
class Targets:
    """Held-out items of one split.

    Attributes:
        split: validation or test.
        users: [N] user rows of `past`.
        items: [N] catalogue rows.
        past: what a model may know of the users.
        seen: what filter-seen takes out: items taken in `past`.
    """

    split: str
    users: np.ndarray
    items: np.ndarray
    past: Interactions
    seen: Seen


def read_targets(split: str, held_out: pa.Table, item_ids: pa.Array, past: Interactions, config: BehaviourConfig) -> Targets:
    """HISTORY rows of one event each → targets of the users that `past` knows.

    Args:
        split: validation or test.
        held_out: history_validation or history_test.
        item_ids: [I] of the catalogue.
        past: history_train for validation; history_train and the validation event for test.
        config: which behaviours count.
    """
    events = read_interactions(held_out, item_ids, config)
    users = rows_of(events.user_ids, past.user_ids)[events.users]
    known = users >= 0
    return Targets(split, users[known], events.items[known], past, seen_items(past, config))


@dataclass(frozen=True)
class Ranking:
    """How a model ranked one split under one filter.

    Attributes:
        ranks: [N] of the targets, from 0.
        lists: [N, k] best catalogue rows; −1 where nothing is left.
        filter_seen: whether seen items were taken out.
    """

    ranks: np.ndarray
    lists: np.ndarray
    filter_seen: bool


def rank(scorer: Scorer, targets: Targets, k: int, block: int = 512) -> tuple[Ranking, Ranking]:
    """Rank every target among all items.

    Args:
        scorer: the model.
        targets: N of them.
        k: length of the lists that diversity is measured on.
    Returns:
        With seen items left in, and with them taken out (a target that was seen then ranks last).
    """
    found: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {False: [], True: []}
    for start in range(0, len(targets.users), block):
        users, items = targets.users[start : start + block], targets.items[start : start + block]
        scores = np.array(scorer(users), dtype=np.float32)  # a copy: the filter writes into it
        for filter_seen in (False, True):
            if filter_seen:
                scores[targets.seen.pairs(users)] = -np.inf
            found[filter_seen].append((ranks_of_targets(scores, items), best(scores, k)))
    return _joined(found[False], False, k), _joined(found[True], True, k)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """[b, I] scores → [b, k] best columns, best first; −1 where fewer than k are finite."""
    width = min(k, scores.shape[1])
    top = np.argpartition(-scores, width - 1, axis=1)[:, :width]
    values = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    top = np.where(np.isneginf(np.take_along_axis(values, order, axis=1)), -1, np.take_along_axis(top, order, axis=1))
    return np.pad(top, ((0, 0), (0, k - width)), constant_values=-1)


def accuracy(ranking: Ranking, cutoffs: Sequence[int]) -> dict[tuple[str, int], float]:
    """(name, k) → HR, NDCG and MRR."""
    measures = {"HR": hit_rate, "NDCG": ndcg, "MRR": mean_reciprocal_rank}
    return {(name, k): measure(ranking.ranks, k) for name, measure in measures.items() for k in cutoffs}


def spread(ranking: Ranking, catalogue: Catalogue, popularity: np.ndarray) -> dict[tuple[str, int], float]:
    """(name, k) → category and item coverage, Gini and tail share of the lists, k being their length."""
    k = ranking.lists.shape[1]
    return {
        ("category_coverage", k): category_coverage(ranking.lists, catalogue.categories),
        ("item_coverage", k): item_coverage(ranking.lists, catalogue.num_items),
        ("gini", k): gini(exposure(ranking.lists, catalogue.num_items)),
        ("tail_share", k): tail_share(ranking.lists, popularity),
    }


def metric_rows(
    subject: str,
    split: str,
    ranking: Ranking,
    figures: Mapping[tuple[str, int], float],
    seed: int,
    setting: Mapping[str, float],
) -> list[dict]:
    """METRIC rows of one ranking; figures that are not a number (no users) are left out."""
    common = {
        "subject": subject,
        "split": split,
        "setting": json.dumps(dict(setting), sort_keys=True),
        "filter_seen": ranking.filter_seen,
        "num_users": len(ranking.ranks),
        "seed": seed,
    }
    return [{**common, "name": name, "k": k, "value": value} for (name, k), value in figures.items() if not np.isnan(value)]


def _joined(blocks: list[tuple[np.ndarray, np.ndarray]], filter_seen: bool, k: int) -> Ranking:
    if not blocks:
        return Ranking(np.empty(0, np.int64), np.empty((0, k), np.int64), filter_seen)
    ranks, lists = zip(*blocks, strict=True)
    return Ranking(np.concatenate(ranks), np.concatenate(lists), filter_seen)
