"""Every term of the rubric on cases made by hand, and where labels come from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from intently.core.errors import ConfigError
from intently.core.schema import EMBEDDING, VERDICT
from intently.generative.rewards import RewardConfig, Rubric, Term, label_items, read_rubric
from intently.generative.sequences import Sequences

from tests.generative.worlds import catalogue

IDS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (2, 0, 0), (3,)]
"""Items 0 … 4: one shares two codes with item 0, one shares one, two share none, and one ID is short."""


TAKEN = Sequences(pa.array(["ann", "bob"]), np.array([0, 2, 2]), np.array([0, 1]))
"""Ann took items 0 and 1, Bob none."""


def rubric(
    labels: list[int] | None = None, vectors: dict[Term, np.ndarray] | None = None, people: np.ndarray | None = None, **settings: object
) -> Rubric:
    told = None if labels is None else np.array(labels, bool)
    nobody = np.empty((0, 0), np.float32)
    ids = catalogue(IDS).semantic_ids
    return Rubric(ids, RewardConfig.parse(settings), told, vectors or {}, nobody if people is None else people, TAKEN)


def score(made: Rubric, term: Term, items: list[int], target: int, log_probs: list[float] | None = None, user: int = 0) -> list[float]:
    said = np.array([log_probs or [0.0] * len(items)])
    return made.score(np.array([items]), np.array([target]), said, np.array([user]))[term][0].tolist()


def test_hit_counts_the_target_alone() -> None:
    assert score(rubric(weights={"hit": 1}), Term.HIT, [0, 1, 2, 3, 0], 0) == [1, 0, 0, 0, 1]


def test_interest_as_published_pays_any_positive_item_and_gated_only_those_near_the_target() -> None:
    made = rubric([1, 1, 1, 0, 1], weights={"interest": 0.5, "gated": 0.5}, gate_levels=2)
    items = [0, 1, 2, 3, 4]
    assert score(made, Term.INTEREST, items, 0) == [1, 1, 1, 0, 1]
    assert score(made, Term.GATED, items, 0) == [1, 1, 0, 0, 0]
    assert score(made, Term.GATED, items, 3) == [0, 0, 0, 0, 0]
    # An ID shorter than the gate has to be met whole.
    assert score(made, Term.GATED, items, 4) == [0, 0, 0, 0, 1]


def test_total_is_the_published_reward() -> None:
    made = rubric([1, 1, 0, 0, 1], weights={"hit": 1.0, "interest": 0.5})
    scored = made.score(np.array([[0, 1, 2, 3]]), np.array([0]), np.zeros((1, 4)), np.array([0]))
    np.testing.assert_allclose(made.total(scored), [[1.5, 0.5, 0.0, 0.0]])


def test_prefix_is_the_share_of_the_targets_codes() -> None:
    made = rubric(weights={"prefix": 1})
    assert score(made, Term.PREFIX, [0, 1, 2, 3, 4], 0) == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert score(made, Term.PREFIX, [4, 0], 4) == [1, 0]


@pytest.mark.parametrize("term", [Term.COLLABORATIVE, Term.SEMANTIC])
def test_vectors_pay_the_cosine_and_nothing_for_opposites(term: Term) -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0], [0, 0]], np.float32)
    made = rubric(vectors={term: vectors}, weights={str(term): 1})
    assert score(made, term, [0, 1, 2, 3, 4], 0) == pytest.approx([1, 0.6, 0, 0, 0])


def test_affinity_pays_what_the_person_is_near_to_and_nothing_for_what_they_have() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0], [0, 0]], np.float32)
    made = rubric(vectors={Term.AFFINITY: vectors}, people=np.array([[1, 0], [0, 1]], np.float32), weights={"affinity": 1})
    assert score(made, Term.AFFINITY, [0, 1, 2, 3, 4], 1, user=0) == pytest.approx([0, 0.6, 0, 0, 0])
    assert score(made, Term.AFFINITY, [0, 1, 2, 3, 4], 1, user=1) == pytest.approx([0, 0.8, 1, 0, 0])


def test_rank_wrong_items_cost_the_more_the_likelier_they_were() -> None:
    made = rubric(weights={"rank": 1})
    # Item 0 is the target; of the wrong ones 3 was likeliest, then 1, then 2.
    found = score(made, Term.RANK, [1, 0, 3, 2], 0, [-2.0, -0.1, -1.0, -3.0])
    costs = np.array([1 / np.log2(3), 0, 1, 1 / np.log2(4)])
    assert found == pytest.approx((-costs / costs.sum()).tolist(), abs=1e-6)
    assert score(made, Term.RANK, [0, 0], 0) == [0, 0]


def verdicts(rows: list[tuple[str, str]], judge: str = "rule") -> pa.Table:
    fixed = {"task": "interests", "criterion": "rldi", "reason": "", "judge": judge}
    return VERDICT.from_rows([{"subject": subject, "label": label, **fixed} for subject, label in rows])


def test_label_items_share_of_positive_interests_decides() -> None:
    told = verdicts([("i0/a", "yes"), ("i0/b", "no"), ("i1/a", "yes"), ("i2/a", "no"), ("gone/a", "yes"), ("i3/x/a", "yes")])
    items = np.array(["i0", "i1", "i2", "i3/x", "i4"], object)
    assert label_items(told, items, 0.5).tolist() == [True, True, False, True, False]
    assert label_items(told, items, 0.6).tolist() == [False, True, False, True, False]


def test_read_rubric_label_sources() -> None:
    trie = catalogue(IDS)
    read = {"interest_verdict": verdicts([("i0/a", "yes"), ("i1/a", "no")])}

    def labels(source: str, tables: dict[str, pa.Table], **settings: object) -> list[bool]:
        found = read_rubric(trie, RewardConfig.parse({"labels": source, **settings}), tables, TAKEN).labels
        assert found is not None
        return found.tolist()

    assert labels("uniform", {}) == [True] * 5
    assert labels("rule", read) == [True, False, False, False, False]
    assert labels("random", {}, seed=1) == labels("random", {}, seed=1) != labels("random", {}, seed=2)
    with pytest.raises(ConfigError, match="labelled by \\['rule'\\]"):
        labels("llm", read)
    with pytest.raises(ConfigError, match="labelled by \\['qwen'\\]"):
        labels("rule", {"interest_verdict": verdicts([("i0/a", "yes")], "qwen")})
    assert labels("llm", {"interest_verdict": verdicts([("i0/a", "yes")], "qwen")}) == [True, False, False, False, False]
    with pytest.raises(ConfigError, match="interest_verdict"):
        labels("llm", {})


def test_read_rubric_vectors_by_item_and_missing_tables_refused() -> None:
    trie = catalogue(IDS)
    rows = [{"kind": "item", "id": f"i{n}", "vector": [3.0 * n, 4.0], "model": "m"} for n in (3, 1, 0)]
    config = RewardConfig.parse({"weights": {"collaborative": 1}})
    found = read_rubric(trie, config, {"item_vector": EMBEDDING.from_rows(rows)}, TAKEN).vectors[Term.COLLABORATIVE]
    np.testing.assert_allclose(found, [[0, 1], [0.6, 0.8], [0, 0], [9 / 97**0.5, 4 / 97**0.5], [0, 0]], atol=1e-6)
    with pytest.raises(ConfigError, match="item_vector"):
        read_rubric(trie, config, {}, TAKEN)
    wanted = RewardConfig.parse({"weights": {"affinity": 1}})
    tables = {"item_vector": EMBEDDING.from_rows(rows)}
    with pytest.raises(ConfigError, match="user_vector"):
        read_rubric(trie, wanted, tables, TAKEN)
    people = EMBEDDING.from_rows([{"kind": "user", "id": "bob", "vector": [0.0, 2.0], "model": "m"}])
    np.testing.assert_allclose(read_rubric(trie, wanted, tables | {"user_vector": people}, TAKEN).people, [[0, 0], [0, 1]])
