"""A made-up world for measuring the service: a simulated catalogue, random histories, and towers as they are before training.

Speed does not depend on what vectors mean.
"""

from __future__ import annotations

import random
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from intently.core.config import Config
from intently.core.schema import CHUNK, EMBEDDING, EXPLANATION, HISTORY, ITEM, METRIC, TAG, USER, USER_INTEREST, Table
from intently.core.workspace import Workspace, open_stage
from intently.data.buckets import part_name
from intently.data.histories import HistoryConfig
from intently.data.simulator import SimulatorConfig, simulate
from intently.data.world import THEMES
from intently.interests.reason_store import FILENAME, write_reasons
from intently.retrieval.index import IndexConfig
from intently.retrieval.index_files import build_here
from intently.retrieval.trained import embedding_table, load_towers, put_towers
from intently.retrieval.training import TrainingConfig, build_towers, read_tower_data
from pydantic import Field

EVENTS_PER_USER = 60
INTERESTS_PER_USER = 8


class Made(Config):
    """Settings of stages that are made up for a measurement."""

    edition: int = Field(0, description="tells one version of an artifact from another")


class MadeHistories(Config):
    """Settings of a made-up history."""

    histories: HistoryConfig = Field(HistoryConfig(num_buckets=1), description="as ingest_events has them")


def write_table(workspace: Workspace, name: str, table: Table, rows: list[dict] | pa.Table, edition: int = 0) -> None:
    """Write an artifact of one part."""
    stage = open_stage(workspace, name, table, {}, Made(edition=edition))
    stage.write("part-00000", rows if isinstance(rows, pa.Table) else table.from_rows(rows))
    stage.finish()


def write_explanations(workspace: Workspace, rows: list[dict], edition: int = 0) -> None:
    """Write the table of reasons and the file that serving looks them up in."""
    write_table(workspace, "explanation", EXPLANATION, rows, edition)
    stage = open_stage(workspace, "explanation_store", None, {"explanation": workspace.artifact("explanation").version}, Made())
    with tempfile.TemporaryDirectory() as folder:
        write_reasons(workspace.artifact("explanation").read(), Path(folder) / FILENAME)
        stage.put(FILENAME, Path(folder) / FILENAME)
    stage.finish()


def write_untrained_towers(workspace: Workspace, config: TrainingConfig, beta: float) -> None:
    """Everything that retrieval reads, with towers as they are before training; needs item, history_train and tag."""
    for name in ("item_embedding", "tag_embedding"):
        write_table(workspace, name, EMBEDDING, [])
    read = {name: workspace.artifact(name).version for name in ("item", "history_train", "tag", "item_embedding", "tag_embedding")}
    data = read_tower_data(workspace, read, config)
    towers = build_towers(data, config).eval()
    stage = open_stage(workspace, "towers", None, read, config)
    put_towers(stage, towers, config, data)
    trained = load_towers(stage.finish())
    items = towers.item_vectors()[1].numpy()
    vectors = {
        "user": (data.past.user_ids, trained.user_vectors(data.past)),
        "item": (data.catalogue.item_ids, items),
        "tag": (data.tags.names, trained.tag_vectors(data.tags.names)),
    }
    for kind, (ids, found) in vectors.items():
        write_table(workspace, f"{kind}_vector", EMBEDDING, embedding_table(kind, ids, found, "untrained"))
    fusion = open_stage(workspace, "fusion", METRIC, {}, Made())
    fusion.write("part-00000", METRIC.empty())
    fusion.finish(metrics={"beta": beta}, notes={"pooling": "mean"})
    stage = open_stage(workspace, "index", None, {}, Made())
    build_here(stage, items, data.catalogue.item_ids, IndexConfig())
    stage.finish()


def write_world(workspace: Workspace, num_items: int, num_users: int) -> list[str]:
    """A simulated catalogue with random histories, interests, tags and reasons, written as artifacts; returns the user ids."""
    rng = np.random.default_rng(7)
    world = simulate(SimulatorConfig(num_items=num_items, num_users=num_users, pictures=False))
    item_ids = world.items["item_id"].to_numpy(zero_copy_only=False)
    user_ids = world.users["user_id"].to_pylist()
    taken = item_ids[rng.integers(0, num_items, (num_users, EVENTS_PER_USER))]
    wanted = [rng.choice(len(THEMES), INTERESTS_PER_USER, replace=False) for _ in user_ids]
    history = HISTORY.from_rows([_history(user, items.tolist()) for user, items in zip(user_ids, taken, strict=True)])
    # As ingest writes it, so that days can be appended.
    stage = open_stage(workspace, "history", HISTORY, {}, MadeHistories())
    stage.write(part_name(0), history)
    stage.finish()
    write_table(workspace, "history_train", HISTORY, history)
    write_table(workspace, "item", ITEM, world.items)
    write_table(workspace, "user", USER, world.users)
    write_table(workspace, "chunk", CHUNK, [])
    mined = [(user, rank, THEMES[theme]) for user, themes in zip(user_ids, wanted, strict=True) for rank, theme in enumerate(themes)]
    interest = {"bucket": 0, "chunk": 0, "stage": "active", "reason": "made up", "shift": "new", "evidence": [], "model": "made up"}
    write_table(
        workspace, "user_interest", USER_INTEREST, [interest | {"user_id": u, "rank": r, "interest": t.phrase} for u, r, t in mined]
    )
    tag = {"bucket": 0, "reason": "made up", "model": "made up"}
    rows = [
        tag | {"user_id": user, "rank": rank, "tag": f"sturdy {theme.nouns[0]}", "interest": theme.phrase, "category": theme.categories[-1]}
        for user, rank, theme in mined
    ]
    write_table(workspace, "tag", TAG, rows)
    phrases = ["", *(theme.phrase for theme in THEMES)]
    reasons = [
        {"item_id": item, "interest": phrases[interest], "text": "A reason of a usual length, which says why this suits you.", "model": "-"}
        for item, theme in zip(item_ids.tolist(), world.item_themes.tolist(), strict=True)
        for interest in (0, theme + 1)
    ]
    write_explanations(workspace, reasons)
    write_untrained_towers(workspace, TrainingConfig(), beta=0.6)
    return user_ids


def _history(user_id: str, items: list[str]) -> dict:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    size = len(items)
    return {
        "user_id": user_id, "bucket": 0, "event_ids": [f"{user_id}-{place}" for place in range(size)], "item_ids": items,
        "behaviours": ["purchase"] * size, "timestamps": [start + timedelta(days=place) for place in range(size)],
        "values": [None] * size, "queries": [None] * size, "dwell_s": [None] * size,
    }  # fmt: skip


def free_port(first: int = 18_000) -> int:
    """A port among the thousand from `first` on that nobody listens on, away from the usual ones.

    Which one is left to chance, so that two who ask at the same moment hardly get the same.
    """
    for port in random.sample(range(first, first + 1000), 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {first} and {first + 1000}")
