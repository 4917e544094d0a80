"""The fusion sweep of 20 points on MovieLens-1M: Ray Tune on cached vectors against the same points in a plain loop, in one call.

    PYTHONPATH=platform python benchmarks/sweep_fusion.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER]

Towers are trained briefly first, with rule-made tags, outside the measured time (--quick: on the simulator). `sweep_seconds` is what the
job does until a weight is chosen: read vectors and targets, start Ray, measure 20 weights on validation, two at a time, choose. The plain
loop reads the same and measures the same points one after the other in this process; both must find the same figures. The table is the
sweep itself, on validation, seen items left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intently.core.schema import EMBEDDING
from intently.core.workspace import Workspace, open_stage
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource
from intently.retrieval.fusion import choose, pareto_front
from intently.retrieval.sweep import FusionConfig, front_table, measure_beta, points_of, read_sweep_data
from intently.retrieval.trained import embedding_table, load_towers, put_towers, restore_towers
from intently.retrieval.training import LearningConfig, TrainingConfig, read_tower_data, train_towers
from intently.runtime.train import WEIGHTS, TrainConfig, train
from intently.runtime.tune import SweepConfig, sweep
from made import put
from towers import prepare

TABLES = ("item", "history_train", "tag", "item_embedding", "tag_embedding")
SIMULATED = SimulatorSource(num_users=200, num_items=400, pictures=False)
FUSION = FusionConfig(betas=tuple(np.linspace(0, 1, 20).round(4).tolist()))


def train_briefly(workspace: Workspace, quick: bool) -> None:
    """Towers and their vectors, as train_towers leaves them; what stands stays."""
    if workspace.latest_version("tag_vector"):
        return
    config = TrainingConfig(learning=LearningConfig(num_epochs=1, batch_size=256 if quick else 2048))
    versions = {name: workspace.artifact(name).version for name in TABLES}
    arguments = {"workspace": workspace, "versions": versions, "config": config}
    with train(train_towers, arguments, TrainConfig(launcher="local"), workspace, "towers/benchmark") as result:
        data = read_tower_data(workspace, versions, config)
        towers = restore_towers(data, config, result.folder / WEIGHTS)
    stage = open_stage(workspace, "towers", None, versions, config)
    put_towers(stage, towers, config, data)
    trained = load_towers(stage.finish())
    vectors = {
        "user": (data.past.user_ids, trained.user_vectors(data.past)),
        "item": (data.catalogue.item_ids, towers.item_vectors()[1].numpy()),
        "tag": (data.tags.names, trained.tag_vectors(data.tags.names)),
    }
    for kind, (ids, matrix) in vectors.items():
        put(workspace, f"{kind}_vector", EMBEDDING, embedding_table(kind, ids, matrix, str(stage.version)))


def sweep_in_tune(workspace: Workspace) -> tuple[float, Sequence[dict[str, float]]]:
    """Seconds from the tables to the figures of all points, and the figures."""
    with tempfile.TemporaryDirectory() as trials:
        began = time.monotonic()
        data = read_sweep_data(workspace, FUSION)
        points = [{"beta": beta} for beta in FUSION.betas]
        results = sweep(measure_beta, points, data, SweepConfig(), Workspace.open(trials), "fusion/trials")
        choose(points_of(FUSION.betas, results, FUSION), FUSION.concession)
        return time.monotonic() - began, results


def sweep_in_a_loop(workspace: Workspace) -> tuple[float, Sequence[dict[str, float]]]:
    """The same without Ray."""
    began = time.monotonic()
    data = read_sweep_data(workspace, FUSION)
    results = [measure_beta({"beta": beta}, data) for beta in FUSION.betas]
    choose(points_of(FUSION.betas, results, FUSION), FUSION.concession)
    return time.monotonic() - began, results


def measure(workspace: Workspace, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Both sides: figures, and a row a point."""
    train_briefly(workspace, quick)
    tuned, found = sweep_in_tune(workspace)
    looped, expected = sweep_in_a_loop(workspace)
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(list(one.values()), list(other.values()), atol=1e-4), "both sides measure the same"
    points = points_of(FUSION.betas, found, FUSION)
    chosen, front = choose(points, FUSION.concession), pareto_front(points)
    print(front_table(points, chosen))
    rows = [
        {"beta": p.beta, "ndcg10": p.accuracy, "category_coverage": p.coverage, "tail_share": p.tail}
        | {"hr10": figures["HR@10/unseen"], "gini": figures["gini@10/unseen"], "on_front": p in front, "chosen": p == chosen}
        for p, figures in zip(points, found, strict=True)
    ]
    return {
        "sweep_seconds": tuned,
        "plain_loop_seconds": looped,
        "tune_vs_plain_loop_ratio": looped / tuned,
        "points": len(points),
        "chosen_beta": chosen.beta,
        "points_on_front": len(front),
    }, rows


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a simulated log; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, help="keep the prepared data and the towers in this folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with movielens_1m (default: %(default)s)")
    options = parser.parse_args()
    source = SIMULATED if options.quick else SharedParquetConfig(path=str(options.data / "movielens_1m"))
    with tempfile.TemporaryDirectory() as scratch:
        figures, rows = measure(prepare(source, options.workspace or Path(scratch)), options.quick)
    print("\n".join(f"{name:<28}{value:,.4g}" for name, value in figures.items()))
    if options.json:
        result = {"benchmark": "sweep_fusion", "quick": options.quick, "figures": figures, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
