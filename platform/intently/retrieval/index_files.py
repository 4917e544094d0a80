"""The artifact `index`: vectors, item ids and shards as files that are mapped into memory; built in many processes, appended to daily.

Files: `vectors.npy` ([I, D] float32), `item_ids.arrow` (row → item), `index.json` (kind, settings, shards), and for each shard a FAISS
file; IVF-PQ's shards are merged into one. A build that was killed goes on with the shards that are not there.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.lib.format import open_memmap

from intently.core.errors import SchemaError
from intently.core.workspace import Artifact, Stage
from intently.retrieval.catalogue import vectors_of
from intently.retrieval.index import IndexConfig, Kind, Shard, VectorIndex, build_shard, train_cells

SETTINGS = "index.json"
VECTORS = "vectors.npy"
ITEM_IDS = "item_ids.arrow"
TRAINED = "trained.faiss"
MERGED = "shard-00000.faiss"


@dataclass(frozen=True)
class IndexBuild:
    """An index in the making. Picklable: a worker maps the vectors and writes its shards itself.

    Attributes:
        stage: of artifact `index`.
        config: how.
        num_items: I.
    """

    stage: Stage
    config: IndexConfig
    num_items: int

    @property
    def kind(self) -> Kind:
        """Of the shards."""
        return self.config.resolve(self.num_items)

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in the rows' order."""
        return [f"shard-{number:05d}" for number in range(len(self.config.spans(self.num_items)))]

    @property
    def pending(self) -> list[str]:
        """Shards that are not written yet."""
        return [] if self._there(SETTINGS) else [name for name in self.shards if not self._there(_part(name, self.kind))]

    def put_vectors(self, vectors: np.ndarray, item_ids: pa.Array) -> None:
        """Write vectors [I, D] and ids [I], and learn IVF's cells, unless that is done."""
        if not self._there(ITEM_IDS):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / VECTORS
                np.save(path, vectors)
                self.stage.put(VECTORS, path)
            self.stage.put(ITEM_IDS, _as_bytes(item_ids))
        if self.kind == "ivfpq" and self.pending and not self._there(TRAINED):
            self._put(TRAINED, train_cells(self.vectors, self.config))

    @property
    def vectors(self) -> np.ndarray:
        """[I, D], mapped into memory."""
        return np.load(self.stage.fetch(VECTORS), mmap_mode="r")

    def build(self, name: str) -> int:
        """Build one shard; how many rows it has."""
        start, stop = self.config.spans(self.num_items)[self.shards.index(name)]
        trained = faiss.read_index(str(self.stage.fetch(TRAINED))) if self.kind == "ivfpq" else None
        shard = build_shard(self.vectors[start:stop], start, self.kind, self.config, trained)
        self._put(_part(name, self.kind), shard.index)
        return stop - start

    def finish(self) -> VectorIndex:
        """Merge what can be merged and say what there is; the index, ready to be searched. All shards must stand."""
        if not self._there(SETTINGS):
            if self.kind == "ivfpq":
                self._merge()
            firsts = [0] if self.kind == "ivfpq" else [start for start, _ in self.config.spans(self.num_items)]
            put_settings(self.stage, self.kind, self.config, firsts)
        for name in [TRAINED, *(_part(name, "ivfpq") for name in self.shards)]:
            if self._there(name):
                self.stage.workspace.filesystem.delete_file(self._path(name))
        return load_index(self.stage)[0]

    def _merge(self) -> None:
        parts = [_part(name, self.kind) for name in self.shards]
        index = faiss.read_index(str(self.stage.fetch(parts[0])))
        for part in parts[1:]:
            index.merge_from(faiss.read_index(str(self.stage.fetch(part))), 0)
        self._put(MERGED, index)

    def _put(self, filename: str, index: faiss.Index) -> None:
        put_index(self.stage, filename, index)

    def _path(self, filename: str) -> str:
        return self.stage.workspace.path(self.stage.name, self.stage.version, filename)

    def _there(self, filename: str) -> bool:
        return self.stage.workspace.exists(self._path(filename))


class ShardBuilder:
    """Worker of `map_parts`: builds one shard at a time."""

    def __init__(self, build: IndexBuild) -> None:
        self._build = build

    def __call__(self, part: str) -> dict[str, int | float]:
        """Build and write the shard; rows and seconds."""
        start = time.monotonic()
        return {"rows": self._build.build(part), "seconds": round(time.monotonic() - start, 2)}


def put_settings(stage: Stage, kind: Kind, config: IndexConfig, firsts: Sequence[int]) -> None:
    """Write `index.json`: what the shards are, and the first row of each."""
    stage.put(SETTINGS, json.dumps({"kind": kind, "config": config.model_dump(mode="json"), "firsts": list(firsts)}).encode())


def put_index(stage: Stage, filename: str, index: faiss.Index) -> None:
    """Write one FAISS index into an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / filename
        faiss.write_index(index, str(path))
        stage.put(filename, path)


def load_index(artifact: Artifact | Stage) -> tuple[VectorIndex, pa.Array]:
    """The index and its item ids [I], mapped into memory rather than read; of a stage once all its files are put."""
    settings = json.loads(artifact.fetch(SETTINGS).read_bytes())
    config, kind = IndexConfig.parse(settings["config"]), settings["kind"]
    names = [f"shard-{number:05d}.faiss" for number in range(len(settings["firsts"]))]
    # Not IO_FLAG_MMAP: its inverted lists start a crowd of threads for every search.
    indexes = [faiss.read_index(str(artifact.fetch(name)), faiss.IO_FLAG_MMAP_IFC) for name in names]
    shards = tuple(Shard(index, first) for index, first in zip(indexes, settings["firsts"], strict=True))
    with pa.memory_map(str(artifact.fetch(ITEM_IDS))) as source:
        item_ids = pa.ipc.open_file(source).read_all()["item_id"].combine_chunks()
    return VectorIndex(kind, config, np.load(artifact.fetch(VECTORS), mmap_mode="r"), shards), item_ids


def build_here(stage: Stage, vectors: np.ndarray, item_ids: pa.Array, config: IndexConfig) -> VectorIndex:
    """Build every shard that is missing in this process; the caller finishes the stage."""
    build = IndexBuild(stage, config, len(vectors))
    build.put_vectors(vectors, item_ids)
    for name in build.pending:
        build.build(name)
    return build.finish()


def append_to_index(stage: Stage, base: Artifact, table: pa.Table) -> VectorIndex:
    """Write an index that holds what `base` holds, in the same rows, and further items behind it; nothing that stands is built again.

    A flat or HNSW shard that is not full takes them in, IVF-PQ puts them into its cells; then new shards are begun. The kind stays,
    also where the catalogue grew beyond what it is meant for: the next full build chooses anew.

    Args:
        stage: of the new version; the caller finishes it.
        base: artifact `index`.
        table: EMBEDDING rows whose first ones are the items of `base`, in its order.
    Raises:
        SchemaError: they are not.
    """
    index, item_ids = load_index(base)
    known = len(item_ids)
    ids = table["id"].combine_chunks()
    if not ids.slice(0, known).equals(item_ids):
        raise SchemaError(f"item_vector does not begin with the items of {base}: build the index anew")
    vectors, config = vectors_of(table), index.config
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / VECTORS
        grown = open_memmap(path, "w+", np.float32, vectors.shape)
        grown[:known], grown[known:] = index.vectors, vectors[known:]
        grown.flush()
        stage.put(VECTORS, path)
    stage.put(ITEM_IDS, _as_bytes(ids))
    firsts = [shard.first for shard in index.shards]
    last = len(firsts) - 1
    for number in range(last):
        stage.put(f"shard-{number:05d}.faiss", base.fetch(f"shard-{number:05d}.faiss"))
    tail = faiss.read_index(str(base.fetch(f"shard-{last:05d}.faiss")))  # into memory: it grows
    room = len(vectors) if index.kind == "ivfpq" else max(known, firsts[last] + config.rows_per_shard)
    fresh = np.ascontiguousarray(vectors[known:room])
    if index.kind == "ivfpq":
        tail.add_with_ids(fresh, np.arange(known, known + len(fresh)))
    else:
        tail.add(fresh)
    put_index(stage, f"shard-{last:05d}.faiss", tail)
    for start in range(room, len(vectors), config.rows_per_shard):
        shard = build_shard(vectors[start : start + config.rows_per_shard], start, index.kind, config)
        put_index(stage, f"shard-{len(firsts):05d}.faiss", shard.index)
        firsts.append(start)
    put_settings(stage, index.kind, config, firsts)
    return load_index(stage)[0]


def _part(name: str, kind: Kind) -> str:
    """File of a shard; IVF-PQ's have another name until they are merged."""
    return f"part-of-{name}.faiss" if kind == "ivfpq" else f"{name}.faiss"


def _as_bytes(item_ids: pa.Array) -> bytes:
    table = pa.table({"item_id": item_ids.cast(pa.string())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
