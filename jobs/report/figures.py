"""From the tables of a finished line to the figures that the report shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.schema import Behaviour
from intently.core.workspace import Artifact
from intently.data.tokens import TokenCounter


@dataclass(frozen=True)
class StageLine:
    """One artifact: how much it holds, what it refused and why, and how long it took.

    Attributes:
        name: artifact.
        version: its version.
        rows: rows of all parts; 0 for files.
        rejects: rows that were refused.
        reasons: (reason, how many), the most frequent first.
        seconds: from the start of the run that finished it to its manifest.
        metrics: what its job measured, figures of single epochs left out.
        notes: what its job noted.
    """

    name: str
    version: str
    rows: int
    rejects: int
    reasons: tuple[tuple[str, int], ...]
    seconds: float
    metrics: Mapping[str, float]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Score:
    """One figure of one ranking.

    Attributes:
        subject: towers, popularity, …
        setting: what was varied, as text; empty where nothing was.
        name: HR, NDCG, …
        k: cut-off.
        value: mean over seeds.
        filter_seen: whether items of the history were taken out of the ranking.
        num_users: users that it is a mean over.
    """

    subject: str
    setting: str
    name: str
    k: int
    value: float
    filter_seen: bool
    num_users: int

    @property
    def label(self) -> str:
        """Subject, and the setting where there is one."""
        return f"{self.subject} {self.setting}".strip().replace("_", " ")


@dataclass(frozen=True)
class Compression:
    """What chunks save a language model.

    Attributes:
        tokens: [C] tokens of each chunk's text, by the tokenizer that the chunks were cut with.
        num_events: events in all chunks.
        compressed: words and signs of all chunks' texts.
        written_out: words and signs of the same events, one line each: time, behaviour, full title.
    """

    tokens: np.ndarray
    num_events: int
    compressed: int
    written_out: int

    @property
    def ratio(self) -> float:
        """How many times fewer words and signs the chunks need; 0 without chunks."""
        return self.written_out / self.compressed if self.compressed else 0.0


@dataclass(frozen=True)
class Sweep:
    """A curve over the fusion weight.

    Attributes:
        name: NDCG, category_coverage, …
        k: cut-off.
        split: where it was measured.
        filter_seen: whether items of the history were taken out of the ranking.
        betas: [B] weights, ascending.
        values: [B] figures.
    """

    name: str
    k: int
    split: str
    filter_seen: bool
    betas: np.ndarray
    values: np.ndarray


def stage_lines(artifacts: Iterable[Artifact]) -> list[StageLine]:
    """What the manifests say, in the given order."""
    lines = []
    for artifact in artifacts:
        manifest = artifact.manifest
        lines.append(
            StageLine(
                artifact.name,
                artifact.version,
                manifest.rows,
                manifest.rejects,
                tuple(sorted(manifest.reject_reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
                (manifest.ended - manifest.started).total_seconds(),
                {name: value for name, value in manifest.metrics.items() if "_epoch_" not in name},
                manifest.notes,
            )
        )
    return lines


def count_behaviours(history: pa.Table) -> dict[str, int]:
    """Behaviour → how often, from the weakest signal to the strongest, those that occur."""
    counted = pc.value_counts(pc.list_flatten(history["behaviours"]))
    counts = dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    return {behaviour.value: counts[behaviour.value] for behaviour in Behaviour if behaviour.value in counts}


def history_lengths(history: pa.Table) -> np.ndarray:
    """[U] behaviours of each user."""
    return pc.list_value_length(history["behaviours"]).to_numpy()


def measure_compression(chunks: pa.Table, items: pa.Table) -> Compression:
    """The chunks' texts against their events written out line by line.

    Args:
        chunks: CHUNK rows.
        items: ITEM rows.
    """
    counter = TokenCounter(None)
    titles = counter.count(items["title"].combine_chunks())
    rows = pc.index_in(pc.list_flatten(chunks["item_ids"]), items["item_id"].combine_chunks())
    known = rows.drop_null().to_numpy()
    stamp = int(counter.count(["2025-03-04 12:11 (purchase)"])[0])
    compressed = int(counter.count(chunks["text"].combine_chunks()).sum())
    return Compression(chunks["num_tokens"].to_numpy(), len(rows), compressed, int(titles[known].sum()) + stamp * len(rows))


def read_scores(metrics: pa.Table, names: Iterable[str], k: int, split: str = "test") -> list[Score]:
    """The figures at one cut-off, seeds averaged.

    Args:
        metrics: METRIC rows.
        names: which figures.
        k: cut-off.
        split: validation or test.
    Returns:
        Scores, best first by the first name with seen items filtered.
    """
    names = list(names)
    wanted = pc.and_(pc.equal(metrics["k"], k), pc.equal(metrics["split"], split))
    rows = metrics.filter(pc.and_(wanted, pc.is_in(metrics["name"], pa.array(names))))
    keys = ["subject", "setting", "name", "k", "filter_seen"]
    means = rows.group_by(keys).aggregate([("value", "mean"), ("num_users", "max")])
    scores = [
        Score(row["subject"], _describe(row["setting"]), row["name"], row["k"], row["value_mean"], row["filter_seen"], row["num_users_max"])
        for row in means.to_pylist()
    ]
    leading = {(s.subject, s.setting): s.value for s in scores if s.name == names[0] and s.filter_seen} if names else {}
    return sorted(scores, key=lambda s: (-leading.get((s.subject, s.setting), -1.0), s.subject, s.setting, s.name, not s.filter_seen))


def read_sweeps(metrics: pa.Table) -> list[Sweep]:
    """The curves over beta: one for each (name, k, split, filter_seen) of the METRIC rows that vary it; seeds averaged."""
    betas = pa.array([json.loads(setting).get("beta") for setting in metrics["setting"].to_pylist()], pa.float64())
    keys = ["name", "k", "split", "filter_seen"]
    rows = metrics.append_column("beta", betas).filter(pc.is_valid(betas))
    means = rows.group_by([*keys, "beta"]).aggregate([("value", "mean")])
    means = means.sort_by([(key, "ascending") for key in (*keys, "beta")])
    curves: dict[tuple[str, int, str, bool], list[tuple[float, float]]] = {}
    for row in means.to_pylist():
        curves.setdefault(tuple(row[key] for key in keys), []).append((row["beta"], row["value_mean"]))
    return [Sweep(*key, *np.array(points).T) for key, points in curves.items() if len(points) > 1]


def seconds_in_words(seconds: float) -> str:
    """92.4 → '1 min 32 s'."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60} s"


def _describe(setting: str) -> str:
    values = json.loads(setting)
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items())
