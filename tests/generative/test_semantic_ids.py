"""One semantic ID one item: collisions, full prefixes, growth without moving anything, and what the report says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.core.errors import ConfigError, SchemaError
from intently.core.schema import EMBEDDING, ITEM_INTEREST
from intently.data.simulator import SimulatorConfig, simulate
from intently.generative.assignment import assign_codes
from intently.generative.inputs import InputConfig, interest_texts, item_inputs
from intently.generative.quality import code_report
from intently.generative.quantiser import Distances, QuantiserConfig, fit_quantiser
from intently.generative.semantic_ids import assign_semantic_ids
from intently.generative.trie import code_matrix

from tests.generative.test_quantiser import config, grouped_vectors

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "amazon_beauty" / "items.parquet"
NOBODY = np.zeros((0, 2), np.int32)
LINE = np.arange(4, dtype=np.float32)[:, None]  # four codewords at 0, 1, 2, 3


def line_distances(places: list[float]) -> Distances:
    """One-dimensional items; the first level says nothing, the last has codewords at 0, 1, 2 and 3."""
    return Distances(np.array(places, np.float32)[:, None], np.stack([np.zeros((4, 1), np.float32), LINE]), counter=False)


def ids(count: int, start: int = 0) -> pa.Array:
    return pa.array([f"i{n:03d}" for n in range(start, start + count)])


def test_assign_codes_colliding_items_are_spread_at_the_least_cost() -> None:
    # All want 1; 0.6 gives way to 0 and 1.4 to 2, which costs 0.36 + 0 + 0.36; any other order costs more.
    codes = assign_codes(np.zeros((3, 1), np.int32), line_distances([0.6, 1.0, 1.4]), NOBODY)
    assert codes.tolist() == [[0, 0], [0, 1], [0, 2]]


def test_assign_codes_what_is_published_is_not_given_away() -> None:
    codes = assign_codes(np.zeros((1, 1), np.int32), line_distances([1.1]), np.array([[0, 1], [0, 2], [1, 0]], np.int32))
    assert codes.tolist() == [[0, 0]]


def test_assign_codes_full_prefix_moves_the_worst_to_the_nearest_with_room() -> None:
    books = np.array([[[0.0], [10.0], [50.0], [90.0]], [[0.0], [1.0], [2.0], [3.0]]], np.float32)
    distances = Distances(np.array([[0.0], [1.0], [2.0], [3.0], [3.4]], np.float32), books, counter=False)
    codes = assign_codes(np.zeros((5, 1), np.int32), distances, NOBODY)
    assert codes.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]


def test_assign_codes_no_room_at_all_refused() -> None:
    distances = Distances(np.zeros((17, 1), np.float32), np.zeros((2, 4, 1), np.float32), counter=False)
    with pytest.raises(SchemaError, match="all 16 semantic IDs that begin with"):
        assign_codes(np.zeros((17, 1), np.int32), distances, NOBODY)


@given(
    prefixes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=0, max_size=40),
    num_published=st.integers(0, 20),
    counter=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_assign_codes_any_catalogue_is_unique_and_avoids_what_stands(
    prefixes: list[tuple[int, int]], num_published: int, counter: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    published = np.unique(rng.integers(0, 4, (num_published, 3)), axis=0).astype(np.int32)
    books = rng.normal(size=(2 if counter else 3, 4, 2)).astype(np.float32)
    wanted = np.array(prefixes, np.int32).reshape(-1, 2)
    first = set(wanted[:, 0].tolist())
    room = {code: 16 - int((published[:, 0] == code).sum()) for code in first}
    if any(int((wanted[:, 0] == code).sum()) > room[code] for code in first):
        return
    codes = assign_codes(wanted, Distances(rng.normal(size=(len(wanted), 2)).astype(np.float32), books, counter), published)
    together = np.concatenate([codes, published])
    assert len(np.unique(together, axis=0)) == len(together)
    assert ((codes >= 0) & (codes < 4)).all()
    assert np.array_equal(codes[:, 0], wanted[:, 0])


@pytest.mark.parametrize("kind", ["rq_kmeans", "rq_vae"])
@pytest.mark.parametrize("last_level", ["balanced", "counter"])
def test_semantic_ids_new_items_enter_and_published_ones_stay(kind: str, last_level: str) -> None:
    vectors = grouped_vectors(num_items=200)
    quantiser = fit_quantiser(vectors[:150], config(kind=kind, last_level=last_level, num_codes=16, num_levels=3))
    first = assign_semantic_ids(ids(150), vectors[:150], quantiser)
    # The catalogue loses ten items and gains fifty; one of the new ones is the twin of an old one.
    later = vectors[10:].copy()
    later[-1] = vectors[20]
    second = assign_semantic_ids(ids(190, 10), later, quantiser, first.table)
    assert second.table.slice(0, 150).equals(first.table)
    assert second.table["item_id"].to_pylist() == [f"i{n:03d}" for n in range(200)]
    codes = code_matrix(second.table["codes"])
    assert len(np.unique(codes, axis=0)) == 200
    assert second.report["collisions_after"] == 0
    assert (second.report["num_new"], second.report["num_published"]) == (50, 150)
    if last_level == "balanced":
        assert codes[199][:2].tolist() == codes[20][:2].tolist()
        assert codes[199][2] != codes[20][2]


def test_semantic_ids_published_with_another_depth_refused() -> None:
    vectors = grouped_vectors()
    made = assign_semantic_ids(ids(240), vectors, fit_quantiser(vectors, config(num_codes=16, num_levels=3)))
    with pytest.raises(SchemaError, match="have 3 codes, the quantiser makes 4"):
        assign_semantic_ids(ids(240), vectors, fit_quantiser(vectors, config(num_levels=4)), made.table)


def test_code_report_by_hand() -> None:
    raw = np.array([[0, 0], [0, 0], [0, 1], [1, 1]])
    report = code_report(raw, np.array([[0, 0], [0, 1], [0, 2], [1, 1]]), num_codes=4)
    assert report["use_level_1"] == 0.5
    assert report["perplexity_level_1"] == pytest.approx(2 ** (0.75 * np.log2(4 / 3) + 0.25 * 2))
    assert report["unique_ratio_before"] == 0.75
    assert (report["collisions_before"], report["collisions_after"], report["moved"]) == (0.5, 0.0, 0.5)


class Lengths:
    """Encodes a text as its length and its words."""

    name = "lengths"

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), text.count(" ")] for text in texts], np.float32)


def test_item_inputs_deep_interests_where_there_are_and_vectors_joined() -> None:
    rows = [("i1", "long walks", 0.5), ("i1", "dry feet", 0.9), ("i1", "vague", 0.1), ("i9", "gone", 1.0)]
    interests = ITEM_INTEREST.from_rows(
        [{"item_id": i, "interest": text, "confidence": c, "support": 1, "sources": ["m"]} for i, text, c in rows]
    )
    assert interest_texts(interests, 0.3).to_pylist() == [
        {"item_id": "i1", "text": "dry feet; long walks"},
        {"item_id": "i9", "text": "gone"},
    ]
    item_ids = pa.array(["i0", "i1"])
    texts = EMBEDDING.from_rows([{"kind": "item", "id": i, "vector": [3.0, 4.0], "model": "m"} for i in ("i1", "i0")])
    collaborative = EMBEDDING.from_rows([{"kind": "item", "id": "i1", "vector": [0.0, 2.0, 0.0], "model": "m"}])
    settings = InputConfig(source="deep", min_confidence=0.3, collaborative_weight=0.36)
    made = item_inputs(item_ids, texts, interests, collaborative, settings, Lengths())
    deep = np.array([20.0, 3.0]) / np.hypot(20, 3)
    np.testing.assert_allclose(made, [[0.48, 0.64, 0, 0, 0], [*(0.8 * deep), 0, 0.6, 0]], rtol=1e-6)


def test_item_inputs_what_is_missing_is_named() -> None:
    texts = EMBEDDING.from_rows([{"kind": "item", "id": "i0", "vector": [1.0], "model": "m"}])
    with pytest.raises(SchemaError, match=r"1 item\(s\) have no vector, first 'i7'"):
        item_inputs(pa.array(["i0", "i7"]), texts, None, None, InputConfig(), None)
    with pytest.raises(ConfigError, match=r"inputs.source = 'deep'"):
        item_inputs(pa.array(["i0"]), texts, None, None, InputConfig(source="deep"), None)
    with pytest.raises(ConfigError, match=r"inputs.collaborative_weight = 0.5"):
        item_inputs(pa.array(["i0"]), texts, None, None, InputConfig(collaborative_weight=0.5), None)


def word_vectors(texts: list[str]) -> np.ndarray:
    """Sums of random vectors, one a word: near where words are shared."""
    words = [text.lower().split() for text in texts]
    vocabulary = {word: n for n, word in enumerate(sorted({word for line in words for word in line}))}
    projection = np.random.default_rng(0).normal(size=(len(vocabulary), 48)).astype(np.float32)
    return np.stack([projection[[vocabulary[word] for word in line]].mean(axis=0) for line in words])


def test_semantic_ids_simulated_items_share_first_codes_within_a_category() -> None:
    items = simulate(SimulatorConfig(num_users=2, num_items=800, pictures=False)).items
    vectors = word_vectors([f"{title} {category}" for title, category in zip(*items.select(["title", "category"]).columns, strict=True)])
    made = assign_semantic_ids(
        items["item_id"].combine_chunks(), vectors, fit_quantiser(vectors, QuantiserConfig(num_codes=32, num_levels=3))
    )
    codes = code_matrix(made.table["codes"])
    assert len(np.unique(codes, axis=0)) == 800
    assert min(made.report[f"use_level_{level}"] for level in (1, 2, 3)) == 1
    category = np.unique(items["category"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    same = codes[:, None, 0] == codes[None, :, 0]
    alike = category[:, None] == category[None, :]
    assert alike[same].mean() > 4 * alike.mean()


@pytest.mark.skipif(not BEAUTY.is_file(), reason="the Beauty set is not on this machine")
def test_semantic_ids_beauty_uses_its_codebooks_and_leaves_no_collision() -> None:
    items = pq.read_table(BEAUTY, columns=["item_id", "title", "brand", "categories"]).to_pylist()
    vectors = word_vectors([f"{row['title']} {row['brand']} {row['categories']}" for row in items])
    made = assign_semantic_ids(
        pa.array([str(row["item_id"]) for row in items]), vectors, fit_quantiser(vectors, QuantiserConfig(iterations=8))
    )
    assert made.table.num_rows == 12_101
    assert made.report["collisions_after"] == 0 < made.report["collisions_before"] < 0.2
    assert all(made.report[f"use_level_{level}"] > 0.95 for level in (1, 2, 3, 4))
    assert made.report["neighbour_purity"] > 10 * made.report["neighbour_purity_chance"]
