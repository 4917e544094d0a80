"""Interests and tags against what came later, on three people whose figures can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from intently.core.schema import HISTORY, ITEM_INTEREST, TAG
from intently.interests.outcomes import hits_of_tags, interests_of_items, quality_of_interests
from intently.interests.vectors import item_texts


class Axes:
    """Gives each text that it was told of a direction of its own; interests are worded as items are."""

    name = "axes"

    def __init__(self, items: pa.Table) -> None:
        self._texts = item_texts(items).to_pylist()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(self._texts), dtype=np.float32)[[self._texts.index(text) for text in texts]]


def history(**users: list[str]) -> pa.Table:
    rows = []
    for user, ids in users.items():
        nothing = {name: [None] * len(ids) for name in ("values", "queries", "dwell_s")}
        events = {"event_ids": ids, "item_ids": ids, "behaviours": ["purchase"] * len(ids), "timestamps": list(range(len(ids)))}
        rows.append({"user_id": user, "bucket": 0, **events, **nothing})
    return HISTORY.from_rows(rows)


def tags(*rows: tuple[str, int, str | None]) -> pa.Table:
    fixed = {"bucket": 0, "tag": "warm things", "interest": "warmth", "reason": "r", "model": "m"}
    return TAG.from_rows([{**fixed, "user_id": user, "rank": rank, "category": category} for user, rank, category in rows])


def test_hits_of_tags_compare_with_rankings_that_name_as_many_categories(items: pa.Table) -> None:
    # Hiking is the most popular category of train, then Coffee, then Music.
    train = history(ann=["guitar", "strings", "boots"], bob=["kettle", "grinder", "poles"], cid=["boots", "poles", "boots"])
    later = history(ann=["poles"], bob=["grinder", "boots"], cid=["guitar"])
    said = tags(
        ("ann", 0, "Hiking"), ("ann", 1, "Hiking"), ("bob", 0, "Music"), ("bob", 1, "Coffee"), ("cid", 0, None), ("eve", 0, "Music")
    )
    measured, distinct = hits_of_tags(said, train, later, items, k=2)
    assert distinct == pytest.approx((1 + 2 + 0) / 3)
    # ann and bob are hit. Popular: ann's one is Hiking, bob's two hold Coffee. Own: ann's one is Music, bob's two hold Coffee.
    assert [(one.value, one.num_users) for one in measured] == [
        (pytest.approx(2 / 3), 3),
        (pytest.approx(2 / 3), 3),
        (pytest.approx(1 / 3), 3),
    ]
    only_first, _ = hits_of_tags(said, train, later, items, k=1)
    assert only_first[0].value == pytest.approx(1 / 3)


def test_quality_of_interests_takes_the_users_that_all_know(items: pa.Table) -> None:
    boots, poles, kettle = (item_texts(items).to_pylist()[row] for row in (0, 1, 3))
    one = pa.table({"user_id": ["ann", "ann", "bob"], "interest": [boots, kettle, kettle]})
    two = pa.table({"user_id": ["ann", "cid"], "interest": [poles, poles]})
    later = history(ann=["boots", "poles"], bob=["kettle"], cid=["poles"])
    found = quality_of_interests({"one": one, "two": two}, later, items, Axes(items))
    # Only ann is in both: of her 2 × 2 pairs one is equal; of the 1 × 2 pairs of the second, one.
    assert [(m.name, m.value, m.num_users) for m in found] == [("one", 0.25, 1), ("two", 0.5, 1)]
    (alone,) = quality_of_interests({"one": one}, later, items, Axes(items))
    assert (alone.value, alone.num_users) == (pytest.approx((0.25 + 1) / 2), 2)


def test_interests_of_items_are_those_of_the_latest_events() -> None:
    fixed = {"confidence": 0.9, "support": 1, "sources": ["a"]}
    known = ITEM_INTEREST.from_rows([{**fixed, "item_id": i, "interest": p} for i, p in (("a", "x"), ("b", "y"), ("b", "z"), ("c", "w"))])
    found = interests_of_items(known, history(ann=["a", "b", "b"], bob=["c", "q"]), max_items=2)
    assert found.to_pylist() == [{"user_id": "ann", "interest": phrase} for phrase in ("y", "y", "z", "z")] + [
        {"user_id": "bob", "interest": "w"}
    ]
