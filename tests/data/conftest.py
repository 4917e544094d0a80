"""Small tables made by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from intently.core.schema import EVENT, HISTORY, ITEM


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def event_row(text: str, number: int) -> dict[str, Any]:
    """'2024-05-01 cart i1' and so on; a third word '-' is no item, a fourth the stars, dwell or query."""
    time, behaviour, item, *extra = text.split(maxsplit=3)
    detail = extra[0] if extra else None
    return {
        "event_id": f"e{number}",
        "item_id": None if item == "-" else item,
        "behaviour": behaviour,
        "timestamp": moment(time),
        "value": float(detail) if behaviour == "rating" and detail else None,
        "query": detail if behaviour == "search" else None,
        "dwell_s": float(detail) if behaviour == "detail_view" and detail else None,
    }


@pytest.fixture
def make_history() -> Callable[..., pa.Table]:
    """HISTORY rows from user → lines such as '2024-05-01 cart i1', oldest first; events are e0, e1, … within a user."""

    def make(**users: list[str]) -> pa.Table:
        rows = []
        for user_id, lines in users.items():
            events = [event_row(line, number) for number, line in enumerate(lines)]
            lists = {"event_id": "event_ids", "item_id": "item_ids", "behaviour": "behaviours", "timestamp": "timestamps"}
            lists |= {"value": "values", "query": "queries", "dwell_s": "dwell_s"}
            columns = {name: [event[key] for event in events] for key, name in lists.items()}
            rows.append({"user_id": user_id, "bucket": 0, **columns})
        return HISTORY.from_rows(rows)

    return make


@pytest.fixture
def make_events() -> Callable[..., pa.Table]:
    """EVENT rows from (user, line) pairs; event id and position are the row's number unless `ids` says otherwise."""

    def make(pairs: list[tuple[str, str]], ids: list[str] | None = None) -> pa.Table:
        rows = [{"user_id": user, "position": place, **event_row(line, place)} for place, (user, line) in enumerate(pairs)]
        if ids is not None:
            rows = [row | {"event_id": event_id} for row, event_id in zip(rows, ids, strict=True)]
        return EVENT.from_rows(rows)

    return make


@pytest.fixture
def make_items() -> Callable[..., pa.Table]:
    """ITEM rows from item_id → title, or → a dict of columns."""

    def make(**items: str | dict[str, Any]) -> pa.Table:
        empty = {
            "description": None,
            "category": "unknown",
            "categories": [],
            "brand": None,
            "price": None,
            "attributes": [],
            "image": None,
        }
        rows = [{"title": told} if isinstance(told, str) else told for told in items.values()]
        return ITEM.from_rows([{**empty, "item_id": item_id, **row} for item_id, row in zip(items, rows, strict=True)])

    return make
