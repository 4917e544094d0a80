"""Catalogue and tags as numbers."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pytest
from intently.core.errors import SchemaError
from intently.core.schema import EMBEDDING, ITEM, TAG
from intently.retrieval.catalogue import hash_words, pair_tags_with_items, read_catalogue, read_tags, vectors_of
from intently.retrieval.interactions import BehaviourConfig, read_interactions

from tests.retrieval.world import history, items


def bucket(word: str, buckets: int = 1000) -> int:
    return zlib.crc32(word.encode()) % buckets


def test_read_catalogue_codes_brands_and_price_bins() -> None:
    catalogue = read_catalogue(items(), EMBEDDING.empty(), price_bins=2)
    assert catalogue.category_names == ["Hiking", "Garden", "Kitchen"]
    assert catalogue.categories[[0, 11, 12, 35]].tolist() == [0, 0, 1, 2]
    assert catalogue.brands[:5].tolist() == [1, 0, 0, 0, 1]
    # Prices 0 … 31; the median is the only edge, and an item without a price is in bin 0.
    assert catalogue.prices[[0, 5, 35]].tolist() == [1, 0, 2]
    assert catalogue.texts.shape == (36, 0)


def test_read_catalogue_no_items_refused() -> None:
    with pytest.raises(SchemaError, match="no rows"):
        read_catalogue(ITEM.empty(), EMBEDDING.empty(), price_bins=2)


def test_read_catalogue_item_without_text_has_zero_vector() -> None:
    text = EMBEDDING.from_rows([{"kind": "item", "id": "i01", "vector": [3.0, 4.0], "model": "test"}])
    catalogue = read_catalogue(items(), text, price_bins=2)
    assert catalogue.texts[:3].tolist() == [[0, 0], [3, 4], [0, 0]]


def test_hash_words_ends_at_hyphens_and_spaces_and_strips_punctuation() -> None:
    words, offsets = hash_words(pa.array(["Non-slip boots,", "", "BOOTS / tents"]), 1000)
    assert offsets.tolist() == [0, 3, 4, 6]
    assert words.tolist() == [bucket("non"), bucket("slip"), bucket("boots"), bucket(""), bucket("boots"), bucket("tents")]


def test_pair_tags_counts_events_of_any_behaviour_not_items() -> None:
    catalogue = read_catalogue(items(), EMBEDDING.empty(), price_bins=2)
    events = [("i00", "purchase"), ("i02", "purchase"), ("i01", "detail_view"), ("i01", "detail_view")]
    past = read_interactions(history({"u": events}), catalogue.item_ids, BehaviourConfig())
    row = {"user_id": "u", "bucket": 0, "rank": 0, "tag": "boots", "interest": "x", "reason": "x", "category": "Hiking", "model": "x"}
    tags = read_tags(TAG.from_rows([row]), past.user_ids, catalogue.category_names, 100)
    assert pair_tags_with_items(tags, np.zeros((1, 0), np.float32), catalogue, past, 3).tolist() == [[0, 1], [0, 1], [0, 2]]


def test_pair_tags_takes_latest_items_of_category_and_nearest_text() -> None:
    catalogue = read_catalogue(items(), EMBEDDING.empty(), price_bins=2)
    catalogue = type(catalogue)(**{**vars(catalogue), "texts": np.eye(36, dtype=np.float32)})
    past = read_interactions(
        history({"u": [("i00", "purchase"), ("i13", "purchase"), ("i02", "purchase"), ("i01", "detail_view")]}),
        catalogue.item_ids,
        BehaviourConfig(),
    )
    tag = {"user_id": "u", "bucket": 0, "interest": "x", "reason": "x", "model": "x"}
    rows = TAG.from_rows(
        [
            {**tag, "rank": 0, "tag": "hiking boots", "category": "Hiking"},
            {**tag, "rank": 1, "tag": "knives", "category": None},
            {**tag, "rank": 2, "tag": "of a stranger", "category": "Garden", "user_id": "stranger"},
        ]
    )
    tags = read_tags(rows, past.user_ids, catalogue.category_names, 100)
    texts = np.zeros((3, 36), np.float32)
    texts[0, 20], texts[0, 7] = 0.9, 0.5  # the nearest of all is of another category: the nearest hiking item counts
    texts[1, 30] = texts[2, 15] = 1
    pairs = pair_tags_with_items(tags, texts, catalogue, past, per_tag=2)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 7], [1, 30], [2, 15]]


def test_vectors_of_ragged_lengths_refused() -> None:
    rows = [{"kind": "item", "id": str(n), "vector": [0.0] * n, "model": "test"} for n in (1, 2)]
    with pytest.raises(SchemaError, match="lengths"):
        vectors_of(EMBEDDING.from_rows(rows))
