"""HiT-LBM's Tables 2, 3 and 5 and its ablation on MovieLens-1M, beside the paper's columns, and the same without a language model.

PYTHONPATH=platform:. python benchmarks/ctr_movielens.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER]
    [--mined WORKSPACE --interests KIND=VERSION …] [--only GROUP …] [--plots FOLDER]

Declared protocol: users with 50 ratings or more, above three stars is positive, rows from the first finished chunk of 50 on (728,621,
as published); the last tenth of each user's ratings is test (95,471 rows, as published), the tenth before it validation, in the exact
order of the log. Settings and epochs are chosen by AUC on validation. Gains are paired: same rows, same seeds, and an interval from
drawing test users with replacement. `day` is the protocol of the released code once more: order within a day not known.

Interests come from --mined: user_interest of kind `cube` (the cascade, one sample), `independent` (chunks read on their own), `hts` (the
tree's path, with scores). What is not there is not run, and named; rows are those of users of whom every kind was mined, for all models
alike. `facts` is what the student is taught to write, without its mistakes, through the same TIF. Every finished run is kept under
--workspace.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import intently.alignment
import intently.llm.embedding
import intently.ranking
import numpy as np
import torch
from intently.alignment.catalogue import CatalogueConfig
from intently.core.workspace import Workspace
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource
from intently.metrics.binary import auc, paired_auc_gain
from intently.ranking.samples import SampleConfig
from intently.ranking.training import BatchCutter, CtrData, CtrTrainingConfig, figures, predict, restore_model, train_ctr
from intently.runtime.train import WEIGHTS, TrainConfig, train
from matplotlib.figure import Figure
from student_catalogues import CATALOGUES

from benchmarks import ctr_world
from benchmarks.ctr_world import World, prepare, put_true_interests

MAIN, OTHERS = ("din", "dcnv2", "autoint"), ("deepfm", "xdeepfm", "fibinet", "fignn", "dien")
INTERESTS: dict[str, Any] = {"interests": True, "item_knowledge": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("nothing", {}),
    "item text": ("items", {"item_knowledge": True}),
    "no LLM": ("histograms", INTERESTS),
    "facts": ("facts", {**INTERESTS, "scored": False}),
    "SIM": ("items", {"similar": 20}),
    "KAR": ("independent", {**INTERESTS, "selection": "first", "fusion": "mlp", "scored": False}),
    "TRSR": ("cube", {**INTERESTS, "selection": "last", "fusion": "mlp", "scored": False}),
    "LIBER": ("independent", {**INTERESTS, "fusion": "self_attention", "scored": False}),
    "MLP": ("hts", {**INTERESTS, "fusion": "mlp", "scored": False}),
    "SA": ("hts", {**INTERESTS, "fusion": "self_attention", "scored": False}),
    "GRU": ("hts", {**INTERESTS, "fusion": "gru", "scored": False}),
    "CUBE": ("cube", {**INTERESTS, "fusion": "mean", "scored": False}),
    "CUBE + TIF": ("cube", {**INTERESTS, "scored": False}),
    "HTS + TIF": ("hts", {**INTERESTS, "scored": False}),
    "HiT": ("hts", INTERESTS),
}
"""Variant → what it knows, and the model's settings. HiT is HTS + TIF with interests scaled by S_final."""
STEPS = (
    *(("CUBE", "item text"), ("CUBE + TIF", "CUBE"), ("HTS + TIF", "CUBE + TIF"), ("HiT", "HTS + TIF")),
    *(("HiT", "CUBE + TIF"), ("HiT", "item text"), ("facts", "item text"), ("no LLM", "facts"), ("HiT", "no LLM")),
)
"""Pairs of variants that differ by one thing: what each part adds."""
LIVES = (("1", 1, 1), ("2–3", 2, 3), ("4–7", 4, 7), ("8 and more", 8, 10**9))
"""Chunks of 50 events that lie behind a row: name, fewest, most."""
PAPER = {
    "base": dict(zip((*MAIN, *OTHERS), (0.7761, 0.7747, 0.7745, 0.7746, 0.7750, 0.7749, 0.7744, 0.7744), strict=True)),
    "HiT": dict(zip((*MAIN, *OTHERS), (0.8063, 0.8081, 0.8077, 0.8063, 0.8029, 0.8086, 0.8076, 0.8064), strict=True)),
    **{name: {"din": value} for name, value in (("SIM", 0.7853), ("KAR", 0.7935), ("TRSR", 0.7818), ("LIBER", 0.7952))},
    **{name: {"din": value} for name, value in (("MLP", 0.7860), ("SA", 0.7963), ("GRU", 0.7978))},
}
"""AUC as published (Tables 2, 3 and 5)."""
PAPER_LOG_LOSS = {
    "base": dict(zip((*MAIN, *OTHERS), (0.5583, 0.5600, 0.5616, 0.5608, 0.5599, 0.5600, 0.5606, 0.5611), strict=True)),
    "HiT": dict(zip((*MAIN, *OTHERS), (0.5301, 0.5307, 0.5325, 0.5318, 0.5404, 0.5360, 0.5310, 0.5321), strict=True)),
}
"""LogLoss as published (Table 2)."""
LEARNING = {"num_epochs": 2, "patience": 2, "batch_size": 2048, "learning_rate": 2e-3, "precision": "bf16"}
ALL_ROWS = 540_939
"""Of train, of everybody."""
FEWEST_ROWS = 512
"""Of a batch: where interests of some users alone were mined, batches are smaller and steps about as many as for everybody."""
ROOMS = (intently.ranking.__path__[0], intently.alignment.__path__[0])
SOURCES = [
    *(file for room in ROOMS for file in sorted(Path(room).glob("*.py"))),
    Path(intently.llm.embedding.__file__),
    Path(ctr_world.__file__),
]
CODE = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()
"""Of whatever makes rows, embedded texts, facts and models: runs that other code made are not reused."""
HARNESS = TrainConfig.parse({"launcher": "local", "resources": {"cpus": 1}, "checkpoint_every": 100})


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        protocol: exact or day.
        variant: a key of VARIANTS.
        backbone: which.
        history: events looked back on.
        seed: of weights and order.
    """

    protocol: str
    variant: str
    backbone: str = "din"
    history: int = 5
    seed: int = 0

    @property
    def knowledge(self) -> str:
        """What it has to know."""
        return VARIANTS[self.variant][0]

    def config(self, learning: Mapping[str, Any]) -> CtrTrainingConfig:
        """Settings."""
        model = {"backbone": self.backbone, "history": self.history, **VARIANTS[self.variant][1]}
        return CtrTrainingConfig.parse({"model": model, "learning": {**learning, "seed": self.seed}})


def learning_for(num_rows: int) -> dict[str, Any]:
    """Settings for so many rows of train: 2,048 a batch for the 540,939 of everybody, the nearest power of two of a like share of fewer."""
    share = 2 ** round(math.log2(LEARNING["batch_size"] * num_rows / ALL_ROWS))
    return {**LEARNING, "batch_size": min(LEARNING["batch_size"], max(FEWEST_ROWS, share))}


def _runs(
    variants: Iterable[str], backbones: Iterable[str] = ("din",), histories: Iterable[int] = (5,), seeds: int = 3, protocol: str = "exact"
):
    return [Run(protocol, v, b, h, s) for s in range(seeds) for v in variants for b in backbones for h in histories]


GROUPS: dict[str, list[Run]] = {
    "base": _runs(["base"]),
    "no_llm": _runs(["no LLM"]),
    "hit": _runs(["HiT"]),
    "main": _runs(["base", "HiT"], MAIN[1:]),
    "history_20": _runs(["base", "item text", "no LLM", "HiT"], histories=(20,), seeds=1),
    "history_50": _runs(["base", "item text", "no LLM", "HiT"], histories=(50,)),
    "ablation": _runs(["item text", "CUBE", "CUBE + TIF", "HTS + TIF", "facts"]),
    "baselines": _runs(["SIM", "KAR", "TRSR", "LIBER"], seeds=1),
    "fusions": _runs(["MLP", "SA", "GRU"], seeds=1),
    "others": _runs(["base", "HiT"], OTHERS, seeds=1),
    "day": _runs(["base", "no LLM", "HiT"], seeds=1, protocol="day"),
}
"""Runs, in the order in which they are made: the first seed of all, then the second of those that have one."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to on test.

    Attributes:
        run: which.
        chances: [R].
        measured: AUC, LogLoss, calibration, seconds, epochs and the best AUC on validation.
    """

    run: Run
    chances: np.ndarray
    measured: dict[str, float]


class Measurer:
    """Trains what is not kept yet.

    Args:
        worlds: protocol → world.
        kept: folder of finished runs.
        learning: steps and optimizer.
    """

    def __init__(self, worlds: Mapping[str, World], kept: Path, learning: Mapping[str, Any]) -> None:
        self.worlds, self.kept, self.learning = worlds, kept, learning
        self.ready: tuple[tuple[str, str], CtrData] | None = None
        kept.mkdir(parents=True, exist_ok=True)

    def missing(self, run: Run) -> bool:
        """Whether the run needs interests that were not mined."""
        world = self.worlds[run.protocol]
        return run.knowledge not in ("nothing", "items", "histograms", *(["facts"] if world.taught else []), *world.mined)

    def measure(self, run: Run) -> Outcome:
        """Train, or read what was kept."""
        world, config = self.worlds[run.protocol], run.config(self.learning)
        known = str(world.mined.get(run.knowledge, world.made_of(run.knowledge)))
        log = [str(world.tables.artifact(name)) for name in ("history", "item", "chunk")]
        settings = [each.model_dump(mode="json") for each in (world.samples, config)]
        decided = [CODE, run.protocol, known, log, *settings, *world.restriction]
        digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]
        file = self.kept / f"{digest}.npz"
        if not file.exists():
            self._train(run, config, digest, file)
        found = np.load(file)
        return Outcome(run, found["chances"], json.loads(str(found["measured"])))

    def _train(self, run: Run, config: CtrTrainingConfig, digest: str, file: Path) -> None:
        data, begin = self._data(run), time.process_time()
        scratch = Workspace.open(self.kept / "checkpoints")
        with train(train_ctr, {"data": data, "config": config}, HARNESS, scratch, f"ctr/{digest}") as result:
            model, epochs = restore_model(data, config, result.folder / WEIGHTS), result.history
        scratch.filesystem.delete_dir(scratch.path(f"ctr/{digest}"))
        cpu = torch.device("cpu")
        chances = predict(model, BatchCutter(data, "test", config.model, cpu), data.tables(cpu)).numpy()
        measured = figures(chances, data.rows["test"].labels.numpy())
        measured |= {"cpu_seconds": time.process_time() - begin, "epochs": len(epochs), "auc_validation": max(e["auc"] for e in epochs)}
        with (unfinished := file.with_suffix(".part")).open("wb") as stream:
            np.savez(stream, chances=chances, measured=json.dumps(measured), run=json.dumps(asdict(run)))
        unfinished.rename(file)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        print(f"{run.protocol}, {run.variant}, {run.backbone}, history {run.history}, seed {run.seed}: {shown}", flush=True)

    def _data(self, run: Run) -> CtrData:
        key = (run.protocol, run.knowledge)
        if self.ready is None or self.ready[0] != key:
            self.ready = (key, self.worlds[run.protocol].data(run.knowledge))
        return self.ready[1]


@dataclass(frozen=True)
class Results:
    """Outcomes by variant.

    Attributes:
        outcomes: all.
        worlds: protocol → world.
    """

    outcomes: Sequence[Outcome]
    worlds: Mapping[str, World]

    def of(self, variant: str, backbone: str = "din", history: int = 5, protocol: str = "exact") -> list[Outcome]:
        """One a seed."""
        wanted = (protocol, variant, backbone, history)
        return [each for each in self.outcomes if (each.run.protocol, each.run.variant, each.run.backbone, each.run.history) == wanted]

    def mean(self, name: str, *which: Any) -> float | None:
        """The mean over seeds of a figure; None where nothing was run."""
        found = [each.measured[name] for each in self.of(*which)]
        return float(np.mean(found)) if found else None

    def cell(self, name: str, *which: Any) -> str:
        """Mean ± std over the seeds, or a dash."""
        found = [each.measured[name] for each in self.of(*which)]
        if not found:
            return "—"
        return f"{np.mean(found):.4f}" + (f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else "")

    def gain(self, ours: tuple, theirs: tuple) -> tuple[float, float, float] | None:
        """Paired gain in AUC of one over another, over the seeds that both have, with its interval; None where either was not run."""
        first, second = self.of(*ours), self.of(*theirs)
        seeds = {each.run.seed for each in first} & {each.run.seed for each in second}
        if not seeds:
            return None
        rows = self.worlds[first[0].run.protocol].bare.rows["test"]
        sides = [[each.chances for each in side if each.run.seed in seeds] for side in (first, second)]
        return paired_auc_gain(*sides, rows.labels.numpy(), rows.users.numpy(), num_samples=200)

    def by_life(self, variant: str) -> list[float] | None:
        """AUC of DIN with a history of 5 on the rows with so many chunks behind them (LIVES), the mean over seeds; None if not run."""
        found, rows = self.of(variant), self.worlds["exact"].bare.rows["test"]
        if not found:
            return None
        bounds, labels = rows.bounds.numpy(), rows.labels.numpy()
        parts = [(bounds >= first) & (bounds <= last) for _, first, last in LIVES]
        return [float(np.mean([auc(each.chances[part], labels[part]) for each in found])) for part in parts]


def head(*columns: str) -> None:
    """The head of a Markdown table."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def print_tables(results: Results) -> list[dict[str, Any]]:
    """Tables 2, 3, 5, the ablation, histories, and the day protocol, as Markdown; the gains as rows."""
    gains: dict[str, dict[str, Any]] = {}

    def gain(title: str, ours: tuple, theirs: tuple) -> str:
        found, base = results.gain(ours, theirs), results.mean("auc", *theirs)
        if found is None or base is None:
            return "—"
        relative = [value / base for value in found]
        gains[title] = {"gain": title, "seeds": min(len(results.of(*ours)), len(results.of(*theirs)))}
        gains[title] |= dict(zip(("auc", "lower", "upper"), found, strict=True))
        gains[title] |= dict(zip(("relative", "relative_lower", "relative_upper"), relative, strict=True))
        share, low, high = (f"{100 * value:+.2f}" for value in relative)
        return f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]; {share} % [{low}, {high}]"

    head("Table 2", "base AUC", "HiT AUC", "base LogLoss", "HiT LogLoss", "paired gain [95 %]", "paper base", "paper HiT")
    for backbone in (*MAIN, *OTHERS):
        cells = [results.cell(name, variant, backbone) for name in ("auc", "log_loss") for variant in ("base", "HiT")]
        paper = [f"{PAPER[variant][backbone]:.4f} / {PAPER_LOG_LOSS[variant][backbone]:.4f}" for variant in ("base", "HiT")]
        over = gain(f"HiT over base, {backbone}", ("HiT", backbone), ("base", backbone))
        print(f"| {backbone} | {' | '.join(cells)} | {over} | {' | '.join(paper)} |")
    for title, variants in (
        ("Table 3, DIN", ("base", "SIM", "KAR", "TRSR", "LIBER", "HiT", "no LLM")),
        ("Table 5, DIN", ("base", "MLP", "SA", "GRU", "HTS + TIF", "HiT")),
        ("Ablation, DIN", ("base", "item text", "CUBE", "CUBE + TIF", "HTS + TIF", "HiT", "facts", "no LLM")),
    ):
        head(title, "AUC", "LogLoss", "calibration error", "paired gain over base [95 %]", "paper AUC")
        for variant in variants:
            cells = [results.cell(name, variant) for name in ("auc", "log_loss", "calibration_error")]
            over = "" if variant == "base" else gain(f"{variant} over base", (variant,), ("base",))
            published = PAPER.get(variant, {}).get("din")
            print(f"| {variant} | {' | '.join(cells)} | {over} | {f'{published:.4f}' if published else '—'} |")
    head("what each part adds, DIN", "paired gain [95 %]")
    for ours, theirs in STEPS:
        print(f"| {ours} over {theirs} | {gain(f'{ours} over {theirs}', (ours,), (theirs,))} |")
    shown = ("base", "item text", "no LLM", "HiT")
    head("DIN by history", *shown, "HiT over base", "HiT over item text", "HiT of history 5 over base")
    for history in (5, 20, 50):
        cells = [results.cell("auc", variant, "din", history) for variant in shown]
        over = [gain(f"HiT {history} over {name} {history}", ("HiT", "din", history), (name, "din", history)) for name in shown[:2]]
        short = gain(f"HiT 5 over base {history}", ("HiT",), ("base", "din", history)) if history > 5 else ""
        print(f"| {history} | {' | '.join([*cells, *over])} | {short} |")
        gain(f"no LLM {history} over base {history}", ("no LLM", "din", history), ("base", "din", history))
        gain(f"HiT {history} over no LLM {history}", ("HiT", "din", history), ("no LLM", "din", history))
    head("DIN, history 5, by chunks of 50 events behind a row", *(name for name, _, _ in LIVES))
    for variant in ("base", "item text", "no LLM", "facts", "HiT", "SIM"):
        if parts := results.by_life(variant):
            print(f"| {variant} | {' | '.join(f'{value:.4f}' for value in parts)} |")
    head("order within a day not known, DIN", "AUC", "LogLoss", "paired gain over base [95 %]", "paper AUC")
    for variant in ("base", "HiT", "no LLM"):
        which = (variant, "din", 5, "day")
        over = "" if variant == "base" else gain(f"{variant} over base, day", which, ("base", "din", 5, "day"))
        published = PAPER.get(variant, {}).get("din")
        print(f"| {variant} | {results.cell('auc', *which)} | {results.cell('log_loss', *which)} | {over} | {published or '—'} |")
    return list(gains.values())


def plot(results: Results, folder: Path) -> None:
    """AUC of each variant of DIN beside the paper's figures, by events looked back on, and by how long a life is."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    bars, lines, lives = figure.subplots(1, 3)
    shown = [(name, results.mean("auc", name)) for name in VARIANTS]
    shown = [(name, value) for name, value in shown if value is not None]
    bars.barh([name for name, _ in shown], [value for _, value in shown], color="#4477aa", height=0.6)
    published = [(name, PAPER[name]["din"]) for name, _ in shown if name in PAPER]
    bars.plot([value for _, value in published], [name for name, _ in published], "k|", markersize=12, label="paper (other split)")
    bars.set(xlim=(0.76, None), xlabel="AUC on test, DIN, history 5")
    bars.invert_yaxis()
    bars.legend(loc="lower right", fontsize=8)
    for variant, marker in (("base", "o"), ("no LLM", "s"), ("HiT", "^")):
        points = [(history, value) for history in (5, 20, 50) if (value := results.mean("auc", variant, "din", history)) is not None]
        lines.plot([history for history, _ in points], [value for _, value in points], marker=marker, label=variant)
        if parts := results.by_life(variant):
            lives.plot([name for name, _, _ in LIVES], parts, marker=marker, label=variant)
    lines.set(xlabel="events looked back on", ylabel="AUC on test, DIN")
    lives.set(xlabel="chunks of 50 events behind a row", ylabel="AUC on test, DIN, history 5")
    for axes in (lines, lives):
        axes.legend(fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "ctr.png", dpi=110)


def figures_of(results: Results) -> dict[str, float]:
    """The benchmark's figures; those that were not measured are left out."""
    found = {f"din_auc_{name}": results.mean("auc", variant) for name, variant in (("base", "base"), ("hit", "HiT"), ("no_llm", "no LLM"))}
    if found["din_auc_base"] and found["din_auc_hit"]:
        found["din_relative_gain"] = found["din_auc_hit"] / found["din_auc_base"] - 1
    return {name: value for name, value in found.items() if value is not None}


def worlds_of(options: argparse.Namespace) -> dict[str, World]:
    """MovieLens in both orders, or a small simulated world."""
    kept = Workspace.open(options.workspace / "vectors")
    if options.quick:
        source = SimulatorSource(num_users=150, num_items=300, events_per_user=300, pictures=False)
        asked = {"sampled": ["detail_view", "cart", "purchase"], "positive": ["cart", "purchase"]}
        tables = prepare(source, options.workspace / "quick")
        mined = {"hts": put_true_interests(tables, source)}
        return {"exact": World(tables, mined, Workspace.open(options.workspace / "quick_vectors"), SampleConfig.parse(asked))}
    films = SharedParquetConfig(path=str(options.data / "movielens_1m"))
    tables, mined = Workspace.open(options.mined) if options.mined else None, {}
    for each in options.interests:
        kind, _, version = each.partition("=")
        assert tables is not None, "--interests needs --mined"
        mined[kind] = tables.artifact("user_interest", version)
    if tables is None:
        tables = prepare(films, options.workspace / "movielens")
    taught = CatalogueConfig.parse({"name": "movielens_1m", "source": films.model_dump(), **CATALOGUES["movielens_1m"]})
    exact = World(tables, mined, kept, SampleConfig(), taught=taught)
    return {"exact": exact, "day": replace(exact, by_day=True)}


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a small simulated world and its true interests, one seed; ends within a minute"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, default=Path("workspace/benchmark_ctr"), help="tables, vectors and finished runs")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of movielens_1m")
    parser.add_argument("--mined", type=Path, help="workspace with history, item, chunk and user_interest; it is only read")
    parser.add_argument(
        "--interests", nargs="*", default=[], metavar="KIND=VERSION", help="versions of user_interest: cube, independent, hts"
    )
    parser.add_argument(
        "--only", nargs="*", default=list(GROUPS), choices=list(GROUPS), help="groups of runs that are made if they are not kept"
    )
    parser.add_argument("--plots", type=Path, help="write ctr.png into this folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worlds = worlds_of(options)
    measurer = Measurer(worlds, options.workspace / "runs", learning_for(len(worlds["exact"].bare.rows["train"].labels)))
    chosen = sorted((run for name in options.only for run in GROUPS[name]), key=lambda run: run.seed)
    if options.quick:
        chosen = [Run("exact", "base"), Run("exact", "no LLM"), Run("exact", "HiT")]
    skipped = sorted({f"{run.variant} (no {run.knowledge} interests)" for run in chosen if measurer.missing(run)})
    outcomes = [measurer.measure(run) for run in chosen if not measurer.missing(run)]
    results = Results(outcomes, worlds)
    gains = print_tables(results)
    num_users, num_rows = len(worlds["exact"].covered), {part: len(rows.labels) for part, rows in worlds["exact"].bare.rows.items()}
    print(f"{num_users} users, rows {num_rows}; not run: {', '.join(skipped) or 'nothing'}")
    if options.plots:
        plot(results, options.plots)
    if options.json:
        rows = [asdict(each.run) | each.measured for each in outcomes]
        result = {"benchmark": "ctr_movielens", "quick": options.quick, "figures": figures_of(results), "rows": rows, "gains": gains}
        result |= {
            "users": num_users,
            "samples": num_rows,
            "by_life": {name: results.by_life(name) for name in VARIANTS if results.of(name)},
        }
        options.json.write_text(json.dumps(result | {"skipped": skipped}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
