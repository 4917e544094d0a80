"""Histories as sequences of items: what a generator learns from and is asked about.

Shapes: U users, E events, I items. Users lie one after the other, `offsets[u]:offsets[u + 1]` are the items of user row u, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.schema import Behaviour


class SequenceConfig(Config):
    """Which events make up a sequence."""

    behaviours: tuple[Behaviour, ...] = Field(
        (Behaviour.FAVOURITE, Behaviour.CART, Behaviour.PURCHASE, Behaviour.RATING),
        min_length=1,
        description="behaviours that put an item into the sequence, the first time only",
    )
    max_items: int = Field(50, ge=1, description="items that a prompt holds, the latest ones; longer lives are cut into pieces of so many")


@dataclass(frozen=True)
class Sequences:
    """Items of many users.

    Attributes:
        user_ids: [U] strings.
        offsets: [U + 1] int64.
        items: [E] int64 rows of the catalogue, none twice within a user.
    """

    user_ids: pa.Array
    offsets: np.ndarray
    items: np.ndarray

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    def of(self, user: int) -> np.ndarray:
        """Items of a user row."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def read_sequences(history: pa.Table, item_ids: pa.Array, config: SequenceConfig) -> Sequences:
    """HISTORY rows → sequences of known items; an item counts where it first occurs.

    Args:
        history: at least user_id, item_ids and behaviours.
        item_ids: [I] the catalogue.
        config: which behaviours count.
    """
    lengths = pc.list_value_length(history["item_ids"]).to_numpy().astype(np.int64)
    owners = np.repeat(np.arange(history.num_rows), lengths)
    items = pc.fill_null(pc.index_in(pc.list_flatten(history["item_ids"]), value_set=item_ids, skip_nulls=True), -1)
    rows = items.to_numpy(zero_copy_only=False).astype(np.int64)
    counted = pc.is_in(pc.list_flatten(history["behaviours"]), value_set=pa.array([str(b) for b in config.behaviours]))
    kept = np.flatnonzero((rows >= 0) & counted.to_numpy(zero_copy_only=False))
    _, first = np.unique(owners[kept] * max(1, len(item_ids)) + rows[kept], return_index=True)
    kept = kept[np.sort(first)]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners[kept], minlength=history.num_rows))]).astype(np.int64)
    user_ids = history["user_id"].combine_chunks() if history.num_rows else pa.array([], pa.string())
    return Sequences(user_ids, offsets, rows[kept])


def append_sequences(past: Sequences, later: Sequences) -> Sequences:
    """The same users with later items behind their earlier ones; users that `past` does not know are left out."""
    rows = pc.fill_null(pc.index_in(later.user_ids, value_set=past.user_ids), -1).to_numpy(zero_copy_only=False)
    owners = np.repeat(rows, np.diff(later.offsets))
    users = np.concatenate([np.repeat(np.arange(past.num_users), np.diff(past.offsets)), owners[owners >= 0]])
    items = np.concatenate([past.items, later.items[owners >= 0]])
    _, first = np.unique(users * (int(items.max(initial=0)) + 1) + items, return_index=True)
    first = first[np.lexsort((first, users[first]))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users[first], minlength=past.num_users))]).astype(np.int64)
    return Sequences(past.user_ids, offsets, items[first])
