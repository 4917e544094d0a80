"""Precision and recall, counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from intently.core.schema import CHUNK, ITEM, REJECT, TRUE_INTEREST, USER_INTEREST
from intently.interests.faithfulness import active_truths, asked_chunks, measure_faithfulness, shown_truths


def day(number: int) -> datetime:
    return datetime(2024, 1, number, tzinfo=UTC)


@pytest.fixture
def chunks() -> pa.Table:
    """ann: days 1-5 with two teas and one board, 6-10 with two boards and a tea twice, 11-15 with a search; bob: days 1-5, two boards."""
    rows = [
        ("ann", 0, 1, 5, ["tea1", "tea2", "board1"]),
        ("ann", 1, 6, 10, ["board1", "board2", "tea1", "tea1"]),
        ("ann", 2, 11, 15, [None]),
        ("bob", 0, 1, 5, ["board1", "board2"]),
    ]
    fixed = {"bucket": 0, "event_ids": [], "text": "", "num_tokens": 0}
    return CHUNK.from_rows([{"user_id": u, "chunk": c, "start": day(s), "end": day(e), "item_ids": i, **fixed} for u, c, s, e, i in rows])


@pytest.fixture
def items() -> pa.Table:
    """Two teas, two boards."""
    rows = [("tea1", "Tea"), ("tea2", "Tea"), ("board1", "Games"), ("board2", "Games")]
    return ITEM.from_rows([{"item_id": i, "title": i, "category": c, "categories": [], "attributes": []} for i, c in rows])


@pytest.fixture
def truths() -> pa.Table:
    """ann: tea all the time, chess on days 5-6; bob: chess from day 6 on."""
    rows = [("ann", "tea", "Tea", 1, 20), ("ann", "Chess", "Games", 5, 6), ("bob", "chess", "Games", 6, 9)]
    return TRUE_INTEREST.from_rows(
        [{"user_id": u, "interest": i, "category": c, "start": day(s), "end": day(e), "strength": 0.5} for u, i, c, s, e in rows]
    )


@pytest.fixture
def interests() -> pa.Table:
    """Mined: tea and chess in chunk 0, tea and yoga in chunk 1, chess for bob."""
    rows = [("ann", 0, 0, "Tea"), ("ann", 0, 1, "chess"), ("ann", 1, 0, "tea"), ("ann", 1, 1, "yoga"), ("bob", 0, 0, "chess")]
    fixed = {"bucket": 0, "stage": "active", "reason": "r", "shift": "new", "evidence": [], "model": "m"}
    return USER_INTEREST.from_rows([{"user_id": u, "chunk": c, "rank": r, "interest": i, **fixed} for u, c, r, i in rows])


def keys(table: pa.Table) -> set[tuple[str, int, str]]:
    return {(row["user_id"], row["chunk"], row["phrase"]) for row in table.to_pylist()}


def test_active_truths_overlap_in_time_counts_at_its_edges(chunks: pa.Table, truths: pa.Table) -> None:
    assert keys(active_truths(chunks, truths)) == {
        ("ann", 0, "tea"), ("ann", 1, "tea"), ("ann", 2, "tea"), ("ann", 0, "chess"), ("ann", 1, "chess"),
    }  # fmt: skip


def test_shown_truths_need_different_items_of_their_category(chunks: pa.Table, truths: pa.Table, items: pa.Table) -> None:
    active = active_truths(chunks, truths)
    assert keys(shown_truths(active, chunks, items, 2)) == {("ann", 0, "tea"), ("ann", 1, "chess")}
    assert keys(shown_truths(active, chunks, items, 1)) == {
        ("ann", 0, "tea"), ("ann", 1, "tea"), ("ann", 0, "chess"), ("ann", 1, "chess"),
    }  # fmt: skip


def test_measure_faithfulness_hand_counted(chunks: pa.Table, truths: pa.Table, interests: pa.Table, items: pa.Table) -> None:
    measured = measure_faithfulness(interests, chunks, truths)
    assert (measured.num_mined, measured.num_true, measured.num_hits, measured.num_chunks) == (5, 5, 3, 4)
    assert measured.precision == measured.recall == measured.f1 == pytest.approx(3 / 5)
    shown = measure_faithfulness(interests, chunks, truths, items)
    assert (shown.num_true, shown.precision, shown.recall) == (2, pytest.approx(3 / 5), pytest.approx(1 / 2))
    assert shown.f1 == pytest.approx(2 * 0.6 * 0.5 / 1.1)


def test_measure_faithfulness_chunk_that_was_refused_counts_against_recall_only(
    chunks: pa.Table, truths: pa.Table, interests: pa.Table
) -> None:
    refused = REJECT.from_rows([{"stage": "user_interest", "row": "ann/2", "reason": "answer is not JSON", "detail": ""}])
    answered = measure_faithfulness(interests, asked_chunks(chunks, interests, REJECT.empty()), truths)
    asked = measure_faithfulness(interests, asked_chunks(chunks, interests, refused), truths)
    assert (answered.num_chunks, asked.num_chunks) == (3, 4)
    assert answered.precision == asked.precision == pytest.approx(3 / 5)
    assert (answered.recall, asked.recall) == (pytest.approx(3 / 4), pytest.approx(3 / 5))


def test_measure_faithfulness_nothing_mined_is_zero(chunks: pa.Table, truths: pa.Table) -> None:
    measured = measure_faithfulness(USER_INTEREST.empty(), chunks, truths)
    assert (measured.precision, measured.recall, measured.f1, measured.num_true) == (0.0, 0.0, 0.0, 5)
