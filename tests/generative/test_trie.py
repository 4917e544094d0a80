"""The catalogue's trie: its arrays by hand, what it refuses, what excluding closes, swapping it."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.core.errors import SchemaError
from intently.core.schema import SEMANTIC_ID
from intently.generative.trie import END, LiveTrie, Trie, build_trie, code_matrix, read_trie

from tests.generative.worlds import CODES, catalogue, matrix, prefix_free

HAND = [(1, 0, 2), (0, 3), (1, 0, 0), (1, 4, 1)]


def nodes_to(trie: Trie, item: int) -> list[int]:
    """The way from the root to an item's leaf, found upwards."""
    way = [int(trie.leaves[item])]
    while way[0] != 0:
        way.insert(0, int(trie.parents[way[0]]))
    return way


def test_trie_small_catalogue_numbers_nodes_level_by_level() -> None:
    trie = catalogue(HAND)
    # root | 0, 1 | 0·3, 1·0, 1·4 | 1·0·0, 1·0·2, 1·4·1
    assert trie.codes.tolist() == [0, 0, 1, 3, 0, 4, 0, 2, 1]
    assert trie.parents.tolist() == [-1, 0, 0, 1, 2, 2, 4, 4, 5]
    assert trie.first_child.tolist() == [1, 3, 4, 6, 6, 8, 9, 9, 9, 9]
    assert trie.items.tolist() == [-1, -1, -1, 1, -1, -1, 2, 0, 3]
    assert trie.counts.tolist() == [4, 1, 3, 1, 2, 1, 1, 1, 1]
    assert trie.leaves.tolist() == [7, 3, 6, 8]
    assert (trie.level_starts, trie.fan_outs, trie.ends, trie.code_counts) == (
        (0, 1, 3, 6),
        (2, 2, 2),
        (False, False, True, True),
        (2, 5, 3),
    )


@given(st.lists(st.lists(st.integers(0, CODES - 1), min_size=1, max_size=3).map(tuple), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_trie_any_catalogue_gives_back_its_codes(drawn: list[tuple[int, ...]]) -> None:
    semantic_ids = prefix_free(drawn)
    trie = catalogue(semantic_ids)
    for item, codes in enumerate(semantic_ids):
        way = nodes_to(trie, item)
        assert tuple(trie.codes[way[1:]].tolist()) == codes
        assert trie.items[way[-1]] == item
        for parent, child in itertools.pairwise(way):
            assert trie.first_child[parent] <= child < trie.first_child[parent + 1]
    assert len(trie.codes) == 1 + len({codes[:length] for codes in semantic_ids for length in range(1, len(codes) + 1)})


@pytest.mark.parametrize(
    ("semantic_ids", "named"),
    [
        ([(1, 2, 3), (0, 0, 0), (1, 2, 3)], r"i0 \[1, 2, 3\] and i2 \[1, 2, 3\]"),
        ([(1, 2), (1, 2, 0)], r"i0 \[1, 2\] and i1 \[1, 2, 0\]"),
        ([(1, 2), ()], "every one needs"),
        ([(1, END, 2)], "every one needs"),
        ([], "0 items"),
    ],
)
def test_trie_ambiguous_or_empty_semantic_ids_refused(semantic_ids: list[tuple[int, ...]], named: str) -> None:
    with pytest.raises(SchemaError, match=named):
        build_trie(matrix(semantic_ids).reshape(-1, 3), np.array([f"i{n}" for n in range(len(semantic_ids))], object), "v1")


def test_read_trie_takes_lists_of_any_length() -> None:
    table = SEMANTIC_ID.from_rows([{"item_id": f"i{n}", "codes": list(codes)} for n, codes in enumerate(HAND)])
    assert code_matrix(table["codes"]).tolist() == matrix(HAND).tolist()
    sliced = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert read_trie(sliced, "v1").codes.tolist() == catalogue(HAND).codes.tolist()


def test_block_closes_leaves_and_nodes_that_have_nothing_else() -> None:
    trie = catalogue(HAND)
    blocked = trie.block([np.array([0, 2, 0]), np.array([], int), np.array([1])])
    closed = [sorted(int(n) for level in blocked.nodes for n in level[query] if n >= 0) for query in range(3)]
    assert closed == [[4, 6, 7], [], [1, 3]]
    for parents, nodes in zip(blocked.parents, blocked.nodes, strict=True):
        known = nodes >= 0
        assert torch.equal(trie.parents[nodes[known]].long(), parents[known])


def test_live_trie_swaps_rolls_back_and_refuses_what_the_model_cannot_write() -> None:
    first, second, third = (catalogue(HAND[:n], f"v{n}") for n in (1, 2, 3))
    live = LiveTrie(first, code_counts=(2, 5, 3), keep=1)
    live.swap(second)
    with pytest.raises(SchemaError, match=r"catalogue v9 has \(3, 1, 1\) codes by level, the model knows \(2, 5, 3\)"):
        live.swap(catalogue([(2, 0, 0)], "v9"))
    assert live.current is second
    live.swap(third)
    assert live.rollback() is second
    assert live.current is second
    with pytest.raises(LookupError, match="no earlier one"):
        live.rollback()
