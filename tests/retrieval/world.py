"""A small world with a rule to learn, as the tables that the towers read.

36 items in three categories; user u likes category u % 3 and walks round its 12 items in a ring, so that the next item follows
from the last one. Four events of train, one of validation, one of test; tags name the category that the user likes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from intently.core.config import Config
from intently.core.schema import EMBEDDING, HISTORY, ITEM, TAG, Table
from intently.core.workspace import Workspace, open_stage

CATEGORIES = ("Hiking", "Garden", "Kitchen")
WORDS = ("hiking boots", "garden tools", "kitchen knives")
RING = 12
NUM_USERS = 72


def item_of(category: int, step: int) -> str:
    """Item id at a step of a category's ring."""
    return f"i{category * RING + step % RING:02d}"


def items() -> pa.Table:
    """ITEM, 36 rows."""
    return ITEM.from_rows(
        [
            {
                "item_id": item_of(category, step),
                "title": f"{WORDS[category]} {step}",
                "category": CATEGORIES[category],
                "categories": [CATEGORIES[category]],
                "brand": None if step % 4 else "Davvik",
                "price": None if step == 5 else float(10 * category + step),
                "attributes": [],
            }
            for category in range(3)
            for step in range(RING)
        ]
    )


def history(rows: dict[str, list[tuple[str | None, str]]]) -> pa.Table:
    """HISTORY of user → [(item, behaviour), …], an event a day."""
    first = datetime(2025, 1, 1, tzinfo=UTC)
    return HISTORY.from_rows(
        [
            {
                "user_id": user,
                "bucket": 0,
                "event_ids": [f"{user}-{n}" for n in range(len(events))],
                "item_ids": [item for item, _ in events],
                "behaviours": [behaviour for _, behaviour in events],
                "timestamps": [first + timedelta(days=n) for n in range(len(events))],
                "values": [None] * len(events),
                "queries": [None] * len(events),
                "dwell_s": [None] * len(events),
            }
            for user, events in rows.items()
        ]
    )


def user(number: int) -> str:
    """User id."""
    return f"u{number:02d}"


def walk(number: int, start: int, stop: int) -> list[tuple[str | None, str]]:
    """Steps start … stop−1 of a user's way round their ring."""
    return [(item_of(number % 3, number // 3 + step), "purchase") for step in range(start, stop)]


def tags(users: range) -> pa.Table:
    """TAG, two a user."""
    return TAG.from_rows(
        [
            {
                "user_id": user(number),
                "bucket": 0,
                "rank": rank,
                "tag": f"{modifier} {WORDS[number % 3]}",
                "interest": CATEGORIES[number % 3],
                "reason": "bought such things",
                "category": CATEGORIES[number % 3],
                "model": "test",
            }
            for number in users
            for rank, modifier in enumerate(("light", "sturdy"))
        ]
    )


def embeddings(kind: str, ids: list[str], categories: list[int]) -> pa.Table:
    """EMBEDDING in which texts of one category are alike."""
    vectors = np.eye(4, dtype=np.float32)[categories]
    return EMBEDDING.from_rows([{"kind": kind, "id": i, "vector": v.tolist(), "model": "test"} for i, v in zip(ids, vectors, strict=True)])


def put(workspace: Workspace, name: str, table: Table, rows: pa.Table, num_parts: int = 1) -> None:
    """Write a whole artifact, its rows in parts of like size."""
    stage = open_stage(workspace, name, table, {}, Config())
    size = -(-rows.num_rows // num_parts)
    for part in range(num_parts):
        stage.write(f"part-{part:05d}", rows.slice(part * size, size))
    stage.finish()


def write_world(workspace: Workspace, tagged: range = range(NUM_USERS)) -> None:
    """Everything that train_towers reads; only users in `tagged` have tags."""
    splits = {"train": (0, 4), "validation": (4, 5), "test": (5, 6)}
    for split, (start, stop) in splits.items():
        rows = history({user(n): walk(n, start, stop) for n in range(NUM_USERS)})
        put(workspace, f"history_{split}", HISTORY, rows, num_parts=5 if split == "train" else 1)
    put(workspace, "item", ITEM, items())
    tagged_rows = tags(tagged)
    put(workspace, "tag", TAG, tagged_rows)
    ids = items()["item_id"].to_pylist()
    put(workspace, "item_embedding", EMBEDDING, embeddings("item", ids, [n // RING for n in range(len(ids))]))
    texts = {row["tag"]: CATEGORIES.index(row["category"]) for row in tagged_rows.to_pylist()}
    put(workspace, "tag_embedding", EMBEDDING, embeddings("tag", list(texts), list(texts.values())))
