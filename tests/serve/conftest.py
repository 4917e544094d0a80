"""A workspace made by hand for the service: twelve items, three people, and what every stage would have said of them."""

from __future__ import annotations

import io
import os

# As serve.local does, before Ray starts: on a busy machine the proxy needs longer than Ray's 5 s.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from intently.core.schema import CHUNK, HISTORY, INTEREST_NODE, ITEM, TAG, USER, USER_INTEREST
from intently.core.workspace import Workspace
from intently.retrieval.towers import TowerConfig
from intently.retrieval.training import TrainingConfig
from PIL import Image, ImageDraw
from ray import serve as ray_serve

from benchmarks.serving_world import free_port, write_explanations, write_table, write_untrained_towers
from serve.local import application, deploy

GOODS = {
    "outdoor": ["waterproof hiking boots", "two-person tent", "trail running vest", "folding camp stove"],
    "kitchen": ["cast iron pan", "sourdough proofing basket", "pour-over coffee dripper", "chef's knife"],
    "books": ["field guide to birds", "bread baking handbook", "mountain weather guide", "crime novel"],
}
COLOURS = {"outdoor": "#4d7c4f", "kitchen": "#b3632f", "books": "#3f6291"}
PRICES = [129.0, 249.0, 89.5, 64.0, 45.0, 18.9, 32.0, 99.0, 24.0, 29.0, 19.5, 12.0]
START = datetime(2025, 1, 10, 9, tzinfo=UTC)


def rows_of_items() -> list[dict]:
    """i00 … i11; every item but i11 has a picture."""
    titles = [(category, title) for category, names in GOODS.items() for title in names]
    return [
        {
            "item_id": f"i{place:02d}",
            "title": title,
            "description": f"A {title}.",
            "category": category,
            "categories": [category],
            "brand": "Fernweh" if category == "outdoor" else None,
            "price": PRICES[place],
            "attributes": [],
            "image": picture(COLOURS[category], place) if place != 11 else None,
        }
        for place, (category, title) in enumerate(titles)
    ]


def picture(colour: str, place: int) -> bytes:
    """A small PNG."""
    drawn = Image.new("RGB", (48, 48), colour)
    ImageDraw.Draw(drawn).ellipse((8 + place, 8, 40, 40), fill="white")
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return stream.getvalue()


def history(user_id: str, acts: list[tuple[int, str | None, str]]) -> dict:
    """A History row from (days after the start, item, behaviour)."""
    return {
        "user_id": user_id,
        "bucket": 0,
        "event_ids": [f"{user_id}-{place}" for place in range(len(acts))],
        "item_ids": [item for _, item, _ in acts],
        "behaviours": [behaviour for _, _, behaviour in acts],
        "timestamps": [START + timedelta(days=days) for days, _, _ in acts],
        "values": [None] * len(acts),
        "queries": ["rain jacket" if behaviour == "search" else None for _, _, behaviour in acts],
        "dwell_s": [None] * len(acts),
    }


ACTS = {
    "ada": [
        (0, "i00", "click"), (0, "i00", "purchase"), (2, "i01", "detail_view"), (20, "i02", "favourite"), (40, None, "search"),
        (60, "i05", "cart"), (61, "i05", "purchase"), (75, "i04", "detail_view"), (76, "i04", "purchase"), (90, "i09", "favourite"),
    ],
    "bob": [(5, "i08", "purchase"), (33, "i11", "detail_view"), (34, "i11", "purchase"), (70, "i10", "favourite")],
    "cyd": [(50, "i07", "click")],
}  # fmt: skip

INTERESTS = {
    ("ada", 0): [("hiking in wet weather", "active", "new", ["i00", "i01"]), ("running on trails", "emerging", "new", ["i02"])],
    ("ada", 1): [("hiking in wet weather", "fading", "continued", []), ("baking sourdough at home", "active", "new", ["i05", "i09"])],
    ("bob", 0): [("watching birds", "active", "new", ["i08"])],
}
TAGS = {
    "ada": [
        ("round proofing basket", "baking sourdough at home", "kitchen"),
        ("light waterproof tent", "hiking in wet weather", "outdoor"),
    ],
    "bob": [("pocket bird guide", "watching birds", "books")],
}
REASONS = [
    ("i03", "hiking in wet weather", "Boils water quickly on a wet hike, and folds flat."),
    ("i06", "baking sourdough at home", "Good coffee while the dough rests."),
    ("i07", "", "One sharp knife does most of the work in a kitchen."),
    ("i10", "", "Reads the sky before you set out."),
    ("i10", "hiking in wet weather", "Tells you when a wet day on the mountain turns into a dangerous one."),
]


def rows_of_interests() -> list[dict]:
    return [
        {
            "user_id": user_id, "bucket": 0, "chunk": chunk, "rank": rank, "interest": interest, "stage": stage,
            "reason": f"The purchases point to {interest}.", "shift": shift, "evidence": evidence, "model": "hand",
        }
        for (user_id, chunk), drafts in INTERESTS.items()
        for rank, (interest, stage, shift, evidence) in enumerate(drafts)
    ]  # fmt: skip


def rows_of_nodes() -> list[dict]:
    """Two readings of Ada's oldest stretch."""
    readings = [(["hiking in wet weather", "running on trails"], 0.71, True), (["walking dogs"], 0.38, False)]
    return [
        {
            "user_id": "ada", "bucket": 0, "chunk": 0, "sample": sample, "path": str(sample), "interests": interests,
            "stages": ["active"] * len(interests), "s_effectiveness": score, "s_final": score, "chosen": chosen, "model": "hand",
        }
        for sample, (interests, score, chosen) in enumerate(readings)
    ]  # fmt: skip


def rows_of_chunks() -> list[dict]:
    """Bob's second stretch was not read."""
    return [
        {
            "user_id": user_id, "bucket": 0, "chunk": chunk, "event_ids": [], "item_ids": [], "start": START + timedelta(days=45 * chunk),
            "end": START + timedelta(days=45 * chunk + 40), "text": "", "num_tokens": 0,
        }
        for user_id, chunk in [*INTERESTS, ("bob", 1)]
    ]  # fmt: skip


def rows_of_tags() -> list[dict]:
    return [
        {
            "user_id": user_id,
            "bucket": 0,
            "rank": rank,
            "tag": tag,
            "interest": interest,
            "reason": "It serves it.",
            "category": category,
            "model": "hand",
        }
        for user_id, drafts in TAGS.items()
        for rank, (tag, interest, category) in enumerate(drafts)
    ]


def write_tables(workspace: Workspace) -> None:
    """Everything that the service reads, but for the towers and the index."""
    write_table(workspace, "item", ITEM, rows_of_items())
    users = [{"user_id": user_id, "attributes": ["climate: rainy"] if user_id == "ada" else []} for user_id in ACTS]
    write_table(workspace, "user", USER, users)
    for name in ("history", "history_train"):
        write_table(workspace, name, HISTORY, [history(user_id, acts) for user_id, acts in ACTS.items()])
    write_table(workspace, "chunk", CHUNK, rows_of_chunks())
    write_table(workspace, "user_interest", USER_INTEREST, rows_of_interests())
    write_table(workspace, "interest_node", INTEREST_NODE, rows_of_nodes())
    write_table(workspace, "tag", TAG, rows_of_tags())
    reasons = [{"item_id": item_id, "interest": interest, "text": text, "model": "hand"} for item_id, interest, text in REASONS]
    write_explanations(workspace, reasons)


@pytest.fixture
def tables(workspace: Workspace) -> Workspace:
    """A workspace with the hand-made tables only."""
    write_tables(workspace)
    return workspace


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The hand-made tables with untrained towers."""
    workspace = Workspace.open(tmp_path_factory.mktemp("served"))
    write_tables(workspace)
    write_untrained_towers(workspace, TrainingConfig(towers=TowerConfig(dim=8, hidden=16)), beta=0.5)
    return workspace


@pytest.fixture(scope="session")
def event_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the events of the deployed service go."""
    return tmp_path_factory.mktemp("event_log")


@pytest.fixture(scope="session")
def address(ray_session: None, served: Workspace, event_log: Path) -> Iterator[str]:
    """Root of a service over the hand-made tables, deployed once; tests use event ids of their own."""
    yield deploy(application(served.root, str(event_log)), free_port())
    ray_serve.shutdown()
