"""Everything that the report shows, gathered from a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.errors import ConfigError
from intently.core.schema import HISTORY
from intently.core.workspace import Artifact, Workspace
from intently.interests.faithfulness import Faithfulness, asked_chunks, measure_faithfulness
from intently.metrics.diversity import exposure, gini
from intently.retrieval.retriever import TowerRetriever

from report.figures import (
    Compression,
    Score,
    StageLine,
    Sweep,
    count_behaviours,
    history_lengths,
    measure_compression,
    read_scores,
    read_sweeps,
    stage_lines,
)
from report.people import Person, Tables, choose_people, tell

ACCURACY = ("NDCG", "HR")
SPREAD = ("category_coverage", "item_coverage", "gini", "tail_share")


@dataclass(frozen=True)
class Reach:
    """How much of the catalogue the first k recommendations of a set of users show.

    Attributes:
        k: items a user.
        num_users: users.
        num_items: items on offer.
        coverage: share of the catalogue that somebody is shown.
        gini: inequality of how often items are shown, 0 even to 1 one item only.
    """

    k: int
    num_users: int
    num_items: int
    coverage: float
    gini: float


@dataclass(frozen=True)
class Contents:
    """What the report shows.

    Attributes:
        stages: one line an artifact, in the order of the line.
        behaviours: behaviour → how often.
        lengths: [U] behaviours a user.
        compression: of the chunks that the language model reads.
        k: cut-off of rankings and length of the recommendations.
        scores: how well rankings find the kept-back item, on the test split.
        spread: how widely the same rankings spread over catalogue and categories.
        sweeps: curves over the fusion weight.
        beta: the weight that the sweep chose.
        faithfulness: mined against true interests; None where no truth is known.
        reach: of the recommendations.
        people: the persons told in full.
    """

    stages: list[StageLine]
    behaviours: dict[str, int]
    lengths: np.ndarray
    compression: Compression
    k: int
    scores: list[Score]
    spread: list[Score]
    sweeps: list[Sweep]
    beta: float
    faithfulness: Faithfulness | None
    reach: Reach
    people: list[Person]


def gather(
    workspace: Workspace, artifacts: Sequence[str], k: int, user_ids: Sequence[str], num_people: int, num_reach_users: int
) -> Contents:
    """Read a finished line.

    Args:
        workspace: where it stands.
        artifacts: whose manifests are shown, in order.
        k: cut-off of rankings and length of the recommendations.
        user_ids: persons to tell; none means that `num_people` are chosen.
        num_people: how many are chosen.
        num_reach_users: users whose recommendations are counted, at most.
    Raises:
        MissingArtifactError: an input does not stand.
        ConfigError: the retriever does not know a user in `user_ids`.
    """
    retriever = TowerRetriever.load(workspace)
    unknown = [user_id for user_id in user_ids if not retriever.knows(user_id)]
    if unknown:
        raise ConfigError("user_ids", unknown, "no such user among those that the towers were trained on")
    known = sorted(retriever.user_rows)
    interests = workspace.artifact("user_interest").read()
    chosen = list(user_ids) or choose_people(interests, known, num_people)
    histories = {name: _of_users(workspace.artifact(name), chosen) for name in ("history_train", "history_test")}
    others = {field.name for field in fields(Tables)} - {*histories, "user_interest"}
    tables = Tables(**histories, **{name: workspace.artifact(name).read() for name in others}, user_interest=interests)
    history = workspace.artifact("history").read(columns=["behaviours"])
    shown = retriever.retrieve(known[:num_reach_users], k)
    fusion = workspace.artifact("fusion")
    metrics = fusion.read()
    return Contents(
        stages=stage_lines(workspace.artifact(name) for name in artifacts),
        behaviours=count_behaviours(history),
        lengths=history_lengths(history),
        compression=measure_compression(tables.chunk, tables.item),
        k=k,
        scores=read_scores(metrics, ACCURACY, k),
        spread=read_scores(metrics, SPREAD, k),
        sweeps=read_sweeps(metrics),
        beta=fusion.manifest.metrics["beta"],
        faithfulness=_faithfulness(workspace, tables),
        reach=_reach(shown, tables.item, k),
        people=[tell(user_id, tables, retriever.retrieve([user_id], k)) for user_id in chosen],
    )


def _of_users(artifact: Artifact, user_ids: Sequence[str]) -> pa.Table:
    """The rows of some users, one part in memory at a time."""
    wanted = pa.array(user_ids, pa.string())
    kept = [rows.filter(pc.is_in(rows["user_id"], wanted)) for _, rows in artifact.iter_parts()]
    return pa.concat_tables([HISTORY.empty(), *kept])


def _reach(shown: pa.Table, items: pa.Table, k: int) -> Reach:
    rows = pc.index_in(shown["item_id"], items["item_id"].combine_chunks()).to_numpy()
    counts = exposure(rows.reshape(-1, 1), items.num_rows)
    num_users = len(shown["user_id"].unique())
    return Reach(k, num_users, items.num_rows, float((counts > 0).mean()), gini(counts))


def _faithfulness(workspace: Workspace, tables: Tables) -> Faithfulness | None:
    if not tables.true_interest.num_rows:
        return None
    asked = asked_chunks(tables.chunk, tables.user_interest, workspace.artifact("user_interest").rejects())
    return measure_faithfulness(tables.user_interest, asked, tables.true_interest, tables.item)
