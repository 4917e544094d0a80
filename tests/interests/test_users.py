"""The cascade: what a question carries, what becomes of an answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from intently.core.schema import CHUNK
from intently.interests.users import MiningConfig, bounded_task, chosen_users, keep_chosen, mine_users, recent_chunks, user_order
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine

START = datetime(2024, 1, 1, tzinfo=UTC)


def chunk(user: str, number: int, item_ids: list[str | None]) -> dict:
    begin = START + timedelta(days=30 * number)
    events = [f"{user}-{number}-{place}" for place in range(len(item_ids))]
    return {
        "user_id": user,
        "bucket": 0,
        "chunk": number,
        "event_ids": events,
        "item_ids": item_ids,
        "start": begin,
        "end": begin + timedelta(days=10),
        "text": f"behaviours of {user} in chunk {number}",
        "num_tokens": 6,
    }


def answer(*phrases: str, stage: str = "active") -> str:
    return json.dumps({"interests": [{"interest": phrase, "stage": stage, "reason": f"looked at {phrase}"} for phrase in phrases]})


class Script:
    """Answers by the line that a question is about, and keeps every question."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers, self.asked = answers, []
        self.engine = ScriptedEngine(self.respond)

    def respond(self, request: Request) -> str | None:
        self.asked.append(request.messages[1]["content"])
        return next(text for line, text in self.answers.items() if f"behaviours of {line}" in self.asked[-1])


@pytest.fixture
def chunks() -> pa.Table:
    """Two users: ann with three chunks, bob with one; out of order."""
    return CHUNK.from_rows(
        [
            chunk("ann", 1, ["grinder", None]),
            chunk("bob", 0, ["guitar"]),
            chunk("ann", 0, ["boots", "grinder", "boots", "poles"]),
            chunk("ann", 2, ["boots", "kettle"]),
        ]
    )


def test_mine_users_three_chunks_carry_interests_and_mark_shifts(chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    script = Script(
        {
            "ann in chunk 0": answer("Mountain hiking", "Coffee brewing"),
            "ann in chunk 1": answer("coffee brewing"),
            "ann in chunk 2": answer("mountain hiking", "coffee brewing", "acoustic guitar playing"),
            "bob in chunk 0": answer("acoustic guitar playing"),
        }
    )
    mined = mine_users(chunks, items, script.engine, encoder, MiningConfig())
    rows = [(r["user_id"], r["chunk"], r["rank"], r["interest"], r["shift"], r["evidence"]) for r in mined.interests.to_pylist()]
    assert rows == [
        ("ann", 0, 0, "Mountain hiking", "new", ["poles", "boots"]),
        ("ann", 0, 1, "Coffee brewing", "new", ["grinder"]),
        ("ann", 1, 0, "coffee brewing", "continued", ["grinder"]),
        ("ann", 2, 0, "mountain hiking", "returned", ["boots"]),
        ("ann", 2, 1, "coffee brewing", "continued", ["kettle"]),
        ("ann", 2, 2, "acoustic guitar playing", "new", []),
        ("bob", 0, 0, "acoustic guitar playing", "new", ["guitar"]),
    ]
    assert mined.rejects.num_rows == 0
    assert (mined.usage.questions, mined.usage.valid, mined.usage.repairs) == (4, 4, 0)
    before = {text.partition("behaviours of ")[2]: text for text in script.asked}
    assert "Interests before" not in before["ann in chunk 0"]
    assert "Interests before: Mountain hiking; Coffee brewing" in before["ann in chunk 1"]
    assert "Interests before: coffee brewing\n" in before["ann in chunk 2"]


def test_mine_users_nonsense_answer_becomes_reject_and_the_rest_goes_on(chunks: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    script = Script(
        {
            "ann in chunk 0": answer("mountain hiking"),
            "ann in chunk 1": "I cannot say, " + "la " * 500,
            "ann in chunk 2": answer("mountain hiking"),
            "bob in chunk 0": None,
        }
    )
    mined = mine_users(chunks, items, script.engine, encoder, MiningConfig())
    assert [(r["chunk"], r["shift"]) for r in mined.interests.to_pylist()] == [(0, "new"), (2, "continued")]
    refused = {row["row"]: row for row in mined.rejects.to_pylist()}
    assert set(refused) == {"ann/1", "bob/0"}
    assert refused["ann/1"]["reason"] == "answer is not JSON"
    assert refused["ann/1"]["detail"].startswith("I cannot say") and len(refused["ann/1"]["detail"]) == 300
    assert refused["bob/0"]["reason"] == "the script fails here"
    assert (mined.usage.questions, mined.usage.valid, mined.usage.repairs) == (4, 2, 1)
    last = next(text for text in script.asked if "ann in chunk 2" in text)
    assert "Interests before: mountain hiking" in last


def test_mine_users_phrase_twice_in_one_answer_is_kept_once(items: pa.Table, encoder: TextEncoder) -> None:
    script = Script({"ann in chunk 0": answer("hiking", "coffee", "Hiking!")})
    mined = mine_users(CHUNK.from_rows([chunk("ann", 0, ["boots"])]), items, script.engine, encoder, MiningConfig())
    assert mined.interests["interest"].to_pylist() == ["hiking", "coffee"]
    assert mined.rejects.to_pylist() == [
        {"stage": "user_interest", "row": "ann/0/2", "reason": "named twice in one answer", "detail": "Hiking!"}
    ]


def test_mine_users_answer_form_holds_no_more_interests_than_are_wanted(items: pa.Table, encoder: TextEncoder) -> None:
    script = Script({"ann in chunk 0": answer("hiking", "coffee", "tea")})
    chunks = CHUNK.from_rows([chunk("ann", 0, ["boots"])])
    mined = mine_users(chunks, items, script.engine, encoder, MiningConfig(max_interests=2))
    assert mined.rejects["reason"].to_pylist() == ["interests: List should have at most 2 items after validation, not 3"]
    assert json.loads(bounded_task(2).json_schema)["properties"]["interests"]["maxItems"] == 2


def test_mine_users_no_chunks_asks_nothing(items: pa.Table, encoder: TextEncoder) -> None:
    mined = mine_users(CHUNK.empty(), items, Script({}).engine, encoder, MiningConfig())
    assert (mined.interests.num_rows, mined.rejects.num_rows, mined.usage.questions) == (0, 0, 0)


def test_recent_chunks_keeps_the_newest_of_each_user_by_level(chunks: pa.Table) -> None:
    levels = [list(zip(level["user_id"].to_pylist(), level["chunk"].to_pylist(), strict=True)) for level in recent_chunks(chunks, 2)]
    assert levels == [[("ann", 1), ("bob", 0)], [("ann", 2)]]


def test_chosen_users_subset_is_fixed_whichever_part_asks(chunks: pa.Table) -> None:
    users = ["ann", "bob", "cid"]
    first = min(users, key=user_order)
    last_place = chosen_users(users, 1)
    kept = {
        user
        for part in ("ann", "bob", "cid")
        for user in keep_chosen(CHUNK.from_rows([chunk(part, 0, [])]), last_place)["user_id"].to_pylist()
    }
    assert kept == {first}
    assert chosen_users(users, 3) is None and keep_chosen(chunks, None) is chunks
