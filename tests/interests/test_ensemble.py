"""Merging what models said, with vectors small enough to check by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import Response
from intently.core.config import Config
from intently.core.schema import CHUNK, ITEM, USER_INTEREST
from intently.core.workspace import Workspace, open_stage
from intently.data.counts import total_counts
from intently.interests.ensemble import Drafts, EnsembleConfig, group_by_meaning, item_interests, merge, merge_users
from intently.interests.users import MiningConfig
from intently.interests.workers import UserMiner
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.llm.engines.endpoint import EndpointConfig

from tests.chat_server import PROMPT_TOKENS, chat_server, completion

PLANE = {
    "trail running": (1.0, 0.0),
    "running on trails": (0.9, np.sqrt(1 - 0.81)),
    "hill running": (0.75, np.sqrt(1 - 0.75**2)),
    "city walks": (0.0, 1.0),
    "budget travel": (0.1, -np.sqrt(1 - 0.01)),
    "luxury travel": (0.0, -1.0),
}


class Plane:
    """An encoder that knows a few phrases."""

    name = "plane"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([PLANE[text] for text in texts], np.float32)


def drafts(*rows: tuple[str, str, str, float]) -> Drafts:
    subject, model, phrase, confidence = zip(*rows, strict=True)
    return Drafts(list(subject), list(model), list(phrase), np.array(confidence))


def test_ensemble_merges_by_meaning_and_ranks_by_support_then_confidence() -> None:
    said = drafts(
        ("i", "a", "running on trails", 0.6),
        ("i", "b", "trail running", 0.9),
        ("i", "a", "city walks", 0.95),
        ("i", "c", "city walks", 0.85),
        ("i", "b", "city walks", 0.7),
        ("j", "a", "trail running", 0.9),
    )
    merged = merge(said, Plane(), EnsembleConfig(), 3, "s")
    assert item_interests(said, merged).to_pylist() == [
        {
            "item_id": "i",
            "interest": "city walks",
            "confidence": np.float32((0.95 + 0.85 + 0.7) / 3),
            "support": 3,
            "sources": ["a", "b", "c"],
        },
        {"item_id": "i", "interest": "trail running", "confidence": 0.75, "support": 2, "sources": ["a", "b"]},
    ]
    assert merged.rejects == [{"stage": "s", "row": "j/0", "reason": "found by fewer than 2 models", "detail": "trail running"}]
    assert merged.members.tolist() == [1, 1, 0, 0, 0, -1]


def test_ensemble_group_follows_its_leader_and_not_a_chain() -> None:
    phrases = ["trail running", "running on trails", "hill running"]
    vectors = Plane().encode(phrases)
    # hill running is close to running on trails (.96) but not to the surest, trail running (.75).
    group = group_by_meaning(np.zeros(3, int), vectors, np.array([0.9, 0.8, 0.7]), 0.8)
    assert group.tolist() == [0, 0, 2]
    assert group_by_meaning(np.array([0, 1, 1]), vectors, np.array([0.9, 0.8, 0.7]), 0.8).tolist() == [0, 1, 1]


def test_ensemble_same_phrase_twice_of_one_model_is_one_support() -> None:
    merged = merge(drafts(("i", "a", "trail running", 0.9), ("i", "a", "running on trails", 0.8)), Plane(), EnsembleConfig(), 3, "s")
    assert [reject["reason"] for reject in merged.rejects] == ["found by fewer than 2 models"]


def test_ensemble_weaker_of_two_opposites_goes() -> None:
    said = drafts(
        ("i", "a", "budget travel", 0.9), ("i", "b", "budget travel", 0.9), ("i", "c", "budget travel", 0.9),
        ("i", "a", "luxury travel", 0.9), ("i", "b", "luxury travel", 0.9),
        ("j", "a", "luxury travel", 0.9), ("j", "b", "luxury travel", 0.9),
    )  # fmt: skip
    merged = merge(said, Plane(), EnsembleConfig(same_similarity=1.0), 3, "s")
    assert [(said.subject[row], said.phrase[row]) for row in merged.leader] == [("i", "budget travel"), ("j", "luxury travel")]
    assert [(reject["row"], reject["reason"]) for reject in merged.rejects] == [("i/1", "contradicts another interest of the same")]


def test_ensemble_unsure_and_surplus_interests_are_refused() -> None:
    said = drafts(("i", "a", "trail running", 0.4), ("i", "a", "city walks", 0.9), ("i", "a", "luxury travel", 0.8))
    merged = merge(said, Plane(), EnsembleConfig(max_interests=1), 1, "s")
    assert [said.phrase[row] for row in merged.leader] == ["city walks"]
    assert {(reject["row"], reject["reason"]) for reject in merged.rejects} == {
        ("i/2", "low confidence"),
        ("i/1", "beyond the best supported"),
    }


def test_ensemble_of_nothing_is_nothing() -> None:
    merged = merge(Drafts([], [], [], np.zeros(0)), Plane(), EnsembleConfig(), 2, "s")
    assert not len(merged.leader)
    assert not merged.rejects


def test_ensemble_groups_of_many_subjects_equal_those_of_each_alone(encoder: TextEncoder) -> None:
    generator = np.random.default_rng(0)
    phrases = [f"{a} {b}" for a in ("trail", "road", "city", "night") for b in ("running", "walking", "cycling", "climbing", "photography")]
    vectors = encoder.encode(phrases)[chosen := generator.integers(len(phrases), size=300)]
    subject, confidence = generator.integers(20, size=300), generator.random(300)
    together = group_by_meaning(subject, vectors, confidence, 0.7)
    for one in range(20):
        rows = np.flatnonzero(subject == one)
        leaders: list[int] = []
        for row in rows[np.lexsort((rows, -confidence[rows]))]:
            leader = next((known for known in leaders if vectors[known] @ vectors[row] >= 0.7), row)
            leaders += [row] if leader == row else []
            assert together[row] == leader
    assert len(chosen) == 300


def user_interests(model: str, *rows: tuple[str, list[str]]) -> pa.Table:
    fixed = {"user_id": "u", "bucket": 3, "chunk": 1, "stage": "active", "shift": "new", "model": model}
    return USER_INTEREST.from_rows(
        [{**fixed, "rank": n, "interest": p, "evidence": e, "reason": f"says {model}"} for n, (p, e) in enumerate(rows)]
    )


def test_ensemble_of_users_keeps_what_two_models_read_in_the_same_chunk() -> None:
    one = user_interests("a", ("Trail running", ["i1"]), ("city walks", ["i2"]))
    two = user_interests("b", ("luxury travel", []), ("running on trails", ["i3", "i1"]))
    merged, rejects = merge_users([one, two], Plane(), EnsembleConfig(), "user_interest")
    (row,) = merged.to_pylist()
    assert (row["interest"], row["reason"], row["rank"], row["model"]) == ("Trail running", "says a", 0, "a + b")
    assert (row["bucket"], row["chunk"], row["evidence"]) == (3, 1, ["i1", "i3"])
    assert sorted((reject["detail"], reject["reason"]) for reject in rejects) == [
        ("city walks", "found by fewer than 2 models"),
        ("luxury travel", "found by fewer than 2 models"),
    ]
    assert merge_users([one.slice(0, 0), two.slice(0, 0)], Plane(), EnsembleConfig(), "s")[0].num_rows == 0


def test_miner_with_two_models_reads_a_part_with_both_and_writes_what_they_share(workspace: Workspace, items: pa.Table) -> None:
    async def respond(body: dict[str, Any]) -> Response:
        said = ("mountain hiking", "jazz piano") if body["model"] == "one" else ("hiking in the mountains", "city nightlife")
        return completion(json.dumps({"interests": [{"interest": p, "stage": "active", "reason": "often looked at"} for p in said]}))

    when = datetime(2024, 5, 1, tzinfo=UTC)
    chunk = {"user_id": "ann", "bucket": 0, "event_ids": ["1"], "item_ids": ["boots"], "start": when, "end": when, "num_tokens": 2}
    tables = {"item": (ITEM, items), "chunk": (CHUNK, CHUNK.from_rows([{**chunk, "chunk": n, "text": f"walks {n}"} for n in range(2)]))}
    for name, (table, rows) in tables.items():
        inputs = open_stage(workspace, name, table, {}, Config())
        inputs.write("bucket-00000", rows)
        inputs.finish()
    stage = open_stage(workspace, "user_interest", USER_INTEREST, {}, Config())
    with chat_server(respond) as url:
        one, two = (EndpointConfig(base_url=url, model=model) for model in ("one", "two"))
        artifacts = workspace.artifact("chunk"), workspace.artifact("item")
        ensemble = EnsembleConfig(same_similarity=0.75)
        UserMiner(stage, *artifacts, MiningConfig(), None, one, EncoderConfig(), (two,), ensemble)("bucket-00000")
    counts = total_counts(stage, ["bucket-00000"])
    mined = stage.finish()
    assert [(row["chunk"], row["interest"], row["shift"], row["evidence"]) for row in mined.read().to_pylist()] == [
        (0, "mountain hiking", "new", ["boots"]),
        (1, "mountain hiking", "continued", ["boots"]),
    ]
    assert set(mined.read()["model"].to_pylist()) == {"endpoint:one + endpoint:two"}
    assert mined.manifest.reject_reasons == {"found by fewer than 2 models": 4}
    assert (counts["questions"], counts["endpoint:two/questions"], counts["endpoint:one/prompt_tokens"]) == (4, 2, 2 * PROMPT_TOKENS)
