"""Sorting by packed integers against the obvious sort, and sets that share a line against a dictionary of sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.data.grouping import changes, group_lines, order_within, ranges

events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)), max_size=40)


@pytest.mark.parametrize("scale", [1, 2**50], ids=["packed", "too large to pack"])
@settings(max_examples=50, deadline=None)
@given(rows=events)
def test_order_within_is_the_sort_by_run_code_and_place(scale: int, rows: list[tuple[int, int, int]]) -> None:
    run, code, place = (np.array([row[side] for row in sorted(rows)], np.int64) for side in range(3))
    expected = place[np.lexsort((place, code, run))]
    assert order_within(run, code * scale, place).tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1, 2**50], ids=["packed", "too large to pack"])
@settings(max_examples=100, deadline=None)
@given(rows=events.filter(bool))
def test_group_lines_puts_equal_sets_on_one_line_in_order_of_their_first_event(scale: int, rows: list[tuple[int, int, int]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    text, left, right = (np.array([row[side] for row in rows], np.int64) for side in range(3))
    lines = group_lines(text, left * scale, right * scale, left == 0)
    expected: dict[tuple, tuple[list[int], list[int]]] = {}
    sets: dict[tuple[int, int], dict[int, None]] = {}
    for where, one, other in rows:
        sets.setdefault((where, one), {})[other] = None
    for (where, one), others in sets.items():
        lefts, _ = expected.setdefault((where, one == 0, frozenset(others)), ([], list(others)))
        lefts.append(one)
    wanted = [(key[0], lefts, rights) for key, (lefts, rights) in expected.items()]
    found = [
        (int(where), (lines.lefts[lines.left_line == line] // scale).tolist(), (lines.rights[lines.right_line == line] // scale).tolist())
        for line, where in enumerate(lines.text)
    ]
    assert found == wanted


def test_changes_and_ranges_by_hand() -> None:
    assert changes(np.array([1, 1, 2, 2]), np.array([5, 6, 6, 6])).tolist() == [True, True, True, False]
    assert changes(np.zeros(0)).tolist() == []
    assert ranges(np.array([4, 0, 9]), np.array([2, 0, 3])).tolist() == [4, 5, 9, 10, 11]
    assert ranges(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
