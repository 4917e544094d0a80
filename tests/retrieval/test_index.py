"""The three kinds of index behind one interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from intently.retrieval import index as module
from intently.retrieval.index import IndexConfig, build_index, load_index, recall_against_exact

VECTORS = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_index_saved_and_loaded_finds_the_same(kind: str, tmp_path: Path) -> None:
    index = build_index(VECTORS, IndexConfig(kind=kind))
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index", index.kind)
    scores, rows = index.search(VECTORS[:5], 10)
    assert np.array_equal(again.search(VECTORS[:5], 10)[1], rows)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert recall_against_exact(index, VECTORS, 10) >= 0.9


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_index_allowed_rows_only(kind: str) -> None:
    index = build_index(VECTORS, IndexConfig(kind=kind))
    allowed = np.zeros(400, bool)
    allowed[[3, 77, 390]] = True
    _, rows = index.search(VECTORS[:1], 5, allowed)
    assert sorted(rows[0][rows[0] >= 0].tolist()) == [3, 77, 390]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_index_many_allowed_rows_are_searched_by_its_own_kind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 10)
    index = build_index(VECTORS, IndexConfig(kind=kind))
    allowed = np.ones(400, bool)
    allowed[:5] = False
    _, rows = index.search(VECTORS[:5], 10, allowed)
    assert (rows >= 5).all()


def test_index_flat_equals_brute_force() -> None:
    _, rows = build_index(VECTORS, IndexConfig(kind="flat")).search(VECTORS[:20], 7)
    assert np.array_equal(rows, np.argsort(-(VECTORS[:20] @ VECTORS.T), axis=1)[:, :7])


def test_index_auto_goes_by_catalogue_size() -> None:
    config = IndexConfig(flat_up_to=10, hnsw_up_to=100)
    assert [config.resolve(size) for size in (10, 11, 100, 101)] == ["flat", "hnsw", "hnsw", "ivf"]
    assert IndexConfig(kind="ivf").resolve(10) == "ivf"
