"""Labels and rule checks on rows that can be judged by eye."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from intently.core.schema import CHUNK, HISTORY, ITEM_INTEREST, TAG, USER_INTEREST
from intently.interests.labels import LabelConfig, check_tags, check_user_interests, label_item_interests, shares_of_yes
from intently.interests.phrases import BrandFinder
from intently.llm.contract import Request
from intently.llm.encoder import TextEncoder
from intently.llm.engines.scripted import ScriptedEngine

JULY = datetime(2024, 7, 20, tzinfo=UTC)


def mined(*rows: tuple[str, str]) -> pa.Table:
    return ITEM_INTEREST.from_rows([{"item_id": i, "interest": p, "confidence": 0.9, "support": 2, "sources": ["a"]} for i, p in rows])


INTERESTS = mined(("boots", "mountain hiking"), ("boots", "quality products"), ("boots", "Ostro trekking gear"), ("boots", "jazz piano"))


def labels(
    source: str, items: pa.Table, encoder: TextEncoder, engine: ScriptedEngine | None = None, **others: object
) -> list[tuple[str, str]]:
    config = LabelConfig(source=source, **others)  # type: ignore[arg-type]
    verdicts, _ = label_item_interests(INTERESTS, items, BrandFinder.of_items(items), encoder, engine, config)
    assert verdicts["subject"].to_pylist()[0] == "boots/mountain hiking"
    assert set(verdicts["criterion"].to_pylist()) == {"rldi"}
    return list(zip(verdicts["label"].to_pylist(), verdicts["reason"].to_pylist(), strict=True))


def test_labels_by_rule_say_why(items: pa.Table, encoder: TextEncoder) -> None:
    assert labels("rule", items, encoder) == [
        ("yes", "specific and close to the item"),
        ("no", "too few words that say something"),
        ("no", "names Ostro"),
        ("no", "the item does not support it"),
    ]


def test_labels_of_a_model_are_its_own_and_a_bad_answer_is_a_no(items: pa.Table, encoder: TextEncoder) -> None:
    def respond(request: Request) -> str:
        said = request.messages[1]["content"]
        if "jazz" in said:
            return "no JSON"
        return json.dumps({"reason": "as the facts say", "label": "1" if "mountain" in said else "0"})

    found = labels("llm", items, encoder, ScriptedEngine(respond))
    assert found == [
        ("yes", "as the facts say"),
        ("no", "as the facts say"),
        ("no", "as the facts say"),
        ("no", "no label: answer is not JSON"),
    ]


def test_labels_of_the_ablations(items: pa.Table, encoder: TextEncoder) -> None:
    assert {label for label, _ in labels("uniform", items, encoder)} == {"yes"}
    assert labels("random", items, encoder) == labels("random", items, encoder)
    assert {label for label, _ in labels("random", items, encoder, positive_share=0.0)} == {"no"}
    assert any(labels("random", items, encoder, seed=seed) != labels("random", items, encoder) for seed in range(1, 6))


def test_user_interests_need_evidence_that_is_in_their_chunk() -> None:
    chunk = {"user_id": "u", "bucket": 0, "chunk": 1, "event_ids": ["1"], "item_ids": ["boots"], "start": JULY, "end": JULY}
    common = {"user_id": "u", "bucket": 0, "chunk": 1, "stage": "active", "reason": "r", "shift": "new", "model": "m"}
    rows = [("mountain hiking", ["boots"]), ("jazz piano", ["piano"]), ("good stuff", [])]
    interests = USER_INTEREST.from_rows([{**common, "rank": n, "interest": p, "evidence": e} for n, (p, e) in enumerate(rows)])
    verdicts = check_user_interests(interests, CHUNK.from_rows([{**chunk, "text": "t", "num_tokens": 1}]))
    found = {(row["subject"], row["criterion"]): (row["label"], row["reason"]) for row in verdicts.to_pylist()}
    assert found["u/1/0", "evidence"] == ("yes", "1 items of the chunk")
    assert found["u/1/1", "evidence"] == ("no", "not in the chunk: piano")
    assert found["u/1/2", "evidence"] == ("no", "no item of the chunk supports it")
    assert [found[f"u/1/{n}", "specific"][0] for n in range(3)] == ["yes", "yes", "no"]


def test_tags_are_checked_for_brand_season_form_and_what_was_seen(items: pa.Table) -> None:
    times = [JULY - timedelta(days=40), JULY]
    events = {"event_ids": ["1", "2"], "item_ids": ["kettle", "poles"], "behaviours": ["purchase"] * 2, "timestamps": times}
    history = HISTORY.from_rows(
        [{"user_id": "u", "bucket": 0, **events, "values": [None] * 2, "queries": [None] * 2, "dwell_s": [None] * 2}]
    )
    texts = ["light summer tent", "warm winter boots", "Ostro grinder", "folding trekking poles", "gooseneck coffee kettle", "lamp"]
    common = {"user_id": "u", "bucket": 0, "interest": "hiking", "reason": "r", "category": "Hiking", "model": "m"}
    verdicts = check_tags(
        TAG.from_rows([{**common, "rank": n, "tag": t} for n, t in enumerate(texts)]), history, items, BrandFinder.of_items(items)
    )
    refused = {(texts[int(row["subject"][2:])], row["criterion"]): row["reason"] for row in verdicts.to_pylist() if row["label"] == "no"}
    assert refused == {
        ("warm winter boots", "in_season"): "of winter, but it is summer",
        ("Ostro grinder", "no_brand"): "names Ostro",
        ("folding trekking poles", "not_seen"): "was touched in the last month: folding trekking poles",
        ("lamp", "specific"): "too few words that say something",
    }
    assert shares_of_yes(verdicts) == {f"tags/{name}": pytest.approx(5 / 6) for name in ("in_season", "no_brand", "not_seen", "specific")}
