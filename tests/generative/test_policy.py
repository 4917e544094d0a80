"""The constrained policy against brute force: log-probabilities, entropies, gradients, and what is drawn from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.generative.beam import BeamConfig, ConstrainedBeam
from intently.generative.policy import head_of, imitation_loss, read_items, score_completions
from intently.generative.rollout import draw_groups, numbers_of
from intently.generative.trie import END, Trie
from scipy.stats import chisquare
from transformers import PreTrainedModel

from tests.generative.worlds import TOKENS, catalogue, random_ids, random_prompts, small_model

TEMPERATURE = 0.7


def reference(model: PreTrainedModel, prompt: torch.Tensor, trie: Trie, item: int, temperature: float) -> tuple[list[float], list[float]]:
    """Log-probabilities and entropies of an item's codes, one forward pass of plain transformers a code, children found in the IDs."""
    codes = [int(code) for code in trie.semantic_ids[item] if code != END]
    log_probs, entropies = [], []
    for level, code in enumerate(codes):
        written = torch.tensor([TOKENS.first[at] + earlier for at, earlier in enumerate(codes[:level])], dtype=torch.long)
        logits = model(input_ids=torch.cat([prompt, written])[None]).logits[0, -1] / temperature
        below = sorted({int(row[level]) for row in trie.semantic_ids if row[level] != END and list(row[:level]) == codes[:level]})
        chances = torch.stack([logits[TOKENS.first[level] + child] for child in below]).log_softmax(dim=0)
        log_probs.append(float(chances[below.index(code)]))
        entropies.append(float(-(chances.exp() * chances).sum()))
    return log_probs, entropies


def completions_of(trie: Trie, items: list[int]) -> torch.Tensor:
    """[B, L] tokens, 0 behind a shorter one."""
    rows = trie.semantic_ids[items]
    return torch.from_numpy(np.where(rows == END, 0, TOKENS.encode(rows)).astype(np.int64))


def left_padded(prompts: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [prompt[:length] for prompt, length in zip(prompts, lengths.tolist(), strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return padded, mask


@pytest.mark.parametrize("mixed", [False, True], ids=["same length", "lengths differ"])
def test_score_completions_prompts_shared_and_shuffled_equal_one_pass_a_code(mixed: bool) -> None:
    model, trie = small_model(), catalogue(random_ids(1, 40, mixed))
    prompts, lengths = random_prompts(2, 3)
    owner = torch.tensor([2, 0, 1, 0, 2, 0])  # a minibatch has samples of a prompt in any order, and not all of them
    items = np.random.default_rng(3).integers(trie.num_items, size=len(owner)).tolist()
    rows, mask = left_padded(prompts[owner], lengths[owner])
    with torch.no_grad():
        found = score_completions(model, head_of(model), rows, mask, completions_of(trie, items), trie, TOKENS, TEMPERATURE)
        for place, item in enumerate(items):
            log_probs, entropies = reference(model, prompts[owner[place], : lengths[owner[place]]], trie, item, TEMPERATURE)
            rest = [0.0] * (trie.depth - len(log_probs))
            np.testing.assert_allclose(found.log_probs[place].numpy(), log_probs + rest, atol=2e-5)
            np.testing.assert_allclose(found.entropies[place].numpy(), entropies + rest, atol=2e-5)


def test_score_completions_short_prompts_share_rows_and_see_nothing_of_each_other() -> None:
    class Told(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            shapes.append(tuple(inputs["input_ids"].shape))
            return model(**inputs)

    model, trie = small_model(), catalogue(random_ids(1, 40, mixed=False))
    prompts = [torch.arange(20, 20 + length) for length in (12, 1, 2, 3, 4, 5)]
    items, shapes = list(range(len(prompts))), []
    rows = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    with torch.no_grad():
        found = score_completions(Told(), head_of(model), rows, mask, completions_of(trie, items), trie, TOKENS, TEMPERATURE)
        for place, item in enumerate(items):
            log_probs, _ = reference(model, prompts[place], trie, item, TEMPERATURE)
            np.testing.assert_allclose(found.log_probs[place].numpy(), log_probs, atol=2e-5)
    # 12 tokens and two codes fill a row; 7 + 6 and 5 + 4 + 3 are the others'.
    assert shapes == [(3, 14)]


def test_score_completions_probabilities_of_all_items_add_up_to_one() -> None:
    model, trie = small_model(), catalogue(random_ids(1, 40, mixed=True))
    prompt = torch.arange(20, 26).expand(trie.num_items, -1)
    with torch.no_grad():
        every = completions_of(trie, list(range(trie.num_items)))
        found = score_completions(model, head_of(model), prompt, torch.ones_like(prompt), every, trie, TOKENS, TEMPERATURE)
    assert found.log_probs.sum(dim=1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_score_completions_gradient_equals_that_of_separate_sequences() -> None:
    trie = catalogue([(0, 1, 2), (0, 1, 3), (0, 2, 0), (3, 4, 5), (3, 4, 1)])
    prompts, completions = torch.arange(20, 26).expand(4, -1), completions_of(trie, [0, 2, 4, 0])
    gradients = []
    for together in (True, False):
        model = small_model()
        batches = [slice(0, 4)] if together else [slice(n, n + 1) for n in range(4)]
        for batch in batches:
            mask = torch.ones_like(prompts[batch])
            score_completions(model, head_of(model), prompts[batch], mask, completions[batch], trie, TOKENS, 1.0).log_probs.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None and torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_imitation_loss_equals_cross_entropy_of_each_history() -> None:
    model, trie = small_model(), catalogue(random_ids(1, 40, mixed=True))
    prompts, lengths = random_prompts(5, 3)
    owner, items = torch.tensor([0, 1, 1, 2]), [3, 7, 7, 11]  # two samples of one prompt count once
    rows, mask = left_padded(prompts[owner], lengths[owner])
    with torch.no_grad():
        found = imitation_loss(model, rows, mask, completions_of(trie, items))
        losses = []
        for place in (0, 1, 3):
            target = completions_of(trie, [items[place]])[0]
            row = torch.cat([prompts[owner[place], : lengths[owner[place]]], target[target > 0]])
            losses.append(torch.nn.functional.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="none"))
    assert found.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-4)


def test_draw_groups_many_samples_have_the_policys_distribution() -> None:
    model, trie = small_model(), catalogue([(0,), (1, 0), (1, 2, 1), (1, 2, 4), (3, 3, 0), (3, 5, 5), (5, 1, 1)])
    prompts, lengths = random_prompts(4, 2)
    width = 3000
    numbers = torch.from_numpy(numbers_of(1, 0, 0, 2 * width, trie.depth).reshape(2, width, trie.depth))
    drawn = draw_groups(ConstrainedBeam(model, TOKENS, BeamConfig()), prompts, lengths, trie, numbers, TEMPERATURE)
    with torch.no_grad():
        for row in range(2):
            told = [reference(model, prompts[row, : lengths[row]], trie, item, TEMPERATURE)[0] for item in range(trie.num_items)]
            expected = np.exp([sum(log_probs) for log_probs in told])
            counts = np.bincount(drawn.items[row].numpy(), minlength=trie.num_items)
            assert chisquare(counts, expected / expected.sum() * width).pvalue > 0.01
            for item in np.flatnonzero(counts):
                first = int((drawn.items[row] == item).int().argmax())
                said = drawn.log_probs[row, first].numpy()
                np.testing.assert_allclose(said, told[item] + [0.0] * (trie.depth - len(told[item])), atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), mixed=st.booleans())
def test_draw_groups_any_catalogue_and_numbers_give_items_that_exist(seed: int, mixed: bool) -> None:
    trie = catalogue(random_ids(seed, 25, mixed))
    prompts, lengths = random_prompts(seed, 2)
    numbers = torch.rand(2, 6, trie.depth, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    numbers[0, 0], numbers[0, 1] = 0.0, 1 - 1e-16  # the ends of the interval
    drawn = draw_groups(ConstrainedBeam(small_model(seed % 3), TOKENS, BeamConfig()), prompts, lengths, trie, numbers, 0.5)
    items = drawn.items.flatten().tolist()
    assert all(0 <= item < trie.num_items for item in items)
    assert read_items(completions_of(trie, items), trie, TOKENS).tolist() == items


def test_read_items_what_no_item_has_is_refused() -> None:
    trie = catalogue([(0,), (1, 2, 3)])
    tokens = torch.tensor([[5, 0, 0], [6, 13, 20], [6, 13, 21], [7, 13, 20], [6, 13, 0], [0, 0, 0]])
    assert read_items(tokens, trie, TOKENS).tolist() == [0, 1, -1, -1, -1, -1]
