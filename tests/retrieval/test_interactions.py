"""Histories as flat arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import Behaviour
from intently.retrieval.interactions import (
    BehaviourConfig,
    append_interactions,
    concat_interactions,
    first_events,
    read_interactions,
    rows_of,
    seen_items,
)

from tests.retrieval.world import history

ITEMS = pa.array(["a", "b", "c"])
CONFIG = BehaviourConfig(
    history=(Behaviour.DETAIL_VIEW, Behaviour.PURCHASE),
    taken=(Behaviour.PURCHASE,),
    weights={Behaviour.DETAIL_VIEW: 0.2, Behaviour.PURCHASE: 1.0},
)
PAST = read_interactions(
    history(
        {
            "u": [("b", "detail_view"), ("zzz", "purchase"), ("b", "purchase"), (None, "search"), ("a", "detail_view"), ("b", "purchase")],
            "v": [],
            "w": [("c", "purchase"), ("c", "impression")],
        }
    ),
    ITEMS,
    CONFIG,
)


def test_read_interactions_keeps_known_items_and_configured_behaviours() -> None:
    assert PAST.offsets.tolist() == [0, 4, 4, 5]
    assert PAST.items.tolist() == [1, 1, 0, 1, 2]
    assert PAST.behaviours.tolist() == [0, 1, 0, 1, 1]
    assert PAST.users.tolist() == [0, 0, 0, 0, 2]


def test_read_interactions_no_rows_is_empty() -> None:
    empty = read_interactions(history({}), ITEMS, CONFIG)
    assert (empty.num_users, empty.offsets.tolist(), empty.items.tolist()) == (0, [0], [])


def test_first_events_item_counts_once_by_its_strongest_behaviour() -> None:
    places, weights = first_events(PAST, CONFIG, CONFIG.weights)
    assert places.tolist() == [0, 2, 4]
    assert weights.tolist() == pytest.approx([1.0, 0.2, 1.0])


def test_seen_items_are_those_taken() -> None:
    seen = seen_items(PAST, CONFIG)
    assert seen.of(0).tolist() == [1]
    assert seen.of(1).tolist() == []
    place, item = seen.pairs(np.array([2, 1, 0]))
    assert list(zip(place.tolist(), item.tolist(), strict=True)) == [(0, 2), (2, 1)]


RATING = BehaviourConfig(history=(Behaviour.RATING,), taken=(Behaviour.RATING,), weights={Behaviour.RATING: 1.0})


def rated(rows: dict[str, list[tuple[str, float | None]]]) -> pa.Table:
    """HISTORY of user → [(item, stars), …]."""
    table = history({user: [(item, "rating") for item, _ in rows[user]] for user in rows})
    stars = pa.array([[value for _, value in rows[user]] for user in rows], table["values"].type)
    return table.set_column(table.column_names.index("values"), "values", stars)


def test_ratings_below_min_rating_are_seen_and_nothing_else() -> None:
    table = rated({"u": [("a", 2.0), ("b", 3.0), ("zzz", 1.0)], "v": [("c", None), ("b", 5.0), ("a", 0.5)]})
    past = read_interactions(table, ITEMS, RATING)
    assert (past.offsets.tolist(), past.items.tolist()) == ([0, 1, 3], [1, 2, 1])
    assert past.disliked.tolist() == [[0, 0], [1, 0]]
    assert first_events(past, RATING, RATING.weights)[0].tolist() == [0, 1, 2]
    assert [seen_items(past, RATING).of(user).tolist() for user in range(2)] == [[0, 1], [0, 1, 2]]
    every = read_interactions(table, ITEMS, RATING.model_copy(update={"min_rating": 0}))
    assert (every.items.tolist(), every.disliked.tolist()) == ([0, 1, 2, 1, 0], [])


def test_disliked_items_stay_with_their_users_when_tables_are_joined() -> None:
    first, second = (read_interactions(rated({user: [("a", 5.0), ("b", 1.0)]}), ITEMS, RATING) for user in ("u", "v"))
    assert concat_interactions([first, second]).disliked.tolist() == [[0, 1], [1, 1]]
    later = read_interactions(rated({"x": [("a", 1.0)], "v": [("c", 1.0)]}), ITEMS, RATING)
    both = append_interactions(concat_interactions([first, second]), later)
    assert both.disliked.tolist() == [[0, 1], [1, 1], [1, 2]]
    assert seen_items(both, RATING).of(1).tolist() == [0, 1, 2]


def test_append_interactions_puts_later_events_behind_earlier_ones() -> None:
    later = read_interactions(history({"x": [("a", "purchase")], "v": [("a", "purchase")], "u": [("c", "purchase")]}), ITEMS, CONFIG)
    both = append_interactions(PAST, later)
    assert both.offsets.tolist() == [0, 5, 6, 7]
    assert both.items.tolist() == [1, 1, 0, 1, 2, 0, 2]


def test_rows_of_null_and_unknown_are_minus_one() -> None:
    assert rows_of(pa.array(["c", None, "zzz"]), ITEMS).tolist() == [2, -1, -1]


def test_behaviour_config_taken_behaviour_that_is_not_read_refused() -> None:
    with pytest.raises(ConfigError, match="purchase"):
        BehaviourConfig.parse({"history": ["rating"], "taken": ["purchase"], "weights": {"rating": 1}})
