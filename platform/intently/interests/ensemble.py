"""Several models said what an item (or a person) is about: what they agree on, in one voice (DeepInterestGR, MLIM).

Phrases that mean the same are one interest; it is kept if enough models found it, if they were sure enough of it, and if no better
supported one says the opposite. All subjects are merged at once, with one product of vectors a round.

Shapes: N drafts, D the encoder's dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.core.schema import ITEM_INTEREST, USER_INTEREST
from intently.interests.asking import refuse
from intently.interests.phrases import normalise, words

OPPOSITES = (
    *("indoor outdoor", "minimalist maximalist", "budget luxury", "cheap luxury", "cheap premium", "budget premium"),
    *("beginner professional", "beginner expert", "winter summer", "spring autumn", "casual formal", "modern vintage"),
    *("modern antique", "quiet loud", "portable stationary", "disposable reusable", "natural synthetic", "vegan leather"),
    *("lightweight heavyweight", "warm cold", "slow fast", "solo group", "men women", "mens womens", "boys girls", "kids adult"),
)
"""Pairs of words that cannot both be said of one thing."""


class EnsembleConfig(Config):
    """When models agree, and what is kept."""

    same_similarity: float = Field(0.8, ge=0, le=1, description="cosine from which two phrases are the same interest")
    min_support: int | None = Field(None, ge=1, description="models that must have found it; None is 2, or 1 where one model is asked")
    min_confidence: float = Field(0.5, ge=0, le=1, description="mean confidence of the models that found it")
    opposite_similarity: float = Field(0.4, ge=0, le=1, description="cosine from which phrases with opposite words contradict each other")
    max_interests: int = Field(8, ge=1, description="interests that a subject keeps, the best supported ones")


@dataclass(frozen=True)
class Drafts:
    """What the models said, N rows.

    Attributes:
        subject: [N] of whom or what.
        model: [N] who said it.
        phrase: [N] what.
        confidence: [N] 0 to 1.
    """

    subject: list[str]
    model: list[str]
    phrase: list[str]
    confidence: np.ndarray


@dataclass(frozen=True)
class Merged:
    """Interests that are kept, G rows, by subject, support and confidence.

    Attributes:
        leader: [G] the draft whose words stand for the interest.
        support: [G] models that found it.
        confidence: [G] mean over these models.
        members: [N] the row of the interest that a draft went into; −1 for none.
        rejects: REJECT rows of what was not kept.
    """

    leader: np.ndarray
    support: np.ndarray
    confidence: np.ndarray
    members: np.ndarray
    rejects: list[dict[str, str]]


def merge(drafts: Drafts, encoder: TextEncoder, config: EnsembleConfig, num_models: int, stage: str) -> Merged:
    """Merge by meaning, count who found what, keep what holds.

    Args:
        drafts: what the models said.
        encoder: says which phrases mean the same.
        config: what is kept.
        num_models: models that were asked.
        stage: Reject.stage.
    """
    if not drafts.phrase:
        return Merged(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), [])
    phrases, phrase = np.unique(drafts.phrase, return_inverse=True)
    vectors = encoder.encode(phrases.tolist())[phrase]
    _, subject = np.unique(drafts.subject, return_inverse=True)
    group = group_by_meaning(subject, vectors, drafts.confidence, config.same_similarity)
    leaders, index = np.unique(group, return_inverse=True)
    support, confidence = _agreement(index, drafts)
    needed = config.min_support if config.min_support is not None else min(2, num_models)
    order = np.lexsort((np.array(drafts.phrase)[leaders], -confidence, -support, subject[leaders]))
    opposed = _contradicted(leaders[order], subject, vectors, drafts.phrase, support[order], confidence[order], config.opposite_similarity)
    place = _place_within(subject[leaders[order]])
    reason = np.select(
        [support[order] < needed, confidence[order] < config.min_confidence, opposed],
        [f"found by fewer than {needed} models", "low confidence", "contradicts another interest of the same"],
        default="",
    )
    kept = order[reason == ""]
    within = _place_within(subject[leaders[kept]]) < config.max_interests
    rejects = [
        refuse(stage, f"{drafts.subject[leaders[g]]}/{place[i]}", str(reason[i]), drafts.phrase[leaders[g]])
        for i, g in enumerate(order)
        if reason[i]
    ]
    place_of = dict(zip(order.tolist(), place.tolist(), strict=True))
    rejects += [
        refuse(stage, f"{drafts.subject[leaders[g]]}/{place_of[g]}", "beyond the best supported", drafts.phrase[leaders[g]])
        for g in kept[~within].tolist()
    ]
    kept = kept[within]
    row_of = np.full(len(leaders), -1)
    row_of[kept] = np.arange(len(kept))
    return Merged(leaders[kept], support[kept], confidence[kept], row_of[index], rejects)


def group_by_meaning(subject: np.ndarray, vectors: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy by confidence: of what is left of each subject, the surest draft leads, and all that mean the same follow it.

    Unlike connected components, nothing joins a group through a chain of others.

    Args:
        subject: [N] codes from 0.
        vectors: [N, D] unit rows.
        confidence: [N]; ties go to the earlier draft.
        threshold: cosine from which a draft follows.
    Returns:
        [N] the draft that leads each draft's group.
    """
    rank = np.empty(len(subject), np.int64)
    rank[np.lexsort((np.arange(len(subject)), -confidence))] = np.arange(len(subject))
    by_rank = np.argsort(rank)
    group = np.full(len(subject), -1)
    while (left := np.flatnonzero(group < 0)).size:
        first = np.full(subject.max() + 1, len(subject))
        np.minimum.at(first, subject[left], rank[left])
        leader = by_rank[first[subject[left]]]
        cosine = np.einsum("nd,nd->n", vectors[left], vectors[leader])
        follows = (cosine >= threshold - 1e-5) | (left == leader)
        group[left[follows]] = leader[follows]
    return group


def item_interests(drafts: Drafts, merged: Merged) -> pa.Table:
    """Merged interests of items → ITEM_INTEREST rows, each item's best supported first."""
    sources: list[set[str]] = [set() for _ in merged.leader]
    for row, model in zip(merged.members.tolist(), drafts.model, strict=True):
        if row >= 0:
            sources[row].add(model)
    return ITEM_INTEREST.from_rows(
        [
            {
                "item_id": drafts.subject[leader],
                "interest": drafts.phrase[leader],
                "confidence": confidence,
                "support": support,
                "sources": sorted(found),
            }
            for leader, support, confidence, found in zip(
                merged.leader.tolist(), merged.support.tolist(), merged.confidence.tolist(), sources, strict=True
            )
        ]
    )


def merge_users(
    mined: Sequence[pa.Table], encoder: TextEncoder, config: EnsembleConfig, stage: str
) -> tuple[pa.Table, list[dict[str, str]]]:
    """What several models said of the same chunks → what they agree on: USER_INTEREST rows, and REJECT rows of the rest.

    A model's first interest counts as sure (1), its last as half as sure, because models name what they see best first. The words, stage,
    reason and shift are the leader's; evidence is what any of them brought; `model` names all that found it.

    Args:
        mined: USER_INTEREST rows of each model.
        encoder: says which phrases mean the same.
        config: what is kept.
        stage: Reject.stage.
    """
    rows = [row for table in mined for row in table.to_pylist()]
    longest: dict[tuple[str, str], int] = {}
    keys = [(f"{row['user_id']}/{row['chunk']}", row["model"]) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        longest[key] = max(longest.get(key, 0), row["rank"])
    confidence = np.array([1 - row["rank"] / max(1, longest[key]) / 2 for key, row in zip(keys, rows, strict=True)])
    phrases = [normalise(row["interest"]) for row in rows]
    drafts = Drafts([subject for subject, _ in keys], [model for _, model in keys], phrases, confidence)
    merged = merge(drafts, encoder, config, len(mined), stage)
    members: list[list[int]] = [[] for _ in merged.leader]
    for draft, row in enumerate(merged.members.tolist()):
        if row >= 0:
            members[row].append(draft)
    place = _place_within(np.array([drafts.subject[leader] for leader in merged.leader])) if len(members) else []
    kept = []
    for leader, rank, found in zip(merged.leader.tolist(), list(place), members, strict=True):
        evidence = list(dict.fromkeys(item for draft in found for item in rows[draft]["evidence"]))
        model = " + ".join(sorted({drafts.model[draft] for draft in found}))
        kept.append(rows[leader] | {"rank": int(rank), "evidence": evidence, "model": model})
    return USER_INTEREST.from_rows(kept).sort_by([(name, "ascending") for name in USER_INTEREST.key]), merged.rejects


def _agreement(index: np.ndarray, drafts: Drafts) -> tuple[np.ndarray, np.ndarray]:
    """[N] group of each draft → for each group how many models are in it, and the mean of their highest confidences."""
    models, model = np.unique(drafts.model, return_inverse=True)
    best = np.full((index.max() + 1, len(models)), -1.0)
    np.maximum.at(best, (index, model), drafts.confidence)
    found = best >= 0
    support = found.sum(axis=1)
    return support, np.where(found, best, 0.0).sum(axis=1) / support


def _contradicted(
    leaders: np.ndarray,
    subject: np.ndarray,
    vectors: np.ndarray,
    phrase: list[str],
    support: np.ndarray,
    confidence: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """[G] leaders, by subject and worth → whether one of the same subject says the opposite and is worth no less."""
    vocabulary = {word: column for column, word in enumerate(sorted({w for pair in OPPOSITES for w in pair.split()}))}
    says = np.zeros((len(leaders), len(vocabulary)), np.int8)
    for row, leader in enumerate(leaders.tolist()):
        says[row, [vocabulary[word] for word in words(phrase[leader]) if word in vocabulary]] = 1
    denies = np.zeros_like(says)
    for first, second in (pair.split() for pair in OPPOSITES):
        denies[:, vocabulary[first]] |= says[:, vocabulary[second]]
        denies[:, vocabulary[second]] |= says[:, vocabulary[first]]
    opposed = np.zeros(len(leaders), bool)
    loaded = np.flatnonzero(says.any(axis=1))  # the few phrases with such a word at all
    if not loaded.size:
        return opposed
    same = subject[leaders[loaded]][:, None] == subject[leaders[loaded]][None]
    against = same & ((says[loaded] @ denies[loaded].T) > 0) & (vectors[leaders[loaded]] @ vectors[leaders[loaded]].T >= threshold)
    worth = np.stack([support[loaded], confidence[loaded]], axis=1)
    less = (worth[:, None, 0] < worth[None, :, 0]) | ((worth[:, None, 0] == worth[None, :, 0]) & (worth[:, None, 1] <= worth[None, :, 1]))
    opposed[loaded] = (against & less).any(axis=1)
    return opposed


def _place_within(subject: np.ndarray) -> np.ndarray:
    """[G] subjects, equal ones together → 0, 1, 2 … within each."""
    starts = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]]) if len(subject) else np.zeros(0, np.int64)
    return np.arange(len(subject)) - np.repeat(starts, np.diff(np.r_[starts, len(subject)]))
