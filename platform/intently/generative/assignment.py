"""One semantic ID one item: spreads the last code among items that share all others, and never moves what is published.

Shapes: N new items, P published ones, H codes of a semantic ID, K codes of a level.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from intently.core.errors import SchemaError
from intently.generative.quantiser import Distances


def assign_codes(prefixes: np.ndarray, distances: Distances, published: np.ndarray) -> np.ndarray:
    """Semantic IDs of new items: the last code is the nearest one that is free, together as near as possible within each prefix.

    Items of one prefix are matched to last codes at the least sum of squared distances (linear assignment). Where a prefix has more items
    than free codes, those that are matched worst move to the nearest other code of the level before that has room.

    Args:
        prefixes: [N, H − 1] int32 codes of all levels but the last.
        distances: costs of codes.
        published: [P, H] int32 semantic IDs that are taken already.
    Returns:
        [N, H] int32, distinct, and none of them published.
    Raises:
        SchemaError: even the other codes of the level before are full.
    """
    num_codes = distances.codebooks.shape[1]
    taken: dict[int, set[int]] = {}
    for key, last in zip(_keys(published[:, :-1], num_codes).tolist(), published[:, -1].tolist(), strict=True):
        taken.setdefault(key, set()).add(last)
    codes = np.concatenate([prefixes, np.zeros((len(prefixes), 1), np.int32)], axis=1)
    keys = _keys(prefixes, num_codes)
    order = np.argsort(keys, kind="stable")
    homeless: list[int] = []
    for items in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        if not len(items):  # of an empty catalogue
            continue
        used = taken.setdefault(int(keys[items[0]]), set())
        free = np.setdiff1d(np.arange(num_codes), np.fromiter(used, np.int64, len(used)), assume_unique=True)
        rows, columns = linear_sum_assignment(distances.last(items, prefixes[items])[:, free])
        codes[items[rows], -1] = free[columns]
        used.update(free[columns].tolist())
        homeless += np.delete(items, rows).tolist()
    for item in homeless:
        codes[item] = _nearest_room(item, prefixes[item], distances, taken)
    return codes


def _nearest_room(item: int, prefix: np.ndarray, distances: Distances, taken: dict[int, set[int]]) -> np.ndarray:
    num_codes = distances.codebooks.shape[1]
    for code in np.argsort(distances.last_but_one(item, prefix[:-1]), kind="stable"):
        moved = np.append(prefix[:-1], code).astype(np.int32)
        used = taken.setdefault(int(_keys(moved[None], num_codes)[0]), set())
        if len(used) < num_codes:
            nearest = np.argsort(distances.last(np.array([item]), moved[None])[0], kind="stable")
            last = next(int(candidate) for candidate in nearest if int(candidate) not in used)
            used.add(last)
            return np.append(moved, last)
    raise SchemaError(f"all {num_codes**2} semantic IDs that begin with {prefix[:-1].tolist()} are taken; give levels or codes more room")


def _keys(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """[n, l] codes → [n] one integer each."""
    return codes.astype(np.int64) @ (num_codes ** np.arange(codes.shape[1], dtype=np.int64)[::-1])
