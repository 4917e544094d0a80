"""Profiles: interests of all chunks and of a person's items, merged, with evidence that is in the history."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from intently.core.schema import HISTORY, ITEM_INTEREST, PROFILE, USER_INTEREST
from intently.interests.profiles import ProfileConfig, Profiled, build_profiles
from intently.llm.contract import Request
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.scripted import ScriptedEngine

ITEMS = ["tea", "tent", "boots", "poles", "stove", "lamp"]
TITLES = {item: f"Good {item}" for item in ITEMS}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(EncoderConfig())


def history() -> pa.Table:
    def row(user: str, items: list[str]) -> dict[str, Any]:
        nothing = {name: [None] * len(items) for name in ("values", "queries", "dwell_s")}
        events = {"event_ids": [f"{user}{i}" for i in range(len(items))], "item_ids": items, "behaviours": ["purchase"] * len(items)}
        times = [datetime(2024, 1, day + 1, tzinfo=UTC) for day in range(len(items))]
        return {"user_id": user, "bucket": 3, **events, **nothing, "timestamps": times}

    return HISTORY.from_rows([row("ann", ITEMS), row("bob", ["tea", "lamp"])])


def interests() -> pa.Table:
    said = [
        ("ann", 0, 0, "tea at home", "active", ["tea"]),
        ("ann", 0, 1, "mountain hiking", "emerging", ["tent"]),
        ("ann", 1, 0, "hiking in the mountains", "active", ["boots"]),
        ("ann", 1, 1, "deep sea diving", "active", ["yacht"]),
        ("bob", 0, 0, "tea at home", "active", ["tea"]),
    ]
    fixed = {"bucket": 3, "reason": "bought things", "shift": "new", "model": "m"}
    return USER_INTEREST.from_rows(
        [{"user_id": u, "chunk": c, "rank": r, "interest": i, "stage": s, "evidence": e, **fixed} for u, c, r, i, s, e in said]
    )


def item_interests() -> pa.Table:
    said = [("boots", "walks in nature"), ("poles", "walks in nature"), ("stove", "outdoor cooking"), ("tea", "quiet evenings")]
    said += [("lamp", "quiet evenings"), ("tent", "walks in nature")]
    fixed = {"confidence": 0.9, "support": 1, "sources": ["m"]}
    return ITEM_INTEREST.from_rows([{"item_id": item, "interest": phrase, **fixed} for item, phrase in said])


def rows_of(done: Profiled, user: str) -> dict[str, dict[str, Any]]:
    return {row["interest"]: row for row in PROFILE.check(done.profiles).to_pylist() if row["user_id"] == user}


def test_profile_merges_chunks_adds_what_items_share_and_refuses_what_has_no_evidence(encoder: TextEncoder) -> None:
    done = build_profiles(interests(), history(), item_interests(), TITLES, None, encoder, ProfileConfig(same_similarity=0.75))
    ann = rows_of(done, "ann")
    assert list(ann) == ["hiking in the mountains", "tea at home", "walks in nature"]
    hiking = ann["hiking in the mountains"]
    assert (hiking["kind"], hiking["support"], hiking["stage"], hiking["evidence"]) == ("listed", 2, "active", ["boots", "tent"])
    assert ann["tea at home"]["stage"] == "fading", "the last chunk does not show it"
    # Three of Ann's six items speak of it, three of all eight touches.
    walks = ann["walks in nature"]
    assert (walks["kind"], walks["support"], walks["model"], walks["evidence"]) == ("extended", 3, "items", ["poles", "boots", "tent"])
    assert walks["reason"] == "3 items speak of it, such as Good poles"
    assert [row["rank"] for row in ann.values()] == [0, 1, 2]
    bob = rows_of(done, "bob")
    assert list(bob) == ["tea at home", "quiet evenings"], "two of his two items, two more of all eight"
    assert [(row["row"], row["reason"]) for row in done.rejects.to_pylist()] == [
        ("ann/deep sea diving", "no item of the history supports it")
    ]
    assert done.counts == {"people": 2, "people_below_min": 2}


def test_profile_evidence_is_always_in_the_history(encoder: TextEncoder) -> None:
    done = build_profiles(interests(), history(), item_interests(), TITLES, None, encoder, ProfileConfig(max_evidence=1))
    owned = {row["user_id"]: set(row["item_ids"]) for row in history().to_pylist()}
    assert done.profiles.num_rows
    for row in done.profiles.to_pylist():
        assert len(row["evidence"]) == 1 and set(row["evidence"]) <= owned[row["user_id"]]


def test_profile_model_adds_what_rests_on_interests_and_the_rest_is_refused(encoder: TextEncoder) -> None:
    asked: list[str] = []

    def respond(request: Request) -> str:
        asked.append(request.messages[-1]["content"])
        draft = {"kind": "lifestyle", "reason": "all of it is out of doors"}
        drafts = [
            {"interest": "weekends outside", "rests_on": [1, 3], **draft},
            {"interest": "Tea at home", "rests_on": [2], **draft},
            {"interest": "sailing", "rests_on": [9], **draft},
        ]
        return json.dumps({"drafts": drafts}) if "walks in nature" in asked[-1] else "I cannot say."

    done = build_profiles(
        interests(), history(), item_interests(), TITLES, ScriptedEngine(respond), encoder, ProfileConfig(same_similarity=0.75)
    )
    assert asked[0].splitlines()[0] == "1. hiking in the mountains (active, 2 times)"
    added = rows_of(done, "ann")["weekends outside"]
    assert (added["kind"], added["stage"], added["support"], added["rank"]) == ("lifestyle", "active", 2, 3)
    assert added["evidence"] == ["boots", "tent", "poles"]
    assert {(row["row"], row["reason"]) for row in done.rejects.to_pylist()} == {
        ("ann/deep sea diving", "no item of the history supports it"),
        ("ann/1", "says an interest over again"),
        ("ann/2", "rests on an interest that is not there"),
        ("bob", "answer is not JSON"),
    }
    assert (done.usage.questions, done.usage.valid) == (2, 1)
