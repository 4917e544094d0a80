"""Mined interests and tags against what people did later: interest quality (IQ), and HR@k of tags over categories (RecGPT §3).

What is held out is read here and nowhere in mining. Shapes: U users, D the encoder's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.protocols import TextEncoder
from intently.interests.vectors import item_texts
from intently.metrics.interests import category_hits, interest_quality
from intently.metrics.ranking import bootstrap_interval


@dataclass(frozen=True)
class Measured:
    """A mean over users.

    Attributes:
        name: what was measured.
        value: the mean.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        num_users: users.
    """

    name: str
    value: float
    low: float
    high: float
    num_users: int


def quality_of_interests(interests: Mapping[str, pa.Table], later: pa.Table, items: pa.Table, encoder: TextEncoder) -> list[Measured]:
    """IQ of several sets of interests, on the users that all of them know and who did something later.

    Args:
        interests: name → rows with user_id and interest.
        later: HISTORY rows of what was held out.
        items: ITEM rows, all that it names.
        encoder: makes vectors of phrases and of items.
    """
    item_user, item_row = _events(later, items)
    known = set(item_user).intersection(*(set(table["user_id"].to_pylist()) for table in interests.values()))
    users = pa.array(sorted(known), pa.string())
    texts = item_texts(items).to_pylist()
    wanted = [(user, row) for user, row in zip(item_user, item_row, strict=True) if user in known]
    vectors = encoder.encode([texts[row] for _, row in wanted])
    of_item = pc.index_in(pa.array([user for user, _ in wanted], pa.string()), users).to_numpy()
    measured = []
    for name, table in interests.items():
        said = table.filter(pc.is_in(table["user_id"], users))
        if not said.num_rows:
            continue
        whose = pc.index_in(said["user_id"], users).to_numpy()
        measured.append(_mean(name, interest_quality(encoder.encode(said["interest"].to_pylist()), whose, vectors, of_item, len(users))))
    return measured


def interests_of_items(item_interests: pa.Table, history: pa.Table, max_items: int = 50) -> pa.Table:
    """What people's last items say of them: rows of user_id and interest, a phrase as often as items bring it.

    Args:
        item_interests: ITEM_INTEREST rows.
        history: HISTORY rows of what may be known.
        max_items: latest events of a user that count.
    """
    lengths = pc.list_value_length(history["item_ids"]).to_numpy()
    row = np.repeat(np.arange(history.num_rows), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    late = place >= np.repeat(lengths, lengths) - max_items
    item = pc.list_flatten(history["item_ids"]).filter(pa.array(late))
    events = pa.table({"user_id": history["user_id"].take(pa.array(row[late])), "item_id": item})
    joined = events.join(item_interests.select(["item_id", "interest"]), "item_id", join_type="inner")
    return joined.select(["user_id", "interest"]).sort_by([("user_id", "ascending"), ("interest", "ascending")])


def hits_of_tags(tags: pa.Table, train: pa.Table, later: pa.Table, items: pa.Table, k: int = 30) -> tuple[list[Measured], float]:
    """HR@k of tags, and of two rankings that may name as many categories as each user's tags do.

    Only equal numbers of categories compare: a catalogue of twenty categories is hit by any thirty.

    Args:
        tags: TAG rows with categories.
        train: HISTORY rows of what may be known.
        later: HISTORY rows of the next events, of which a user's first counts.
        items: ITEM rows.
        k: tags of a user that count.
    Returns:
        tags, the most popular categories, and the user's own most frequent ones; distinct categories a user's tags name, on average.
    """
    names = items["category"].combine_chunks().unique().sort()
    code = pc.index_in(items["category"].combine_chunks(), names).to_numpy()
    item_user, item_row = _events(later, items)
    target: dict[str, int] = {}
    for user, row in zip(item_user, item_row, strict=True):
        target.setdefault(user, int(code[row]))
    asked = sorted(target.keys() & set(tags["user_id"].to_pylist()))
    users = pa.array(asked, pa.string())
    wanted = np.array([target[user] for user in asked], np.int64)
    said = tags.filter(pc.is_in(tags["user_id"], users)).sort_by([("user_id", "ascending"), ("rank", "ascending")])
    named = pc.index_in(said["category"].combine_chunks(), names).fill_null(-1).to_numpy()
    whose = pc.index_in(said["user_id"], users).to_numpy()
    distinct = _distinct(named, whose, len(asked), k, len(names))
    train_user, train_row = _events(train, items)
    popular = np.argsort(-np.bincount(code[train_row], minlength=len(names)), kind="stable")
    own = np.zeros((len(asked), len(names)))
    place = {user: row for row, user in enumerate(asked)}
    mine = [(place[user], row) for user, row in zip(train_user, train_row, strict=True) if user in place]
    np.add.at(own, tuple(np.array([(user, code[row]) for user, row in mine]).T), 1)
    # Ties of a user's own counts go to what is popular.
    own[:, popular] += np.linspace(0.5, 0, len(names))
    own_order = np.argsort(-own, axis=1, kind="stable")
    hits = {
        f"tags, HR@{k}": category_hits(named, whose, wanted, k, len(names)),
        "as many of the most popular categories": _within(np.tile(popular, (len(asked), 1)), wanted, distinct),
        "as many of the user's own most frequent categories": _within(own_order, wanted, distinct),
    }
    return [_mean(name, values) for name, values in hits.items()], float(distinct.mean()) if len(asked) else 0.0


def _events(history: pa.Table, items: pa.Table) -> tuple[list[str], np.ndarray]:
    """Users and item rows of all events whose item is in the catalogue."""
    lengths = pc.list_value_length(history["item_ids"]).to_numpy()
    row = pc.index_in(pc.list_flatten(history["item_ids"]), items["item_id"].combine_chunks())
    known = row.is_valid()
    user = history["user_id"].take(pa.array(np.repeat(np.arange(history.num_rows), lengths)))
    return user.filter(known).to_pylist(), row.drop_null().to_numpy()


def _distinct(named: np.ndarray, whose: np.ndarray, num_users: int, k: int, num_categories: int) -> np.ndarray:
    """[U] different categories among the first k tags of each user; `whose` ascends."""
    place = np.arange(len(whose)) - np.searchsorted(whose, whose)
    counts = (place < k) & (named >= 0)
    says = np.zeros((num_users, num_categories), bool)
    says[whose[counts], named[counts]] = True
    return says.sum(axis=1)


def _within(order: np.ndarray, wanted: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[U, C] categories, best first → [U] 1 where the wanted one is among the first `depth`."""
    return ((order == wanted[:, None]).argmax(axis=1) < depth).astype(np.float64)


def _mean(name: str, values: np.ndarray) -> Measured:
    kept = values[~np.isnan(values)]
    if not len(kept):
        return Measured(name, float("nan"), float("nan"), float("nan"), 0)
    return Measured(name, float(kept.mean()), *bootstrap_interval(kept), len(kept))
