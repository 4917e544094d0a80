"""Merging what models said, with vectors small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from intently.interests.ensemble import Drafts, EnsembleConfig, group_by_meaning, item_interests, merge
from intently.llm.encoder import TextEncoder

PLANE = {
    "trail running": (1.0, 0.0),
    "running on trails": (0.9, np.sqrt(1 - 0.81)),
    "hill running": (0.75, np.sqrt(1 - 0.75**2)),
    "city walks": (0.0, 1.0),
    "budget travel": (0.1, -np.sqrt(1 - 0.01)),
    "luxury travel": (0.0, -1.0),
}


class Plane:
    """An encoder that knows a few phrases."""

    name = "plane"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([PLANE[text] for text in texts], np.float32)


def drafts(*rows: tuple[str, str, str, float]) -> Drafts:
    subject, model, phrase, confidence = zip(*rows, strict=True)
    return Drafts(list(subject), list(model), list(phrase), np.array(confidence))


def test_ensemble_merges_by_meaning_and_ranks_by_support_then_confidence() -> None:
    said = drafts(
        ("i", "a", "running on trails", 0.6),
        ("i", "b", "trail running", 0.9),
        ("i", "a", "city walks", 0.95),
        ("i", "c", "city walks", 0.85),
        ("i", "b", "city walks", 0.7),
        ("j", "a", "trail running", 0.9),
    )
    merged = merge(said, Plane(), EnsembleConfig(), 3, "s")
    assert item_interests(said, merged).to_pylist() == [
        {
            "item_id": "i",
            "interest": "city walks",
            "confidence": np.float32((0.95 + 0.85 + 0.7) / 3),
            "support": 3,
            "sources": ["a", "b", "c"],
        },
        {"item_id": "i", "interest": "trail running", "confidence": 0.75, "support": 2, "sources": ["a", "b"]},
    ]
    assert merged.rejects == [{"stage": "s", "row": "j/0", "reason": "found by fewer than 2 models", "detail": "trail running"}]
    assert merged.members.tolist() == [1, 1, 0, 0, 0, -1]


def test_ensemble_group_follows_its_leader_and_not_a_chain() -> None:
    phrases = ["trail running", "running on trails", "hill running"]
    vectors = Plane().encode(phrases)
    # hill running is close to running on trails (.96) but not to the surest, trail running (.75).
    group = group_by_meaning(np.zeros(3, int), vectors, np.array([0.9, 0.8, 0.7]), 0.8)
    assert group.tolist() == [0, 0, 2]
    assert group_by_meaning(np.array([0, 1, 1]), vectors, np.array([0.9, 0.8, 0.7]), 0.8).tolist() == [0, 1, 1]


def test_ensemble_same_phrase_twice_of_one_model_is_one_support() -> None:
    merged = merge(drafts(("i", "a", "trail running", 0.9), ("i", "a", "running on trails", 0.8)), Plane(), EnsembleConfig(), 3, "s")
    assert [reject["reason"] for reject in merged.rejects] == ["found by fewer than 2 models"]


def test_ensemble_weaker_of_two_opposites_goes() -> None:
    said = drafts(
        ("i", "a", "budget travel", 0.9), ("i", "b", "budget travel", 0.9), ("i", "c", "budget travel", 0.9),
        ("i", "a", "luxury travel", 0.9), ("i", "b", "luxury travel", 0.9),
        ("j", "a", "luxury travel", 0.9), ("j", "b", "luxury travel", 0.9),
    )  # fmt: skip
    merged = merge(said, Plane(), EnsembleConfig(same_similarity=1.0), 3, "s")
    assert [(said.subject[row], said.phrase[row]) for row in merged.leader] == [("i", "budget travel"), ("j", "luxury travel")]
    assert [(reject["row"], reject["reason"]) for reject in merged.rejects] == [("i/1", "contradicts another interest of the same")]


def test_ensemble_unsure_and_surplus_interests_are_refused() -> None:
    said = drafts(("i", "a", "trail running", 0.4), ("i", "a", "city walks", 0.9), ("i", "a", "luxury travel", 0.8))
    merged = merge(said, Plane(), EnsembleConfig(max_interests=1), 1, "s")
    assert [said.phrase[row] for row in merged.leader] == ["city walks"]
    assert {(reject["row"], reject["reason"]) for reject in merged.rejects} == {
        ("i/2", "low confidence"),
        ("i/1", "beyond the best supported"),
    }


def test_ensemble_of_nothing_is_nothing() -> None:
    merged = merge(Drafts([], [], [], np.zeros(0)), Plane(), EnsembleConfig(), 2, "s")
    assert not len(merged.leader)
    assert not merged.rejects


def test_ensemble_groups_of_many_subjects_equal_those_of_each_alone(encoder: TextEncoder) -> None:
    generator = np.random.default_rng(0)
    phrases = [f"{a} {b}" for a in ("trail", "road", "city", "night") for b in ("running", "walking", "cycling", "climbing", "photography")]
    vectors = encoder.encode(phrases)[chosen := generator.integers(len(phrases), size=300)]
    subject, confidence = generator.integers(20, size=300), generator.random(300)
    together = group_by_meaning(subject, vectors, confidence, 0.7)
    for one in range(20):
        rows = np.flatnonzero(subject == one)
        leaders: list[int] = []
        for row in rows[np.lexsort((rows, -confidence[rows]))]:
            leader = next((known for known in leaders if vectors[known] @ vectors[row] >= 0.7), row)
            leaders += [row] if leader == row else []
            assert together[row] == leader
    assert len(chosen) == 300
