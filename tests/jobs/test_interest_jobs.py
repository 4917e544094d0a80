"""The three jobs of the interests room on real Ray, with a scripted engine and the real encoder."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import build_explanations
import label_interests
import mine_user_interests
import predict_tags
import pytest
import write_profiles
from fastapi import Response
from intently.core.config import Config
from intently.core.schema import CHUNK, HISTORY, ITEM, ITEM_INTEREST, Table
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.interests.reason_store import FILENAME, LmdbReasons
from intently.interests.workers import UserMiner
from intently.llm.engines.scripted import ScriptedConfig

from tests.chat_server import chat_server, completion

pytestmark = pytest.mark.usefixtures("ray_session")

START = datetime(2024, 5, 1, tzinfo=UTC)
BUCKETS = {"bucket-00000": ["ann", "bob"], "bucket-00001": ["cid", "dot"], "bucket-00002": []}
ITEMS = [("boots", "Leather hiking boots", "Hiking", "Brenna"), ("poles", "Trekking poles", "Hiking", None)]


def interests(*phrases: str) -> str:
    return json.dumps({"interests": [{"interest": phrase, "stage": "active", "reason": "often looked at"} for phrase in phrases]})


def tags(*names: str) -> str:
    return json.dumps({"tags": [{"tag": name, "interest": "mountain hiking", "reason": "for the hills"} for name in names]})


SCRIPT = ScriptedConfig(
    replies={
        "Item: Trekking poles": json.dumps({"explanation": "Poles take weight off the knees on steep ways."}),
        "Item: Leather hiking boots": json.dumps({"explanation": "Now with 40 pockets for the hills."}),
        "Tags wanted": tags("warm hiking boots", "Brenna boots"),
        "bob walks": "this is no JSON",
        "walks": interests("mountain hiking", "long walks"),
    }
)


def write(workspace: Workspace, name: str, table: Table, parts: dict[str, list[dict]]) -> Artifact:
    stage = open_stage(workspace, name, table, {}, Config())
    for part, rows in parts.items():
        stage.write(part, table.from_rows(rows))
    return stage.finish()


def chunk(user: str, number: int) -> dict:
    start = START + timedelta(days=number)
    identity = {"user_id": user, "bucket": 0, "chunk": number, "start": start, "end": start + timedelta(hours=2)}
    return identity | {"event_ids": ["1", "2"], "item_ids": ["poles", "boots"], "text": f"{user} walks", "num_tokens": 2}


def history(user: str) -> dict:
    values = {"values": [None], "queries": [None], "dwell_s": [None]}
    events = {"event_ids": ["1"], "item_ids": ["poles"], "behaviours": ["purchase"], "timestamps": [START]}
    return {"user_id": user, "bucket": 0, **events, **values}


@pytest.fixture
def inputs(workspace: Workspace) -> Workspace:
    """Three buckets: two users each with two chunks, and an empty one."""
    catalogue = [{"item_id": i, "title": t, "category": c, "brand": b, "categories": [], "attributes": []} for i, t, c, b in ITEMS]
    write(workspace, "item", ITEM, {"part-00000": catalogue})
    write(workspace, "chunk", CHUNK, {part: [chunk(user, n) for user in users for n in (0, 1)] for part, users in BUCKETS.items()})
    write(workspace, "history_train", HISTORY, {part: [history(user) for user in users] for part, users in BUCKETS.items()})
    return workspace


def settings(job: object, **values: object) -> Config:
    return job.JOB.config(engine=SCRIPT, **values)  # type: ignore[attr-defined]


def test_interest_jobs_one_after_the_other_write_checked_tables(inputs: Workspace) -> None:
    mined = mine_user_interests.run(settings(mine_user_interests), inputs)
    assert mined.parts() == list(BUCKETS)
    assert mined.read("bucket-00000")["user_id"].to_pylist() == ["ann"] * 4
    assert mined.read("bucket-00002").num_rows == 0
    manifest = mined.manifest
    assert manifest.reject_reasons == {"answer is not JSON": 2}
    figures = {name: manifest.metrics[name] for name in ("questions", "valid", "valid_share", "repairs", "users_read", "users")}
    assert figures == {"questions": 8, "valid": 6, "valid_share": 0.75, "repairs": 2, "users_read": 4, "users": 4}
    assert manifest.metrics["completion_tokens"] > 0 and manifest.notes["users"].startswith("4 of the 4 users")

    predicted = predict_tags.run(settings(predict_tags, tags={"min_tags": 2}), inputs)
    assert [tuple(row.values())[:6] for row in predicted.read("bucket-00000").to_pylist()] == [
        ("ann", 0, 0, "warm hiking boots", "mountain hiking", "for the hills")
    ]
    assert predicted.manifest.reject_reasons == {"names a brand": 3}
    assert (predicted.manifest.metrics["questions"], predicted.manifest.metrics["users_below_min_tags"]) == (3, 3)

    asked = {"max_attempts": 2, "min_similarity": 0}
    explained = build_explanations.run(settings(build_explanations, num_parts=2, explanations=asked), inputs)
    found = {(row["interest"], row["item_id"]) for row in explained.read().to_pylist()}
    assert found == {("", "poles"), ("mountain hiking", "poles"), ("long walks", "poles")}
    assert explained.manifest.reject_reasons == {"a number that is no fact of the item": 6}
    figures = {name: explained.manifest.metrics[name] for name in ("questions", "pairs", "passed", "passed_at_once", "from_facts")}
    assert figures == {"questions": 9, "pairs": 6, "passed": 3, "passed_at_once": 3, "from_facts": 0}
    store = LmdbReasons(inputs.artifact("explanation_store").fetch(FILENAME), "any")
    text = "Poles take weight off the knees on steep ways."
    assert store.records("any", ["poles", "boots"]) == [{"": text, "long walks": text, "mountain hiking": text}, {}]


def test_build_explanations_with_a_judge_keeps_its_verdicts_and_leaves_out_what_it_refuses(inputs: Workspace) -> None:
    async def respond(body: dict[str, Any]) -> Response:
        label = "no" if "Interest: long walks" in body["messages"][1]["content"] else "yes"
        names = ("relevance", "factuality", "clarity", "safety")
        return completion(json.dumps({name: {"verdict": label if name == "relevance" else "yes", "reason": "as asked"} for name in names}))

    mine_user_interests.run(settings(mine_user_interests), inputs)
    predict_tags.run(settings(predict_tags, tags={"min_tags": 2}), inputs)
    with chat_server(respond) as base_url:
        asked = {"max_attempts": 1, "min_similarity": 0}
        judge = {"engine": {"kind": "endpoint", "base_url": base_url, "model": "judge"}}
        explained = build_explanations.run(settings(build_explanations, num_parts=1, explanations=asked, judge=judge), inputs)
    assert explained.manifest.reject_reasons == {"a number that is no fact of the item": 3, "judged: relevance": 1}
    written = {(row["interest"], row["model"]) for row in explained.read().to_pylist()}
    # What was refused is made of facts, where the item has any: these two have none but their names.
    assert written == {("", "scripted:replies"), ("mountain hiking", "scripted:replies")}
    verdicts = inputs.artifact("explanation_verdict").read().to_pylist()
    assert len(verdicts) == 3 * 4 and {row["judge"] for row in verdicts} == {"endpoint:judge"}
    assert [(row["subject"], row["criterion"]) for row in verdicts if row["label"] == "no"] == [("poles/long walks", "relevance")]


def test_label_interests_with_a_judge_and_profiles_of_what_was_mined(inputs: Workspace) -> None:
    async def respond(body: dict[str, Any]) -> Response:
        question = body["messages"][1]["content"]
        names = ("relevance", "consistency", "specificity", "validity") if "Proposed:" in question else ("willingness", "reasonableness")
        label = "no" if "Interest: long walks" in question else "yes"
        return completion(json.dumps({name: {"reason": "as asked", "verdict": label} for name in names}))

    mine_user_interests.run(settings(mine_user_interests), inputs)
    predict_tags.run(settings(predict_tags, tags={"min_tags": 2}), inputs)
    fixed = {"confidence": 0.9, "support": 1, "sources": ["m"]}
    write(inputs, "item_interest", ITEM_INTEREST, {"part-00000": [{"item_id": "poles", "interest": "mountain hiking", **fixed}]})
    with chat_server(respond) as base_url:
        judge = {"engine": {"kind": "endpoint", "base_url": base_url, "model": "judge"}}
        labelled = label_interests.run(label_interests.LabelInterestsConfig.parse({"judge": judge}), inputs)
    counts = labelled.manifest.metrics
    # Three users have two chunks with two interests; evidence by embedding decides which of them the rules let pass.
    assert counts["interests/asked"] == 12 and 0 < counts["interests/passed"] < counts["interests/judged"] <= 12
    assert (counts["tags/judged"], counts["tags/passed"]) == (3, 3)
    refused = [row for row in labelled.read().to_pylist() if row["judge"] == "endpoint:judge" and row["label"] == "no"]
    assert refused and {row["criterion"] for row in refused} == {"willingness", "reasonableness"}

    profiles = write_profiles.run(write_profiles.WriteProfilesConfig(), inputs)
    rows = profiles.read().to_pylist()
    assert {row["user_id"] for row in rows} == {"ann", "cid", "dot"}
    assert all(row["evidence"] == ["poles"] and row["kind"] == "listed" and row["support"] >= 2 for row in rows)
    assert (profiles.manifest.metrics["people"], profiles.manifest.metrics["people_below_min"]) == (3, 3)


def test_mine_user_interests_killed_after_a_part_goes_on_and_gives_the_same(inputs: Workspace, tmp_path: Path) -> None:
    config = settings(mine_user_interests, mining={"max_users": 3})
    stage = mine_user_interests.JOB.stage(inputs, "user_interest", config)
    places = mine_user_interests.chosen_users(["ann", "bob", "cid", "dot"], 3)
    miner = UserMiner(stage, inputs.artifact("chunk"), inputs.artifact("item"), config.mining, places, config.engine, config.encoder)  # type: ignore[attr-defined]
    miner("bucket-00001")
    miner("bucket-00000")
    written = {part: Path(inputs.path("user_interest", stage.version, f"{part}.parquet")) for part in BUCKETS}
    before = {part: path.stat().st_mtime_ns for part, path in written.items() if path.exists()}
    assert set(before) == {"bucket-00000", "bucket-00001"}

    resumed = mine_user_interests.run(config, inputs)
    assert {part: written[part].stat().st_mtime_ns for part in before} == before
    assert resumed.version == stage.version and resumed.parts() == list(BUCKETS)
    assert resumed.manifest.metrics["questions"] == 6
    assert resumed.manifest.notes["users"].startswith("3 of the 4 users")
    assert mine_user_interests.run(config, inputs) == resumed

    whole = Workspace.open(tmp_path / "whole")
    for name, table in (("item", ITEM), ("chunk", CHUNK)):
        write(whole, name, table, {part: rows.to_pylist() for part, rows in inputs.artifact(name).iter_parts()})
    assert mine_user_interests.run(config, whole).read().equals(resumed.read())


def test_interest_jobs_read_nothing_held_out() -> None:
    held_out = {"history", "history_validation", "history_test", "true_interest"}
    jobs = (mine_user_interests.JOB, predict_tags.JOB, build_explanations.JOB)
    assert not held_out & {name for job in jobs for name in job.reads}


def test_interest_jobs_inputs_missing_names_the_artifact(workspace: Workspace) -> None:
    with pytest.raises(LookupError, match="'chunk'"):
        mine_user_interests.run(settings(mine_user_interests), workspace)
