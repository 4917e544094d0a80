"""Which pairs get a reason, and which reasons pass."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from intently.core.schema import TAG, USER_INTEREST
from intently.interests.explanations import ExplanationConfig, explain, interest_categories, pairs_of_part, plan_pairs
from intently.interests.reason_rules import ReasonRules, RuleConfig
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


def test_plan_pairs_leave_out_what_is_far_from_the_interest_and_categories_that_are_rare_in_it(
    interests: pa.Table, tags: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    everything = {("", item) for item in items["item_id"].to_pylist()}
    # A third of hiking's evidence is in Music: without the similarity, and with a low enough share, its items count.
    loose = ExplanationConfig(min_similarity=-1, min_category_share=0.3)
    assert ("mountain hiking", "strings") in pairs_of(plan_pairs(interests, tags, items, encoder, loose))
    strict = ExplanationConfig(min_similarity=-1, min_category_share=0.4)
    assert ("mountain hiking", "strings") not in pairs_of(plan_pairs(interests, tags, items, encoder, strict))
    assert pairs_of(plan_pairs(interests, tags, items, encoder, ExplanationConfig(min_similarity=1))) == everything


def rules_of(items: pa.Table) -> ReasonRules:
    return ReasonRules(items, ["mountain hiking"], str.isascii, RuleConfig())


def test_explain_nonsense_and_broken_rules_become_rejects(items: pa.Table) -> None:
    def respond(request: Request) -> str:
        question = request.messages[1]["content"]
        if "kettle" in question:
            return "{}"
        told = "Strong leather boots keep feet dry" if "interested in: mountain hiking" in question else "Boots with 99 pockets"
        return json.dumps({"explanation": told + "  on any day."})

    pairs = pa.table({"item_id": ["boots", "boots", "kettle"], "interest": ["mountain hiking", "", ""]})
    explained = explain(pairs, items, rules_of(items), ScriptedEngine(respond), ExplanationConfig(max_attempts=1))
    assert {(row["item_id"], row["interest"], row["text"], row["model"]) for row in explained.explanations.to_pylist()} == {
        ("boots", "mountain hiking", "Strong leather boots keep feet dry on any day.", "scripted:function"),
        # Nothing passed: what fits anybody is made of the facts; the kettle's row has none.
        ("boots", "", "Hiking: leather.", "rule"),
    }
    assert {row["row"]: row["reason"] for row in explained.rejects.to_pylist()} == {
        "boots/#1": "a number that is no fact of the item",
        "kettle/#1": "explanation: Field required",
    }
    assert (explained.usage.questions, explained.usage.valid, explained.usage.repairs) == (3, 2, 1)
    assert explained.counts == {"pairs": 3, "passed": 1, "passed_at_once": 1, "from_facts": 1}


def test_explain_refused_pairs_are_drawn_again_with_other_seeds_until_one_passes(items: pa.Table) -> None:
    drawn: list[tuple[float, int | None]] = []

    def respond(request: Request) -> str:
        drawn.append((request.sampling.temperature, request.sampling.seed))
        pockets = "with 99 pockets" if request.sampling.seed != 3 else "of strong leather"
        return json.dumps({"explanation": f"Hiking boots {pockets}, for long ways."})

    pairs = pa.table({"item_id": ["boots"], "interest": ["mountain hiking"]})
    explained = explain(pairs, items, rules_of(items), ScriptedEngine(respond), ExplanationConfig(max_attempts=5, retry_temperature=0.5))
    assert drawn == [(0.0, None), (0.5, 2), (0.5, 3)]
    assert explained.explanations["text"].to_pylist() == ["Hiking boots of strong leather, for long ways."]
    assert explained.rejects["row"].to_pylist() == ["boots/mountain hiking#1", "boots/mountain hiking#2"]
    assert explained.counts == {"pairs": 1, "passed": 1, "passed_at_once": 0, "from_facts": 0}
