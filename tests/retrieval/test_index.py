"""The kinds of index behind one interface, filters included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.workspace import Stage, Workspace, open_stage
from intently.retrieval import index as module
from intently.retrieval.index import IndexConfig, build_index, recall_against_exact
from intently.retrieval.index_files import IndexBuild, append_to_index, build_here, load_index
from intently.retrieval.trained import embedding_table

KINDS = ["flat", "hnsw", "ivfpq"]
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(900, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = RNG.normal(size=(40, 8)).astype(np.float32)
IDS = pa.array([f"i{row}" for row in range(900)])


def config(kind: str, **settings: int) -> IndexConfig:
    return IndexConfig.parse({"kind": kind, "pq_bytes": 8, "ivf_probes": 16, "rows_per_shard": 400, "pq_candidates": 10} | settings)


def stage_of(workspace: Workspace, name: str = "index") -> Stage:
    return open_stage(workspace, name, None, {}, Config())


def exact(queries: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    scores = np.where(allowed, queries @ VECTORS.T, -np.inf)
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.where(np.isneginf(np.take_along_axis(scores, order, axis=1)), -1, order)


@pytest.mark.parametrize("kind", KINDS)
def test_index_put_into_files_and_mapped_again_finds_the_same(kind: str, workspace: Workspace) -> None:
    stage = stage_of(workspace)
    build_here(stage, VECTORS, IDS, config(kind))
    index, ids = load_index(stage.finish())
    assert ids.equals(IDS)
    assert index.kind == kind
    assert len(index.shards) == (1 if kind == "ivfpq" else 3)
    scores, rows = index.search(QUERIES, 10)
    memory_scores, memory_rows = build_index(VECTORS, config(kind)).search(QUERIES, 10)
    if kind != "ivfpq":  # there the shards learn from the whole, and merging puts rows into cells in another order
        assert np.array_equal(memory_rows, rows)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores == pytest.approx(np.einsum("qkd,qd->qk", VECTORS[rows], QUERIES), abs=1e-5)
    assert recall_against_exact(index, QUERIES, 10) >= 0.95
    assert memory_scores.shape == scores.shape
    assert not [name for name in stage.finish().manifest.files if "part" in name or "trained" in name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.95])
def test_index_filter_finds_what_is_allowed_and_all_of_it(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 20)  # so that graphs and cells are searched under filters here
    allowed = np.random.default_rng(3).random(900) < share
    index = build_index(VECTORS, config(kind, hnsw_neighbours=4, hnsw_search_breadth=10))
    k = min(10, int(allowed.sum()))
    scores, rows = index.search(QUERIES, k, allowed)
    assert (rows >= 0).all()
    assert allowed[rows].all()
    assert np.mean([np.isin(w, f).mean() for w, f in zip(exact(QUERIES, allowed, k), rows, strict=True)]) > 0.85
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_index_left_out_rows_leave_no_gaps(kind: str) -> None:
    index = build_index(VECTORS, config(kind, ivf_probes=60))  # all cells: what is found is exact
    top = exact(QUERIES[:2], np.ones(900, bool), 60)
    # The first query has its 50 nearest left out, the second one a single row; the same row of the other query still comes.
    without = (np.append(np.zeros(50, np.int64), 1), np.append(top[0, :50], top[1, 0]))
    _, rows = index.search(QUERIES[:2], 5, None, without)
    assert rows.tolist() == [top[0, 50:55].tolist(), top[1, 1:6].tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_index_fewer_left_than_wanted_gives_those_and_then_minus_one(kind: str) -> None:
    index = build_index(VECTORS, config(kind))
    allowed = np.zeros(900, bool)
    allowed[[3, 77, 890]] = True
    scores, rows = index.search(QUERIES[:1], 5, allowed, (np.array([0]), np.array([77])))
    assert sorted(rows[0, :2].tolist()) == [3, 890]
    assert rows[0, 2:].tolist() == [-1, -1, -1]
    assert np.isneginf(scores[0, 2:]).all()
    _, nothing = index.search(QUERIES[:1], 5, np.zeros(900, bool))
    assert nothing.tolist() == [[-1] * 5]
    _, everything = index.search(QUERIES[:1], 900)
    assert sorted(everything[0].tolist()) == list(range(900))


def test_index_flat_equals_brute_force() -> None:
    _, rows = build_index(VECTORS, config("flat")).search(QUERIES, 7)
    assert np.array_equal(rows, exact(QUERIES, np.ones(900, bool), 7))


def test_index_recall_of_a_broken_index_is_low() -> None:
    index = build_index(VECTORS, config("hnsw"))
    moved = type(index)(index.kind, index.config, np.roll(VECTORS, 1, axis=0), index.shards)
    assert recall_against_exact(moved, QUERIES, 10) < 0.3


def test_index_auto_goes_by_catalogue_size() -> None:
    auto = IndexConfig(flat_up_to=10, hnsw_up_to=100)
    assert [auto.resolve(size) for size in (10, 11, 100, 101)] == ["flat", "hnsw", "hnsw", "ivfpq"]
    assert IndexConfig(kind="ivfpq").resolve(10) == "ivfpq"


def test_index_code_length_that_does_not_divide_the_width_refused() -> None:
    with pytest.raises(ConfigError, match="pq_bytes"):
        build_index(VECTORS, config("ivfpq", pq_bytes=3))


@pytest.mark.parametrize("kind", KINDS)
def test_build_goes_on_with_the_shards_that_are_missing(kind: str, workspace: Workspace) -> None:
    build = IndexBuild(stage_of(workspace), config(kind), 900)
    build.put_vectors(VECTORS, IDS)
    assert build.pending == ["shard-00000", "shard-00001", "shard-00002"]
    assert build.build("shard-00001") == 400
    again = IndexBuild(stage_of(workspace), config(kind), 900)
    again.put_vectors(np.zeros_like(VECTORS), IDS)  # written already: what is given now is not read
    assert again.pending == ["shard-00000", "shard-00002"]
    for name in again.pending:
        again.build(name)
    assert recall_against_exact(again.finish(), QUERIES, 10) >= 0.95
    assert IndexBuild(stage_of(workspace), config(kind), 900).pending == []


@pytest.mark.parametrize("kind", KINDS)
def test_append_keeps_rows_and_finds_new_items(kind: str, workspace: Workspace) -> None:
    base_stage = stage_of(workspace, "base")
    build_here(base_stage, VECTORS[:700], IDS[:700], config(kind))
    base = base_stage.finish()
    before = {name: Path(base.fetch(name)).read_bytes() for name in base.manifest.files}
    stage = stage_of(workspace)
    index = append_to_index(stage, base, embedding_table("item", IDS, VECTORS, "towers@1"))
    assert [shard.first for shard in index.shards] == ([0] if kind == "ivfpq" else [0, 400, 800])
    assert np.array_equal(index.vectors, VECTORS)
    assert load_index(stage)[1].equals(IDS)
    assert index.search(VECTORS[[5, 750, 899]], 1)[1].ravel().tolist() == [5, 750, 899]
    assert recall_against_exact(index, QUERIES, 10) >= 0.95
    assert {name: Path(base.fetch(name)).read_bytes() for name in before} == before


def test_append_to_other_items_refused(workspace: Workspace) -> None:
    base_stage = stage_of(workspace, "base")
    build_here(base_stage, VECTORS[:700], IDS[:700], config("flat"))
    other = embedding_table("item", IDS.take(pa.array(np.arange(900)[::-1])), VECTORS, "towers@1")
    with pytest.raises(SchemaError, match="does not begin with the items"):
        append_to_index(stage_of(workspace), base_stage.finish(), other)
