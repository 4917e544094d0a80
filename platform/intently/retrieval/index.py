"""Nearest neighbours by inner product: FAISS flat, HNSW and IVF-PQ behind one interface, in shards, under filters.

A shard is a FAISS index over some of the rows. HNSW keeps a graph a shard and searches them one after the other; IVF-PQ is trained once,
so that its shards become one index. IVF-PQ compares codes; its best rows are compared again with the vectors themselves.

Users' vectors lie far from items (cosines of .2 to .4 to the nearest), where graphs find few of the nearest and cells most of them:
benchmarks/ann.py. So HNSW is there by config, for queries that lie among the items.

Shapes: I items, Q queries, D width, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import faiss
import numpy as np
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError

Kind = Literal["flat", "hnsw", "ivfpq"]
EXACT_UP_TO = 5_000
"""Where a filter leaves no more rows than this, comparing them all is quicker than a graph or cells, and misses nothing."""
CODES_A_VECTOR = 4
"""PQ codes that are compared in the time of one vector."""
IVF_ITERATIONS = 10
"""Of the k-means that finds the cells."""


class IndexConfig(Config):
    """Which index, and how it is built and searched."""

    kind: Literal["auto", "flat", "hnsw", "ivfpq"] = Field("auto", description="auto goes by the size of the catalogue")
    flat_up_to: int = Field(50_000, ge=0, description="auto: largest catalogue that is searched exactly")
    hnsw_up_to: int = Field(
        50_000, ge=0, description="auto: largest catalogue beyond flat_up_to that gets HNSW, then IVF-PQ; by default none does"
    )
    rows_per_shard: int = Field(500_000, ge=1, description="vectors of one shard; a killed build loses at most one shard a worker")
    hnsw_neighbours: int = Field(32, ge=2, description="HNSW: links of a node")
    hnsw_build_breadth: int = Field(200, ge=1, description="HNSW: candidates looked at while building")
    hnsw_search_breadth: int = Field(256, ge=1, description="HNSW: candidates looked at while searching a shard")
    ivf_lists: int = Field(0, ge=0, description="IVF: cells; 0 takes 2·√I")
    ivf_probes: int = Field(128, ge=1, description="IVF: cells that are searched")
    ivf_training_rows: int = Field(64, ge=1, description="IVF: vectors a cell that the cells and the codes are learned from")
    pq_bytes: int = Field(32, ge=1, description="PQ: length of a vector's code; the width of the vectors must be a multiple of it")
    pq_candidates: int = Field(4, ge=1, description="PQ: rows that are compared exactly, in multiples of k")
    seed: int = Field(0, description="of the clustering and of what it is learned from")

    def resolve(self, num_items: int) -> Kind:
        """The kind for a catalogue of this size."""
        if self.kind != "auto":
            return self.kind
        if num_items <= self.flat_up_to:
            return "flat"
        return "hnsw" if num_items <= self.hnsw_up_to else "ivfpq"

    def spans(self, num_items: int) -> list[tuple[int, int]]:
        """First row and the row after the last of each shard."""
        return list(pairwise([*range(0, num_items, self.rows_per_shard), num_items]))


@dataclass(frozen=True)
class Shard:
    """A FAISS index; what it calls row 0 is catalogue row `first`."""

    index: faiss.Index
    first: int


@dataclass(frozen=True)
class VectorIndex:
    """Shards over catalogue rows 0 … I−1.

    Attributes:
        kind: of the shards.
        config: how they are searched.
        vectors: [I, D] float32, may be memory-mapped; what is compared exactly.
        shards: in the rows' order.
    """

    kind: Kind
    config: IndexConfig
    vectors: np.ndarray
    shards: tuple[Shard, ...]

    def search(
        self,
        queries: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        without: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows by inner product; as many as there are, also where a filter leaves few.

        Args:
            queries: [Q, D] float32.
            k: how many.
            allowed: [I] bool, rows that any query may find (a category, what is in stock); None allows all.
            without: (query, row) pairs that are left out beside; meant for the few thousand that a user has seen.
        Returns:
            scores [Q, k] float32, falling, and rows [Q, k] int64, −1 where fewer than k are left.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        num_allowed = len(self.vectors) if allowed is None else int(np.count_nonzero(allowed))
        hidden = np.zeros(len(queries), np.int64) if without is None else np.bincount(without[0], minlength=len(queries))
        wanted = min(k + int(hidden.max(initial=0)), num_allowed)  # what is left out below must not leave gaps
        if not wanted:
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        breadth = self._breadth(wanted, num_allowed)
        if breadth is None:
            return self._cut(*self._compare_all(queries, wanted, allowed), k, without)
        scores, rows = self._cut(*self._search_shards(queries, wanted, allowed, breadth), k, without)
        short = np.flatnonzero((rows >= 0).sum(axis=1) < np.minimum(k, num_allowed - hidden))
        if len(short) and self.kind != "flat":
            # A graph may end, and cells may hold too little, before enough allowed rows are met.
            found = self._compare_all(queries[short], wanted, allowed)
            place = None if without is None else _of_queries(without, short, len(queries))
            scores[short], rows[short] = self._cut(*found, k, place)
        return scores, rows

    def _breadth(self, k: int, num_allowed: int) -> int | None:
        """Candidates of HNSW or cells of IVF so that enough of them are allowed; None where comparing all that are is cheaper."""
        share, num_items = num_allowed / len(self.vectors), len(self.vectors)
        match self.kind:
            case "flat":
                return 0
            case "hnsw":
                breadth = round(max(self.config.hnsw_search_breadth, k) / share)
                effort = len(self.shards) * breadth * self.config.hnsw_neighbours
            case "ivfpq":
                lists = self.shards[0].index.nlist
                breadth = min(lists, round(self.config.ivf_probes / share))
                effort = breadth / lists * num_items / CODES_A_VECTOR
        filtered = num_allowed < num_items
        return None if filtered and num_allowed <= max(EXACT_UP_TO, effort) else breadth

    def _search_shards(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, breadth: int) -> tuple[np.ndarray, np.ndarray]:
        candidates = k if self.kind != "ivfpq" else k * self.config.pq_candidates
        found = [self._search_shard(shard, queries, candidates, allowed, breadth) for shard in self.shards]
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        if self.kind == "ivfpq":
            scores = self._compare(queries, rows)
        elif len(self.shards) == 1:
            return scores, rows
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _search_shard(
        self, shard: Shard, queries: np.ndarray, k: int, allowed: np.ndarray | None, breadth: int
    ) -> tuple[np.ndarray, np.ndarray]:
        size = shard.index.ntotal
        chosen = None if allowed is None else np.packbits(allowed[shard.first : shard.first + size], bitorder="little")
        selector = None if chosen is None else faiss.IDSelectorBitmap(chosen)
        match self.kind:
            case "flat":
                parameters = faiss.SearchParameters(sel=selector)
            case "hnsw":
                parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=breadth)
            case "ivfpq":
                parameters = faiss.SearchParametersIVF(sel=selector, nprobe=breadth)
        scores, rows = shard.index.search(queries, min(k, size), params=parameters)
        return np.where(rows < 0, np.float32(-np.inf), scores), np.where(rows < 0, -1, rows + shard.first)

    def _compare(self, queries: np.ndarray, rows: np.ndarray, block: int = 64) -> np.ndarray:
        """Exact scores [Q, n] of rows [Q, n]; −∞ for −1."""
        scores = np.empty(rows.shape, np.float32)
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            scores[part] = np.einsum("qnd,qd->qn", self.vectors[np.maximum(rows[part], 0)], queries[part])
        scores[rows < 0] = -np.inf
        return scores

    def _compare_all(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        if allowed is None:
            return faiss.knn(queries, self.vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        rows = np.flatnonzero(allowed)
        scores, found = faiss.knn(queries, self.vectors[rows], k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, rows[found]

    def _cut(
        self, scores: np.ndarray, rows: np.ndarray, k: int, without: tuple[np.ndarray, np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first k of falling scores that are not left out."""
        if without is not None and len(without[0]):
            num_items = len(self.vectors)
            keys, hiding = np.arange(len(rows))[:, None] * num_items + rows, np.sort(without[0] * num_items + without[1])
            hidden = (hiding[np.minimum(np.searchsorted(hiding, keys), len(hiding) - 1)] == keys) & (rows >= 0)
            order = np.argsort(hidden, axis=1, kind="stable")
            rows = np.take_along_axis(np.where(hidden, -1, rows), order, axis=1)
            scores = np.take_along_axis(np.where(hidden, np.float32(-np.inf), scores), order, axis=1)
        if rows.shape[1] >= k:
            return scores[:, :k], rows[:, :k]
        padding = ((0, 0), (0, k - rows.shape[1]))
        return np.pad(scores, padding, constant_values=-np.inf), np.pad(rows, padding, constant_values=-1)


def train_cells(vectors: np.ndarray, config: IndexConfig) -> faiss.IndexIVFPQ:
    """An empty IVF-PQ index whose cells and codes are learned from a sample; every shard is filled from it.

    Args:
        vectors: [I, D] float32.
        config: cells, codes, seed.
    Raises:
        ConfigError: vectors cannot be cut into codes of this length.
    """
    num_items, dim = vectors.shape
    if dim % config.pq_bytes:
        raise ConfigError("index.pq_bytes", config.pq_bytes, f"vectors are {dim} wide, which is not a multiple of it")
    lists = min(num_items, config.ivf_lists or max(1, round(2 * num_items**0.5)))
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, config.pq_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = config.seed, IVF_ITERATIONS, 1
    index.cp.max_points_per_centroid = config.ivf_training_rows
    index.pq.cp.seed, index.pq.cp.min_points_per_centroid = config.seed, 1
    number = min(num_items, lists * config.ivf_training_rows)
    chosen = np.sort(np.random.default_rng(config.seed).choice(num_items, number, replace=False))
    index.train(np.ascontiguousarray(vectors[chosen], np.float32))
    return index


def build_shard(vectors: np.ndarray, first: int, kind: Kind, config: IndexConfig, trained: faiss.Index | None = None) -> Shard:
    """Index some rows.

    Args:
        vectors: [n, D] float32, rows first … first + n − 1 of the catalogue.
        first: row of the first one.
        kind: flat, hnsw or ivfpq.
        config: how.
        trained: what `train_cells` returned, which is filled; ivfpq only.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    dim = vectors.shape[1]
    match kind:
        case "flat":
            index = faiss.IndexFlatIP(dim)
        case "hnsw":
            index = faiss.IndexHNSWFlat(dim, config.hnsw_neighbours, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = config.hnsw_build_breadth
        case "ivfpq":
            assert trained is not None, "cells are trained before shards are filled"
            trained.add_with_ids(vectors, np.arange(first, first + len(vectors)))
            return Shard(trained, 0)
    index.add(vectors)
    return Shard(index, first)


def build_index(vectors: np.ndarray, config: IndexConfig) -> VectorIndex:
    """Index catalogue vectors in this process; `index_files` does it in many.

    Args:
        vectors: [I, D] float32, row i is item i.
        config: which kind and how.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    kind = config.resolve(len(vectors))
    if kind == "ivfpq":
        shards = [build_shard(vectors, 0, kind, config, train_cells(vectors, config))]
    else:
        shards = [build_shard(vectors[start:stop], start, kind, config) for start, stop in config.spans(len(vectors))]
    return VectorIndex(kind, config, vectors, tuple(shards))


def recall_against_exact(index: VectorIndex, queries: np.ndarray, k: int) -> float:
    """Share of the exact k nearest that the index finds.

    Args:
        index: I vectors.
        queries: [Q, D] float32; users' vectors, since that is what is searched with: they do not lie where items lie.
        k: cut-off.
    """
    k = min(k, len(index.vectors))
    _, wanted = faiss.knn(np.ascontiguousarray(queries, np.float32), index.vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    _, found = index.search(queries, k)
    return float(np.mean([np.isin(exact, approximate).mean() for exact, approximate in zip(wanted, found, strict=True)]))


def _of_queries(without: tuple[np.ndarray, np.ndarray], chosen: np.ndarray, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of some queries, numbered by their place among the chosen ones."""
    place = np.full(num_queries, -1)
    place[chosen] = np.arange(len(chosen))
    kept = place[without[0]] >= 0
    return place[without[0][kept]], without[1][kept]
