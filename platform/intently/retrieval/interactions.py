"""Histories as flat arrays: what training examples, windows, seen items and targets are cut from.

Shapes: U users, E events, I items, B examples, N events in a window. Users lie one after the other, events oldest first, and
`offsets[u]:offsets[u + 1]` are the events of user row u. Items and behaviours are numbers: rows of the catalogue and
places in the configured list; events without a known item or of another behaviour are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from intently.core.config import Config
from intently.core.schema import Behaviour

TAKEN = (Behaviour.FAVOURITE, Behaviour.CART, Behaviour.PURCHASE, Behaviour.RATING)
RELIABLE = (Behaviour.DETAIL_VIEW, Behaviour.REVIEW_READ, Behaviour.SEARCH, *TAKEN)
COLUMNS = ("user_id", "item_ids", "behaviours", "values")
"""Of HISTORY: what `read_interactions` reads."""
WEIGHTS = dict.fromkeys(TAKEN, 1.0) | {Behaviour.DETAIL_VIEW: 0.2, Behaviour.REVIEW_READ: 0.2}


class BehaviourConfig(Config):
    """Which behaviours the towers see and learn to foretell."""

    history: tuple[Behaviour, ...] = Field(RELIABLE, min_length=1, description="behaviours that make up a past; each is pooled on its own")
    taken: tuple[Behaviour, ...] = Field(
        TAKEN, min_length=1, description="behaviours by which a user has taken an item: what filter-seen leaves out and baselines count"
    )
    weights: dict[Behaviour, float] = Field(
        WEIGHTS, min_length=1, description="behaviours that are foretold, with their weight in the loss; an item counts by its strongest"
    )
    min_rating: float = Field(
        3.0, ge=0, description="a rating of fewer stars is a dislike: its item counts as seen, and for nothing else; 0: every rating counts"
    )

    @model_validator(mode="after")
    def _all_are_read(self) -> BehaviourConfig:
        unread = sorted({*self.taken, *self.weights} - set(self.history))
        if unread:
            raise ValueError(f"taken and weights may name only behaviours of history; {unread} are not")
        if min(self.weights.values()) <= 0:
            raise ValueError("weights must be above 0; leave a behaviour out instead")
        return self


@dataclass(frozen=True)
class Interactions:
    """Events of many users.

    Attributes:
        user_ids: [U] strings.
        offsets: [U + 1] int64.
        items: [E] int64 catalogue rows.
        behaviours: [E] int64 places in BehaviourConfig.history.
        disliked: [R, 2] int64 (user row, catalogue row) of ratings below BehaviourConfig.min_rating, which are no events here.
    """

    user_ids: pa.Array
    offsets: np.ndarray
    items: np.ndarray
    behaviours: np.ndarray
    disliked: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def users(self) -> np.ndarray:
        """[E] the user row of each event."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))


def read_interactions(history: pa.Table, item_ids: pa.Array, config: BehaviourConfig) -> Interactions:
    """History rows (COLUMNS) → flat arrays, users in the table's order."""
    items = pc.list_flatten(history["item_ids"])
    kinds = pc.list_flatten(history["behaviours"])
    lengths = pc.list_value_length(history["item_ids"]).to_numpy()
    owner = np.repeat(np.arange(history.num_rows), lengths)
    item = rows_of(items, item_ids)
    kind = rows_of(kinds, pa.array([str(behaviour) for behaviour in config.history]))
    known = (item >= 0) & (kind >= 0)
    low = pc.and_(pc.equal(kinds, str(Behaviour.RATING)), pc.less(pc.list_flatten(history["values"]), config.min_rating))
    disliked = known & pc.fill_null(low, False).to_numpy(zero_copy_only=False).astype(bool)
    kept = known & ~disliked
    counts = np.bincount(owner[kept], minlength=history.num_rows)
    user_ids = history["user_id"].combine_chunks() if history.num_rows else pa.array([], pa.string())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Interactions(user_ids, offsets, item[kept], kind[kept], np.stack([owner[disliked], item[disliked]], axis=1))


def concat_interactions(parts: Sequence[Interactions]) -> Interactions:
    """The users of several tables, one table behind the other."""
    counts = np.concatenate([np.empty(0, np.int64), *(np.diff(part.offsets) for part in parts)])
    firsts = np.cumsum([0, *(part.num_users for part in parts)])
    return Interactions(
        pa.concat_arrays([pa.array([], pa.string()), *(part.user_ids for part in parts)]),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([np.empty(0, np.int64), *(part.items for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.behaviours for part in parts)]),
        np.concatenate(
            [np.empty((0, 2), np.int64), *(part.disliked + np.array([first, 0]) for part, first in zip(parts, firsts, strict=False))]
        ),
    )


def append_interactions(past: Interactions, later: Interactions) -> Interactions:
    """The same users with later events behind their earlier ones; users of `later` that `past` does not know are left out."""
    rows = rows_of(later.user_ids, past.user_ids)
    later_users = rows[later.users]
    known = later_users >= 0
    users = np.concatenate([past.users, later_users[known]])
    order = np.argsort(users, kind="stable")
    items = np.concatenate([past.items, later.items[known]])[order]
    behaviours = np.concatenate([past.behaviours, later.behaviours[known]])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=past.num_users))]).astype(np.int64)
    disliked = np.stack([rows[later.disliked[:, 0]], later.disliked[:, 1]], axis=1)
    return Interactions(past.user_ids, offsets, items, behaviours, np.concatenate([past.disliked, disliked[disliked[:, 0] >= 0]]))


def rows_of(values: pa.Array | pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """[n] int64 row of each value in `among`, −1 where it is not there (or null)."""
    found = pc.index_in(values, value_set=among, skip_nulls=True)
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def first_events(past: Interactions, config: BehaviourConfig, behaviours: Iterable[Behaviour]) -> tuple[np.ndarray, np.ndarray]:
    """The first event of each user on each item, among some behaviours: what is learned from, and what counts as taken.

    Args:
        past: E events.
        config: its `history` numbers the behaviours.
        behaviours: those that count.
    Returns:
        places: [P] int64 event places, ascending.
        weights: [P] float32, of the strongest of those behaviours that the user ever showed on the item.
    """
    chosen = set(behaviours)
    weight = np.array([config.weights.get(b, 1.0) if b in chosen else 0.0 for b in config.history], np.float32)
    places = np.flatnonzero(weight[past.behaviours] > 0)
    num_items = int(past.items.max(initial=0)) + 1
    _, first, pair = np.unique(past.users[places] * num_items + past.items[places], return_index=True, return_inverse=True)
    strongest = np.zeros(len(first), np.float32)
    np.maximum.at(strongest, pair, weight[past.behaviours[places]])
    order = np.argsort(first)
    return places[first[order]], strongest[order]


@dataclass(frozen=True)
class Seen:
    """Items that each user has taken already, as CSR.

    Attributes:
        offsets: [U + 1] int64.
        items: catalogue rows, distinct within a user.
    """

    offsets: np.ndarray
    items: np.ndarray

    def of(self, user: int) -> np.ndarray:
        """Catalogue rows of one user row."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def pairs(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `users`, catalogue row) of every item that those user rows have taken."""
        counts = np.diff(self.offsets)[users]
        place = np.repeat(np.arange(len(users)), counts)
        starts = np.repeat(self.offsets[users], counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        return place, self.items[starts + within]


def seen_items(past: Interactions, config: BehaviourConfig) -> Seen:
    """What filter-seen leaves out: items that were taken (BehaviourConfig.taken) in the past, and those that were disliked."""
    places, _ = first_events(past, config, config.taken)
    pairs = np.concatenate([np.stack([past.users[places], past.items[places]], axis=1), past.disliked])
    num_items = int(pairs[:, 1].max(initial=0)) + 1
    users, items = np.divmod(np.unique(pairs[:, 0] * num_items + pairs[:, 1]), num_items)
    counts = np.bincount(users, minlength=past.num_users)
    return Seen(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), items)
