"""Nearest neighbours by inner product: FAISS flat, HNSW and IVF behind one interface.

Shapes: I items, Q queries, D width, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
from pydantic import Field

from intently.core.config import Config

Kind = Literal["flat", "hnsw", "ivf"]
EXACT_UP_TO = 5_000
"""Where a filter leaves no more rows than this, a graph or a cell search would miss most of them, and comparing them all is quick."""
INDEX = "index.faiss"
INDEX_SETTINGS = "index.json"


class IndexConfig(Config):
    """Which index, and how it is built."""

    kind: Literal["auto", "flat", "hnsw", "ivf"] = Field("auto", description="auto goes by the size of the catalogue")
    flat_up_to: int = Field(50_000, ge=0, description="auto: largest catalogue that is searched exactly")
    hnsw_up_to: int = Field(2_000_000, ge=0, description="auto: largest catalogue that gets HNSW; beyond it IVF")
    hnsw_neighbours: int = Field(32, ge=2, description="HNSW: links of a node")
    hnsw_build_breadth: int = Field(200, ge=1, description="HNSW: candidates looked at while building")
    hnsw_search_breadth: int = Field(256, ge=1, description="HNSW: candidates looked at while searching")
    ivf_lists: int = Field(0, ge=0, description="IVF: cells; 0 takes 4·√I")
    ivf_probes: int = Field(32, ge=1, description="IVF: cells that are searched")
    seed: int = Field(0, description="of IVF's clustering")

    def resolve(self, num_items: int) -> Kind:
        """The kind for a catalogue of this size."""
        if self.kind != "auto":
            return self.kind
        if num_items <= self.flat_up_to:
            return "flat"
        return "hnsw" if num_items <= self.hnsw_up_to else "ivf"


@dataclass(frozen=True)
class VectorIndex:
    """A FAISS index over catalogue rows 0 … I−1."""

    index: faiss.Index
    kind: Kind

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows by inner product.

        Args:
            queries: [Q, D] float32.
            k: how many.
            allowed: [I] bool, rows that may be found; None allows all. Few of them are searched exactly, whatever the kind.
        Returns:
            scores [Q, k] float32, falling, and rows [Q, k] int64, −1 where fewer than k are found.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if allowed is None:
            return self.index.search(queries, k)
        if self.kind != "flat" and np.count_nonzero(allowed) <= EXACT_UP_TO:
            return self._search_exactly(queries, k, np.flatnonzero(allowed))
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return self.index.search(queries, k, params=self._parameters(selector))

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self.index, str(path))

    def _search_exactly(self, queries: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ self.index.reconstruct_batch(rows).T if len(rows) else np.empty((len(queries), 0), np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        padding = ((0, 0), (0, k - order.shape[1]))
        found = np.pad(rows[order], padding, constant_values=-1)
        return np.pad(np.take_along_axis(scores, order, axis=1), padding, constant_values=-np.inf), found

    def _parameters(self, selector: faiss.IDSelector) -> faiss.SearchParameters:
        match self.kind:
            case "flat":
                return faiss.SearchParameters(sel=selector)
            case "hnsw":
                return faiss.SearchParametersHNSW(sel=selector, efSearch=self.index.hnsw.efSearch)
            case "ivf":
                return faiss.SearchParametersIVF(sel=selector, nprobe=self.index.nprobe)


def build_index(vectors: np.ndarray, config: IndexConfig) -> VectorIndex:
    """Index catalogue vectors.

    Args:
        vectors: [I, D] float32, row i is item i.
        config: which kind and how.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    num_items, dim = vectors.shape
    kind = config.resolve(num_items)
    match kind:
        case "flat":
            index = faiss.IndexFlatIP(dim)
        case "hnsw":
            index = faiss.IndexHNSWFlat(dim, config.hnsw_neighbours, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction, index.hnsw.efSearch = config.hnsw_build_breadth, config.hnsw_search_breadth
        case "ivf":
            lists = min(num_items, config.ivf_lists or max(1, round(4 * num_items**0.5)))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.seed, index.cp.min_points_per_centroid, index.nprobe = config.seed, 1, min(config.ivf_probes, lists)
            index.train(vectors)
    index.add(vectors)
    if kind == "ivf":
        index.make_direct_map()  # row → vector, for exact search under a filter
    return VectorIndex(index, kind)


def load_index(path: Path, kind: Kind) -> VectorIndex:
    """Read what `VectorIndex.save` wrote, mapped into memory rather than copied where FAISS can."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if kind == "ivf" else 0)
    return VectorIndex(index, kind)


def recall_against_exact(index: VectorIndex, vectors: np.ndarray, k: int, num_queries: int = 1000) -> float:
    """Share of the exact k nearest that the index finds, with evenly spaced items as the queries.

    Args:
        index: over `vectors`.
        vectors: [I, D].
        k: cut-off.
        num_queries: at most so many.
    """
    k = min(k, len(vectors))
    queries = vectors[np.linspace(0, len(vectors) - 1, min(num_queries, len(vectors))).astype(int)]
    exact = build_index(vectors, IndexConfig(kind="flat"))
    _, wanted = exact.search(queries, k)
    _, found = index.search(queries, k)
    return float((wanted[:, :, None] == found[:, None, :]).any(axis=2).mean())
