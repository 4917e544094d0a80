"""The catalogue as a trie of codes, in flat arrays: what constrained decoding walks through.

Nodes are numbered level by level, within a level in the order of their codes. The children of a node then have consecutive numbers,
so that one array says where they begin (CSR without a column of targets), and a beam's place in the catalogue is one integer.

Shapes: N items, M nodes (the root is node 0), L levels of the longest semantic ID.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from intently.core.errors import SchemaError

END = -1
"""Fills up the rows of a matrix of codes behind the last code of a shorter semantic ID."""


class Blocked(NamedTuple):
    """Nodes below which nothing may be found, for B queries, by level: `parents[l]` and `nodes[l]` are [B, m] and filled up with −2."""

    parents: list[torch.Tensor]
    nodes: list[torch.Tensor]


@dataclass(frozen=True)
class Trie:
    """An immutable catalogue; a changed catalogue is a new one (see LiveTrie).

    Attributes:
        version: names this catalogue.
        item_ids: [N] strings.
        semantic_ids: [N, L] int32, behind a shorter one's end END.
        first_child: [M + 1] int32; children of node n are the nodes first_child[n] … first_child[n + 1] − 1.
        codes: [M] int32, the code that leads to a node; 0 at the root.
        parents: [M] int32; −1 at the root.
        items: [M] int32 row of the item that ends here, −1 at inner nodes.
        counts: [M] int32 items at or below a node.
        leaves: [N] int32 the node of each item.
        level_starts: [L + 1] the first node of each level.
        fan_outs: [L] the most children that a node of each level has; level 0 is the root's.
        ends: [L + 1] whether some item ends at this depth.
        code_counts: [L] codes of each level: one more than the largest, unless more are known to exist.
    """

    version: str
    item_ids: np.ndarray
    semantic_ids: np.ndarray
    first_child: torch.Tensor
    codes: torch.Tensor
    parents: torch.Tensor
    items: torch.Tensor
    counts: torch.Tensor
    leaves: torch.Tensor
    level_starts: tuple[int, ...]
    fan_outs: tuple[int, ...]
    ends: tuple[bool, ...]
    code_counts: tuple[int, ...]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Item id → row."""
        return {item: row for row, item in enumerate(self.item_ids.tolist())}

    @cached_property
    def ids(self) -> pa.Array:
        """[N] item ids as Arrow strings."""
        return pa.array(self.item_ids, pa.string())

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def depth(self) -> int:
        """L."""
        return len(self.fan_outs)

    def to(self, device: torch.device | str) -> Trie:
        """The same trie with its tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("first_child", "codes", "parents", "items", "counts", "leaves")}
        return replace(self, **moved)

    def children(self, nodes: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where one can go from nodes of a level.

        Args:
            nodes: [...] int64 nodes of `level`; leaves of earlier levels and −1 have no children.
            level: from 0 on.
        Returns:
            children: [..., C] int64 in the order of their codes, 0 where there are fewer. valid: [..., C] which are children.
        """
        standing = nodes.clamp(min=0)
        first = self.first_child[standing].long()
        count = torch.where(nodes >= 0, self.first_child[standing + 1].long() - first, 0)
        children = first[..., None] + torch.arange(self.fan_outs[level], device=nodes.device)
        valid = children < (first + count)[..., None]
        return torch.where(valid, children, 0), valid

    def block(self, excluded: Sequence[np.ndarray]) -> Blocked:
        """What excluding some items closes: their leaves, and every node below which all items are excluded.

        Args:
            excluded: for each of B queries the rows of items that may not be found, in any order, repeats allowed.
        """
        device = self.codes.device
        num_nodes = len(self.codes)
        queries = np.repeat(np.arange(len(excluded)), [len(rows) for rows in excluded])
        rows = np.concatenate([np.asarray(rows, np.int64) for rows in excluded]) if len(excluded) else np.zeros(0, np.int64)
        pairs = torch.from_numpy(np.unique(queries * self.num_items + rows)).to(device)
        owners, nodes = pairs // self.num_items, self.leaves[pairs % self.num_items].long()
        depths = torch.bucketize(nodes, torch.tensor(self.level_starts, device=device), right=True) - 1
        parents, blocked = [], []
        # From the deepest level up: an inner node is closed when the closed items below it are all that it has.
        keys = torch.zeros(0, dtype=torch.long, device=device)
        closed_below = torch.zeros(0, dtype=torch.long, device=device)
        for level in range(self.depth, 0, -1):
            at_level = depths == level
            keys = torch.cat([keys, owners[at_level] * num_nodes + nodes[at_level]])
            closed_below = torch.cat([closed_below, torch.ones(int(at_level.sum()), dtype=torch.long, device=device)])
            keys, place = keys.unique(return_inverse=True)
            closed_below = torch.zeros(len(keys), dtype=torch.long, device=device).index_add_(0, place, closed_below)
            owner, node = keys // num_nodes, keys % num_nodes
            parent = self.parents[node].long()
            whole = closed_below == self.counts[node]
            blocked.append(_padded(owner[whole], node[whole], len(excluded)))
            parents.append(_padded(owner[whole], parent[whole], len(excluded)))
            keys = owner * num_nodes + parent
        return Blocked(parents[::-1], blocked[::-1])


class LiveTrie:
    """The trie that is searched now: a search takes it once and keeps it, so that a swap never touches a search that has begun."""

    def __init__(self, trie: Trie, code_counts: Sequence[int], keep: int = 2) -> None:
        """Begin with a trie.

        Args:
            trie: the first.
            code_counts: codes that the model has tokens for, of each level.
            keep: tries to go back to.
        Raises:
            SchemaError: the model has no tokens for its codes.
        """
        self._code_counts, self._keep = tuple(code_counts), keep
        self._lock = threading.Lock()
        self._past: list[Trie] = []
        self._current = self._checked(trie)

    @property
    def current(self) -> Trie:
        """The trie that a search begun now walks through."""
        return self._current

    def swap(self, trie: Trie) -> None:
        """Search another catalogue from now on.

        Raises:
            SchemaError: the model has no tokens for its codes; the trie that stands is left standing.
        """
        checked = self._checked(trie)
        with self._lock:
            self._past = [*self._past, self._current][-self._keep :]
            self._current = checked

    def rollback(self) -> Trie:
        """Go back to the trie before the last swap, which is searched from now on.

        Raises:
            LookupError: there is none any more.
        """
        with self._lock:
            if not self._past:
                raise LookupError(f"catalogue {self._current.version}: there is no earlier one to go back to")
            self._current = self._past.pop()
            return self._current

    def _checked(self, trie: Trie) -> Trie:
        check_codes(trie, self._code_counts)
        return trie


def check_codes(trie: Trie, code_counts: Sequence[int]) -> None:
    """Raise SchemaError unless a model with so many codes on each level can write every semantic ID."""
    if trie.depth > len(code_counts) or any(used > known for used, known in zip(trie.code_counts, code_counts, strict=False)):
        raise SchemaError(f"catalogue {trie.version} has {trie.code_counts} codes by level, the model knows {tuple(code_counts)}")


def read_trie(semantic_ids: pa.Table, version: str) -> Trie:
    """SEMANTIC_ID rows → trie; raises as `build_trie` does."""
    return build_trie(code_matrix(semantic_ids["codes"]), semantic_ids["item_id"].to_numpy(zero_copy_only=False), version)


def code_matrix(codes: pa.ChunkedArray) -> np.ndarray:
    """Lists of codes → [N, L] int32, filled up with END."""
    lengths = pc.list_value_length(codes).to_numpy().astype(np.int64)
    matrix = np.full((len(lengths), int(lengths.max(initial=0))), END, np.int32)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = pc.list_flatten(codes).to_numpy()
    return matrix


def build_trie(codes: np.ndarray, item_ids: np.ndarray, version: str) -> Trie:
    """A trie of semantic IDs, which may differ in length.

    Args:
        codes: [N, L] int32, behind a shorter one's end END.
        item_ids: [N] strings.
        version: names the catalogue.
    Raises:
        SchemaError: there is no item, a semantic ID is empty, or two items share one, or one begins with another's.
    """
    num_items, depth = codes.shape
    lengths = (codes >= 0).sum(axis=1)
    if not num_items or lengths.min() < 1 or ((codes >= 0) != (np.arange(depth) < lengths[:, None])).any():
        raise SchemaError(f"catalogue {version}: {num_items} items; every one needs a semantic ID of codes from 0 on")
    codes = codes[:, : lengths.max()]
    depth = codes.shape[1]
    semantic_ids = codes
    order = np.lexsort(codes.T[::-1])
    codes, lengths = codes[order], lengths[order]
    differs = np.ones((num_items, depth), bool)
    differs[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
    node = np.zeros(num_items, np.int64)  # of each item at the level that was last walked through
    leaf = np.zeros(num_items, np.int64)
    node_codes, parents, counts, fan_outs, ends = [np.zeros(1, np.int64)], [np.array([-1])], [np.array([num_items])], [], [False]
    starts, start = [0], 1
    for level in range(depth):
        alive = lengths > level
        begins = differs[:, level] & alive
        found = int(begins.sum())
        parents.append(node[begins])
        node_codes.append(codes[begins, level])
        fan_outs.append(int(np.unique(node[begins], return_counts=True)[1].max()))
        node = np.where(alive, start + np.cumsum(begins) - 1, -1)
        counts.append(np.bincount(node[alive] - start, minlength=found))
        last = lengths == level + 1
        leaf[last] = node[last]
        ends.append(bool(last.any()))
        starts.append(start)
        start += found
    _check_unique(np.concatenate(counts)[leaf], codes, item_ids[order], version)
    parent = np.concatenate(parents)
    first_child = np.concatenate([[1], 1 + np.cumsum(np.bincount(parent[1:], minlength=start))])
    items = np.full(start, -1, np.int64)
    items[leaf] = order
    leaves = np.empty(num_items, np.int64)
    leaves[order] = leaf
    arrays = (first_child, np.concatenate(node_codes), parent, items, np.concatenate(counts), leaves)
    tensors = (torch.from_numpy(array.astype(np.int32)) for array in arrays)
    code_counts = tuple(int(count) for count in codes.max(axis=0) + 1)
    return Trie(version, item_ids, semantic_ids, *tensors, tuple(starts), tuple(fan_outs), tuple(ends), code_counts)


def _check_unique(sharing: np.ndarray, codes: np.ndarray, item_ids: np.ndarray, version: str) -> None:
    """Sorted items and how many items stand at or below each one's leaf: more than one is an error that names two of them."""
    if sharing.max() > 1:
        first = int(np.argmax(sharing > 1))
        named = [f"{item_ids[i]} {[int(code) for code in codes[i] if code != END]}" for i in (first, first + 1)]
        raise SchemaError(f"catalogue {version}: one semantic ID is, or begins with, another's: {named[0]} and {named[1]}")


def _padded(owners: torch.Tensor, values: torch.Tensor, num_owners: int) -> torch.Tensor:
    """[B, m] values by owner, filled up with −2; owners ascend."""
    counts = torch.bincount(owners, minlength=num_owners)
    width = int(counts.max()) if num_owners else 0
    rows = torch.full((num_owners, width), -2, dtype=torch.long, device=values.device)
    within = torch.arange(len(owners), device=values.device) - (counts.cumsum(0) - counts)[owners]
    rows[owners, within] = values
    return rows
