"""SASRec: what it looks at, its loss, and that it learns an order."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from intently.retrieval.evaluate import Scorer, rank, read_targets
from intently.retrieval.interactions import BehaviourConfig, Interactions, read_interactions
from intently.retrieval.sasrec import SASRec, SASRecConfig, Sequences, train_sasrec

from tests.retrieval.world import NUM_USERS, history, items, user, walk

CONFIG = BehaviourConfig()
PURCHASE = CONFIG.history.index("purchase")
SMALL = SASRecConfig(dim=8, length=3, dropout=0.0, num_negatives=4, batch_size=2)


def bought(*lives: list[int]) -> Interactions:
    """Purchases of a few users."""
    offsets = np.concatenate([[0], np.cumsum([len(life) for life in lives])]).astype(np.int64)
    rows = np.array([item for life in lives for item in life], np.int64)
    return Interactions(pa.array([str(n) for n in range(len(lives))]), offsets, rows, np.full(len(rows), PURCHASE))


def test_sequences_pieces_ask_for_every_item_but_the_first_once() -> None:
    past = bought([10, 11, 12, 13, 14, 15, 16, 17], [20, 21], [30], [])
    sequences = Sequences(past, CONFIG, CONFIG.taken, 3)
    starts, ends = sequences.pieces()
    pieces = [sequences.items[start:end].tolist() for start, end in zip(starts, ends, strict=True)]
    assert pieces == [[14, 15, 16, 17], [11, 12, 13, 14], [10, 11], [20, 21]]
    batches = list(sequences.batches(2, np.random.default_rng(0)))
    found = sorted(row[k].tolist() for items, known in batches for row, k in zip(items, known, strict=True))
    assert found == sorted(pieces)


def test_sequences_latest_are_the_last_items_a_repeated_one_once() -> None:
    rows, known = Sequences(bought([1, 2, 1, 3, 4], [5], []), CONFIG, CONFIG.taken, 3).latest(np.array([0, 1, 2]))
    assert rows.tolist() == [[2, 3, 4], [5, 0, 0], [0, 0, 0]]
    assert known.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_sasrec_places_do_not_see_what_comes_after() -> None:
    torch.manual_seed(0)
    model = SASRec(9, SMALL).eval()
    short, long = model(torch.tensor([[1, 2]])), model(torch.tensor([[1, 2, 7]]))
    assert torch.allclose(short[0], long[0, :2], atol=1e-6)
    assert not torch.allclose(model(torch.tensor([[2, 1]]))[0, 1], short[0, 1])


def test_sasrec_loss_is_softmax_among_positive_and_other_negatives() -> None:
    torch.manual_seed(1)
    model = SASRec(9, SMALL).eval()
    items, negatives = torch.tensor([[1, 2, 0]]), torch.tensor([[2, 5, 5]])
    loss = model.loss(items, torch.tensor([[True, True, False]]), negatives)
    # Only item 2 is asked for; drawn as a negative it does not compete with itself, 5 competes twice.
    scores = (model(items)[0, 0] @ model.items.weight.T).tolist()
    expected = -scores[2] + math.log(math.exp(scores[2]) + 2 * math.exp(scores[5]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_sasrec_loss_each_group_of_examples_has_its_own_negatives() -> None:
    torch.manual_seed(1)
    model = SASRec(9, SMALL).eval()
    items, known = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    loss = model.loss(items, known, torch.tensor([[6, 7], [8, 8]]))
    # Three examples in two groups: (1 → 2) and (1, 2 → 3) share the first, (4 → 5) has the second to itself.
    scores = model(items[:, :-1]) @ model.items.weight.T
    asked = [(scores[0, 0], 2, (6, 7)), (scores[0, 1], 3, (6, 7)), (scores[1, 0], 5, (8, 8))]
    expected = [torch.logsumexp(own[[target, *others]], dim=0) - own[target] for own, target, others in asked]
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_train_sasrec_learns_the_next_step_and_stops_early() -> None:
    item_ids = items()["item_id"].combine_chunks()
    past = read_interactions(history({user(n): walk(n, 0, 4) for n in range(NUM_USERS)}), item_ids, CONFIG)
    targets = read_targets("validation", history({user(n): walk(n, 4, 5) for n in range(NUM_USERS)}), item_ids, past, CONFIG)
    looks: list[float] = []

    def validate(scorer: Scorer) -> float:
        looks.append(float((rank(scorer, targets, 1)[0].ranks == 0).mean()))
        return looks[-1]

    config = SASRecConfig(dim=16, length=3, dropout=0.0, num_negatives=36, batch_size=16, learning_rate=0.02, num_epochs=80, patience=5)
    model = train_sasrec(past, 36, CONFIG, config, validate)
    assert max(looks) > 0.9
    assert len(looks) < 80
    # The weights are those of the best look.
    assert (rank(model.scorer(past, CONFIG, CONFIG.taken), targets, 1)[0].ranks == 0).mean() == max(looks)
