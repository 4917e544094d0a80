"""Items and tags to vectors, by hand-made tables, the worker alone and the job on Ray."""

from __future__ import annotations

from typing import Any

import embed_texts
import numpy as np
import pyarrow as pa
import pytest
from embed_texts import EmbedTextsConfig
from intently.core.config import Config
from intently.core.schema import EMBEDDING, ITEM, TAG, Table
from intently.core.workspace import Workspace, open_stage
from intently.llm.embedding import INTEREST_COLUMNS, ItemTextConfig, distinct_tags, embedding_rows, interest_texts, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder

ITEMS = [
    {
        "item_id": "shoe",
        "title": "Trail shoe",
        "description": "Light and made for mud",
        "category": "Running",
        "categories": ["Shoes", "Running"],
        "brand": "Fleet",
        "price": 80.0,
        "attributes": ["weight: 210 g", "colour: red"],
        "image": None,
    },
    {
        "item_id": "novel",
        "title": "The long sea",
        "description": None,
        "category": "Books",
        "categories": [],
        "brand": None,
        "price": None,
        "attributes": [],
        "image": None,
    },
]


def put(workspace: Workspace, name: str, table: Table, **parts: list[dict[str, Any]]) -> None:
    stage = open_stage(workspace, name, table, {}, Config())
    for part, rows in parts.items():
        stage.write(part, table.from_rows(rows))
    stage.finish()


def tag(text: str, rank: int = 0) -> dict[str, Any]:
    row = {"user_id": "u", "bucket": 0, "rank": rank, "tag": text, "interest": "running", "reason": "runs", "category": None}
    return {**row, "model": "scripted"}


@pytest.fixture
def stocked(workspace: Workspace) -> Workspace:
    put(workspace, "item", ITEM, items=ITEMS)
    put(workspace, "tag", TAG, a=[tag("warm socks"), tag("trail shoes", 1)], b=[tag("warm socks")])
    return workspace


def test_item_texts_say_what_there_is_and_skip_what_is_missing() -> None:
    texts = item_texts(ITEM.from_rows(ITEMS), ItemTextConfig(description_chars=9, attributes_chars=20)).to_pylist()
    assert texts == ["Trail shoe | Shoes > Running | Fleet | weight: 210 g; colou | Light and", "The long sea | Books"]


def test_distinct_tags_over_all_parts_are_sorted_and_single(stocked: Workspace) -> None:
    assert distinct_tags(stocked.artifact("tag")).to_pylist() == ["trail shoes", "warm socks"]


def test_embedding_rows_keep_each_vector_with_its_id() -> None:
    vectors = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    rows = embedding_rows("tag", pa.chunked_array([["a"], ["b", "c"]]), vectors, "m").to_pylist()
    assert rows[2] == {"kind": "tag", "id": "c", "vector": [5.0, 6.0], "model": "m"}


@pytest.mark.usefixtures("ray_session")
def test_embed_texts_writes_what_is_pending_and_then_stands(stocked: Workspace) -> None:
    config = EmbedTextsConfig(rows_per_part=1, encoder=EncoderConfig(precision="float32"))
    stage = embed_texts.JOB.stage(stocked, "item_embedding", config)
    stage.write("part-00001", EMBEDDING.from_rows([{"kind": "item", "id": "novel", "vector": [0.0] * 384, "model": "written before"}]))

    item_embedding = embed_texts.run(config, stocked)
    items, tags = item_embedding.read(), stocked.artifact("tag_embedding").read()
    assert items["id"].to_pylist() == ["shoe", "novel"]
    assert items["model"].to_pylist() == ["all-MiniLM-L6-v2", "written before"]
    assert tags["id"].to_pylist() == ["trail shoes", "warm socks"]
    expected = TextEncoder(config.encoder).encode(["trail shoes", "warm socks"])
    np.testing.assert_allclose(np.array(tags["vector"].to_pylist()), expected, atol=1e-5)

    ended = item_embedding.manifest.ended
    assert embed_texts.run(config, stocked).manifest.ended == ended


@pytest.mark.usefixtures("ray_session")
def test_embed_texts_without_tags_writes_an_empty_table(workspace: Workspace) -> None:
    put(workspace, "item", ITEM, items=[])
    put(workspace, "tag", TAG, a=[])
    embed_texts.run(EmbedTextsConfig(), workspace)
    assert workspace.artifact("tag_embedding").read().num_rows == 0


def test_interest_texts_join_the_phrases_of_a_chunk_in_the_models_order() -> None:
    rows = [("bob", 0, 0, "noir films", "active", "new", "a"), ("ann", 10, 0, "jazz", "fading", "continued", "b"),
            ("ann", 2, 1, "war films", "emerging", "new", "c"), ("ann", 2, 0, "comedies", "active", "returned", "d")]  # fmt: skip
    interests = pa.table(dict(zip(INTEREST_COLUMNS, zip(*rows, strict=True), strict=True)))
    ids, texts = interest_texts(interests)
    assert ids.to_pylist() == ["ann/2", "ann/10", "bob/0"]
    assert texts.to_pylist() == [
        "comedies (active, returned): d; war films (emerging, new): c",
        "jazz (fading, continued): b",
        "noir films (active, new): a",
    ]
