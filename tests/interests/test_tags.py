"""What a tag question names, and which tags pass."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from intently.core.schema import HISTORY, USER_INTEREST
from intently.interests.phrases import BrandFinder
from intently.interests.tags import TagConfig, current_interests, predict_tags, recent_titles, season_of
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine

LAST = datetime(2024, 7, 31, tzinfo=UTC)
CONFIG = TagConfig(num_tags=8, min_tags=2)


def interest(user: str, chunk: int, rank: int, text: str, stage: str = "active", shift: str = "new") -> dict:
    fixed = {"bucket": 3, "reason": "r", "evidence": [], "model": "m"}
    return {"user_id": user, "chunk": chunk, "rank": rank, "interest": text, "stage": stage, "shift": shift, **fixed}


def history(user: str, *events: tuple[str | None, str, float]) -> dict:
    """A history of (item, behaviour, days before LAST), oldest first."""
    nothing = [None] * len(events)
    return {
        "user_id": user,
        "bucket": 3,
        "event_ids": [f"{user}-{place}" for place in range(len(events))],
        "item_ids": [item for item, _, _ in events],
        "behaviours": [behaviour for _, behaviour, _ in events],
        "timestamps": [LAST - timedelta(days=days) for _, _, days in events],
        "values": nothing,
        "queries": nothing,
        "dwell_s": nothing,
    }


def answer(*tags: tuple[str, str]) -> str:
    return json.dumps({"tags": [{"tag": tag, "interest": served, "reason": "it fits"} for tag, served in tags]})


@pytest.fixture
def interests() -> pa.Table:
    """ann's last chunk is 2; bob has one chunk."""
    return USER_INTEREST.from_rows(
        [
            interest("ann", 0, 0, "chess", shift="continued"),
            interest("ann", 1, 0, "home coffee", shift="continued"),
            interest("ann", 1, 1, "sewing", shift="new"),
            interest("ann", 1, 2, "knitting", stage="fading", shift="continued"),
            interest("ann", 2, 1, "Guitar playing"),
            interest("ann", 2, 0, "mountain hiking"),
            interest("bob", 0, 0, "guitar playing"),
        ]
    )


@pytest.fixture
def histories() -> pa.Table:
    """What ann and bob did; cid has no interests."""
    return HISTORY.from_rows(
        [
            history("bob", ("strings", "purchase", 0)),
            history(
                "ann",
                ("guitar", "purchase", 31),
                ("boots", "detail_view", 30),
                ("poles", "click", 12),
                ("kettle", "impression", 3),
                (None, "search", 2),
                ("boots", "cart", 0),
            ),
            history("cid", ("boots", "purchase", 0)),
        ]
    )


def test_current_interests_last_chunk_first_then_what_lasted(interests: pa.Table) -> None:
    found = {user: [entry["interest"] for entry in entries] for user, entries in current_interests(interests, 9).items()}
    assert found == {"ann": ["mountain hiking", "Guitar playing", "home coffee"], "bob": ["guitar playing"]}
    assert [entry["interest"] for entry in current_interests(interests, 2)["ann"]] == ["mountain hiking", "Guitar playing"]


def test_recent_titles_touched_in_the_last_days_latest_first(histories: pa.Table, items: pa.Table) -> None:
    assert recent_titles(histories, items, 30) == [
        ["Bronze acoustic guitar strings"],
        ["Brenna waterproof hiking boots", "Folding trekking poles"],
        ["Brenna waterproof hiking boots"],
    ]
    assert recent_titles(histories, items, 31)[1][-1] == "Spruce acoustic guitar"
    assert recent_titles(HISTORY.empty(), items, 30) == []


@pytest.mark.parametrize(("month", "season"), [(12, "winter"), (2, "winter"), (3, "spring"), (8, "summer"), (11, "autumn")])
def test_season_of_month(month: int, season: str) -> None:
    assert season_of(month) == season


def test_predict_tags_rules_refuse_each_with_its_reason(
    interests: pa.Table, histories: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    asked: list[str] = []

    def respond(request: Request) -> str:
        asked.append(request.messages[1]["content"])
        if "hiking" not in asked[-1]:
            return "no idea"
        return answer(
            ("warm waterproof hiking boots", "Mountain hiking"),
            ("light Ostro trekking poles", "mountain hiking"),
            ("folding trekking POLES", "mountain hiking"),
            ("Warm, waterproof hiking boots", "mountain hiking"),
            ("steel acoustic guitar strings", "playing the guitar"),
            ("silver spoon", "stamp collecting"),
            ("slow drip coffee kettle", "home coffee"),
            ("kettle kettle", "home coffee"),
        )

    predicted = predict_tags(interests, histories, items, BrandFinder.of_items(items), ScriptedEngine(respond), encoder, CONFIG)
    names = ("user_id", "bucket", "rank", "tag", "interest", "category", "model")
    assert [tuple(row[name] for name in names) for row in predicted.tags.to_pylist()] == [
        ("ann", 3, 0, "warm waterproof hiking boots", "mountain hiking", "Hiking", "scripted:function"),
        ("ann", 3, 1, "steel acoustic guitar strings", "Guitar playing", "Music", "scripted:function"),
        ("ann", 3, 2, "slow drip coffee kettle", "home coffee", "Coffee", "scripted:function"),
    ]
    assert {row["row"]: row["reason"] for row in predicted.rejects.to_pylist()} == {
        "ann/1": "names a brand",
        "ann/2": "touched in the last month",
        "ann/3": "tag named twice",
        "ann/5": "serves no interest of the user",
        "ann/7": "runs in circles",
        "bob": "answer is not JSON",
    }
    assert (predicted.usage.questions, predicted.usage.valid, predicted.users_below_min) == (2, 1, 1)
    assert "Season: summer" in asked[0] and "Tags wanted: 8" in asked[0]
    assert "Touched lately: Brenna waterproof hiking boots; Folding trekking poles\n" in asked[0]


def test_predict_tags_answer_is_bound_to_the_number_asked_for(
    interests: pa.Table, histories: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    bounds = set()

    def respond(request: Request) -> str:
        bounds.add(json.loads(request.json_schema or "")["properties"]["tags"]["maxItems"])
        return answer(*[(f"kind {number}", "guitar playing") for number in range(9)])

    brands = BrandFinder.of_items(items)
    predicted = predict_tags(interests, histories, items, brands, ScriptedEngine(respond), encoder, CONFIG)
    assert bounds == {8}
    assert predicted.rejects["reason"].to_pylist() == ["tags: List should have at most 8 items after validation, not 9"] * 2


def test_predict_tags_no_item_is_close_leaves_the_category_open(
    interests: pa.Table, histories: pa.Table, items: pa.Table, encoder: TextEncoder
) -> None:
    engine = ScriptedEngine(lambda _: answer(("quarterly income tax form", "guitar playing")))
    predicted = predict_tags(interests, histories, items, BrandFinder.of_items(items), engine, encoder, TagConfig(category_similarity=0.7))
    assert predicted.tags["category"].to_pylist() == [None, None]


def test_predict_tags_nobody_with_interests_asks_nothing(histories: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    predicted = predict_tags(
        USER_INTEREST.empty(), histories, items, BrandFinder.of_items(items), ScriptedEngine(lambda _: ""), encoder, CONFIG
    )
    assert (predicted.tags.num_rows, predicted.rejects.num_rows, predicted.usage.questions) == (0, 0, 0)
