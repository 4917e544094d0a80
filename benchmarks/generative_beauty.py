"""Generative retrieval against popularity, ItemKNN, SASRec and the towers on Amazon Beauty, and all of it fused.

    PYTHONPATH=platform python benchmarks/generative_beauty.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER]
        [--models popularity,item_knn,sasrec,towers,tiger,ours] [--seeds 0,1,2] [--epochs 12] [--tokenizers]

Leave-last-out (the last item of each person is the test, the one before it validation, training sees neither); all 12,101 items are
ranked, hits are of items, not of codes; with the items that the person has bought left in and taken out (filter-seen); beams of 50, and
of 20 for the first seed of `ours`. On test every model may read the validation item as history. Sizes and epochs are those of the recipes
below; the weights and the kind of fusion are swept by Ray Tune on validation with the first seed's models, and nothing is chosen on test.
`tiger` is a decoder on RQ-VAE codes of an item's own text with a counter as the last code; `ours` has residual k-means codes of text,
keywords that a language model wrote for the item (they come with the data) and collaborative vectors (of train alone), two levels, the
last code spread over colliding items. Both have the same decoder, tasks and epochs. A fusion takes the generator's widest beam and the
best 200 of the others; one without the generator stands beside, so that a reader sees what it adds.

--tokenizers trains a decoder for few epochs on each of eight tokenizers instead and tests it on the first people.

A run that was killed goes on: every finished model and seed is kept under --workspace, and training itself resumes. --quick takes the
simulator instead of Beauty, fewer people and epochs: the same comparison in a minute, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from generative_world import BASELINES, LEARNED, QUICK_LEARNED, Case, Learned, fit_baseline, item_vectors, list_best, prepare, ranks_of
from intently.core.config import Resources
from intently.core.schema import SEMANTIC_ID
from intently.core.workspace import open_stage
from intently.generative.beam import BeamConfig
from intently.generative.evaluate import ranks_of_found
from intently.generative.fusion import METHODS, Pool, fuse, measure_weights, pool, ranks_in_pool
from intently.generative.generator import TrainedGenerator, put_generator
from intently.generative.quality import collisions
from intently.generative.quantiser import QuantiserConfig, fit_quantiser
from intently.generative.semantic_ids import assign_semantic_ids
from intently.generative.training import GeneratorConfig, read_generator_data, train_generator
from intently.generative.trie import code_matrix
from intently.metrics.ranking import hit_rate, ndcg
from intently.retrieval.evaluate import Scorer
from intently.runtime.deepspeed import DeepSpeedConfig
from intently.runtime.sft import MODEL
from intently.runtime.train import TrainConfig, train
from intently.runtime.tune import SweepConfig, sweep

CUTOFFS = (5, 10)
WIDTHS = (20, 50)
SEEDED = ("sasrec", "towers", "ours")
"""Models that are measured with every seed; the others with the first."""
FUSIONS = ("ours+sasrec", "ours+sasrec+item_knn", "ours+sasrec+item_knn+towers", "sasrec+item_knn+towers")
"""Lists that are fused; each has a share."""
PUBLISHED = {
    "TIGER (its paper)": 0.0648, "TIGER": 0.0763, "LC-Rec": 0.0821, "HSTU": 0.0867, "MiniOneRec": 0.0945, "OpenOneRec": 0.0924,
    "eSASRec, filtered": 0.0928, "DeepInterestGR": 0.1032,
}  # fmt: skip
"""HR@10 on Beauty as others print it."""


@dataclass(frozen=True)
class Recipe:
    """A generator: what its codes are made from and how."""

    source: str
    quantiser: QuantiserConfig
    collaborative: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured."""

    generator: dict[str, Any]
    num_codes: int
    learned: Learned
    tokenizer_epochs: int
    tokenizer_users: int
    weights: int
    fusions: Sequence[str] = FUSIONS

    def recipe(self, name: str) -> Recipe:
        """`tiger`, `ours`, or `<tokenizer>/<input>` of the tokenizer comparison, with the number of levels behind it if it is not 3."""
        short = {"tiger": "rq_vae_counter/text", "ours": "rq_kmeans_balanced/joined/2"}
        tokenizer, source, levels = (*short.get(name, name).split("/"), "3")[:3]
        kind, last = tokenizer.rsplit("_", 1)
        quantiser = QuantiserConfig.parse({"kind": kind, "last_level": last, "num_levels": int(levels), "num_codes": self.num_codes})
        return Recipe(source, quantiser, COLLABORATIVE if source == "joined" else 0.0)


COLLABORATIVE = 0.5
TOKENIZERS = (
    "rq_kmeans_balanced/text", "rq_kmeans_balanced/keywords", "rq_kmeans_balanced/joined", "ours",
    "rq_kmeans_counter/text", "rq_kmeans_counter/keywords", "rq_vae_counter/text", "rq_vae_counter/keywords",
)  # fmt: skip
DECODER = {"hidden": 96, "layers": 2, "heads": 3, "kv_heads": 3, "head_size": 32, "feed_forward": 256, "text_tokens": 256}
GENERATOR = {
    "decoder": DECODER,
    "mixture": {"item_dropout": 0.1},
    "sft": {"num_epochs": 10, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.05},
}
FULL = Scale(GENERATOR, 256, LEARNED, 2, 5000, 8)
TINY = DECODER | {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_size": 16, "feed_forward": 64}
QUICK = Scale(
    GENERATOR | {"decoder": TINY, "sft": GENERATOR["sft"] | {"num_epochs": 2}}, 32,
    QUICK_LEARNED, 1, 100, 4, FUSIONS[2:3],
)  # fmt: skip

Place = tuple[str, int, bool]
"""Split, width of the beam, filter-seen."""


@dataclass(frozen=True)
class Answers:
    """What a generator found, by place: [N, width] items and scores."""

    items: dict[Place, np.ndarray]
    scores: dict[Place, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what `save` wrote."""
        found: dict[str, dict[Place, np.ndarray]] = {"items": {}, "scores": {}}
        with np.load(path) as stored:
            for name in stored.files:
                kind, split, width, seen = name.split("/")
                found[kind][split, int(width), seen == "filtered"] = stored[name]
        return cls(**found)

    def save(self, path: Path) -> None:
        """Write, whole or not at all."""
        unfinished = path.with_suffix(".unfinished.npz")
        named = {"items": self.items, "scores": self.scores}
        np.savez(
            unfinished,
            **{
                f"{kind}/{split}/{width}/{'filtered' if seen else 'all'}": values
                for kind, found in named.items()
                for (split, width, seen), values in found.items()
            },
        )
        unfinished.replace(path)


@dataclass(frozen=True)
class Bench:
    """A run: the case, how much of it, and where what is finished is kept."""

    case: Case
    scale: Scale
    folder: Path

    def semantic_ids(self, name: str) -> tuple[str, dict[str, float]]:
        """Version of the semantic IDs of a recipe, and their report; made where they do not stand."""
        recipe = self.scale.recipe(name)
        tables = {"source": recipe.source, "collaborative": str(recipe.collaborative)}
        stage = open_stage(self.case.workspace, "semantic_id", SEMANTIC_ID, tables, recipe.quantiser)
        if not stage.finished:
            vectors = item_vectors(self.case, recipe.source, recipe.collaborative)
            made = assign_semantic_ids(self.case.item_ids, vectors, fit_quantiser(vectors, recipe.quantiser))
            stage.write("part-00000", made.table)
            stage.finish(metrics=made.report)
        return stage.version, self.case.workspace.artifact("semantic_id", stage.version).manifest.metrics

    def generator(self, name: str, seed: int, epochs: int) -> tuple[str, dict[str, float]]:
        """Version of a trained generator, seconds and parameters; trained, or trained on, where it does not stand."""
        workspace = self.case.workspace
        versions = {"semantic_id": self.semantic_ids(name)[0]} | {n: workspace.artifact(n).version for n in ("item", "history_train")}
        settings = self.scale.generator
        config = GeneratorConfig.parse(settings | {"sft": settings["sft"] | {"seed": seed, "num_epochs": epochs}})
        stage = open_stage(workspace, "generator", None, versions, config)
        if not stage.finished:
            one = DeepSpeedConfig(zero_stage=0)  # a worker alone has nobody to share state with
            harness = TrainConfig(deepspeed=one, launcher="local", resources=Resources(num_workers=1, cpus=1), checkpoint_every=1)
            arguments = {"workspace": workspace, "versions": versions, "config": config}
            with train(train_generator, arguments, harness, workspace, f"generator/{stage.version}/training") as result:
                put_generator(stage, result.folder / MODEL, read_generator_data(workspace, versions, config).trie, config)
                stage.finish(metrics={"seconds": sum(epoch["seconds"] for epoch in result.history)})
        return stage.version, dict(workspace.artifact("generator", stage.version).manifest.metrics)

    def answer(self, name: str, seed: int, epochs: int, widths: Sequence[int], validated: bool) -> dict[str, float]:
        """Search for everybody on test, and if asked on validation with the widest beam; what was found is kept, what it cost returned."""
        version, cost = self.generator(name, seed, epochs)
        found, begin, asked = Answers({}, {}), time.monotonic(), 0
        for place in [*([("validation", max(WIDTHS))] if validated else []), *(("test", width) for width in widths)]:
            generator = TrainedGenerator.load(self.case.workspace, BeamConfig(width=place[1]), versions={"generator": version})
            histories = self.case.histories(place[0])
            for seen in (False, True):
                items, scores = generator.rank(histories, place[1], histories if seen else None)
                found.items[*place, seen], found.scores[*place, seen] = items, scores
                asked += len(histories)
                print(f"{name} seed {seed}: {place[0]}, beam {place[1]}, filter-seen {seen}, {time.monotonic() - begin:.0f} s", flush=True)
        size = sum(parameter.numel() for parameter in generator.beam.model.parameters())
        found.save(self.folder / f"{name}-{seed}-{epochs}.npz")
        return cost | {"parameters": size, "queries_per_second": asked / (time.monotonic() - begin)}

    def measure(self, name: str, seed: int, epochs: int, first: bool) -> list[dict[str, Any]]:
        """Test figures of one model; of a generator with both beams where it is the first of its seeds, by which fusions are chosen."""
        common, targets = {"model": name, "seed": seed}, self.case.targets["test"]
        if name in BASELINES:
            begin = time.monotonic()
            scorers, size = fit_baseline(self.case, name, self.scale.learned.with_seed(seed), self.folder)
            cost = {"seconds": time.monotonic() - begin, "parameters": size}
            ranks = {seen: ranks_of(self.case, scorers["test"], "test", seen) for seen in (False, True)}
            return [{**common, "beam": 0, "filter_seen": seen, **accuracy(found), **cost} for seen, found in ranks.items()]
        widths = WIDTHS if first else (max(WIDTHS),)
        cost = self.answer(name, seed, epochs, widths, first)
        found = Answers.load(self.folder / f"{name}-{seed}-{epochs}.npz").items
        return [
            {**common, "beam": width, "filter_seen": seen, **accuracy(ranks_of_found(found["test", width, seen], targets)), **cost}
            for width, seen in itertools.product(widths, (False, True))
        ]

    @cached_property
    def neighbours(self) -> dict[str, Scorer]:
        """ItemKNN's scorers, which know no seed."""
        return fit_baseline(self.case, "item_knn", self.scale.learned, self.folder)[0]

    def pools(self, split: str, models: Sequence[str], seed: int, epochs: int) -> dict[str, tuple[Pool, np.ndarray]]:
        """The models' lists of a split's users, and their targets: `all`, and `filtered` without what they have."""
        listed = [model for model in models if model != "ours"]
        learned = self.scale.learned.with_seed(seed)
        fitted = {m: self.neighbours if m == "item_knn" else fit_baseline(self.case, m, learned, self.folder)[0] for m in listed}
        made = {}
        for name, seen in (("all", False), ("filtered", True)):
            lists = [list_best(self.case, model, fitted[model][split], split, seen) for model in listed]
            if "ours" in models:
                found, place = Answers.load(self.folder / f"ours-{seed}-{epochs}.npz"), (split, max(WIDTHS), seen)
                lists.insert(0, (found.items[place], np.exp(found.scores[place])))
            made[name] = (pool(lists), self.case.targets[split])
        return made

    def choose(self, fusion: str, seed: int, epochs: int) -> dict[str, dict[str, Any]]:
        """The sweep on validation: name of a filter → the point of the best HR@10."""
        steps, models = self.scale.weights, fusion.split("+")
        points = [
            {"method": float(method)} | {f"weight_{place}": share / steps for place, share in enumerate(shares)}
            for method in range(len(METHODS))
            for shares in itertools.product(range(1, steps), repeat=len(models))
            if sum(shares) == steps
        ]
        data = self.pools("validation", models, seed, epochs)
        results = sweep(measure_weights, points, data, SweepConfig(), self.case.workspace, f"fusion/{fusion}-{seed}-{epochs}")
        best = {name: int(np.argmax([result[f"hr10_{name}"] for result in results])) for name in data}
        return {name: points[place] | {"validation_hr10": results[place][f"hr10_{name}"]} for name, place in best.items()}

    def measure_fusion(self, fusion: str, seed: int, epochs: int, chosen: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Test figures of a fusion whose weights are chosen."""
        rows, models = [], fusion.split("+")
        for name, (candidates, targets) in self.pools("test", models, seed, epochs).items():
            point = chosen[name]
            method, weights = METHODS[int(point["method"])], [point[f"weight_{place}"] for place in range(len(models))]
            ranks = ranks_in_pool(candidates, fuse(candidates, weights, method), targets)
            told = {"method": method, "weights": weights, "validation_hr10": point["validation_hr10"]}
            common = {"model": fusion, "seed": seed, "beam": max(WIDTHS), "filter_seen": name == "filtered"}
            rows.append(common | accuracy(ranks) | told)
        return rows

    def run(self, models: Sequence[str], seeds: Sequence[int], epochs: int) -> list[dict[str, Any]]:
        """Rows of every model and seed; those that stand in the folder are read."""
        rows: list[dict[str, Any]] = []
        for seed, model in itertools.product(seeds, models):
            if model not in SEEDED and seed != seeds[0]:
                continue
            label = f"{model}-{seed}" if model in BASELINES else f"{model}-{seed}-{epochs}"
            first = model == "ours" and seed == seeds[0]
            rows += self._kept(label, lambda m=model, s=seed, f=first: self.measure(m, s, epochs, f))
        for fusion in self.scale.fusions:
            if set(fusion.split("+")) <= set(models):
                (chosen,) = self._kept(f"{fusion}-{epochs}-chosen", lambda f=fusion: [self.choose(f, seeds[0], epochs)])
                for seed in seeds:
                    rows += self._kept(f"{fusion}-{seed}-{epochs}", lambda f=fusion, s=seed, c=chosen: self.measure_fusion(f, s, epochs, c))
        return rows

    def compare_tokenizers(self, peers: Path) -> list[dict[str, Any]]:
        """Codebook use, collisions, meaning and HR@10 of every tokenizer, and the collisions of tables that peers published."""
        rows, epochs = [], self.scale.tokenizer_epochs
        for name in TOKENIZERS:
            rows += self._kept(f"tokenizer-{name.replace('/', '-')}-{epochs}", lambda n=name: [self.measure_tokenizer(n, epochs)])
        if peers.is_file():
            table = pq.read_table(peers)
            for name in sorted(set(table["tokenizer"].to_pylist())):
                codes = code_matrix(table.filter(pc.equal(table["tokenizer"], name))["codes"])
                rows.append({"tokenizer": name, "input": "as published", "collisions_after": collisions(codes)})
                show(rows[-1:])
        return rows

    def measure_tokenizer(self, name: str, epochs: int) -> dict[str, Any]:
        """One row: the report, and HR@10 of a briefly trained decoder on the first test users, beam 20."""
        recipe = self.scale.recipe(name)
        _, report = self.semantic_ids(name)
        version, cost = self.generator(name, 0, epochs)
        generator, most = TrainedGenerator.load(self.case.workspace, versions={"generator": version}), self.scale.tokenizer_users
        histories, found = self.case.histories("test", most), {}
        for suffix, seen in (("", None), ("_filtered", histories)):
            items, _ = generator.rank(histories, 20, seen)
            found[f"hr10{suffix}"] = hit_rate(ranks_of_found(items, self.case.targets["test"][:most]), 10)
        told = {"tokenizer": name, "input": recipe.source, "levels": recipe.quantiser.num_levels}
        return {**told, **report, **found, "users": len(histories), "epochs": epochs, **cost}

    def _kept(self, label: str, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows that stand in a file, else those that work makes, which stand there from now on."""
        path = self.folder / f"{label}.json"
        if not path.exists():
            made = work()
            show(made)
            path.write_text(json.dumps(made))
        return json.loads(path.read_text())


def accuracy(ranks: np.ndarray) -> dict[str, float]:
    """HR and NDCG at the cutoffs."""
    return {f"{name}{k}": measure(ranks, k) for name, measure in (("hr", hit_rate), ("ndcg", ndcg)) for k in CUTOFFS}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a row."""
    for row in rows:
        print("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()), flush=True)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds at the widest beam, of what was run; fused is the fusion with the generator that is best on validation."""
    fusions = {row["model"]: row["validation_hr10"] for row in rows if row["model"].startswith("ours+") and row["filter_seen"]}
    names = {"generative": "ours"} | {name: name for name in (*BASELINES, "tiger")}
    if fusions:
        names["fused"] = max(fusions, key=lambda name: fusions[name])
    found = {}
    for (name, model), (suffix, seen) in itertools.product(names.items(), (("", False), ("_filtered", True))):
        values = [row["hr10"] for row in rows if row["model"] == model and row["filter_seen"] is seen and row["beam"] in (0, max(WIDTHS))]
        if values:
            found[f"{name}_hr10{suffix}"] = float(np.mean(values))
    return found


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a simulated world, small models, a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, default=Path("build/generative_beauty"), help="where what is finished is kept")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/amazon_beauty"), help="the Beauty set")
    parser.add_argument("--models", default=",".join((*BASELINES, "tiger", "ours")), help="in this order")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, help="of the generators")
    parser.add_argument("--tokenizers", action="store_true", help="compare tokenizers instead")
    options = parser.parse_args()
    scale, seeds = (QUICK, [0]) if options.quick else (FULL, [int(seed) for seed in options.seeds.split(",")])
    if options.epochs:
        scale = replace(scale, generator=scale.generator | {"sft": scale.generator["sft"] | {"num_epochs": options.epochs}})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.quick else options.workspace
        workspace = prepare(None if options.quick else options.data, folder)
        case = Case.read(workspace)
        print(f"{len(case.item_ids):,} items, {len(case.users['test']):,} test users", flush=True)
        bench = Bench(case, scale, folder / "results")
        bench.folder.mkdir(exist_ok=True)
        if options.tokenizers:
            rows = bench.compare_tokenizers(options.data / "peer_semantic_ids.parquet")
        else:
            rows = bench.run(options.models.split(","), seeds, scale.generator["sft"]["num_epochs"])
    found = {} if options.tokenizers else figures(rows)
    print("\n".join(f"{name:<32}{value:.4f}" for name, value in found.items()))
    print("HR@10 as others print it: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    if options.json:
        result = {"benchmark": "generative_beauty", "quick": options.quick, "figures": found, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
