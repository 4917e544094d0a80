"""A tiny world with a rule: people like one of two kinds of film, and which is told by their first chunk alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch
from intently.core.schema import CHUNK, HISTORY, ITEM
from intently.ranking.features import Log, Rows

CHUNK_EVENTS = 4


def items(num_items: int = 8) -> pa.Table:
    """ITEM: even ones are war films of the fifties, odd ones comedies of the nineties."""
    return ITEM.from_rows(
        [
            {
                "item_id": f"i{n}",
                "title": f"Film {n}",
                "category": ("War", "Comedy")[n % 2],
                "categories": [("War", "Comedy")[n % 2]],
                "attributes": [f"year: {(1955, 1994)[n % 2]}"],
            }
            for n in range(num_items)
        ]
    )


def history(lives: dict[str, list[tuple[str | None, float | None]]], behaviour: str = "rating") -> pa.Table:
    """HISTORY of user → [(item, stars), …], an event a day."""
    first = datetime(2025, 1, 1, tzinfo=UTC)
    return HISTORY.from_rows(
        [
            {
                "user_id": user,
                "bucket": 0,
                "event_ids": [f"{user}-{n}" for n in range(len(events))],
                "item_ids": [item for item, _ in events],
                "behaviours": [behaviour] * len(events),
                "timestamps": [first + timedelta(days=n) for n in range(len(events))],
                "values": [stars for _, stars in events],
                "queries": [None] * len(events),
                "dwell_s": [None] * len(events),
            }
            for user, events in lives.items()
        ]
    )


def chunks(of: pa.Table, size: int = CHUNK_EVENTS) -> pa.Table:
    """CHUNK rows of full chunks and a last one that may be short."""
    rows = []
    for row in of.to_pylist():
        for chunk, start in enumerate(range(0, len(row["event_ids"]), size)):
            kept = slice(start, start + size)
            times = row["timestamps"][kept]
            rows.append(
                {
                    "user_id": row["user_id"],
                    "bucket": 0,
                    "chunk": chunk,
                    "event_ids": row["event_ids"][kept],
                    "item_ids": row["item_ids"][kept],
                    "start": times[0],
                    "end": times[-1],
                    "text": "",
                    "num_tokens": 0,
                }
            )
    return CHUNK.from_rows(rows)


def lives(num_users: int, length: int, seed: int = 0, num_items: int = 8) -> dict[str, list[tuple[str | None, float | None]]]:
    """Users who give five stars to the kind that they like and one to the other."""
    rng = np.random.default_rng(seed)
    told = {}
    for user in range(num_users):
        seen = rng.integers(0, num_items, length)
        told[f"u{user}"] = [(f"i{item}", 5.0 if item % 2 == user % 2 else 1.0) for item in seen]
    return told


def log_of(starts: list[int], items_: list[int]) -> Log:
    """A log with the given items and signals 1, 2, 3, 1, 2, 3 …"""
    return Log(
        pa.array([f"u{n}" for n in range(len(starts) - 1)]),
        torch.tensor(items_),
        torch.arange(len(items_)) % 3 + 1,
        torch.tensor(starts),
    )


def rows_of(users: list[int], places: list[int], items_: list[int], bounds: list[int]) -> Rows:
    """Rows with label 0."""
    return Rows(*(torch.tensor(column) for column in (users, places, items_, bounds)), torch.zeros(len(users)))
