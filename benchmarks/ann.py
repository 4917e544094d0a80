"""Flat, HNSW and IVF-PQ over up to ten million vectors: recall@100 against latency and memory beside exact search, build time by shards.

    PYTHONPATH=platform python benchmarks/ann.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER] [--phase PHASE]

Vectors are drawn from what real towers learned: towers are trained on Amazon Beauty (--quick: on the simulator), their item vectors are cut
into cells by k-means, and each cell becomes a Gaussian (its covariance, half-way shrunk to the mean one) that is drawn from and brought
back to length 1. Queries are the towers' user vectors as they are: users do not lie where items lie, and graphs are harder to search from
there. How alike drawn and real vectors are is measured at the real size. Latency is that of one query at a time on one thread, for users
that were not searched before, on the clock and in CPU time (which other work on the machine disturbs less); memory is what the search
process holds more than before (rss: its own, mapped: of files, which other processes share). Phases can run one after the other on a
folder: what stands is not built again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from intently.core.workspace import Stage, Workspace, open_stage
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource
from intently.retrieval.index import IndexConfig, VectorIndex, build_index
from intently.retrieval.index_files import IndexBuild, load_index
from intently.retrieval.trained import restore_towers
from intently.retrieval.training import LearningConfig, TrainingConfig, read_tower_data, train_towers
from intently.runtime.train import WEIGHTS, TrainConfig, train
from numpy.lib.format import open_memmap
from scipy.cluster.vq import kmeans2
from towers import prepare

K = 100
NUM_CELLS = 128
MEASURED = 500
TABLES = ("item", "history_train", "tag", "item_embedding", "tag_embedding")
SIMULATED = SimulatorSource(num_users=200, num_items=600, pictures=False)


@dataclass(frozen=True)
class Built:
    """One index of the benchmark.

    Attributes:
        size: vectors.
        name: what the table calls it.
        config: how it is built.
        settings: what is varied when searching; the first is the default.
    """

    size: int
    name: str
    config: IndexConfig
    settings: tuple[dict[str, int], ...] = ({},)


def plan(quick: bool) -> list[Built]:
    """What is built and searched, the largest size last."""
    flat = IndexConfig(kind="flat", rows_per_shard=100_000_000)
    breadths = tuple({"hnsw_search_breadth": breadth} for breadth in (256, 100, 400))
    probes = tuple({"ivf_probes": probes} for probes in (128, 64, 16))
    if quick:
        graph = IndexConfig(kind="hnsw", hnsw_build_breadth=100)
        cells = IndexConfig(kind="ivfpq", rows_per_shard=10_000)
        return [
            Built(20_000, "flat", flat),
            Built(20_000, "hnsw, 2 shards", replace_config(graph, rows_per_shard=10_000)),
            Built(20_000, "ivfpq, 2 shards", cells, probes[:2]),
            Built(20_000, "hnsw", graph, breadths[:2]),
        ]
    graph = IndexConfig(kind="hnsw", hnsw_neighbours=16, hnsw_build_breadth=80)
    default, million = IndexConfig(kind="hnsw"), 1_000_000
    cells = IndexConfig(kind="ivfpq")
    return [
        Built(million, "flat", flat),
        Built(million, "ivfpq, 4 shards", replace_config(cells, rows_per_shard=million // 4), probes),
        Built(million, "hnsw M=16, 4 shards", replace_config(graph, rows_per_shard=million // 4), breadths),
        Built(million, "hnsw M=16, 1 shard", replace_config(graph, rows_per_shard=million), breadths),
        Built(million, "hnsw M=32, 4 shards", replace_config(default, rows_per_shard=million // 4), breadths),
        Built(10 * million, "flat", flat),
        Built(10 * million, "ivfpq, 10 shards", replace_config(cells, rows_per_shard=million), probes),
        Built(10 * million, "hnsw M=16, 4 shards", replace_config(graph, rows_per_shard=10 * million // 4), breadths),
    ]


def replace_config(config: IndexConfig, **settings: int) -> IndexConfig:
    """The config with some settings changed."""
    return config.model_copy(update=settings)


def fit(folder: Path, data: Path, quick: bool) -> None:
    """Train towers and keep their vectors: real-items.npy, real-users.npy."""
    if (folder / "real-users.npy").exists():
        return
    source = SIMULATED if quick else SharedParquetConfig(path=str(data / "amazon_beauty"))
    workspace = prepare(source, folder / "world")
    learning = LearningConfig(num_epochs=2 if quick else 5, batch_size=256 if quick else 2048)
    config = TrainingConfig(learning=learning)
    versions = {name: workspace.artifact(name).version for name in TABLES}
    arguments = {"workspace": workspace, "versions": versions, "config": config}
    with train(train_towers, arguments, TrainConfig(launcher="local"), workspace, "towers/benchmark") as result:
        read = read_tower_data(workspace, versions, config)
        towers = restore_towers(read, config, result.folder / WEIGHTS)
    representations, items = towers.item_vectors()
    np.save(folder / "real-items.npy", items.numpy())
    np.save(folder / "real-users.npy", towers.user.vectors(read.past, representations).numpy())


class Mixture:
    """Gaussians over the cells of real item vectors."""

    def __init__(self, real: np.ndarray, seed: int = 0) -> None:
        self.centres, cells = kmeans2(real.astype(np.float64), min(NUM_CELLS, len(real) // 10), minit="++", seed=seed)
        counts = np.bincount(cells, minlength=len(self.centres))
        self.shares = counts / counts.sum()
        within = [(real[cells == cell] - centre) for cell, centre in enumerate(self.centres)]
        pooled = np.concatenate(within).T @ np.concatenate(within) / len(real)
        each = [offsets.T @ offsets / max(1, len(offsets)) for offsets in within]
        tiny = 1e-9 * np.eye(real.shape[1])
        self.factors = [np.linalg.cholesky(0.5 * own + 0.5 * pooled + tiny).astype(np.float32) for own in each]

    def draw(self, number: int, seed: int) -> np.ndarray:
        """[number, D] float32, length 1, cells mixed."""
        rng = np.random.default_rng(seed)
        cells = rng.choice(len(self.centres), number, p=self.shares)
        noise = rng.standard_normal((number, self.centres.shape[1]), dtype=np.float32)
        order = np.argsort(cells, kind="stable")
        bounds = np.searchsorted(cells[order], np.arange(len(self.centres) + 1))
        for cell, (start, stop) in enumerate(pairwise(bounds)):
            rows = order[start:stop]
            noise[rows] = noise[rows] @ self.factors[cell].T + self.centres[cell].astype(np.float32)
        return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def likeness(folder: Path) -> dict[str, Any]:
    """Cosines of users to their nearest items, real ones and as many drawn ones."""
    real, users = np.load(folder / "real-items.npy"), np.load(folder / "real-users.npy")
    row: dict[str, Any] = {"row": "likeness", "items": len(real), "users": len(users)}
    for name, vectors in (("real", real), ("drawn", Mixture(real).draw(len(real), 1))):
        scores = build_index(vectors, IndexConfig(kind="flat")).search(users[:1000], K)[0]
        row |= {f"{name}_cosine_of_rank_{rank}": float(scores[:, rank - 1].mean()) for rank in (1, 10, 100)}
    return row


def build(folder: Path, quick: bool, only: str | None) -> None:
    """Draw vectors, build every index that is not there, and find the exact answers; notes seconds in built.json."""
    real, workspace = np.load(folder / "real-items.npy"), Workspace.open(folder / "indexes")
    notes = json.loads((folder / "built.json").read_text()) if (folder / "built.json").exists() else {}
    for built in plan(quick):
        if only is not None and only not in f"{built.size} {built.name}":
            continue
        path = folder / f"drawn-{built.size}.npy"
        if not path.exists():
            mixture, drawn = Mixture(real), open_memmap(path, "w+", np.float32, (built.size, real.shape[1]))
            for start in range(0, built.size, 1_000_000):
                drawn[start : start + 1_000_000] = mixture.draw(min(1_000_000, built.size - start), start)
            drawn.flush()
        key = f"{built.size} {built.name}"
        making = IndexBuild(stage_of(workspace, built), built.config, built.size)
        began = time.monotonic()
        vectors = np.load(path, mmap_mode="r")
        if making.pending:
            making.put_vectors(vectors, pa.array(np.arange(built.size)).cast(pa.string()))
            notes.setdefault(key, {"prepare_s": time.monotonic() - began, "shards_s": {}})
        for name in making.pending:
            began, used = time.monotonic(), time.process_time()
            making.build(name)
            notes[key]["shards_s"][name] = time.monotonic() - began
            notes[key].setdefault("shards_cpu_s", {})[name] = time.process_time() - used
            print(f"built {key} {name}: {notes[key]['shards_s'][name]:.1f} s, {notes[key]['shards_cpu_s'][name]:.1f} CPU s", flush=True)
            (folder / "built.json").write_text(json.dumps(notes))
        began = time.monotonic()
        index = making.finish()
        notes[key].setdefault("finish_s", time.monotonic() - began)
        notes[key]["threads"] = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        (folder / "built.json").write_text(json.dumps(notes))
        if built.name == "flat" and not (folder / f"truth-{built.size}.npy").exists():
            np.save(folder / f"truth-{built.size}.npy", index.search(queries(folder)[0], K)[1])


def stage_of(workspace: Workspace, built: Built) -> Stage:
    """Where an index is kept."""
    return open_stage(workspace, "index", None, {"drawn": str(built.size)}, built.config)


def queries(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Users for recall, and other users for latency."""
    users = np.load(folder / "real-users.npy")
    chosen = np.random.default_rng(5).permutation(len(users))
    half = min(1000, len(users) // 2)
    return users[chosen[:half]], users[chosen[half : 2 * half]]


def search(folder: Path, built: Built) -> list[dict[str, Any]]:
    """One index in this process: a row for each setting."""
    before, threads = resident(), os.environ["OMP_NUM_THREADS"]
    assert threads == "1", "latency is measured on one thread"
    stage = stage_of(Workspace.open(folder / "indexes"), built)
    index = load_index(stage)[0]
    loaded = resident()
    asked, others = (users[:MEASURED] for users in queries(folder))
    exact = np.load(folder / f"truth-{built.size}.npy")[:MEASURED]
    if built.name == "flat":
        others = others[: max(50, min(len(others), 200_000_000 // built.size))]
    rows = []
    for setting in built.settings:
        tuned = VectorIndex(index.kind, replace_config(index.config, **setting), index.vectors, index.shards)
        found = asked[:1] if built.name == "flat" else tuned.search(asked, K)[1]
        recall = 1.0 if built.name == "flat" else float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))
        for query in others[:20]:
            tuned.search(query[None], K)
        seconds = [timed(tuned, query) for query in others]
        after = resident()
        (p50, cpu_p50), (p99, cpu_p99) = np.percentile(seconds, [50, 99], axis=0) * 1e3
        memory = {f"{kind}_mb": (after[kind] - before[kind]) / 1024 for kind in before}
        loading = {"loaded_rss_mb": (loaded["rss"] - before["rss"]) / 1024}
        rows.append(
            {"row": "search", "size": built.size, "index": built.name, **setting, "recall100": recall, "p50_ms": p50, "p99_ms": p99}
            | {"cpu_p50_ms": cpu_p50, "cpu_p99_ms": cpu_p99, "queries": len(others), **memory, **loading}
        )
    return rows


def timed(index: VectorIndex, query: np.ndarray) -> tuple[float, float]:
    """Seconds of one search, on the clock and of the processor."""
    began, used = time.perf_counter(), time.process_time()
    index.search(query[None], K)
    return time.perf_counter() - began, time.process_time() - used


def resident() -> dict[str, int]:
    """KiB of this process: its own memory, and pages of mapped files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    return {"rss": int(fields["RssAnon"].split()[0]), "mapped": int(fields["RssFile"].split()[0])}


def disk_mb(folder: Path, built: Built) -> float:
    """MiB of an index's files, vectors included."""
    stage = stage_of(Workspace.open(folder / "indexes"), built)
    return sum(path.stat().st_size for path in Path(stage.workspace.path("index", stage.version)).iterdir()) / 2**20


def report(folder: Path, quick: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Search every index that stands, each in a process of its own."""
    rows, notes = [likeness(folder)], json.loads((folder / "built.json").read_text())
    figures: dict[str, float] = {}
    for built in plan(quick):
        key = f"{built.size} {built.name}"
        note = notes.get(key, {})
        if "finish_s" not in note:
            print(f"not built: {key}", flush=True)
            continue
        shards, used = list(note["shards_s"].values()), list(note.get("shards_cpu_s", {}).values())
        rows.append(
            {"row": "build", "size": built.size, "index": built.name, "shards": len(shards), "threads": note["threads"]}
            | {"prepare_s": note["prepare_s"], "shards_s": sum(shards), "finish_s": note["finish_s"]}
            | {"cpu_s_a_shard": float(np.mean(used)) if used else None}
            | {"files_mb": disk_mb(folder, built)}
        )
        command = [
            sys.executable,
            __file__,
            "--workspace",
            str(folder),
            "--one",
            f"{built.size} {built.name}",
            *(["--quick"] if quick else []),
        ]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows += found
        for row in found:
            print("  ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items()), flush=True)
        if built.name.startswith("hnsw"):
            figures |= {"hnsw_recall100": found[0]["recall100"], "hnsw_p99_ms": found[0]["p99_ms"], "hnsw_vectors": built.size}
        else:
            figures |= {f"{built.config.kind}_p99_ms": found[0]["p99_ms"], f"{built.config.kind}_recall100": found[0]["recall100"]}
    return figures, rows


def main() -> None:
    """Parse the flags, run the phases, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 vectors; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, help="keep what is built in this folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with amazon_beauty (default: %(default)s)")
    parser.add_argument("--phase", choices=["fit", "build", "search"], help="this one alone")
    parser.add_argument("--only", help="build: indexes whose size and name hold this text")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        chosen = next(built for built in plan(options.quick) if f"{built.size} {built.name}" == options.one)
        print(json.dumps(search(options.workspace, chosen)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.workspace or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.phase in (None, "fit"):
            fit(folder, options.data, options.quick)
        if options.phase in (None, "build"):
            build(folder, options.quick, options.only)
        if options.phase in (None, "search"):
            figures, rows = report(folder, options.quick)
            print("\n".join(f"{name:<24}{value:,.4g}" for name, value in figures.items()))
            if options.json:
                result = {"benchmark": "ann", "quick": options.quick, "figures": figures, "rows": rows}
                options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
