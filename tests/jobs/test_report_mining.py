"""Labels and the report on a small workspace: what stands is told, what does not is left out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import label_interests
import mine_item_interests
import pytest
import report_mining
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.schema import CHUNK, HISTORY, ITEM, TAG, USER_INTEREST, Table
from intently.core.workspace import Artifact, Workspace, open_stage

pytestmark = pytest.mark.usefixtures("ray_session")

ITEMS = {"boots": ("Leather hiking boots", "Hiking"), "poles": ("Trekking poles", "Hiking"), "kettle": ("Coffee kettle", "Coffee")}


def answer(*phrases: str) -> str:
    interests = [{"interest": phrase, "confidence": 0.9} for phrase in phrases]
    return json.dumps({"attributes": ["leather"], "motivation": "walk far", "interests": interests})


PLOTS = ("rejects.png", "iq.png", "hits.png", "tokens.png", "path.png")
SCRIPT = {"kind": "scripted", "default": answer("mountain hiking", "good products"), "replies": {"Coffee kettle": "no JSON"}}


def write(workspace: Workspace, name: str, table: Table, rows: list[dict[str, Any]]) -> Artifact:
    stage = open_stage(workspace, name, table, {}, Config())
    stage.write("part-00000", table.from_rows(rows))
    return stage.finish()


def history(user: str, *items: str) -> dict[str, Any]:
    nothing = {name: [None] * len(items) for name in ("values", "queries", "dwell_s")}
    events = {"event_ids": list(items), "item_ids": list(items), "behaviours": ["purchase"] * len(items)}
    return {"user_id": user, "bucket": 0, **events, **nothing, "timestamps": [datetime(2024, 7, 1, tzinfo=UTC)] * len(items)}


def chunk(user: str, number: int) -> dict[str, Any]:
    spans = {"start": datetime(2024, 5 + number, 1, tzinfo=UTC), "end": datetime(2024, 5 + number, 28, tzinfo=UTC)}
    return {"user_id": user, "bucket": 0, "chunk": number, "event_ids": [], "item_ids": [], "text": "", "num_tokens": 0, **spans}


def wish(user: str, number: int, interest: str, shift: str) -> dict[str, Any]:
    said = {"interest": interest, "stage": "active", "reason": "", "shift": shift, "evidence": [], "model": "hand"}
    return {"user_id": user, "bucket": 0, "chunk": number, "rank": 0, **said}


def test_labels_and_report_tell_what_was_mined_and_what_it_is_worth(workspace: Workspace) -> None:
    rows = [{"item_id": i, "title": t, "category": c, "categories": [], "attributes": []} for i, (t, c) in ITEMS.items()]
    write(workspace, "item", ITEM, rows)
    first = report_mining.run(report_mining.ReportMiningConfig(), workspace)
    assert "Nothing was held out" in first.fetch("summary.txt").read_text()

    mine_item_interests.run(mine_item_interests.MineItemInterestsConfig.parse({"engines": [SCRIPT]}), workspace)
    write(workspace, "history_train", HISTORY, [history("ann", "boots"), history("bob", "kettle")])
    write(workspace, "history_test", HISTORY, [history("ann", "poles"), history("bob", "boots")])
    tag = {
        "user_id": "ann",
        "bucket": 0,
        "rank": 0,
        "tag": "warm winter boots",
        "interest": "i",
        "reason": "r",
        "category": "Hiking",
        "model": "m",
    }
    write(workspace, "tag", TAG, [tag])
    write(workspace, "chunk", CHUNK, [chunk("ann", 0), chunk("ann", 1)])
    write(workspace, "user_interest", USER_INTEREST, [wish("ann", 0, "hiking", "new"), wish("ann", 1, "coffee", "new")])

    with pytest.raises(ConfigError, match="engine"):
        label_interests.run(label_interests.LabelInterestsConfig.parse({"labels": {"source": "llm"}}), workspace)
    labelled = label_interests.run(label_interests.LabelInterestsConfig(), workspace)
    said = {row["subject"]: row["label"] for row in labelled.read("part-00000").to_pylist()}
    assert said == {
        "boots/mountain hiking": "yes",
        "boots/good products": "no",
        "poles/mountain hiking": "yes",
        "poles/good products": "no",
    }
    assert labelled.manifest.metrics["labelled_yes"] == 2
    assert labelled.manifest.metrics["tags/in_season"] == 0

    report = report_mining.run(report_mining.ReportMiningConfig(), workspace)
    assert report.version != first.version
    metrics = report.manifest.metrics
    assert metrics["tags, HR@30"] == 1
    assert metrics["rejects"] == 1
    assert 0 < metrics["iq/items, scripted:replies"] < 1
    page = report.fetch("index.html").read_text()
    for told in ("answer is not JSON", "scripted:replies", "mountain hiking", "warm winter boots", "of winter, but it is summer"):
        assert told in page, told
    assert all(report.fetch(name).read_bytes().startswith(b"\x89PNG") for name in PLOTS)
