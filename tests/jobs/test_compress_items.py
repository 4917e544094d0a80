"""Item names by a language model: asked once an item, checked against its facts, used by compression. The engine is scripted."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import compress_histories
import compress_items
import pytest
from intently.core.config import Config
from intently.core.schema import HISTORY, ITEM, Table
from intently.core.workspace import Workspace, open_stage
from intently.llm.engines.scripted import ScriptedConfig

pytestmark = pytest.mark.usefixtures("ray_session")

SCRIPT = ScriptedConfig(
    replies={
        "Item: Davvik X200 Ultra": json.dumps({"name": "Davvik tent"}),
        "Item: Lamp of the far north": json.dumps({"name": "cheap Chinese lamp"}),
    },
    default="no JSON",
)
CONFIG = compress_items.CompressItemsConfig(engine=SCRIPT, items_per_part=2)


def write(workspace: Workspace, name: str, table: Table, rows: list[dict]) -> None:
    stage = open_stage(workspace, name, table, {"rows": str(len(rows))}, Config())
    stage.write("bucket-00000", table.from_rows(rows))
    stage.finish()


def item(item_id: str, title: str, category: str = "Tent") -> dict:
    return {"item_id": item_id, "title": title, "category": category, "brand": "Davvik", "categories": [], "attributes": ["poles: 2"]}


CATALOGUE = [
    item("i1", "Davvik X200 Ultra"),
    item("i2", "Lamp of the far north", "Lamp"),
    item("i3", "Mug"),
    item("i4", "Davvik X200 Ultra"),
]


def test_items_are_named_once_what_is_made_up_is_refused_and_chunks_use_the_names(workspace: Workspace) -> None:
    write(workspace, "item", ITEM, CATALOGUE)
    names = compress_items.JOB.execute(CONFIG, workspace)
    assert {row["item_id"]: row["name"] for row in names.read().to_pylist()} == {"i1": "Davvik tent", "i4": "Davvik tent"}
    assert names.manifest.reject_reasons == {"name has a word that the item's facts do not have": 1, "answer is not JSON": 1}
    write(workspace, "item", ITEM, [*CATALOGUE, item("i5", "Davvik X200 Ultra"), item("i6", "Pan")])
    again = compress_items.JOB.execute(CONFIG, workspace)
    assert again.version != names.version
    assert again.manifest.metrics["reused"] == 3, "the same facts are not asked again"
    times = [datetime(2024, 5, 1, tzinfo=UTC)] * 2
    events = {"event_ids": ["1", "2"], "item_ids": ["i1", "i2"], "behaviours": ["cart"] * 2, "timestamps": times}
    nothing = {"values": [None] * 2, "queries": [None] * 2, "dwell_s": [None] * 2}
    write(workspace, "history_train", HISTORY, [{"user_id": "u", "bucket": 0, **events, **nothing}])
    chunks = compress_histories.JOB.execute(compress_histories.CompressHistoriesConfig(), workspace)
    assert chunks.read()["text"].to_pylist() == ["2024-05-01 (cart) | Davvik tent, Lamp of the far north [Davvik; 2]"]
