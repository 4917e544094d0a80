"""Labels of the rating models by hand: item sets, the three questions, the two comparisons."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from intently.core.schema import CHUNK, HISTORY, INTEREST_NODE
from intently.interests.rating_labels import RatingLabelConfig, evaluation_set, label_ratings
from intently.llm.contract import Request
from intently.llm.engines.scripted import ScriptedEngine
from intently.ranking.samples import SampleConfig, label_events, split_samples

START = datetime(2024, 1, 1, tzinfo=UTC)
STARS = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 1.0, "e": 2.0}


def history(user: str, events: list[tuple[str, str, float | None]]) -> dict[str, Any]:
    items, behaviours, values = (list(column) for column in zip(*events, strict=True))
    nothing = [None] * len(events)
    identity = {"user_id": user, "bucket": 0, "event_ids": [str(n) for n in range(len(events))], "timestamps": [START] * len(events)}
    return identity | {"item_ids": items, "behaviours": behaviours, "values": values, "queries": nothing, "dwell_s": nothing}


def rated(user: str, *items: str) -> dict[str, Any]:
    return history(user, [(item, "rating", STARS[item]) for item in items])


def chunk(user: str, number: int, events: list[int]) -> dict[str, Any]:
    identity = {"user_id": user, "bucket": 0, "chunk": number, "start": START, "end": START, "num_tokens": 3}
    return identity | {"event_ids": [str(n) for n in events], "item_ids": ["x"] * len(events), "text": f"raw chunk {number}"}


def node(user: str, number: int, sample: int, parent: str | None, path: str, *interests: str) -> dict[str, Any]:
    told = {"interests": list(interests), "stages": ["active"] * len(interests), "chosen": sample == 0, "model": "m"}
    return {"user_id": user, "bucket": 0, "chunk": number, "sample": sample, "parent": parent, "path": path} | told


def test_evaluation_set_of_ratings_draws_as_many_of_both_classes() -> None:
    row = rated("ann", "a", "b", "a", "c", "d", "e", "b")
    first, second = chunk("ann", 0, [0, 1]), chunk("ann", 1, [2, 3, 4, 5, 6])
    items = evaluation_set(first, second, row, RatingLabelConfig(share=1))
    # Chunk 1 holds a, b (liked) and c, d, e (3 stars and fewer are not): two of each.
    assert set(items[:2]) == {"a", "b"} and set(items[2:]) < {"c", "d", "e"} and len(items) == 4
    assert evaluation_set(first, second, row, RatingLabelConfig(share=1)) == items
    assert len(evaluation_set(first, second, row, RatingLabelConfig(items_per_class=1, share=1))) == 2


def test_evaluation_set_without_both_classes_is_empty() -> None:
    row = rated("ann", "a", "a", "b")
    assert evaluation_set(chunk("ann", 0, [0]), chunk("ann", 1, [1, 2]), row, RatingLabelConfig(share=1)) == []


def test_evaluation_set_never_reaches_into_events_that_are_kept_back() -> None:
    row = rated("ann", "a", "b", "c", "d")
    first, second = chunk("ann", 0, [0]), chunk("ann", 1, [1, 2])
    assert evaluation_set(first, second, row, RatingLabelConfig(share=0.5)) == []
    assert evaluation_set(first, second, row, RatingLabelConfig(share=0.75)) == ["b", "c"]


def test_evaluation_set_keeps_back_what_click_models_are_chosen_by() -> None:
    # Whatever the length: of 124 events the last 24.8 are kept back, which ranking rounds up.
    for length in range(50, 150):
        row = rated("ann", *("ac"[place % 2] for place in range(length)))
        told = HISTORY.from_rows([row])
        parts = split_samples(label_events(told, CHUNK.empty(), SampleConfig(min_events=1, min_chunks=0)), SampleConfig())
        kept_back = int(parts["validation"]["event_id"][0].as_py())
        for last, drawn in ((kept_back - 1, True), (kept_back, False)):
            items = evaluation_set(chunk("ann", 0, [0]), chunk("ann", 1, [last - 1, last]), row, RatingLabelConfig())
            assert bool(items) == drawn, (length, last)


def test_evaluation_set_without_ratings_sets_what_was_taken_against_what_was_only_shown() -> None:
    log = [("q", "purchase", None), ("a", "impression", None), ("a", "click", None), ("a", "cart", None)]
    row = history("ann", [*log, ("b", "impression", None), ("c", "detail_view", None), (None, "search", None), ("d", "favourite", None)])
    first, second = chunk("ann", 0, [0]), chunk("ann", 1, [1, 7])
    # All between the chunk's first and last event counts, also what is too weak to be in a chunk: b was shown, and c neither.
    items = evaluation_set(first, second, row, RatingLabelConfig(share=1))
    assert items[0] in {"a", "d"} and items[1:] == ["b"]


class Oracle:
    """P("Yes") of an item by what it is told of the person."""

    def __init__(self, told: dict[str, dict[str, float]]) -> None:
        self.told, self.asked = told, 0
        self.engine = ScriptedEngine(self.respond)

    def respond(self, request: Request) -> tuple[str, ...] | None:
        self.asked += 1
        assert request.choices == ("Yes", "No")
        text = request.messages[1]["content"]
        item = text.partition("Item: ")[2][0]
        yes = next(by_item for words, by_item in self.told.items() if words in text)[item]
        return None if yes is None else (str(yes), str(1 - yes))


@pytest.fixture
def tables() -> dict[str, pa.Table]:
    """Ann with three chunks; b (liked) against d, then a against e; candidates for chunks 0 and 1."""
    nodes = [
        node("ann", 0, 0, None, "0", "drama"),
        node("ann", 1, 0, "0", "0/0", "war"),
        node("ann", 1, 1, "0", "0/1", "noir", "war"),
        node("bob", 0, 0, None, "0", "drama"),
    ]
    chunks = [chunk("ann", 0, [0]), chunk("ann", 1, [1, 2]), chunk("ann", 2, [3, 4]), chunk("bob", 0, [0])]
    histories = [rated("ann", "c", "b", "d", "a", "e"), rated("bob", "a")]
    return {"nodes": INTEREST_NODE.from_rows(nodes), "chunks": CHUNK.from_rows(chunks), "history": HISTORY.from_rows(histories)}


SAYS = {
    "Interests: drama\n": {"b": 0.2, "d": 0.9, "a": 0.5, "e": 0.5},
    "Interests: war\n": {"a": 0.9, "e": 0.1},
    "Interests: noir; war\n": {"a": 0.4, "e": 0.4},
    "raw chunk 0": {"b": 0.8, "d": 0.3},
    "raw chunk 1": {"a": 0.6, "e": 0.6},
}


def test_label_ratings_compares_current_with_previous_and_with_the_raw_chunk(tables: dict[str, pa.Table]) -> None:
    oracle = Oracle(SAYS)
    labelled = label_ratings(**tables, names={}, engine=oracle.engine, config=RatingLabelConfig(share=1))
    rows = [
        (r["chunk"], r["sample"], r["auc_previous"], r["auc_current"], r["auc_raw"], r["continuity"], r["effectiveness"])
        for r in labelled.ratings.to_pylist()
    ]
    # Drama puts d before b: worse than the raw chunk. War is better than drama's tie and the raw chunk's; noir only equals both.
    assert rows == [(0, 0, None, 0.0, 1.0, None, 0), (1, 0, 0.5, 1.0, 0.5, 1, 1), (1, 1, 0.5, 0.5, 0.5, 0, 0)]
    assert labelled.ratings["previous"].to_pylist() == [[], ["drama"], ["drama"]]
    assert labelled.ratings["num_items"].to_pylist() == [2, 2, 2]
    # Two items each: raw and current of chunk 0; raw, previous and two candidates of chunk 1. Bob's only chunk has no next.
    assert oracle.asked == 12 and labelled.usage.questions == 12 and labelled.rejects.num_rows == 0


def test_label_ratings_candidate_with_a_failed_question_is_rejected_alone(tables: dict[str, pa.Table]) -> None:
    oracle = Oracle(SAYS | {"Interests: war\n": {"a": 0.9, "e": None}})
    labelled = label_ratings(**tables, names={}, engine=oracle.engine, config=RatingLabelConfig(share=1))
    assert labelled.ratings["sample"].to_pylist() == [0, 1]
    assert [(r["row"], r["reason"]) for r in labelled.rejects.to_pylist()] == [("ann/1/0", "the script fails here")]


def test_label_ratings_judges_the_newest_chunks_and_counts_those_that_it_cannot(tables: dict[str, pa.Table]) -> None:
    newest = label_ratings(**tables, names={}, engine=Oracle(SAYS).engine, config=RatingLabelConfig(max_chunks=1, share=1))
    assert set(newest.ratings["chunk"].to_pylist()) == {1}
    early = label_ratings(**tables, names={}, engine=Oracle(SAYS).engine, config=RatingLabelConfig(share=0.6))
    assert set(early.ratings["chunk"].to_pylist()) == {0} and early.skipped_chunks == 1
