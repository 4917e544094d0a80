"""Histories as sequences of items, and what is read off them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from intently.generative.evaluate import metric_rows, ranks_of_found, read_targets
from intently.generative.sequences import SequenceConfig, append_sequences, read_sequences

from tests.retrieval.world import history

ITEMS = pa.array(["a", "b", "c", "d"])


def test_read_sequences_first_time_of_known_items_by_counted_behaviours() -> None:
    rows = history(
        {
            "u": [("b", "click"), ("c", "cart"), ("zz", "purchase"), ("c", "purchase"), ("a", "purchase"), (None, "search")],
            "v": [("a", "click")],
            "w": [("d", "rating"), ("a", "favourite"), ("d", "purchase")],
        }
    )
    read = read_sequences(rows, ITEMS, SequenceConfig())
    assert [read.of(user).tolist() for user in range(3)] == [[2, 0], [], [3, 0]]
    clicks = read_sequences(rows, ITEMS, SequenceConfig.parse({"behaviours": ["click"]}))
    assert [clicks.of(user).tolist() for user in range(3)] == [[1], [0], []]


def test_append_sequences_later_items_come_last_and_strangers_are_left_out() -> None:
    past = read_sequences(history({"u": [("a", "purchase"), ("b", "purchase")], "v": [("c", "purchase")]}), ITEMS, SequenceConfig())
    later = read_sequences(history({"x": [("d", "purchase")], "v": [("a", "purchase")], "u": [("a", "purchase")]}), ITEMS, SequenceConfig())
    both = append_sequences(past, later)
    assert [both.of(user).tolist() for user in range(2)] == [[0, 1], [2, 0]]
    assert both.user_ids.to_pylist() == ["u", "v"]


def test_read_targets_users_without_a_held_out_item_are_not_asked() -> None:
    past = read_sequences(history({"u": [("a", "purchase")], "v": [("c", "purchase")]}), ITEMS, SequenceConfig())
    held_out = read_sequences(history({"v": [("b", "purchase")], "u": [("b", "click")], "x": [("d", "purchase")]}), ITEMS, SequenceConfig())
    users, targets = read_targets(past, held_out)
    assert (users.tolist(), targets.tolist()) == ([1], [1])


def test_ranks_of_found_and_their_rows_by_hand() -> None:
    ranks = ranks_of_found(np.array([[4, 2, 1], [0, 3, -1]]), np.array([2, 1]))
    assert ranks.tolist() == [1, 3]
    rows = metric_rows("generative", "test", ranks, (1, 3), filter_seen=True, seed=4, setting={"width": 3.0})
    assert {(row["name"], row["k"]): row["value"] for row in rows} == {
        ("HR", 1): 0.0,
        ("HR", 3): 0.5,
        ("NDCG", 1): 0.0,
        ("NDCG", 3): 0.5 / np.log2(3),
    }
    assert metric_rows("generative", "test", np.zeros(0, int), (1,), filter_seen=True, seed=4, setting={}) == []
