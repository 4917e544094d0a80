"""Where held-out items stand among what a generator finds: item-level, over the whole catalogue, seen items in and out.

Shapes: N targets, k items found for each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from intently.core.errors import ConfigError
from intently.core.workspace import Workspace
from intently.generative.generator import TrainedGenerator
from intently.generative.sequences import Sequences, append_sequences, read_sequences
from intently.metrics.ranking import hit_rate, ndcg


def read_targets(past: Sequences, held_out: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Users of `past` that a held-out item is known of: [N] user rows and [N] item rows."""
    users = pc.fill_null(pc.index_in(held_out.user_ids, value_set=past.user_ids), -1).to_numpy(zero_copy_only=False)
    asked = (users >= 0) & (np.diff(held_out.offsets) > 0)
    return users[asked], held_out.items[held_out.offsets[:-1][asked]]


def ranks_of_found(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[N, k] found rows and [N] targets → [N] place of each target from 0; k where it was not found."""
    hits = items == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), items.shape[1])


def rank_targets(
    generator: TrainedGenerator, past: Sequences, users: np.ndarray, targets: np.ndarray, k: int, filter_seen: bool
) -> np.ndarray:
    """[N] ranks of the targets of some users after their past; k for those that are not among the best k.

    Args:
        generator: asked.
        past: what it may know.
        users: [N] user rows of past.
        targets: [N] item rows.
        k: items asked for, at most the width of the beam.
        filter_seen: whether items of the past may not be found.
    """
    histories = [past.of(user) for user in users]
    items, _ = generator.rank(histories, k, histories if filter_seen else None)
    return ranks_of_found(items, targets)


def metric_rows(
    subject: str, split: str, ranks: np.ndarray, cutoffs: Sequence[int], filter_seen: bool, seed: int, setting: dict[str, float]
) -> list[dict]:
    """METRIC rows of HR and NDCG; none where there are no targets."""
    figures = [(name, k, measure(ranks, k)) for name, measure in (("HR", hit_rate), ("NDCG", ndcg)) for k in cutoffs] if len(ranks) else []
    return [
        {
            "subject": subject,
            "split": split,
            "name": name,
            "k": k,
            "value": value,
            "setting": json.dumps(setting),
            "filter_seen": filter_seen,
            "num_users": len(ranks),
            "seed": seed,
        }
        for name, k, value in figures
    ]


def measure_generator(
    generator: TrainedGenerator, workspace: Workspace, subject: str, cutoffs: Sequence[int], max_users: int, seed: int
) -> list[dict]:
    """METRIC rows of validation after history_train and of test with the validation event behind it; seen items left in and taken out.

    Args:
        generator: as wide as the largest cutoff at least.
        workspace: holds the histories.
        subject: what the rows are called.
        cutoffs: k of HR and NDCG.
        max_users: the first of the table; all where there are fewer.
        seed: goes into the rows.
    Raises:
        ConfigError: no user has a test event.
    """
    item_ids, config = generator.live.current.ids, generator.config.sequences
    past, rows = read_sequences(workspace.artifact("history_train").read(), item_ids, config), []
    for split in ("validation", "test"):
        held_out = read_sequences(workspace.artifact(f"history_{split}").read(), item_ids, config)
        users, targets = (part[:max_users] for part in read_targets(past, held_out))
        if split == "test" and not len(users):
            raise ConfigError("sequences.behaviours", config.behaviours, "no user has a test event of these")
        for filter_seen in (False, True):
            ranks = rank_targets(generator, past, users, targets, max(cutoffs), filter_seen)
            setting = {"width": float(generator.beam.config.width)}
            rows += metric_rows(subject, split, ranks, cutoffs, filter_seen, seed, setting)
        past = append_sequences(past, held_out)
    return rows
