"""Measuring the fusion: one b on validation (a trial of the sweep), then the chosen b and the baselines on test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.core.schema import EMBEDDING
from intently.core.workspace import Workspace
from intently.retrieval.baselines import ItemKNN, popularity, score_by_popularity
from intently.retrieval.catalogue import Catalogue, read_catalogue, vectors_of
from intently.retrieval.evaluate import Ranking, Scorer, Targets, accuracy, rank, read_targets, spread
from intently.retrieval.fusion import FusedVectors, Point, Pooling, pareto_front, pool_tags
from intently.retrieval.interactions import COLUMNS, BehaviourConfig, append_interactions, read_interactions, rows_of
from intently.retrieval.trained import load_towers

Figures = dict[tuple[str, int], float]
SPREAD = ("category_coverage", "tail_share")
"""What diversity is judged by, beside accuracy."""


class FusionConfig(Config):
    """What is swept and how it is measured."""

    betas: tuple[float, ...] = Field(
        tuple(step / 20 for step in range(21)), min_length=1, description="values of b that are tried, 0 (tags only) to 1 (behaviour only)"
    )
    cutoffs: tuple[int, ...] = Field((10, 50), min_length=1, description="k of HR, NDCG and MRR; the first decides")
    pooling: Pooling = Field("mean", description="several tags of a user in one vector: mean, or the maximum of each coordinate")
    concession: float = Field(
        0.01, ge=0, lt=1, description="share of the best NDCG that the chosen b may give up for category coverage and the tail"
    )
    list_length: int = Field(10, ge=1, description="length of the lists that diversity is measured on")
    num_neighbours: int = Field(200, ge=1, description="neighbours of ItemKNN, the baseline")
    seed: int = Field(0, description="noted in the rows; nothing here is drawn at random")


@dataclass(frozen=True)
class SweepData:
    """What every trial reads.

    Attributes:
        items: [I, D] h_v.
        vectors: h_u and h_t by split: validation after history_train, test with the validation event behind it.
        targets: split → held-out items.
        catalogue: for categories.
        popularity: [I] users that took each item in history_train.
        behaviours: which count as taken.
        config: what is measured.
    """

    items: np.ndarray
    vectors: Mapping[str, FusedVectors]
    targets: Mapping[str, Targets]
    catalogue: Catalogue
    popularity: np.ndarray
    behaviours: BehaviourConfig
    config: FusionConfig

    def scorer(self, split: str, beta: float) -> Scorer:
        """Scores of the fused vectors, by one inner product."""
        vectors = self.vectors[split]
        return lambda users: vectors.at(beta, users) @ self.items.T

    def measure(self, scorer: Scorer, split: str) -> list[tuple[Ranking, Figures]]:
        """Accuracy and spread with seen items left in, then taken out."""
        rankings = rank(scorer, self.targets[split], self.config.list_length)
        return [(r, accuracy(r, self.config.cutoffs) | spread(r, self.catalogue, self.popularity)) for r in rankings]


def read_sweep_data(workspace: Workspace, config: FusionConfig) -> SweepData:
    """Vectors, targets and catalogue as they stand.

    Raises:
        SchemaError: nobody has a validation target, so nothing can be chosen; or tables are not of one run.
    """
    towers = load_towers(workspace.artifact("towers"))
    behaviours = towers.config.behaviours
    # The catalogue of training: items that came later have vectors too, but nobody's held-out item is among them.
    item, vectors = workspace.artifact("item").read(), workspace.artifact("item_vector").read().slice(0, len(towers.item_ids))
    if not vectors["id"].combine_chunks().equals(towers.item_ids):
        raise SchemaError("item_vector does not begin with the items of the towers: train the towers anew")
    standing = item.take(pa.array(rows_of(towers.item_ids, item["item_id"].combine_chunks())))
    catalogue = read_catalogue(standing, EMBEDDING.empty(), towers.config.towers.price_bins)
    train, validation, test = (workspace.artifact(f"history_{split}").read(columns=COLUMNS) for split in ("train", "validation", "test"))
    past = read_interactions(train, catalogue.item_ids, behaviours)
    later = append_interactions(past, read_interactions(validation, catalogue.item_ids, behaviours))
    targets = {
        "validation": read_targets("validation", validation, catalogue.item_ids, past, behaviours),
        "test": read_targets("test", test, catalogue.item_ids, later, behaviours),
    }
    if not len(targets["validation"].users):
        raise SchemaError("history_validation: no target of a known user and item, so no weight can be chosen")

    users, tags = (workspace.artifact(f"{kind}_vector").read() for kind in ("user", "tag"))
    if not users["id"].combine_chunks().equals(past.user_ids):
        raise SchemaError("user_vector and history_train hold different users: train the towers anew")
    rows = workspace.artifact("tag").read(columns=["user_id", "tag"])
    owners = rows_of(rows["user_id"], past.user_ids)
    known = owners >= 0
    tag_rows = rows_of(rows["tag"], tags["id"].combine_chunks())[known]
    tag_vectors = vectors_of(tags) if tags.num_rows else np.zeros((0, towers.config.towers.dim), np.float32)
    pooled = pool_tags(tag_vectors, owners[known], tag_rows, past.num_users, config.pooling)
    return SweepData(
        items=vectors_of(vectors),
        vectors={"validation": FusedVectors(vectors_of(users), pooled), "test": FusedVectors(towers.user_vectors(later), pooled)},
        targets=targets,
        catalogue=catalogue,
        popularity=popularity(past, catalogue.num_items, behaviours),
        behaviours=behaviours,
        config=config,
    )


def measure_beta(point: Mapping[str, float], data: SweepData) -> dict[str, float]:
    """One trial: figures of one b on validation, keys as `figure_key` writes them."""
    measured = data.measure(data.scorer("validation", point["beta"]), "validation")
    return {figure_key(name, k, ranking.filter_seen): value for ranking, figures in measured for (name, k), value in figures.items()}


def figure_key(name: str, k: int, filter_seen: bool) -> str:
    """A figure's name in a trial's result."""
    return f"{name}@{k}/{'unseen' if filter_seen else 'all'}"


def points_of(betas: Sequence[float], results: Sequence[Mapping[str, float]], config: FusionConfig) -> list[Point]:
    """What the rule chooses among: NDCG at the first cut-off, coverage and tail, seen items taken out as in serving."""
    keys = figure_key("NDCG", config.cutoffs[0], True), *(figure_key(name, config.list_length, True) for name in SPREAD)
    return [Point(beta, *(result[key] for key in keys)) for beta, result in zip(betas, results, strict=True)]


def front_table(points: Sequence[Point], chosen: Point) -> str:
    """The sweep as CSV: every b by falling accuracy, whether it is on the Pareto front, and which one was chosen."""
    front = pareto_front(points)
    lines = ["beta,ndcg,category_coverage,tail_share,on_front,chosen"]
    for point in sorted(points, key=lambda point: point.aims, reverse=True):
        aims = ",".join(f"{value:.4f}" for value in point.aims)
        lines.append(f"{point.beta:g},{aims},{'yes' if point in front else ''},{'yes' if point == chosen else ''}")
    return "\n".join(lines) + "\n"


def trial_rows(config: FusionConfig, results: Sequence[Mapping[str, float]], num_users: int) -> list[dict]:
    """METRIC rows of every trial."""
    rows = []
    for beta, result in zip(config.betas, results, strict=True):
        for key, value in result.items():
            name, k, shown = re.fullmatch(r"(\w+)@(\d+)/(\w+)", key).groups()
            rows.append(
                {
                    "subject": "towers",
                    "split": "validation",
                    "name": name,
                    "k": int(k),
                    "value": value,
                    "setting": json.dumps({"beta": beta}),
                    "filter_seen": shown == "unseen",
                    "num_users": num_users,
                    "seed": config.seed,
                }
            )
    return rows


def measure_test(data: SweepData, beta: float, num_neighbours: int) -> dict[str, list[tuple[Ranking, Figures]]]:
    """Test figures of the chosen b, of either tower alone, and of the baselines fitted on history_train: subject → both filters."""
    neighbours = ItemKNN(data.targets["validation"].past, data.catalogue.num_items, data.behaviours, num_neighbours)
    scorers = {
        "towers": data.scorer("test", beta),
        "towers_behaviour_only": data.scorer("test", 1.0),
        "towers_tags_only": data.scorer("test", 0.0),
        "popularity": score_by_popularity(data.popularity),
        "item_knn": neighbours.scorer(data.targets["test"].past),
    }
    return {subject: data.measure(scorer, "test") for subject, scorer in scorers.items()}
