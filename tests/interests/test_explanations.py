"""Which pairs get a reason, and which reasons pass."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from intently.core.schema import TAG, USER_INTEREST
from intently.interests.explanations import (
    ExplanationConfig,
    broken_rule,
    explain,
    interest_categories,
    pairs_of_part,
    plan_pairs,
)
from intently.interests.phrases import BrandFinder
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine


@pytest.fixture
def interests() -> pa.Table:
    """Hiking of two users, with evidence in Hiking twice and Music once; guitar of one, without evidence."""
    fixed = {"bucket": 0, "chunk": 0, "rank": 0, "stage": "active", "reason": "r", "shift": "new", "model": "m"}
    rows = [("ann", "mountain hiking", ["boots", "poles"]), ("bob", "mountain hiking", ["guitar"]), ("cid", "guitar playing", [])]
    return USER_INTEREST.from_rows([{"user_id": u, "interest": i, "evidence": e, **fixed} for u, i, e in rows])


@pytest.fixture
def tags() -> pa.Table:
    """Guitar falls into Music by its tags, and once into no category."""
    rows = [("cid", 0, "nylon guitar strings", "Music"), ("cid", 1, "padded guitar bag", "Music"), ("cid", 2, "silver spoon", None)]
    fixed = {"bucket": 0, "interest": "guitar playing", "reason": "r", "model": "m"}
    return TAG.from_rows([{"user_id": u, "rank": r, "tag": t, "category": c, **fixed} for u, r, t, c in rows])


def pairs_of(table: pa.Table) -> set[tuple[str, str]]:
    return set(zip(table["interest"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def test_interest_categories_counts_evidence_and_tags(interests: pa.Table, tags: pa.Table, items: pa.Table) -> None:
    assert [tuple(row.values()) for row in interest_categories(interests, tags, items).to_pylist()] == [
        ("guitar playing", "Music", 2),
        ("mountain hiking", "Hiking", 2),
        ("mountain hiking", "Music", 1),
    ]


def test_plan_pairs_only_within_shared_categories_and_once_for_anybody(
    interests: pa.Table, tags: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    everything = {("", item) for item in items["item_id"].to_pylist()}
    one_category = plan_pairs(interests, tags, items, encoder, ExplanationConfig(items_per_interest=9, categories_per_interest=1))
    assert one_category.num_rows == 10
    assert pairs_of(one_category) == everything | {
        ("mountain hiking", "boots"),
        ("mountain hiking", "poles"),
        ("guitar playing", "guitar"),
        ("guitar playing", "strings"),
    }
    closest = plan_pairs(interests, tags, items, encoder, ExplanationConfig(items_per_interest=1, max_interests=1))
    assert pairs_of(closest) == everything | {("mountain hiking", "poles")}


def test_pairs_of_part_every_pair_lies_in_exactly_one(interests: pa.Table, tags: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    pairs = plan_pairs(interests, tags, items, encoder, ExplanationConfig())
    parts = [pairs_of_part(pairs, part, 3) for part in range(3)]
    assert sum(part.num_rows for part in parts) == pairs.num_rows
    assert set.union(*map(pairs_of, parts)) == pairs_of(pairs)


GUITAR: dict[str, Any] = {
    "title": "Lira Nova spruce acoustic guitar",
    "category": "Music",
    "brand": "Lira Nova",
    "price": 210.0,
    "attributes": ["strings: 6"],
    "description": "A full-size guitar for players of 2,500 songs.",
}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Its spruce top suits evenings of quiet playing, with 6 strings for 210.00.", None),
        ("A Lira Nova for whoever knows 2500 songs.", None),
        ("Too short", "not 10 to 200 characters"),
        ("long " * 41, "not 10 to 200 characters"),
        ("Comes with 12 strings for full chords.", "a number that is no fact of the item"),
        ("Sounds as warm as any Ostro guitar does.", "names another brand"),
        ("Spruce acoustic guitar, Lira Nova!", "repeats the title"),
        ("A warm warm sound for quiet evenings.", "runs in circles"),
        ("Take your playing to the next level with warm tone.", "a cliché"),
        ("A MUST-HAVE for every player of warm songs.", "a cliché"),
        ("This guitar is a must-have for quiet evenings.", "a cliché"),
    ],
)
def test_broken_rule_each_rule(text: str, reason: str | None) -> None:
    assert broken_rule(text, GUITAR, BrandFinder(["Lira Nova", "Ostro"]), 0.8) == reason


def test_explain_nonsense_and_broken_rules_become_rejects(items: pa.Table) -> None:
    def respond(request: Request) -> str:
        question = request.messages[1]["content"]
        if "kettle" in question:
            return "{}"
        told = "Strong leather keeps feet dry" if "interested in: mountain hiking" in question else "Well made, with 99 pockets"
        return json.dumps({"explanation": told + "  on any day."})

    pairs = pa.table({"item_id": ["boots", "boots", "kettle"], "interest": ["mountain hiking", "", ""]})
    explained = explain(pairs, items, BrandFinder.of_items(items), ScriptedEngine(respond), ExplanationConfig())
    assert explained.explanations.to_pylist() == [
        {
            "item_id": "boots",
            "interest": "mountain hiking",
            "text": "Strong leather keeps feet dry on any day.",
            "model": "scripted:function",
        }
    ]
    assert {row["row"]: row["reason"] for row in explained.rejects.to_pylist()} == {
        "boots/": "a number that is no fact of the item",
        "kettle/": "explanation: Field required",
    }
    assert (explained.usage.questions, explained.usage.valid, explained.usage.repairs) == (3, 2, 1)
