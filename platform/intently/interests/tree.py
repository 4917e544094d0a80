"""Tree search over a user's chunks (HiT-LBM §3.3.2, HTS): of the answers drawn for a chunk the best is kept, and the next goes on from it.

The walk is that of `users.mine_users`: one request a chunk with N samples that share its prefix, every user at its own pace. All that
is added is which sample is kept: two rating models score the candidates of a step together,

    S_final = a·S_c + (1 − a)·S_e

with S_c from what was kept before and the candidate, S_e from the candidate alone. For a user's first chunk there is nothing to
continue, so S_final = S_e there. The highest wins, the first of equals. Without rating models the first sample is kept: a tree to draw
labels from.

Shapes: N candidates, D the encoder's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import INTEREST_NODE
from intently.interests.users import Candidate, Mined, MiningConfig, Picked, mine_users
from intently.interests.vectors import interests_vector
from intently.llm.contract import Engine, Sampling


class TreeConfig(Config):
    """How trees are searched."""

    mining: MiningConfig = Field(
        MiningConfig(sampling=Sampling(temperature=0.8, max_tokens=640, num_samples=10, seed=0)),
        description="how users are read; sampling.num_samples is N, the candidates of a chunk",
    )
    continuity_weight: float = Field(0.5, ge=0, le=1, description="a in S_final = a·S_c + (1 − a)·S_e")

    @model_validator(mode="after")
    def _samples_differ(self) -> TreeConfig:
        sampling = self.mining.sampling
        if sampling.num_samples > 1 and sampling.temperature == 0:
            raise ValueError(f"mining.sampling: {sampling.num_samples} samples at temperature 0 are all alike")
        return self


class Rater(Protocol):
    """Scores candidates; `rating.RatingModels` is one."""

    def rate(self, previous: np.ndarray | None, candidates: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Previous interests [D], or None, and candidates [N, D] → S_c [N], None where nothing was before, and S_e [N]."""


@dataclass(frozen=True)
class Searched:
    """What came of a set of chunks.

    Attributes:
        mined: interests of the kept paths, what was refused, what it cost.
        nodes: INTEREST_NODE rows, by user, chunk and sample.
    """

    mined: Mined
    nodes: pa.Table


def final_scores(continuity: np.ndarray | None, effectiveness: np.ndarray, weight: float) -> np.ndarray:
    """S_final (eq. 7).

    Args:
        continuity: S_c [N], or None where there was nothing to continue.
        effectiveness: S_e [N].
        weight: a.
    """
    return effectiveness if continuity is None else weight * continuity + (1 - weight) * effectiveness


def search_users(
    chunks: pa.Table, items: pa.Table, engine: Engine, encoder: TextEncoder, rater: Rater | None, config: TreeConfig
) -> Searched:
    """Walk every user's chunks, keeping the best of N answers at each.

    Args:
        chunks: CHUNK rows of any users; whole users only.
        items: ITEM rows, all that the chunks name.
        engine: answers the questions.
        encoder: what the rating models were trained on; remembers, best of all.
        rater: scores candidates; None keeps the first of each chunk.
        config: how many candidates, and the weight of continuity.
    """
    tree = _Tree(encoder, rater, config.continuity_weight, engine.name)
    mined = mine_users(chunks, items, engine, encoder, config.mining, tree.pick, pick_encodes=rater is not None)
    nodes = INTEREST_NODE.from_rows(tree.rows).sort_by([(name, "ascending") for name in INTEREST_NODE.key])
    return Searched(mined, nodes)


@dataclass(frozen=True)
class _Kept:
    path: str
    vector: np.ndarray | None


class _Tree:
    """The trees of one call, and how far each user's path has come."""

    def __init__(self, encoder: TextEncoder, rater: Rater | None, weight: float, model: str) -> None:
        self._encoder, self._rater, self._weight, self._model = encoder, rater, weight, model
        self._kept: dict[str, _Kept] = {}
        self.rows: list[dict[str, Any]] = []

    def pick(self, entry: Mapping[str, Any], candidates: Sequence[Candidate]) -> Picked:
        """The candidate with the highest S_final; all of them become rows."""
        parent = self._kept.get(entry["user_id"])
        vectors, scores = self._score(parent, candidates)
        best = max(range(len(candidates)), key=lambda place: scores[place]["s_final"] or 0.0)
        paths = [f"{parent.path}/{each.sample}" if parent else str(each.sample) for each in candidates]
        for place, each in enumerate(candidates):
            self.rows.append(
                {
                    **{name: entry[name] for name in ("user_id", "bucket", "chunk")},
                    "sample": each.sample,
                    "parent": parent.path if parent else None,
                    "path": paths[place],
                    "interests": [draft.interest for draft in each.drafts],
                    "stages": [draft.stage for draft in each.drafts],
                    **scores[place],
                    "chosen": place == best,
                    "model": self._model,
                }
            )
        self._kept[entry["user_id"]] = _Kept(paths[best], None if vectors is None else vectors[best])
        return Picked(candidates[best], {**scores[best], "path": paths[best]})

    def _score(self, parent: _Kept | None, candidates: Sequence[Candidate]) -> tuple[np.ndarray | None, list[dict[str, float | None]]]:
        """[N, D] vectors of the candidates, None without rating models, and their scores."""
        if self._rater is None:
            return None, [{"s_continuity": None, "s_effectiveness": None, "s_final": None} for _ in candidates]
        vectors = np.stack([interests_vector([draft.interest for draft in each.drafts], self._encoder) for each in candidates])
        continuity, effectiveness = self._rater.rate(parent.vector if parent else None, vectors)
        final = final_scores(continuity, effectiveness, self._weight)
        continued = [None] * len(final) if continuity is None else continuity.tolist()
        columns = zip(continued, effectiveness.tolist(), final.tolist(), strict=True)
        return vectors, [{"s_continuity": c, "s_effectiveness": e, "s_final": s} for c, e, s in columns]
