"""Generative retrieval against popularity, ItemKNN and SASRec on Amazon Beauty, and all of it fused.

    PYTHONPATH=platform python benchmarks/generative_beauty.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER]
        [--models tiger,ours] [--seeds 0,1,2] [--epochs 30] [--users 5000] [--tokenizers]

Leave-last-out (the last item of each person is the test, the one before it validation, training sees neither); all 12,101 items are
ranked, hits are of items, not of codes; with the items that the person has bought left in and taken out (filter-seen); beams of 20 and 50.
On test every model may read the validation item as history. Epochs and sizes are those of the flags and of DECODER; the weight and the kind
of fusion are chosen on validation, and nothing is chosen on test. `tiger` is a decoder on RQ-VAE codes of an item's own text with a counter
as the last code; `ours` has residual k-means codes of text, keywords that a language model wrote for the item (they come with the data) and
collaborative vectors (of train alone), the last code spread over colliding items. Both have the same decoder, examples and epochs.

A run that was killed goes on: every finished model and seed is kept under --workspace, and training itself resumes. --quick takes the
simulator instead of Beauty, fewer people and epochs: the same comparison in a minute, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from intently.core.config import Config, Resources
from intently.core.schema import EMBEDDING, HISTORY, ITEM, SEMANTIC_ID, USER, Table
from intently.core.workspace import Workspace, open_stage
from intently.data.histories import HistoryBuilder, HistoryConfig, Spill, spill_source
from intently.data.shared_parquet import SharedParquetConfig
from intently.data.sources import SimulatorSource, open_source
from intently.data.splits import SplitConfig, split_histories
from intently.generative.beam import BeamConfig
from intently.generative.evaluate import ranks_of_found, read_targets
from intently.generative.fusion import fuse
from intently.generative.generator import TrainedGenerator, put_generator
from intently.generative.inputs import InputConfig, item_inputs
from intently.generative.quality import collisions
from intently.generative.quantiser import QuantiserConfig, fit_quantiser
from intently.generative.semantic_ids import assign_semantic_ids
from intently.generative.sequences import SequenceConfig, Sequences, append_sequences, read_sequences
from intently.generative.training import GeneratorConfig, read_generator_data, train_generator
from intently.generative.trie import code_matrix
from intently.llm.embedding import ItemTextConfig, embedding_rows, item_texts
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.metrics.ranking import hit_rate, ndcg, ranks_of_targets
from intently.retrieval.baselines import ItemKNN, popularity, score_by_popularity
from intently.retrieval.evaluate import Scorer
from intently.retrieval.interactions import BehaviourConfig, Interactions, append_interactions, read_interactions
from intently.retrieval.sasrec import SASRec, SASRecConfig, train_sasrec
from intently.runtime.sft import MODEL
from intently.runtime.train import TrainConfig, train
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import svds

GENERATORS = ("tiger", "ours")
CUTOFFS = (5, 10)
WIDTHS = (20, 50)
WEIGHTS = tuple(step / 20 for step in range(21))
SIZES = {"hidden": 96, "layers": 2, "heads": 3, "kv_heads": 3, "head_size": 32, "feed_forward": 256}
DECODER = SIZES | {"attention_dropout": 0.1, "text_tokens": 256}
TIGER = QuantiserConfig(kind="rq_vae", num_levels=4, last_level="counter")
OURS = QuantiserConfig(kind="rq_kmeans", num_levels=4)
PUBLISHED = {
    "TIGER (its paper)": 0.0648, "TIGER": 0.0763, "LC-Rec": 0.0821, "HSTU": 0.0867, "MiniOneRec": 0.0945, "OpenOneRec": 0.0924,
    "eSASRec, filtered": 0.0928, "DeepInterestGR": 0.1032,
}  # fmt: skip
"""HR@10 on Beauty as others print it."""


class Made(Config):
    """Settings of stages that the benchmark makes itself."""

    made: str


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured."""

    decoder: dict[str, Any]
    epochs: int
    sasrec: SASRecConfig
    tiger: QuantiserConfig
    ours: QuantiserConfig
    most_users: int
    tuned_users: int


FULL = Scale(DECODER, 30, SASRecConfig(), TIGER, OURS, 10**9, 5000)
QUICK = Scale(
    DECODER | {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_size": 16, "feed_forward": 64},
    2,
    SASRecConfig(num_epochs=2),
    TIGER.model_copy(update={"num_codes": 32, "num_levels": 3, "autoencoder": TIGER.autoencoder.model_copy(update={"num_epochs": 20})}),
    OURS.model_copy(update={"num_codes": 32, "num_levels": 3}),
    200,
    200,
)


def put(workspace: Workspace, name: str, table: Table, rows: pa.Table, made: str = "") -> str:
    """Write a whole artifact; its version."""
    stage = open_stage(workspace, name, table, {}, Made(made=made or name))
    stage.write("part-00000", rows)
    return stage.finish().version


def prepare(data: Path | None, folder: Path) -> Workspace:
    """Items, histories and texts as vectors; what stands stays. Without data the simulator's."""
    workspace = Workspace.open(folder)
    if workspace.latest_version("keyword_embedding"):
        return workspace
    simulator = SimulatorSource.parse({"num_users": 300, "num_items": 300, "events_per_user": 150, "pictures": False})
    log, config = open_source(SharedParquetConfig(path=str(data)) if data else simulator), HistoryConfig(num_buckets=1)
    history, user = (open_stage(workspace, table.name, table, {}, Made(made="log")) for table in (HISTORY, USER))
    spill = Spill.of(history, 1)
    spill_source(log, spill, config)
    HistoryBuilder(history, user, spill)(config.parts[0])
    spill.remove()
    split = split_histories(history.finish().read(), SplitConfig())
    put(workspace, "item", ITEM, log.items)
    for name in ("train", "validation", "test"):
        put(workspace, f"history_{name}", HISTORY, getattr(split, name))
    encoder, ids = TextEncoder(EncoderConfig(max_tokens=64)), log.items["item_id"]
    texts = {"item": item_texts(log.items, ItemTextConfig()).to_pylist(), "keyword": keywords(data, log.items)}
    for kind, said in texts.items():
        put(workspace, f"{kind}_embedding", EMBEDDING, embedding_rows("item", ids, encoder.encode(said), encoder.name))
    return workspace


def keywords(data: Path | None, items: pa.Table) -> list[str]:
    """What a language model said of each item; of the simulator's its attributes."""
    if data is None:
        return ["; ".join(row) for row in items["attributes"].to_pylist()]
    rows = pq.read_table(data / "items.parquet", columns=["item_id", "term_ids"]).to_pylist()
    said = {str(row["item_id"]): "; ".join(row["term_ids"] or []) for row in rows}
    return [said[item] for item in items["item_id"].to_pylist()]


@dataclass(frozen=True)
class Case:
    """Everything that models are fitted on and measured by.

    Attributes:
        past: what train knows, for baselines; sequences: for generators; later, later_sequences: with the validation item behind it.
        users, targets: split → user rows and item rows.
    """

    workspace: Workspace
    scale: Scale
    item_ids: pa.Array
    past: Interactions
    later: Interactions
    sequences: dict[str, Sequences]
    users: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]

    @classmethod
    def read(cls, workspace: Workspace, scale: Scale) -> Case:
        """The tables as arrays; validation is cut to the users that weights are tuned on."""
        item_ids = workspace.artifact("item").read(columns=["item_id"])["item_id"].combine_chunks()
        config, behaviours = SequenceConfig(), BehaviourConfig()
        history = {split: workspace.artifact(f"history_{split}").read() for split in ("train", "validation", "test")}
        read = {split: read_sequences(rows, item_ids, config) for split, rows in history.items()}
        past = read_interactions(history["train"], item_ids, behaviours.history)
        later = append_interactions(past, read_interactions(history["validation"], item_ids, behaviours.history))
        sequences = {"validation": read["train"], "test": append_sequences(read["train"], read["validation"])}
        users, targets = {}, {}
        for split, most in (("validation", scale.tuned_users), ("test", scale.most_users)):
            users[split], targets[split] = (part[:most] for part in read_targets(sequences[split], read[split]))
        return cls(workspace, scale, item_ids, past, later, sequences, users, targets)

    def histories(self, split: str) -> list[np.ndarray]:
        """What the users of a split have taken, in order."""
        return [self.sequences[split].of(user) for user in self.users[split]]


@dataclass(frozen=True)
class Answers:
    """What a generator found, by (split, width, filter_seen): [N, width] items and scores."""

    items: dict[tuple[str, int, bool], np.ndarray]
    scores: dict[tuple[str, int, bool], np.ndarray]

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Read what `save` wrote."""
        found: dict[str, dict[tuple[str, int, bool], np.ndarray]] = {"items": {}, "scores": {}}
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


def semantic_ids(case: Case, model: str) -> str:
    """Version of the semantic IDs of a generator; made where they do not stand."""
    workspace, scale = case.workspace, case.scale
    config = scale.tiger if model == "tiger" else scale.ours
    stage = open_stage(workspace, "semantic_id", SEMANTIC_ID, {"model": model}, config)
    if stage.finished:
        return stage.version
    vectors = item_vectors(case, "text" if model == "tiger" else "joined")
    quantiser = fit_quantiser(vectors, config)
    made = assign_semantic_ids(case.item_ids, vectors, quantiser)
    stage.write("part-00000", made.table)
    print(f"{model}: {', '.join(f'{name} {value:.3f}' for name, value in made.report.items())}", flush=True)
    return stage.finish(metrics=made.report).version


def item_vectors(case: Case, source: str) -> np.ndarray:
    """[I, D] what is quantised: an item's own text, the keywords that a language model wrote, or both and collaborative vectors."""
    encoded = {
        name: item_inputs(case.item_ids, case.workspace.artifact(f"{kind}_embedding").read(), None, None, InputConfig(), None)
        for name, kind in (("text", "item"), ("keywords", "keyword"))
    }
    return encoded[source] if source in encoded else np.concatenate([*encoded.values(), collaborative_vectors(case)], axis=1)


def compare_tokenizers(case: Case, peers: Path) -> list[dict[str, Any]]:
    """Codebook use, collisions and meaning of every tokenizer on every input, and the collisions of tables that peers published."""
    rows = []
    for source in ("text", "keywords", "joined"):
        vectors = item_vectors(case, source)
        for name, config in (("rq_vae", case.scale.tiger.model_copy(update={"last_level": "balanced"})), ("rq_kmeans", case.scale.ours)):
            begin, quantiser = time.monotonic(), fit_quantiser(vectors, config)
            report = dict(assign_semantic_ids(case.item_ids, vectors, quantiser).report)
            rows.append({"tokenizer": name, "input": source, **report, "seconds": time.monotonic() - begin})
            show(rows[-1:])
    if peers.is_file():
        table = pq.read_table(peers)
        for name in sorted(set(table["tokenizer"].to_pylist())):
            codes = code_matrix(table.filter(pc.equal(table["tokenizer"], name))["codes"])
            rows.append({"tokenizer": name, "input": "as published", "collisions_after": collisions(codes)})
            show(rows[-1:])
    return rows


def collaborative_vectors(case: Case, width: int = 64) -> np.ndarray:
    """[I, width] of length 1: singular vectors of who took what in train, both sides scaled by the root of their counts."""
    past, num_items = case.past, len(case.item_ids)
    taken = sparse.csr_array((np.ones(len(past.items)), (past.users, past.items)), shape=(past.num_users, num_items))
    left, right = (1 / np.sqrt(np.maximum(taken.sum(axis=axis), 1)) for axis in (1, 0))
    _, values, vectors = svds(sparse.diags_array(left) @ taken @ sparse.diags_array(right), k=min(width, num_items - 2), rng=0)
    items = (vectors * values[:, None]).T
    return (items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def run_generator(case: Case, model: str, seed: int, epochs: int) -> tuple[Answers, dict[str, float]]:
    """Train (or go on), search for everybody; what was found, seconds and parameters."""
    workspace = case.workspace
    versions = {"semantic_id": semantic_ids(case, model)} | {n: workspace.artifact(n).version for n in ("item", "history_train")}
    sft = {"num_epochs": epochs, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.05, "seed": seed}
    config = GeneratorConfig.parse({"decoder": case.scale.decoder, "mixture": {"item_dropout": 0.1}, "sft": sft})
    stage = open_stage(workspace, "generator", None, versions, config)
    harness = TrainConfig(launcher="local", resources=Resources(num_workers=1, cpus=1), checkpoint_every=1)
    arguments = {"workspace": workspace, "versions": versions, "config": config}
    with train(train_generator, arguments, harness, workspace, f"generator/{stage.version}/training") as result:
        put_generator(stage, result.folder / MODEL, read_generator_data(workspace, versions, config).trie, config)
        seconds = sum(epoch["seconds"] for epoch in result.history)
    chosen = {"generator": stage.finish().version}
    found = Answers({}, {})
    begin, asked = time.monotonic(), 0
    for width in WIDTHS:
        generator = TrainedGenerator.load(workspace, BeamConfig(width=width), versions=chosen)
        for split in ("validation", "test"):
            if split == "validation" and width != max(WIDTHS):
                continue  # the fusion is tuned on the widest alone
            histories = case.histories(split)
            for seen in (False, True):
                place = (split, width, seen)
                found.items[place], found.scores[place] = generator.rank(histories, width, histories if seen else None)
                asked += len(histories)
                print(f"{model} seed {seed}: {split}, beam {width}, filter-seen {seen}, {time.monotonic() - begin:.0f} s", flush=True)
    size = sum(parameter.numel() for parameter in generator.beam.model.parameters())
    return found, {"seconds": seconds, "parameters": size, "queries_per_second": asked / (time.monotonic() - begin)}


def accuracy(ranks: np.ndarray) -> dict[str, float]:
    """HR and NDCG at the cutoffs."""
    return {f"{name}{k}": measure(ranks, k) for name, measure in (("hr", hit_rate), ("ndcg", ndcg)) for k in CUTOFFS}


def dense_scores(case: Case, scorer: Scorer, split: str, filter_seen: bool, start: int, stop: int) -> np.ndarray:
    """[n, I] scores for some users of a split, −inf for what they have taken where it is filtered."""
    users = case.users[split][start:stop]
    scores = np.array(scorer(users), np.float32)
    if filter_seen:
        for row, user in enumerate(users):
            scores[row, case.sequences[split].of(user)] = -np.inf
    return scores


def dense_ranks(case: Case, scorer: Scorer, split: str, filter_seen: bool) -> np.ndarray:
    """[N] ranks of the targets among all items."""
    blocks = [
        ranks_of_targets(dense_scores(case, scorer, split, filter_seen, start, start + 512), case.targets[split][start : start + 512])
        for start in range(0, len(case.users[split]), 512)
    ]
    return np.concatenate(blocks)


def fused_ranks(case: Case, scorer: Scorer, found: Answers, split: str, filter_seen: bool, settings: list[tuple[str, float]]) -> np.ndarray:
    """[settings, N] ranks of the targets in the fusion of a dense model and the widest beam's list."""
    place, blocks, targets = (split, max(WIDTHS), filter_seen), [], case.targets[split]
    for start in range(0, len(case.users[split]), 256):
        dense = dense_scores(case, scorer, split, filter_seen, start, start + 256)
        rows = slice(start, start + 256)
        blocks.append(
            [
                ranks_of_targets(fuse(found.items[place][rows], found.scores[place][rows], dense, weight, method), targets[rows])
                for method, weight in settings
            ]
        )
    return np.concatenate(blocks, axis=1)


def fit_dense(case: Case, model: str, seed: int, folder: Path) -> tuple[dict[str, Scorer], dict[str, float]]:
    """A baseline: split → its scorer, and what it cost; SASRec's weights are kept."""
    behaviours, num_items, begin = BehaviourConfig(), len(case.item_ids), time.monotonic()
    match model:
        case "popularity":
            scorer = score_by_popularity(popularity(case.past, num_items, behaviours))
            scorers, size = {"validation": scorer, "test": scorer}, 0
        case "item_knn":
            model_knn = ItemKNN(case.past, num_items, behaviours)
            scorers, size = {"validation": model_knn.scorer(case.past), "test": model_knn.scorer(case.later)}, 0
        case "sasrec":
            config = case.scale.sasrec.model_copy(update={"seed": seed})

            def validate(scorer: Scorer) -> float:
                return accuracy(dense_ranks(case, scorer, "validation", True))["ndcg10"]

            path = folder / f"sasrec-{seed}.safetensors"
            if not path.exists():
                save_file(train_sasrec(case.past, num_items, behaviours, config, validate).state_dict(), path)
            trained = SASRec(num_items, config)
            trained.load_state_dict(load_file(path))
            scorers = {
                split: trained.scorer(past, behaviours, behaviours.taken)
                for split, past in (("validation", case.past), ("test", case.later))
            }
            size = sum(parameter.numel() for parameter in trained.parameters())
        case _:
            raise ValueError(f"model {model!r}: one of popularity, item_knn, sasrec, tiger, ours")
    return scorers, {"seconds": time.monotonic() - begin, "parameters": size}


def measure(case: Case, models: Sequence[str], seeds: Sequence[int], epochs: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of every model and seed; those that stand in the folder are read."""
    rows: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for model in models:
            if model in ("popularity", "item_knn") and seed != seeds[0]:
                continue
            rows += _kept(folder / f"{model}-{seed}-{epochs}.json", lambda m=model, s=seed: measure_model(case, m, s, epochs, folder))
        for model in models if "sasrec" in models else ():
            if model in GENERATORS:
                rows += _kept(
                    folder / f"{model}+sasrec-{seed}-{epochs}.json", lambda m=model, s=seed: measure_fusion(case, m, s, epochs, folder)
                )
    return rows


def _kept(path: Path, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows that stand in a file, else those that work makes, which stand there from now on."""
    if not path.exists():
        made = work()
        show(made)
        path.write_text(json.dumps(made))
    return json.loads(path.read_text())


def measure_model(case: Case, model: str, seed: int, epochs: int, folder: Path) -> list[dict[str, Any]]:
    """Test figures of one model."""
    common = {"model": model, "seed": seed}
    if model not in GENERATORS:
        scorers, cost = fit_dense(case, model, seed, folder)
        ranks = {seen: dense_ranks(case, scorers["test"], "test", seen) for seen in (False, True)}
        return [{**common, "beam": 0, "filter_seen": seen, **accuracy(found), **cost} for seen, found in ranks.items()]
    answers, cost = run_generator(case, model, seed, epochs)
    answers.save(folder / f"{model}-{seed}-{epochs}.npz")
    return [
        {
            **common,
            "beam": width,
            "filter_seen": seen,
            **accuracy(ranks_of_found(answers.items["test", width, seen], case.targets["test"])),
            **cost,
        }
        for width in WIDTHS
        for seen in (False, True)
    ]


def measure_fusion(case: Case, model: str, seed: int, epochs: int, folder: Path) -> list[dict[str, Any]]:
    """The fusion with SASRec: kind and weight of the best HR@10 on validation, figures on test."""
    sasrec, _ = fit_dense(case, "sasrec", seed, folder)
    found = Answers.load(folder / f"{model}-{seed}-{epochs}.npz")
    made, settings = [], [(method, weight) for method in ("mixture", "ranks") for weight in WEIGHTS]
    for seen in (False, True):
        tuned = fused_ranks(case, sasrec["validation"], found, "validation", seen, settings)
        method, weight = settings[int(np.argmax([hit_rate(ranks, 10) for ranks in tuned]))]
        (ranks,) = fused_ranks(case, sasrec["test"], found, "test", seen, [(method, weight)])
        chosen = {"method": method, "weight": weight}
        made.append({"model": f"{model}+sasrec", "seed": seed, "beam": max(WIDTHS), "filter_seen": seen, **accuracy(ranks), **chosen})
    return made


def show(rows: Sequence[dict[str, Any]]) -> None:
    """A line a row."""
    for row in rows:
        print("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()), flush=True)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds at the widest beam, of what was run."""
    same = ("sasrec", "tiger", "item_knn", "popularity")
    names = {"fused": "ours+sasrec", "generative": "ours"} | dict(zip(same, same, strict=True))
    found = {}
    for name, model in names.items():
        for suffix, seen in (("", False), ("_filtered", True)):
            values = [
                row["hr10"] for row in rows if row["model"] == model and row["filter_seen"] is seen and row["beam"] in (0, max(WIDTHS))
            ]
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
    parser.add_argument("--models", default="popularity,item_knn,sasrec,tiger,ours", help="in this order")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, help="of the generators")
    parser.add_argument("--tokenizers", action="store_true", help="compare tokenizers and train nothing")
    parser.add_argument("--users", type=int, help="test on so many people instead of all: a partial run, its results are kept apart")
    options = parser.parse_args()
    scale, seeds = (QUICK, [0]) if options.quick else (FULL, [int(seed) for seed in options.seeds.split(",")])
    if options.users:
        scale = replace(scale, most_users=options.users)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.quick else options.workspace
        case = Case.read(prepare(None if options.quick else options.data, folder), scale)
        print(f"{len(case.item_ids):,} items, {len(case.users['test']):,} test users", flush=True)
        if options.tokenizers:
            rows = compare_tokenizers(case, options.data / "peer_semantic_ids.parquet")
            if options.json:
                options.json.write_text(json.dumps({"benchmark": "generative_beauty", "quick": options.quick, "figures": {}, "rows": rows}))
            return
        kept = folder / (f"results-{options.users}" if options.users else "results")
        rows = measure(case, options.models.split(","), seeds, options.epochs or scale.epochs, kept)
    found = figures(rows)
    print("\n".join(f"{name:<32}{value:.4f}" for name, value in found.items()))
    print("HR@10 as others print it: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    if options.json:
        result = {"benchmark": "generative_beauty", "quick": options.quick, "figures": found, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
