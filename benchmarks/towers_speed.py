"""Training of the towers through the harness (Ray Train, DeepSpeed, one worker) against a plain PyTorch loop: same model, same batches.

PYTHONPATH=platform python benchmarks/towers_speed.py [--quick] [--json FILE]

Both sides run by turns, one thread each, on a made-up log of MovieLens' size. An epoch's time is that of its steps; what a run costs
once (starting workers, reading tables, the first epoch's warm-up, the checkpoint) is reported apart and is not in the ratio, which is
of each side's fastest epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from intently.core.config import Config
from intently.core.schema import EMBEDDING, HISTORY, ITEM, TAG, TIMESTAMP, Table
from intently.core.workspace import Workspace, open_stage
from intently.retrieval.training import Losses, Sampler, TowerObjective, TrainingConfig, build_towers, read_tower_data, train_towers
from intently.runtime.session import ray_session
from intently.runtime.train import TrainConfig, train

READS = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
NUM_CATEGORIES = 18


@dataclass(frozen=True)
class Scale:
    """How much is trained."""

    num_users: int
    num_items: int
    events_per_user: int
    examples_per_epoch: int
    num_epochs: int
    rounds: int


FULL = Scale(num_users=6000, num_items=3900, events_per_user=160, examples_per_epoch=100_000, num_epochs=4, rounds=3)
QUICK = Scale(num_users=600, num_items=3900, events_per_user=80, examples_per_epoch=30_000, num_epochs=3, rounds=1)


class Made(Config):
    """Settings of tables that are made up: there are none."""


def put(workspace: Workspace, name: str, table: Table, rows: pa.Table) -> None:
    """Write a whole artifact."""
    stage = open_stage(workspace, name, table, {}, Made())
    stage.write("part-00000", rows)
    stage.finish()


def make_log(scale: Scale, folder: Path) -> Workspace:
    """Users with one rating on each of a number of items, drawn by popularity."""
    workspace, rng = Workspace.open(folder), np.random.default_rng(0)
    items = [
        {"item_id": f"i{n}", "title": f"item {n}", "category": f"c{n % NUM_CATEGORIES}", "categories": [], "attributes": []}
        for n in range(scale.num_items)
    ]
    share = 1 / np.arange(1, scale.num_items + 1) ** 0.7
    drawn = np.stack([rng.choice(scale.num_items, scale.events_per_user, False, share / share.sum()) for _ in range(scale.num_users)])
    num_events = drawn.size
    offsets = pa.array(np.arange(scale.num_users + 1) * scale.events_per_user, pa.int32())
    columns = {
        "event_ids": pa.array(np.char.add("e", np.arange(num_events).astype(str))),
        "item_ids": pa.array(np.char.add("i", drawn.ravel().astype(str))),
        "behaviours": pa.array(["rating"] * num_events),
        "timestamps": pa.array(np.arange(num_events), pa.int64()).cast(TIMESTAMP),
        **{
            name: pa.nulls(num_events, kind)
            for name, kind in (("values", pa.float32()), ("queries", pa.string()), ("dwell_s", pa.float32()))
        },
    }
    users = {"user_id": pa.array([f"u{n}" for n in range(scale.num_users)]), "bucket": pa.array([0] * scale.num_users, pa.int32())}
    lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
    put(workspace, "history_train", HISTORY, HISTORY.check(pa.table({**users, **lists})))
    put(workspace, "item", ITEM, ITEM.from_rows(items))
    put(workspace, "tag", TAG, TAG.empty())
    for kind in ("item", "tag"):
        put(workspace, f"{kind}_embedding", EMBEDDING, EMBEDDING.empty())
    return workspace


def train_plainly(workspace: Workspace, versions: Mapping[str, str], config: TrainingConfig) -> list[float]:
    """Seconds of each epoch of a loop without the harness."""
    data = read_tower_data(workspace, versions, config)
    sampler = Sampler(data, config, torch.device("cpu"))
    module = TowerObjective(build_towers(data, config), config.learning, sampler.rates)
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.learning.learning_rate, fused=True)
    seconds = []
    for epoch in range(config.learning.num_epochs):
        begin, sums = time.monotonic(), torch.zeros(len(Losses._fields))
        for batch in sampler.epoch(epoch):
            losses = module(batch)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            sums += torch.stack([loss.detach() for loss in losses])
        seconds.append(time.monotonic() - begin)
        print(f"plain: epoch {epoch + 1}, loss {sums[0] / sampler.num_steps:.4f}, {seconds[-1]:.2f} s", flush=True)
    return seconds


def train_by_harness(
    workspace: Workspace, versions: Mapping[str, str], config: TrainingConfig, harness: TrainConfig, name: str
) -> tuple[list[float], float]:
    """Seconds of each epoch through the harness, and of the whole call."""
    begin = time.monotonic()
    arguments = {"workspace": workspace, "versions": versions, "config": config}
    with train(train_towers, arguments, harness, workspace, f"towers/{name}/training") as result:
        return [epoch["seconds"] for epoch in result.history], time.monotonic() - begin


def measure(scale: Scale, folder: Path) -> tuple[dict[str, float], list[dict]]:
    """Both sides by turns: figures, and a row an epoch."""
    workspace = make_log(scale, folder)
    versions = {name: workspace.artifact(name).version for name in READS}
    # Every rating counts, however few its stars.
    ratings = {"history": ["rating"], "taken": ["rating"], "weights": {"rating": 1.0}, "min_rating": 0}
    learning = {"num_epochs": scale.num_epochs, "batch_size": 1024, "num_negatives": 256, "examples_per_epoch": scale.examples_per_epoch}
    config = TrainingConfig.parse({"behaviours": ratings, "learning": learning})
    harness = TrainConfig.parse({"resources": {"num_workers": 1, "cpus": 1}, "checkpoint_every": scale.num_epochs})
    rows, once = [], []
    with ray_session():
        for round_ in range(scale.rounds):
            plain = train_plainly(workspace, versions, config)
            ours, whole = train_by_harness(workspace, versions, config, harness, f"round{round_}")
            once.append(whole - sum(ours[1:]))
            for side, seconds in (("plain", plain), ("harness", ours)):
                # The first epoch of either side warms up, and the harness counts reading the tables into it.
                rows += [{"side": side, "round": round_, "epoch": n + 1, "seconds": value} for n, value in enumerate(seconds) if n]
    # Whatever else the machine does only adds time: of each side the fastest epoch counts.
    best = {side: min(row["seconds"] for row in rows if row["side"] == side) for side in ("plain", "harness")}
    return {
        "train_vs_plain_torch_ratio": best["plain"] / best["harness"],
        "harness_examples_per_second": scale.examples_per_epoch / best["harness"],
        "plain_examples_per_second": scale.examples_per_epoch / best["plain"],
        "harness_seconds_once": float(np.median(once)),
    }, rows


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller log, one round; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if os.environ.get("RAY_AUTH_MODE") != "token":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"RAY_AUTH_MODE": "token"})  # ray reads it when imported
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures, rows = measure(QUICK if options.quick else FULL, Path(folder))
    print("\n".join(f"{name:<32}{value:,.3f}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "towers_speed", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
