"""Reinforcement after fine-tuning on Amazon Beauty: the same generator before it and after it, for every reward of the paper's Table 6.

    PYTHONPATH=platform python benchmarks/grpo_beauty.py [--quick] [--json FILE] [--workspace FOLDER] [--data FOLDER]
        [--generator VERSION] [--rewards published/rule,gated/rule] [--seeds 0,1,2] [--users 22363] [--set grpo.learning_rate=1e-4]

The fine-tuned model is one that generative_beauty.py (`--models ours`) left in the workspace. Leave-last-out, all items ranked by the
constrained search (beam 50, scores of the policy itself), hits of items; before and after are asked about the same people. The policy
learns from targets inside train histories; which round is kept is chosen on validation, nothing on test. Rewards (weights in brackets):
`hit` (1), the binary reward; `prefix` (1); `collaborative` (1), cosine of the towers' item vectors; `semantic` (1), cosine of texts; `rank`
(hit 1, rank 1); `published/<labels>` (hit 1, interest 0.5); `gated/<labels>` (hit 1, gated 0.5 where all codes but the last are the
target's); labels are rule, random or uniform. `affinity` (hit 1, affinity 1) pays what the towers expect of the person, fitted on the same
histories, and `gated+affinity/<labels>` (hit 1, gated 0.5, affinity 4) both. `more_sft` pays nothing: only fine-tuning's own loss acts, on
the same prompts with weight 0.2.

Interests of an item are the keywords that come with the data, written by a language model; the rule labels them (one word is enough). There
is no row for labels of a language model: the shipped student cannot judge interests, and no other model is at hand. Every finished row is
kept in the workspace, and a killed one goes on. --quick takes the simulator and a tiny model, a minute; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generative_world import LEARNED, QUICK_LEARNED, fit_or_restore_towers, prepare
from intently.core.config import Resources
from intently.core.schema import EMBEDDING, ITEM_INTEREST, SEMANTIC_ID, VERDICT
from intently.core.workspace import Workspace, open_stage, version_of
from intently.generative.beam import BeamConfig
from intently.generative.evaluate import ranks_of_found, read_targets
from intently.generative.generator import TrainedGenerator, open_bundle, put_generator
from intently.generative.policy_training import PolicyConfig, choose, train_policy
from intently.generative.quantiser import QuantiserConfig, fit_quantiser
from intently.generative.semantic_ids import assign_semantic_ids
from intently.generative.sequences import append_sequences, read_sequences
from intently.generative.training import GeneratorConfig, read_generator_data, train_generator
from intently.generative.trie import read_trie
from intently.interests.labels import LabelConfig, label_item_interests
from intently.interests.phrases import BrandFinder
from intently.llm.embedding import embedding_rows
from intently.llm.encoder import EncoderConfig, TextEncoder
from intently.metrics.ranking import hit_rate, ndcg
from intently.retrieval.training import TrainingConfig
from intently.runtime.deepspeed import DeepSpeedConfig
from intently.runtime.grpo import BEST
from intently.runtime.sft import MODEL
from intently.runtime.train import TrainConfig, train
from made import put
from transformers import AutoModelForCausalLM

CUTOFFS, WIDTH = (5, 10, 50), 50
MAIN = ("published/rule", "gated/rule", "gated+affinity/rule")
REWARDS: dict[str, dict[str, float]] = {
    "more_sft": {"hit": 0.0},
    "hit": {"hit": 1.0},
    "prefix": {"prefix": 1.0},
    "collaborative": {"collaborative": 1.0},
    "semantic": {"semantic": 1.0},
    "rank": {"hit": 1.0, "rank": 1.0},
    "published": {"hit": 1.0, "interest": 0.5},
    "gated": {"hit": 1.0, "gated": 0.5},
    "affinity": {"hit": 1.0, "affinity": 1.0},
    "gated+affinity": {"hit": 1.0, "gated": 0.5, "affinity": 4.0},
}
LEARNING = {
    "grpo": {
        "num_rounds": 4,
        "rollouts_per_round": 12,
        "prompts": 512,
        "iterations": 1,
        "minibatches": 8,
        "temperature": 0.7,
        "kl": 0.5,
        "learning_rate": 1e-3,
        "warmup_rollouts": 4,
        "schedule": "linear",
        "patience": 4,
    },
    "prompts": {"places": "last"},
    "validation": {"cutoffs": (5, 10, 20, 50), "max_users": 10_000},
}
QUICK = {
    "grpo": {"num_rounds": 2, "rollouts_per_round": 2, "prompts": 8, "learning_rate": 1e-4, "imitation": 0.1},
    "validation": {"cutoffs": (5, 10, 20, 50), "max_users": 100},
}


TINY = {
    "decoder": {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": 16, "feed_forward": 64, "text_tokens": 256},
    "sft": {"num_epochs": 2, "batch_size": 32, "learning_rate": 3e-3},
}
"""The generator of --quick."""
ALONE = TrainConfig(
    deepspeed=DeepSpeedConfig(zero_stage=0), launcher="local", resources=Resources(num_workers=1, cpus=1), checkpoint_every=1
)


@dataclass(frozen=True)
class Trial:
    """Everything that rows are made from.

    Attributes:
        workspace: of all tables.
        data: the Beauty set; None for the simulator.
        generator: version of the fine-tuned one.
        learning: settings of PolicyConfig that all rows share.
        folder: where finished rows are kept.
        histories, targets: of the test users, by catalogue row.
        num_items, depth: of the catalogue's trie.
        towers: settings of the towers whose vectors affinity and the collaborative reward read.
    """

    workspace: Workspace
    data: Path | None
    generator: str
    learning: dict[str, Any]
    folder: Path
    histories: list[np.ndarray]
    targets: np.ndarray
    num_items: int
    depth: int
    towers: TrainingConfig

    def versions(self, rewards: Sequence[str]) -> dict[str, str]:
        """Versions of what the rewards read; tables are made where they do not stand."""
        made = {"generator": self.generator} | {n: self.workspace.artifact(n).version for n in ("history_train", "history_validation")}
        for name in rewards:
            if not self.workspace.latest_version(name):
                match name:
                    case "interest_verdict":
                        put(self.workspace, name, VERDICT, self.verdicts())
                    case "user_vector" | "item_vector":
                        self.put_vectors()
            made[name] = self.workspace.artifact(name).version
        return made

    def verdicts(self) -> pa.Table:
        """The rule's labels of every keyword of every item."""
        items = self.workspace.artifact("item").read()
        rows = [
            {"item_id": item, "interest": said, "confidence": 1.0, "support": 1, "sources": ["keywords"]}
            for item, words in zip(items["item_id"].to_pylist(), keywords(self.data, items), strict=True)
            for said in dict.fromkeys(words)
        ]
        encoder, brands = TextEncoder(EncoderConfig(max_tokens=32)), BrandFinder.of_items(items)
        return label_item_interests(ITEM_INTEREST.from_rows(rows), items, brands, encoder, None, LabelConfig(source="rule", min_words=1))[0]

    def put_vectors(self) -> None:
        """Write the vectors of towers that are fitted on train."""
        kept = Path(self.workspace.path("results"))  # where generative_beauty.py keeps them
        kept.mkdir(exist_ok=True)
        data, towers = fit_or_restore_towers(self.workspace, self.towers, kept)
        representations, items = towers.item_vectors()
        people = towers.user.vectors(data.past, representations)
        for kind, ids, vectors in (("item", data.catalogue.item_ids, items), ("user", data.past.user_ids, people)):
            put(self.workspace, f"{kind}_vector", EMBEDDING, embedding_rows(kind, ids, vectors.numpy(), "towers"))

    def config(self, reward: str, seed: int) -> PolicyConfig:
        """Settings of a row."""
        kind, _, labels = reward.partition("/")
        gate = {"gate_levels": max(1, self.depth - 1)} if "gated" in REWARDS[kind] else {}
        rewards = {"weights": REWARDS[kind]} | ({"labels": labels} if labels else {}) | gate
        seeded = {part: {**self.learning[part], "seed": seed} for part in ("grpo", "prompts")}
        if kind == "more_sft":
            seeded["grpo"]["imitation"] = 0.2
        return PolicyConfig.parse({**self.learning, **seeded, "rewards": rewards})

    def accuracy(self, generator: TrainedGenerator) -> dict[str, float]:
        """HR and NDCG of a model on test, seen items left in and taken out (`_filtered`)."""
        found = {}
        for suffix, seen in (("", None), ("_filtered", self.histories)):
            items, _ = generator.rank(self.histories, WIDTH, seen)
            ranks = ranks_of_found(items, self.targets)
            found |= {f"{name}{k}{suffix}": measure(ranks, k) for name, measure in (("hr", hit_rate), ("ndcg", ndcg)) for k in CUTOFFS}
        return found

    def load(self, folder: Path | None) -> TrainedGenerator:
        """The fine-tuned generator, or the same with other weights."""
        beam = BeamConfig(width=WIDTH, scores="children")
        generator = TrainedGenerator.load(self.workspace, beam, versions={"generator": self.generator})
        if folder is None:
            return generator
        model = AutoModelForCausalLM.from_pretrained(folder)
        return TrainedGenerator(model, generator.vocabulary, generator.live.current, generator.config, beam)

    def sft(self) -> dict[str, Any]:
        """The row of the model before."""
        return {"reward": "sft", "seed": 0, **self.accuracy(self.load(None))}

    def row(self, reward: str, seed: int) -> dict[str, Any]:
        """Train, or go on, and measure what would be shipped and the policy at the end of its best round."""
        config = self.config(reward, seed)
        needed: dict[str, tuple[str, ...]] = {
            "interest": ("interest_verdict",) if config.rewards.labels == "rule" else (),
            "collaborative": ("item_vector",),
            "affinity": ("user_vector", "item_vector"),
            "semantic": ("item_embedding",),
        }
        needed["gated"] = needed["interest"]
        versions = self.versions([table for term in config.rewards.weights for table in needed.get(term, ())])
        arguments = {"workspace": self.workspace, "versions": versions, "config": config}
        name = f"policy/{version_of('policy', None, versions, config.identity())}/training"
        with train(train_policy, arguments, ALONE, self.workspace, name) as result:
            choice = choose(result.history, config.validation)
            best = result.folder / BEST
            found = self.accuracy(self.load(best if best.is_dir() else None))
            curve = [{k: round(v, 5) for k, v in note.items()} for note in result.history]
        told = {"shipped": choice.shipped, "why": choice.why, "round": choice.figures["round"]}
        return {"reward": reward, "seed": seed, **found, **told, "curve": curve}

    def kept(self, label: str, work: Any) -> dict[str, Any]:
        """A row that stands in the folder, else what work makes, which stands there from now on."""
        path = self.folder / f"{label.replace('/', '-')}.json"
        if not path.exists():
            made = work()
            show(made)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made))
        return json.loads(path.read_text())


def keywords(data: Path | None, items: pa.Table) -> list[list[str]]:
    """What a language model said of each item; of the simulator's its attributes."""
    if data is None:
        return items["attributes"].to_pylist()
    rows = pq.read_table(data / "items.parquet", columns=["item_id", "term_ids"]).to_pylist()
    said = {str(row["item_id"]): row["term_ids"] or [] for row in rows}
    return [said[item] for item in items["item_id"].to_pylist()]


def show(row: dict[str, Any]) -> None:
    """One line."""
    told = {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items() if key != "curve"}
    print("  ".join(f"{key} {value}" for key, value in told.items()), flush=True)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Gains over the fine-tuned model of the better main row (by validation), means over its seeds."""
    before = next(row for row in rows if row["reward"] == "sft")
    mains = {name: [row for row in rows if row["reward"] == name] for name in MAIN}
    mains = {name: found for name, found in mains.items() if found}
    if not mains:
        return {}
    validated = {name: np.mean([row["curve"][int(row["round"])]["hr10"] for row in found]) for name, found in mains.items()}
    best = mains[max(validated, key=lambda name: validated[name])]
    return {
        f"hr{k}_gain_over_sft{suffix}": float(np.mean([row[f"hr{k}{suffix}"] for row in best]) / max(before[f"hr{k}{suffix}"], 1e-9) - 1)
        for k in (10, 50)
        for suffix in ("", "_filtered")
    }


def main() -> None:
    """Parse the flags, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a simulated world, a tiny model, a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--workspace", type=Path, default=Path("build/generative_beauty"), help="that of generative_beauty.py")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/amazon_beauty"), help="the Beauty set")
    parser.add_argument("--rewards", help="in this order; without it all, those of the main rows for all seeds")
    parser.add_argument("--seeds", default="0,1,2", help="of the policies of the main rows; the first alone for the others")
    parser.add_argument("--users", type=int, default=10**9, help="test on so many people instead of all: kept apart")
    parser.add_argument("--generator", help="version of the fine-tuned one; without it the latest")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a setting of PolicyConfig: kept apart")
    options = parser.parse_args()
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    labelled = [f"{kind}/{labels}" for kind in ("published", "gated") for labels in ("rule", "random", "uniform")]
    every = [*MAIN, *(name for name in [*REWARDS, *labelled] if name not in (*MAIN, "published", "gated"))]
    rewards = options.rewards.split(",") if options.rewards else list(MAIN) if options.quick else every
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.quick else options.workspace
        data = None if options.quick else options.data
        workspace = prepare(data, folder)
        generator = fine_tune(workspace) if options.quick else options.generator or workspace.artifact("generator").version
        trial = open_trial(workspace, data, generator, overrides(QUICK if options.quick else LEARNING, options.set), options.users)
        print(f"{trial.num_items:,} items, {len(trial.targets):,} test users, generator {generator}; rows in {trial.folder}", flush=True)
        rows = [trial.kept("sft", trial.sft)]
        for reward in rewards:
            for seed in seeds if reward in MAIN else seeds[:1]:
                settings = version_of("row", None, {}, trial.config(reward, seed).identity())
                rows.append(trial.kept(f"{reward}-{seed}-{settings}", lambda r=reward, s=seed: trial.row(r, s)))
    found = figures(rows)
    print("\n".join(f"{name:<32}{value:+.4f}" for name, value in found.items()))
    if options.json:
        result = {"benchmark": "grpo_beauty", "quick": options.quick, "figures": found, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def open_trial(workspace: Workspace, data: Path | None, generator: str, learning: dict[str, Any], users: int) -> Trial:
    """Read the people that are tested on: their train and validation items are the history, as everywhere."""
    bundle = open_bundle(workspace.artifact("generator", generator))
    trie = read_trie(workspace.artifact("semantic_id", bundle.semantic_id).read(), bundle.semantic_id)
    past, later, test = (
        read_sequences(workspace.artifact(f"history_{name}").read(), trie.ids, bundle.config.sequences)
        for name in ("train", "validation", "test")
    )
    past = append_sequences(past, later)
    rows, targets = (part[:users] for part in read_targets(past, test))
    label = version_of("grpo_beauty", None, {"generator": generator, "users": str(len(rows))}, learning)
    return Trial(
        workspace=workspace,
        data=data,
        generator=generator,
        learning=learning,
        folder=Path(workspace.path("grpo", label)),
        histories=[past.of(row) for row in rows],
        targets=targets,
        num_items=trie.num_items,
        depth=trie.depth,
        towers=LEARNED.towers if data else QUICK_LEARNED.towers,
    )


def fine_tune(workspace: Workspace) -> str:
    """A tiny generator for --quick; its version."""
    vectors = workspace.artifact("item_embedding").read()
    config = QuantiserConfig(kind="rq_kmeans", num_codes=32, num_levels=3)
    stacked = np.stack(vectors["vector"].to_numpy(zero_copy_only=False))
    made = assign_semantic_ids(vectors["id"].combine_chunks(), stacked, fit_quantiser(stacked, config))
    versions = {"semantic_id": put(workspace, "semantic_id", SEMANTIC_ID, made.table).version}
    versions |= {name: workspace.artifact(name).version for name in ("item", "history_train")}
    settings = GeneratorConfig.parse(TINY)
    stage = open_stage(workspace, "generator", None, versions, settings)
    arguments = {"workspace": workspace, "versions": versions, "config": settings}
    with train(train_generator, arguments, ALONE, workspace, f"generator/{stage.version}/training") as result:
        put_generator(stage, result.folder / MODEL, read_generator_data(workspace, versions, settings).trie, settings)
    return stage.finish().version


def overrides(learning: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Settings with FIELD=VALUE pairs put over them."""
    flat = [f"{part}.{name}={json.dumps(value)}" for part, values in learning.items() for name, value in values.items()]
    loaded = PolicyConfig.load(None, [*flat, *given]).model_dump(mode="json")
    return {part: loaded[part] for part in ("grpo", "validation", "prompts")}


if __name__ == "__main__":
    main()
