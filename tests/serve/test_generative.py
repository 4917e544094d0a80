"""strategy=generative: answered once a generator stands, from history, session and posted items; refused before."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from intently.core.config import Config
from intently.core.schema import SEMANTIC_ID
from intently.core.workspace import Workspace, open_stage
from intently.generative.generator import put_generator
from intently.generative.semantic_ids import semantic_id_rows
from intently.generative.training import DecoderConfig, GeneratorConfig, build_decoder
from intently.generative.trie import read_trie

from serve.service import Service
from tests.serve.calling import calling, config

PATH = "/v1/users/ada/recommendations"
GENERATIVE = {"strategy": "generative", "k": 12}
TAKEN_BY_ADA = {"i00", "i02", "i05", "i04", "i09"}


@pytest.fixture
def moving(served: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the hand-made tables, which a test may add to."""
    shutil.copytree(served.root, tmp_path / "moving")
    return Workspace.open(tmp_path / "moving")


def write_generator(workspace: Workspace, folder: Path) -> str:
    """An untrained generator over the twelve items; its version."""
    codes = np.array([[n // 4, n % 4] for n in range(12)], np.int32)
    ids = workspace.artifact("item").read(columns=["item_id"])["item_id"].combine_chunks()
    stage = open_stage(workspace, "semantic_id", SEMANTIC_ID, {}, Config())
    stage.write("part-00000", semantic_id_rows(ids, codes))
    made = stage.finish()
    trie = read_trie(made.read(), made.version)
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 8, "feed_forward": 16, "text_tokens": 256}
    settings = GeneratorConfig(decoder=DecoderConfig.parse(sizes))
    model, vocabulary = build_decoder(settings.decoder, ["a title"], trie.code_counts, seed=0)
    model.save_pretrained(folder)
    vocabulary.tokenizer.save_pretrained(folder)
    stage = open_stage(workspace, "generator", None, {"semantic_id": made.version}, settings)
    put_generator(stage, folder, trie, settings)
    return stage.finish().version


def test_recommendations_generative_is_refused_until_a_generator_stands(moving: Workspace, tmp_path: Path) -> None:
    async def run() -> None:
        service = Service.open(config(moving, tmp_path / "log"), "r")
        async with calling(service) as client:
            assert (await client.get(PATH, params=GENERATIVE)).status_code == 422
            version = write_generator(moving, tmp_path / "model")
            told = (await client.post("/v1/admin/reload")).json()
            assert (told["outcome"], told["versions"]["generator"]) == ("loaded", version)
            body = (await client.get(PATH, params=GENERATIVE)).json()
            assert body["strategy"] == "generative"
            assert {one["item"]["item_id"] for one in body["items"]} == {f"i{n:02d}" for n in range(12)} - TAKEN_BY_ADA
            scores = [one["score"] for one in body["items"]]
            assert scores == sorted(scores, reverse=True)
            everything = (await client.get(PATH, params=GENERATIVE | {"filter_seen": False})).json()
            assert len(everything["items"]) == 12
            towers = (await client.get(PATH, params={"k": 12})).json()
            assert towers["strategy"] == "towers"

    asyncio.run(run())


def test_recommendations_generative_follow_session_and_posted_history(moving: Workspace, tmp_path: Path) -> None:
    write_generator(moving, tmp_path / "model")

    async def run() -> None:
        service = Service.open(config(moving, tmp_path / "log"), "r")
        async with calling(service) as client:
            events = [
                {"event_id": "g1", "user_id": "ada", "item_id": "i07", "behaviour": "purchase"},
                {"event_id": "g2", "user_id": "ada", "item_id": "i08", "behaviour": "rating", "value": 1.0},
            ]
            assert (await client.post("/v1/events", json=events)).status_code == 200
            body = (await client.get(PATH, params=GENERATIVE)).json()
            assert {one["item"]["item_id"] for one in body["items"]} == {f"i{n:02d}" for n in range(12)} - TAKEN_BY_ADA - {"i07", "i08"}
            asked = {"history": [{"item_id": "i03", "behaviour": "purchase"}], **GENERATIVE}
            posted = (await client.post("/v1/recommendations", json=asked)).json()
            assert {one["item"]["item_id"] for one in posted["items"]} == {f"i{n:02d}" for n in range(12)} - {"i03"}

    asyncio.run(run())
