"""The exact text of chunks, pinned: a language model was trained on it, so for one config it may never change by a byte."""

from __future__ import annotations

import hashlib
import json
import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest
from intently.core.schema import HISTORY, ITEM, Behaviour
from intently.data.chunking import ChunkConfig, Chunker
from intently.data.compression import CompressionConfig, compress

TITLES = [
    "Trail, Tent (2 persons)",
    "Lamp | bright",
    "Mug\\cup",
    'The "Boot"',
    "élan 日本語",
    "Line\nfeed",
    "Plain thing",
    "Trail, Tent (2 persons)",
]
QUERIES = ["tent", 'a "b", (c)', "back\\slash", "two\nlines", "double  space", ""]
NUM_ITEMS = 60

GOLDEN = {
    "count": "e3617aa55c91c150",
    "budget": "1eebfba869c796d4",
    "tight": "5e3e08ea75f162bb",
    "item_sets": "500e2ae9bce1d9d8",
    "month": "893621fc2ea82506",
    "tokens": "bc86b6d8d0da155c",
    "lifelong": "66e2940375edd786",
    "over_life": "6a29426b0b2675a8",
    "few_words": "d33a8641071b1163",
    "compress items": "4dd3d4120805973a",
    "compress item_sets": "ad81f1abe6b80c06",
}


def items() -> pa.Table:
    rows = []
    for number in range(NUM_ITEMS):
        title = TITLES[number % len(TITLES)] + ("" if number < 2 * len(TITLES) else f" number {number}")
        facts = {
            "attributes": [f"colour: {('red', 'blue', 'dark green')[number % 3]}"] if number % 2 else [],
            "brand": "Davvik" if number % 5 else None,
        }
        row = {"item_id": f"i{number}", "title": title, "category": f"Things {number % 4}" if number % 7 else "unknown", "categories": []}
        rows.append(row | facts | {"description": None, "price": None, "image": None})
    return ITEM.from_rows(rows)


def histories(num_users: int = 25) -> pa.Table:
    """People whose logs come from a fixed stream of numbers: empty ones, bursts within a second, gaps of years, unknown items."""
    draw = random.Random(20261120)
    rows = []
    for user in range(num_users):
        length = 0 if user in (0, 7) else draw.randrange(1, 230)
        time = datetime(2016, 1, 1, tzinfo=UTC) + timedelta(days=draw.randrange(900))
        columns: dict[str, list[object]] = {name: [] for name in ("item_ids", "behaviours", "timestamps", "values", "queries", "dwell_s")}
        favourites = [draw.randrange(NUM_ITEMS + 3) for _ in range(6)]
        for _ in range(length):
            time += draw.choice([timedelta(), timedelta(seconds=40), timedelta(hours=7), timedelta(days=9), timedelta(days=70)])
            behaviour = draw.choice(list(Behaviour))
            item = draw.choice(favourites) if draw.random() < 0.7 else draw.randrange(NUM_ITEMS)
            alone = behaviour == Behaviour.SEARCH and draw.random() < 0.6
            columns["item_ids"].append(None if alone else f"i{item}")
            columns["behaviours"].append(str(behaviour))
            columns["timestamps"].append(time)
            rated = behaviour == Behaviour.RATING and draw.random() < 0.9
            columns["values"].append(draw.choice([1.0, 3.5, 4.0, 4.123, 4.121, -0.5]) if rated else None)
            columns["queries"].append(draw.choice(QUERIES) if behaviour == Behaviour.SEARCH and draw.random() < 0.9 else None)
            columns["dwell_s"].append(draw.choice([None, 1.0, 5.0, 70.5]) if behaviour == Behaviour.DETAIL_VIEW else None)
        rows.append({"user_id": f"u{user}", "bucket": 0, "event_ids": [f"{user}-{place}" for place in range(length)], **columns})
    return HISTORY.from_rows(rows)


CONFIGS = {
    "count": {},
    "budget": {"max_tokens": 400},
    "tight": {"max_tokens": 60, "num_events": 9, "max_chunks": 5},
    "item_sets": {"compression": {"aggregation": "item_sets"}, "max_tokens": 300},
    "month": {"by": "month", "num_events": 20, "policy": {"min_rating": 3.0, "min_dwell_s": 10}},
    "tokens": {"by": "tokens", "max_tokens": 250},
    "lifelong": {"num_events": 1_000_000},
    "over_life": {"num_events": 1_000_000, "max_tokens": 500},
    "few_words": {"names": {"max_words": 2, "facets": ["brand"]}, "compression": {"days_by_day": 3, "days_by_month": 90}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_of_a_config_are_the_same_to_the_byte(name: str) -> None:
    chunked = Chunker(items(), ChunkConfig.parse(CONFIGS[name])).chunk(histories())
    rows = chunked.chunks.to_pylist()
    told = json.dumps([rows, chunked.dropped, chunked.trimmed_users], default=str, sort_keys=True)
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("aggregation", ["items", "item_sets"])
def test_text_of_whole_histories_is_the_same_to_the_byte(aggregation: str) -> None:
    names = pl.DataFrame({"item_id": [f"i{number}" for number in range(NUM_ITEMS)], "name": [TITLES[n % 8] for n in range(NUM_ITEMS)]})
    texts = compress(histories(), names, CompressionConfig.parse({"aggregation": aggregation})).to_pylist()
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16] == GOLDEN[f"compress {aggregation}"]
