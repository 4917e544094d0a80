"""Towers (behaviour alone, tags alone, fused) against popularity, ItemKNN and SASRec: MovieLens-1M, Amazon Beauty, the simulator.

PYTHONPATH=platform python benchmarks/towers.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER] [--demo WORKSPACE]

Leave-last-out: a user's last first-time item is the test target, the one before it the validation target. Everything is ranked
among all items, with the items that the user has taken left in and taken out. Models are fitted on train; on test all of them may
read the validation event as well. Settings, epochs and the fusion weight were chosen on validation. Every finished model and seed is
kept under --workspace, and a run that was killed goes on behind it.

Tags: mining them with a language model for everybody takes hours on two cores. MovieLens, Beauty and the simulator have *tags by
rule*: words of the items that a user took last in train. With --demo, a workspace in which `make demo` has run, the tags of the
shipped student are measured, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from intently.core.schema import EMBEDDING, TAG
from intently.core.workspace import Workspace
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource, SourceConfig
from intently.llm.embedding import ItemTextConfig, embedding_rows, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.retrieval.baselines import ItemKNN, popularity, score_by_popularity
from intently.retrieval.evaluate import Scorer, Targets, accuracy, rank, read_targets, spread
from intently.retrieval.fusion import FusedVectors, Point, choose, pool_tags
from intently.retrieval.interactions import Interactions, append_interactions, read_interactions
from intently.retrieval.sasrec import SASRecConfig, train_sasrec
from intently.retrieval.towers import Towers
from intently.retrieval.trained import restore_towers
from intently.retrieval.training import TowerData, TrainingConfig, read_tower_data, train_towers
from intently.runtime.train import WEIGHTS, TrainConfig, train
from made import put, put_log, put_splits

CUTOFFS = (10, 50)
MOST_TUNED = 5000
"""Users of validation that b and SASRec's epochs are chosen on; their ranks for 21 weights would take longer than training."""
BETAS = tuple(step / 20 for step in range(21))
READS = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
TOWERS = {"towers": 0.5, "without_tag_loss": 0.0, "without_category_loss": 1.0}
"""Trainings of the towers: a in L = L_col + a·L_tag + (1 − a)·L_cate."""
MODELS = ("popularity", "item_knn", "sasrec", *TOWERS)
FIGURES = {"fused": "towers_fused", "behaviour": "towers_behaviour_only", "tags": "towers_tags_only"} | dict(
    zip(MODELS[:3], MODELS[:3], strict=True)
)
"""Figure → subject."""
FIXED = ("popularity", "item_knn")
"""Models in which nothing is drawn at random: one seed is all."""
STOP = {"the", "and", "for", "with", "from", "ounce", "ounces", "pack", "count", "inch", "set", "new", "size"}


def prepare(source: SourceConfig, folder: Path) -> Workspace:
    """Everything that the towers read, of one data set, in this process; what stands already stays."""
    workspace = Workspace.open(folder)
    if workspace.latest_version("tag_embedding"):
        return workspace
    histories, items = put_log(workspace, source)
    history, encoder = put_splits(workspace, histories), TextEncoder(EncoderConfig())
    texts = item_texts(items, ItemTextConfig()).to_pylist()
    put(workspace, "item_embedding", EMBEDDING, embedding_rows("item", items["item_id"], encoder.encode(texts), encoder.name))
    put_tags(workspace, history, items, encoder)
    return workspace


def put_tags(workspace: Workspace, history: pa.Table, items: pa.Table, encoder: TextEncoder) -> None:
    """Write tags by rule, and their vectors."""
    tags = rule_tags(history, items)
    put(workspace, "tag", TAG, tags)
    names = pc.unique(tags["tag"])
    put(workspace, "tag_embedding", EMBEDDING, embedding_rows("tag", names, encoder.encode(names.to_pylist()), encoder.name))


def rule_tags(history: pa.Table, items: pa.Table, num_recent: int = 12) -> pa.Table:
    """Tags without a language model: a phrase for each item that a user took last in train, the most frequent phrases first."""
    phrases, categories = item_phrases(items), dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    rows = []
    for user, bucket, taken in zip(*(history[name].to_pylist() for name in ("user_id", "bucket", "item_ids")), strict=True):
        recent = [item for item in taken if item in phrases][-num_recent:]
        counted = Counter((phrases[item], categories[item]) for item in reversed(recent))
        rows += [(user, bucket, rank, tag, category) for rank, ((tag, category), _) in enumerate(counted.most_common())]
    user, bucket, rank, tag, category = zip(*rows, strict=True)
    same = {"interest": "", "reason": "taken lately", "model": "rule"}
    columns = {"user_id": user, "bucket": bucket, "rank": rank, "tag": tag, "category": category}
    return TAG.check(pa.table({**columns, **{name: [value] * len(rows) for name, value in same.items()}}))


def item_phrases(items: pa.Table, num_words: int = 2) -> dict[str, str]:
    """Item → words of its title that most items of its category share (no brand), and the category; a film's decade and genres."""
    found, words = {}, []
    for title, brand in zip(items["title"].to_pylist(), items["brand"].to_pylist(), strict=True):
        named = set((brand or "").lower().split())
        kept = dict.fromkeys(re.findall(r"[a-z]{3,}", title.lower()))
        words.append([word for word in kept if word not in STOP and word not in named])
    categories = items["category"].to_pylist()
    shared = Counter((category, word) for category, each in zip(categories, words, strict=True) for word in each)
    columns = (items[name].to_pylist() for name in ("item_id", "categories", "attributes"))
    for item, genres, facts, category, each in zip(*columns, categories, words, strict=True):
        years = [fact.removeprefix("year: ") for fact in facts if fact.startswith("year: ")]
        if years:
            found[item] = " ".join([f"{years[0][:3]}0s", *genres])
            continue
        best = sorted(each, key=lambda word: -shared[category, word])[:num_words]
        found[item] = " ".join([*(word for word in best if shared[category, word] > 1), category])
    return found


@dataclass(frozen=True)
class DataSet:
    """What is measured on, and with what settings.

    Attributes:
        name: of the figures.
        source: the log; None for a workspace in which the line has run.
        towers: settings of the towers.
        sasrec: settings of SASRec.
        once: models that are run with one seed only.
    """

    name: str
    source: SourceConfig | None
    towers: TrainingConfig
    sasrec: SASRecConfig
    once: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A data set ready to be measured on."""

    setting: DataSet
    workspace: Workspace
    scratch: Workspace
    data: TowerData
    later: Interactions
    targets: dict[str, Targets]

    @classmethod
    def read(cls, setting: DataSet, workspace: Workspace, scratch: Workspace) -> Case:
        """The tables as arrays."""
        config = setting.towers
        data = read_tower_data(workspace, {name: workspace.artifact(name).version for name in READS}, config)
        held_out = {split: workspace.artifact(f"history_{split}").read() for split in ("validation", "test")}
        ids = data.catalogue.item_ids
        later = append_interactions(data.past, read_interactions(held_out["validation"], ids, config.behaviours))
        pasts = {"validation": data.past, "test": later}
        targets = {split: read_targets(split, held_out[split], ids, past, config.behaviours) for split, past in pasts.items()}
        asked = targets["validation"]
        every = -(-len(asked.users) // MOST_TUNED)
        targets["validation"] = replace(asked, users=asked.users[::every], items=asked.items[::every])
        return cls(setting, workspace, scratch, data, later, targets)

    @property
    def counts(self) -> np.ndarray:
        """[I] users that have taken each item in train."""
        return popularity(self.data.past, self.data.catalogue.num_items, self.setting.towers.behaviours)

    def measure(self, subject: str, scorer: Scorer) -> list[dict[str, Any]]:
        """Test figures of one scorer with seen items left in, and taken out."""
        rows = []
        for ranking in rank(scorer, self.targets["test"], CUTOFFS[0]):
            figures = accuracy(ranking, CUTOFFS) | spread(ranking, self.data.catalogue, self.counts)
            common = {"dataset": self.setting.name, "subject": subject, "filter_seen": ranking.filter_seen}
            rows += [{**common, "name": name, "k": k, "value": value} for (name, k), value in figures.items()]
        return rows


def run_model(case: Case, model: str, seed: int) -> list[dict[str, Any]]:
    """Fit on train, choose on validation, measure on test."""
    past, behaviours, num_items = case.data.past, case.setting.towers.behaviours, case.data.catalogue.num_items
    match model:
        case "popularity":
            return case.measure(model, score_by_popularity(case.counts))
        case "item_knn":
            return case.measure(model, ItemKNN(past, num_items, behaviours).scorer(case.later))
        case "sasrec":
            config = case.setting.sasrec.model_copy(update={"seed": seed})
            trained = train_sasrec(past, num_items, behaviours, config, lambda scorer: _validate(case, scorer).accuracy)
            return case.measure(model, trained.scorer(case.later, behaviours, behaviours.taken))
        case _:
            return run_towers(case, model, seed)


def run_towers(case: Case, model: str, seed: int) -> list[dict[str, Any]]:
    """One training of the towers: behaviour alone, tags alone, and fused with the weight that validation chose."""
    data, config = case.data, case.setting.towers
    learning = config.learning.model_copy(update={"alpha": TOWERS[model], "seed": seed})
    towers = fit_towers(case.workspace, data, config.model_copy(update={"learning": learning}), case.scratch)
    representations, items = towers.item_vectors()
    with torch.no_grad():
        tags = towers.tag(torch.from_numpy(data.tags.words), torch.from_numpy(data.tags.offsets[:-1])).numpy()
    pooled = pool_tags(tags, data.tags.users, data.tags.tags, data.past.num_users)
    matrix = items.numpy().T
    before, after = (FusedVectors(towers.user.vectors(past, representations).numpy(), pooled) for past in (data.past, case.later))

    def scorer(vectors: FusedVectors, beta: float) -> Scorer:
        return lambda users: vectors.at(beta, users) @ matrix

    points = [_validate(case, scorer(before, beta), beta) for beta in BETAS]
    chosen = choose(points)
    print(
        f"  validation: NDCG@10 {chosen.accuracy:.4f} at b = {chosen.beta}, {points[-1].accuracy:.4f} at 1, {points[0].accuracy:.4f} at 0"
    )
    betas = {"fused": chosen.beta, "behaviour_only": 1.0, "tags_only": 0.0}
    rows = [row for kind, beta in betas.items() for row in case.measure(f"{model}_{kind}", scorer(after, beta))]
    beta = {"dataset": case.setting.name, "subject": f"{model}_fused", "filter_seen": True, "name": "beta", "k": 0, "value": chosen.beta}
    return [*rows, beta]


def fit_towers(workspace: Workspace, data: TowerData, config: TrainingConfig, scratch: Workspace) -> Towers:
    """Train in this process through the harness, which goes on from its checkpoints."""
    versions = {name: workspace.artifact(name).version for name in READS}
    harness = TrainConfig.parse({"launcher": "local", "resources": {"cpus": torch.get_num_threads()}, "checkpoint_every": 1})
    name = f"towers/{_digest(config.model_dump(mode='json'), versions)}/training"
    arguments = {"workspace": workspace, "versions": versions, "config": config}
    with train(train_towers, arguments, harness, scratch, name) as result:
        towers = restore_towers(data, config, result.folder / WEIGHTS)
    scratch.filesystem.delete_dir(scratch.path(name))
    return towers


def _validate(case: Case, scorer: Scorer, beta: float = 1.0) -> Point:
    """NDCG@10, category coverage and tail share on validation, seen items taken out."""
    _, ranking = rank(scorer, case.targets["validation"], CUTOFFS[0])
    figures = accuracy(ranking, CUTOFFS) | spread(ranking, case.data.catalogue, case.counts)
    return Point(beta, figures["NDCG", 10], figures["category_coverage", 10], figures["tail_share", 10])


def _digest(*decided: Any) -> str:
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]


def run_all(sets: Sequence[tuple[DataSet, Workspace]], seeds: Sequence[int], models: Sequence[str], kept: Path) -> list[dict[str, Any]]:
    """Every model of every set; what is kept from an earlier run is not run again."""
    rows, cases = [], {}
    kept.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for setting, workspace in sets:
            for model in models:
                if seed and (model in FIXED or model in setting.once):
                    continue
                decided = setting.sasrec if model == "sasrec" else setting.towers
                file = kept / f"{setting.name}-{model}-{seed}-{_digest(decided.model_dump(mode='json'))}.json"
                if not file.exists():
                    print(f"{setting.name}, {model}, seed {seed}", flush=True)
                    case = cases[setting.name] = cases.get(setting.name) or Case.read(setting, workspace, Workspace.open(kept))
                    begin = time.monotonic()
                    found = run_model(case, model, seed)
                    file.write_text(json.dumps([{**row, "seed": seed, "seconds": time.monotonic() - begin} for row in found]))
                    hit = next(row["value"] for row in found if row["filter_seen"] and row["name"] == "HR" and row["k"] == 10)
                    print(f"  test: HR@10 {hit:.4f}, {time.monotonic() - begin:.0f} s", flush=True)
                rows += json.loads(file.read_text())
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, bool, str, int], tuple[float, float, int]]:
    """(data set, subject, filter, name, k) → mean and standard deviation over seeds, and how many there are."""
    found: dict[tuple[str, str, bool, str, int], list[float]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in ("dataset", "subject", "filter_seen", "name", "k")), []).append(row["value"])
    spreads = {key: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for key, values in found.items()}
    return {key: (float(np.mean(values)), spreads[key], len(values)) for key, values in found.items()}


def print_tables(summary: dict[tuple[str, str, bool, str, int], tuple[float, float, int]]) -> None:
    """A Markdown table a data set and filter."""
    columns = (("HR", 10), ("NDCG", 10), ("HR", 50), ("NDCG", 50), ("category_coverage", 10), ("gini", 10), ("tail_share", 10))
    for dataset, filter_seen in sorted({(key[0], key[2]) for key in summary}):
        print(f"\n{dataset}, seen items {'taken out' if filter_seen else 'left in'}")
        print(f"| model | {' | '.join(f'{name}@{k}' for name, k in columns)} | seeds |\n|{'---|' * (len(columns) + 2)}")
        for subject in dict.fromkeys(key[1] for key in summary if key[0] == dataset):
            cells = [summary[dataset, subject, filter_seen, *column] for column in columns]
            shown = " | ".join(f"{mean:.4f} ± {std:.4f}" if seeds > 1 else f"{mean:.4f}" for mean, std, seeds in cells)
            print(f"| {subject} | {shown} | {cells[0][2]} |")


def data_sets(options: argparse.Namespace) -> tuple[list[tuple[DataSet, Workspace]], list[str]]:
    """Those that can be measured on here, prepared; and why the others cannot."""
    root, ready, skipped = options.workspace / ("quick" if options.quick else "full"), [], []
    for setting in QUICK if options.quick else FULL:
        source = setting.source
        if options.only and setting.name not in options.only:
            continue
        if isinstance(source, SharedParquetConfig):
            source = source.model_copy(update={"path": str(options.data / source.path)})
            if not Path(source.path).is_dir():
                skipped.append(f"{setting.name}: {source.path} is not there (--data)")
                continue
        if source is None and options.demo is None:
            skipped.append(f"{setting.name}: no --demo workspace given")
            continue
        workspace = Workspace.open(options.demo) if source is None else prepare(source, root / setting.name)
        ready.append((setting, workspace))
    return ready, skipped


def one_behaviour(behaviour: str) -> dict[str, Any]:
    """Behaviour settings of a log in which people do one thing only; every rating counts, as in the papers, however few its stars."""
    return {"history": [behaviour], "taken": [behaviour], "weights": {behaviour: 1.0}, "min_rating": 0}


PURCHASES, RATINGS = one_behaviour("purchase"), one_behaviour("rating")
SMALL = {"num_negatives": 256, "tag_batch_size": 64}
FULL = (
    DataSet(
        name="movielens",
        source=SharedParquetConfig(path="movielens_1m"),
        towers=TrainingConfig.parse({"behaviours": RATINGS, "learning": {**SMALL, "num_epochs": 6, "batch_size": 1024, "tag_weight": 0.1}}),
        sasrec=SASRecConfig(length=100, dropout=0.2, batch_size=16, learning_rate=0.002, num_epochs=14, patience=6),
        once=("without_tag_loss", "without_category_loss"),
    ),
    DataSet(
        name="beauty",
        source=SharedParquetConfig(path="amazon_beauty"),
        towers=TrainingConfig.parse(
            {
                "behaviours": PURCHASES,
                "towers": {"windows": [1, 5, 20], "user_dropout": 1.0},
                "learning": {**SMALL, "num_epochs": 6, "batch_size": 1024, "stretch": 8, "tag_weight": 0.2},
            }
        ),
        sasrec=SASRecConfig(patience=20, evaluate_every=5),
    ),
    DataSet(
        name="simulator",
        source=SimulatorSource(num_users=2000, num_items=2000, pictures=False),
        towers=TrainingConfig.parse(
            {"towers": {"user_dropout": 1.0}, "learning": {**SMALL, "num_epochs": 6, "batch_size": 512, "tag_weight": 0.2}}
        ),
        sasrec=SASRecConfig(length=50, dropout=0.4, learning_rate=0.002, batch_size=32, num_epochs=40, patience=10, evaluate_every=2),
    ),
    DataSet(
        name="demo",
        source=None,
        towers=TrainingConfig.parse(
            {"towers": {"user_dropout": 1.0}, "learning": {**SMALL, "num_epochs": 6, "batch_size": 256, "tag_weight": 0.2}}
        ),
        sasrec=SASRecConfig(length=50, dropout=0.4, learning_rate=0.002, batch_size=16, num_epochs=40, patience=10, evaluate_every=2),
    ),
)
QUICK = (
    DataSet(
        name="simulator",
        source=SimulatorSource(num_users=300, num_items=400, events_per_user=120, pictures=False),
        towers=TrainingConfig.parse(
            {"towers": {"user_dropout": 1.0}, "learning": {**SMALL, "num_epochs": 4, "batch_size": 128, "tag_weight": 0.2}}
        ),
        sasrec=SASRecConfig(length=20, learning_rate=0.005, batch_size=32, num_epochs=15, patience=3),
    ),
)


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small simulated world, one seed; ends within a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, default=Path("workspace/benchmark_towers"), help="tables and finished models")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of movielens_1m and amazon_beauty")
    parser.add_argument("--demo", type=Path, help="workspace in which the line has run, for tags by the shipped student; it is only read")
    parser.add_argument("--only", nargs="*", default=[], help="data sets, of movielens, beauty, simulator, demo; none named is all")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, help="what is measured")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[0, 1, 2], help="of whatever is drawn at random; the rest is run with seed 0"
    )
    options = parser.parse_args()
    sets, skipped = data_sets(options)
    for reason in skipped:
        print(f"skipped: {reason}", flush=True)
    rows = run_all(sets, [0] if options.quick else options.seeds, options.models, options.workspace / "finished")
    summary = summarise(rows)
    print_tables(summary)
    figures = {}
    for dataset in dict.fromkeys(key[0] for key in summary):
        for name, subject in FIGURES.items():
            if (key := (dataset, subject, True, "HR", 10)) in summary:
                figures[f"{name}_hr10_{dataset}"] = summary[key][0]
    if options.json:
        result = {"benchmark": "towers", "quick": options.quick, "figures": figures, "rows": rows, "skipped": skipped}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
