"""What a sampled item is worth: a rubric of terms whose values are kept apart (DeepInterestGR eq. 13 and its Table 6, and terms of peers).

The published reward pays a bonus for any item whose interests are labelled positive, so that a policy can earn it without ever hitting;
the gated form pays it only where the item shares the target's leading codes. Both are terms here, beside what they are compared with.

Shapes: N items of the catalogue, U people of history_train, P groups (prompts), G samples of a group, L levels, D width of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.generative.sequences import Sequences
from intently.generative.trie import END, Trie

LabelSource = Literal["llm", "rule", "random", "uniform"]
_CRITERION, _YES = "rldi", "yes"


class Term(StrEnum):
    """One term of a reward; each value lies in [0, 1], of `rank` in [−1, 0]."""

    HIT = "hit"
    """1 where the item is the target."""
    INTEREST = "interest"
    """1 where the item's interests are labelled positive, whatever the target (as published)."""
    GATED = "gated"
    """The same, but only for items that share the target's first `gate_levels` codes."""
    PREFIX = "prefix"
    """Share of the target's codes that the item begins with."""
    COLLABORATIVE = "collaborative"
    """Cosine of item and target among vectors of who takes what, 0 where it is negative."""
    AFFINITY = "affinity"
    """Cosine of the person's vector and the item's, 0 where it is negative, and for what they took in train unless it is the target."""
    SEMANTIC = "semantic"
    """Cosine of item and target among vectors of texts, 0 where it is negative."""
    RANK = "rank"
    """A wrong item costs the more the likelier it was: −1 / log2(1 + place) among the group's wrong items, as shares of 1."""


_ITEM_TABLES = {Term.COLLABORATIVE: "item_vector", Term.AFFINITY: "item_vector", Term.SEMANTIC: "item_embedding"}


class RewardConfig(Config):
    """What is paid for."""

    weights: dict[Term, float] = Field(
        {Term.HIT: 1.0, Term.INTEREST: 0.5}, min_length=1, description="term → weight; hit 1 and interest 0.5 (a) is the published reward"
    )
    gate_levels: int = Field(2, ge=1, description="gated: leading codes of the target that an item must share to earn the bonus")
    labels: LabelSource = Field(
        "rule", description="who labelled interests: llm and rule read interest_verdict; random and uniform are the paper's ablations"
    )
    min_share: float = Field(0.5, gt=0, le=1, description="an item is positive from this share of positive interests on")
    positive_share: float = Field(0.5, ge=0, le=1, description="random: share of the items that is labelled positive")
    seed: int = Field(0, description="random: another seed, other labels")

    @property
    def needs_labels(self) -> bool:
        """Whether a term reads labels."""
        return bool({Term.INTEREST, Term.GATED} & self.weights.keys())


@dataclass(frozen=True)
class Rubric:
    """Scores samples by every term.

    Attributes:
        semantic_ids: [N, L] codes, END behind a shorter one's end.
        config: terms and weights.
        labels: [N] bool, for interest and gated.
        vectors: [N, D] of length 1, for collaborative, affinity and semantic.
        people: [U, D] of length 1, for affinity.
        past: what people took, for affinity.
    """

    semantic_ids: np.ndarray
    config: RewardConfig
    labels: np.ndarray | None
    vectors: Mapping[Term, np.ndarray]
    people: np.ndarray
    past: Sequences

    def score(self, items: np.ndarray, targets: np.ndarray, log_probs: np.ndarray, users: np.ndarray) -> dict[Term, np.ndarray]:
        """Values before weights, [P, G] each, of the terms that have a weight, and of `hit` always.

        Args:
            items: [P, G] rows of the catalogue.
            targets: [P] rows.
            log_probs: [P, G] of the items under the policy.
            users: [P] rows of the people who are asked about.
        """
        terms = {Term.HIT: 0.0, **self.config.weights}
        return {term: self._term(term, items, targets[:, None], log_probs, users).astype(np.float32) for term in terms}

    def total(self, scored: Mapping[Term, np.ndarray]) -> np.ndarray:
        """[P, G] weighted sums."""
        return np.sum([weight * scored[term] for term, weight in self.config.weights.items()], axis=0)

    def _term(self, term: Term, items: np.ndarray, targets: np.ndarray, log_probs: np.ndarray, users: np.ndarray) -> np.ndarray:
        match term:
            case Term.HIT:
                return items == targets
            case Term.INTEREST:
                assert self.labels is not None, "checked when the rubric was read"
                return self.labels[items]
            case Term.GATED:
                assert self.labels is not None, "checked when the rubric was read"
                return self.labels[items] & (self._shared(items, targets) >= np.minimum(self.config.gate_levels, self._lengths(targets)))
            case Term.PREFIX:
                return self._shared(items, targets) / self._lengths(targets)
            case Term.COLLABORATIVE | Term.SEMANTIC:
                vectors = self.vectors[term]
                return np.clip(
                    np.einsum("pgd,pgd->pg", vectors[items], np.broadcast_to(vectors[targets], (*items.shape, vectors.shape[1]))), 0, 1
                )
            case Term.AFFINITY:
                cosines = np.einsum("pd,pgd->pg", self.people[users], self.vectors[term][items])
                taken = np.stack([np.isin(row, self.past.of(user)) for row, user in zip(items, users, strict=True)])
                return np.where(taken & (items != targets), 0, np.clip(cosines, 0, 1))
            case Term.RANK:
                wrong = items != targets
                order = np.where(wrong, -log_probs, np.inf).argsort(axis=1, kind="stable")
                place = np.empty_like(order)
                np.put_along_axis(place, order, np.arange(1, items.shape[1] + 1)[None], axis=1)
                cost = np.where(wrong, 1 / np.log2(1 + place), 0.0)
                return -cost / np.maximum(cost.sum(axis=1, keepdims=True), 1e-9)

    def _shared(self, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[P, G] how many leading codes an item has in common with the target."""
        ours, theirs = self.semantic_ids[items], self.semantic_ids[targets]
        return np.logical_and.accumulate((ours == theirs) & (theirs != END), axis=-1).sum(axis=-1)

    def _lengths(self, targets: np.ndarray) -> np.ndarray:
        return (self.semantic_ids[targets] != END).sum(axis=-1)


def read_rubric(trie: Trie, config: RewardConfig, tables: Mapping[str, pa.Table], past: Sequences) -> Rubric:
    """A rubric from tables.

    Args:
        trie: the catalogue.
        config: terms and weights.
        tables: by artifact, those that stand: interest_verdict (VERDICT), user_vector, item_vector and item_embedding (EMBEDDING).
        past: of history_train.
    Raises:
        ConfigError: a term needs a table that does not stand, or labels of another source.
    """

    def vectors(term: Term, name: str, ids: pa.Array) -> np.ndarray:
        if name not in tables:
            raise ConfigError("rewards.weights", str(term), f"needs {name}, which does not stand in the workspace")
        return _vectors(ids, tables[name])

    items = {term: vectors(term, name, trie.ids) for term, name in _ITEM_TABLES.items() if term in config.weights}
    people = vectors(Term.AFFINITY, "user_vector", past.user_ids) if Term.AFFINITY in config.weights else np.empty((0, 0), np.float32)
    return Rubric(trie.semantic_ids, config, _labels(trie, config, tables) if config.needs_labels else None, items, people, past)


def label_items(verdicts: pa.Table, item_ids: np.ndarray, min_share: float) -> np.ndarray:
    """[N] bool: which items are positive; an item without labelled interests is not.

    Args:
        verdicts: VERDICT rows, those of criterion rldi have the subject `item_id/interest`.
        item_ids: [N] strings.
        min_share: of an item's interests that have to be labelled yes.
    """
    rows = {item: row for row, item in enumerate(item_ids.tolist())}
    counts, good = np.zeros(len(rows)), np.zeros(len(rows))
    told = verdicts.filter(pc.equal(verdicts["criterion"], _CRITERION))
    for subject, label in zip(told["subject"].to_pylist(), told["label"].to_pylist(), strict=True):
        row = _row_of(subject, rows)
        if row is not None:
            counts[row] += 1
            good[row] += label == _YES
    return (counts > 0) & (good >= min_share * counts)


def _row_of(subject: str, rows: Mapping[str, int]) -> int | None:
    """The item of `item_id/interest`; either may hold a slash itself."""
    parts = subject.split("/")
    return next((rows[name] for cut in range(1, len(parts)) if (name := "/".join(parts[:cut])) in rows), None)


def _labels(trie: Trie, config: RewardConfig, tables: Mapping[str, pa.Table]) -> np.ndarray:
    match config.labels:
        case "uniform":
            return np.ones(trie.num_items, bool)
        case "random":
            return np.random.default_rng([config.seed, 31]).random(trie.num_items) < config.positive_share
        case "rule" | "llm":
            if "interest_verdict" not in tables:
                raise ConfigError("rewards.labels", config.labels, "needs interest_verdict, which does not stand; run label_interests")
            told = tables["interest_verdict"]
            judges = set(told.filter(pc.equal(told["criterion"], _CRITERION))["judge"].to_pylist())
            others = {"random", "uniform", *(() if config.labels == "rule" else ("rule",))}
            if not judges or judges & others or (config.labels == "rule" and judges != {"rule"}):
                raise ConfigError("rewards.labels", config.labels, f"interest_verdict was labelled by {sorted(judges) or 'nobody'}")
            return label_items(told, trie.item_ids, config.min_share)


def _vectors(ids: pa.Array, embeddings: pa.Table) -> np.ndarray:
    """[ids, D] of length 1; who has none gets zeros, and earns nothing."""
    place = pc.fill_null(pc.index_in(ids, value_set=embeddings["id"].combine_chunks()), -1).to_numpy(zero_copy_only=False)
    known = np.stack(embeddings["vector"].combine_chunks().to_numpy(zero_copy_only=False)).astype(np.float32)
    found = np.where((place >= 0)[:, None], known[place], 0.0)
    return (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)).astype(np.float32)
