"""What the towers must beat: popularity and item-based nearest neighbours, on the same split and filter.

Shapes: U users, I items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from intently.retrieval.interactions import BehaviourConfig, Interactions, first_events


def popularity(past: Interactions, num_items: int, config: BehaviourConfig) -> np.ndarray:
    """[I] float32: users that have taken each item in the past."""
    places, _ = first_events(past, config, config.taken)
    return np.bincount(past.items[places], minlength=num_items).astype(np.float32)


def score_by_popularity(counts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The same scores for everybody: [b] user rows → [b, I]."""
    return lambda users: np.broadcast_to(counts, (len(users), len(counts)))


class ItemKNN:
    """Item-based collaborative filtering: s(u, j) = Σ_{i ∈ items of u} cos(i, j), over the nearest neighbours of each j.

    cos(i, j) = |users of both| / √(|users of i| · |users of j|) (Sarwar et al. 2001), on items taken, unshrunk.
    """

    def __init__(self, past: Interactions, num_items: int, config: BehaviourConfig, num_neighbours: int = 200, block: int = 1024) -> None:
        """Compute the similarities of all items.

        Args:
            past: history_train.
            num_items: I.
            config: which behaviours count as taken.
            num_neighbours: most similar items kept for each item.
            block: items whose similarities are held densely at a time.
        """
        self.config, self.num_items = config, num_items
        taken = self._matrix(past)
        norms = np.sqrt(np.asarray(taken.sum(axis=0)).ravel())
        scaled = taken @ sparse.diags_array(1 / np.maximum(norms, 1).astype(np.float32))
        blocks = []
        for start in range(0, num_items, block):
            dense = (scaled[:, start : start + block].T @ scaled).toarray()  # [block, I]
            rows = np.arange(len(dense))
            dense[rows, start + rows] = 0
            if num_neighbours < num_items:
                threshold = np.partition(dense, num_items - num_neighbours, axis=1)[:, num_items - num_neighbours]
                dense[dense < threshold[:, None]] = 0
            blocks.append(sparse.csr_array(dense))
        self.similarities = sparse.vstack(blocks).T.tocsr()  # [I of the history, I that is scored]

    def scorer(self, past: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        """Scores from what users took in `past`: [b] user rows → [b, I]."""
        taken = self._matrix(past)
        return lambda users: (taken[users] @ self.similarities).toarray()

    def _matrix(self, past: Interactions) -> sparse.csr_array:
        places, _ = first_events(past, self.config, self.config.taken)
        ones = np.ones(len(places), np.float32)
        return sparse.csr_array((ones, (past.users[places], past.items[places])), shape=(past.num_users, self.num_items))
