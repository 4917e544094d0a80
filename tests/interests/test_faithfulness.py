"""Precision and recall, counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from intently.core.schema import CHUNK, REJECT, TRUE_INTEREST, USER_INTEREST
from intently.interests.faithfulness import active_truths, asked_chunks, measure_faithfulness


def day(number: int) -> datetime:
    return datetime(2024, 1, number, tzinfo=UTC)


@pytest.fixture
def chunks() -> pa.Table:
    """ann: days 1-5, 6-10 and 11-15; bob: days 1-5."""
    rows = [("ann", 0, 1, 5), ("ann", 1, 6, 10), ("ann", 2, 11, 15), ("bob", 0, 1, 5)]
    fixed = {"bucket": 0, "event_ids": [], "item_ids": [], "text": "", "num_tokens": 0}
    return CHUNK.from_rows([{"user_id": u, "chunk": c, "start": day(s), "end": day(e), **fixed} for u, c, s, e in rows])


@pytest.fixture
def truths() -> pa.Table:
    """ann: tea all the time, chess on days 5-6, faintly golf; bob: chess from day 6 on."""
    rows = [("ann", "tea", 1, 20, 0.6), ("ann", "Chess", 5, 6, 0.4), ("ann", "golf", 1, 20, 0.01), ("bob", "chess", 6, 9, 0.9)]
    return TRUE_INTEREST.from_rows(
        [{"user_id": u, "interest": i, "category": "c", "start": day(s), "end": day(e), "strength": w} for u, i, s, e, w in rows]
    )


@pytest.fixture
def interests() -> pa.Table:
    """Mined: tea and chess in chunk 0, tea and yoga in chunk 1, chess for bob."""
    rows = [("ann", 0, 0, "Tea"), ("ann", 0, 1, "chess"), ("ann", 1, 0, "tea"), ("ann", 1, 1, "yoga"), ("bob", 0, 0, "chess")]
    fixed = {"bucket": 0, "stage": "active", "reason": "r", "shift": "new", "evidence": [], "model": "m"}
    return USER_INTEREST.from_rows([{"user_id": u, "chunk": c, "rank": r, "interest": i, **fixed} for u, c, r, i in rows])


def test_active_truths_overlap_in_time_counts_at_its_edges(chunks: pa.Table, truths: pa.Table) -> None:
    active = {tuple(row.values()) for row in active_truths(chunks, truths, 0.1).to_pylist()}
    assert active == {("ann", 0, "tea"), ("ann", 1, "tea"), ("ann", 2, "tea"), ("ann", 0, "chess"), ("ann", 1, "chess")}


def test_measure_faithfulness_hand_counted(chunks: pa.Table, truths: pa.Table, interests: pa.Table) -> None:
    measured = measure_faithfulness(interests, chunks, truths, min_strength=0.1)
    assert (measured.num_mined, measured.num_true, measured.num_hits, measured.num_chunks) == (5, 5, 3, 4)
    assert measured.precision == measured.recall == measured.f1 == pytest.approx(3 / 5)


def test_measure_faithfulness_chunk_that_was_refused_counts_against_recall_only(
    chunks: pa.Table, truths: pa.Table, interests: pa.Table
) -> None:
    refused = REJECT.from_rows([{"stage": "user_interest", "row": "ann/2", "reason": "answer is not JSON", "detail": ""}])
    answered = measure_faithfulness(interests, asked_chunks(chunks, interests, REJECT.empty()), truths, 0.1)
    asked = measure_faithfulness(interests, asked_chunks(chunks, interests, refused), truths, 0.1)
    assert (answered.num_chunks, asked.num_chunks) == (3, 4)
    assert answered.precision == asked.precision == pytest.approx(3 / 5)
    assert (answered.recall, asked.recall) == (pytest.approx(3 / 4), pytest.approx(3 / 5))


def test_measure_faithfulness_nothing_mined_is_zero(chunks: pa.Table, truths: pa.Table) -> None:
    measured = measure_faithfulness(USER_INTEREST.empty(), chunks, truths)
    assert (measured.precision, measured.recall, measured.f1, measured.num_true) == (0.0, 0.0, 0.0, 8)
