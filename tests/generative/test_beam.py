"""Constrained beam search: exact against scoring every item, and never anything but an item."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intently.core.errors import ConfigError, SchemaError
from intently.generative.beam import BeamConfig, ConstrainedBeam, SidTokens
from intently.generative.trie import LiveTrie, Trie
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.generative.worlds import CODES, TOKENS, VOCABULARY, catalogue, prefix_free, random_ids, random_prompts, small_model

SCORES = ("level", "children", "vocabulary")


def brute_force(model: torch.nn.Module, prompt: torch.Tensor, semantic_ids: list[tuple[int, ...]], kind: str) -> torch.Tensor:
    """Score of each item, one forward pass an item over prompt and codes."""
    scores = []
    for codes in semantic_ids:
        tokens = [code + first for code, first in zip(codes, TOKENS.first, strict=False)]
        with torch.no_grad():
            logits = model(torch.cat([prompt, torch.tensor(tokens)])[None]).logits[0, len(prompt) - 1 : -1]
        total = 0.0
        for level, token in enumerate(tokens):
            first = TOKENS.first[level]
            siblings = sorted({other[level] + first for other in semantic_ids if other[:level] == codes[:level] and len(other) > level})
            over = {"vocabulary": list(range(VOCABULARY)), "level": list(range(first, first + CODES)), "children": siblings}[kind]
            total += float(logits[level, token] - logits[level, over].logsumexp(0))
        scores.append(total)
    return torch.tensor(scores)


def assert_same_ranking(items: torch.Tensor, scores: torch.Tensor, expected: torch.Tensor) -> None:
    """Found items and scores against the score of every item; equal within what float32 can tell apart."""
    count = min(len(items), int((expected > -torch.inf).sum()))
    torch.testing.assert_close(scores[:count], expected.sort(descending=True).values[:count], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(expected[items[:count]], scores[:count], atol=2e-4, rtol=1e-4)
    assert (items[count:] == -1).all()
    assert (scores[count:] == -torch.inf).all()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("mixed", [False, True])
def test_search_all_beams_equals_scoring_every_item(kind: str, mixed: bool) -> None:
    model, semantic_ids = small_model(), random_ids(1, 50, mixed)
    beam = ConstrainedBeam(model, TOKENS, BeamConfig(width=60, scores=kind))
    prompts, sizes = random_prompts(2, 4)
    found = beam.search(prompts, sizes, catalogue(semantic_ids), 60)
    for query in range(4):
        expected = brute_force(model, prompts[query, : sizes[query]], semantic_ids, kind)
        assert_same_ranking(found.items[query], found.scores[query], expected)


def test_search_excluded_items_are_never_found_and_the_rest_is_exact() -> None:
    model, semantic_ids = small_model(1), random_ids(3, 40, mixed=True)
    prompts, sizes = random_prompts(4, 3)
    rng = np.random.default_rng(0)
    excluded = [rng.choice(len(semantic_ids), count) for count in (12, 0, len(semantic_ids) * 3)]
    found = ConstrainedBeam(model, TOKENS, BeamConfig(width=50)).search(prompts, sizes, catalogue(semantic_ids), 50, excluded)
    for query in range(3):
        expected = brute_force(model, prompts[query, : sizes[query]], semantic_ids, "level")
        expected[excluded[query]] = -torch.inf
        assert_same_ranking(found.items[query], found.scores[query], expected)


def test_search_narrow_beam_fills_up_although_best_items_are_excluded() -> None:
    model, semantic_ids = small_model(1), random_ids(5, 60)
    prompts, sizes = random_prompts(6, 2)
    beam, trie = ConstrainedBeam(model, TOKENS, BeamConfig(width=4)), catalogue(semantic_ids)
    best = beam.search(prompts, sizes, trie, 4).items.numpy()
    # All items below the first code of the best beams: a beam that walked there would end with nothing.
    closed = [np.flatnonzero(np.isin([codes[0] for codes in semantic_ids], [semantic_ids[i][0] for i in row])) for row in best]
    again = beam.search(prompts, sizes, trie, 4, closed).items
    assert (again >= 0).all()
    assert not any(np.isin(row, gone).any() for row, gone in zip(again.numpy(), closed, strict=True))


def test_search_padding_and_batch_do_not_matter() -> None:
    beam, trie = ConstrainedBeam(small_model(), TOKENS, BeamConfig(width=10)), catalogue(random_ids(7, 80))
    prompts, sizes = random_prompts(8, 5)
    together = beam.search(prompts, sizes, trie, 10)
    for query in range(5):
        alone = beam.search(prompts[query : query + 1, : sizes[query]], sizes[query : query + 1], trie, 10)
        torch.testing.assert_close(alone.scores[0], together.scores[query], atol=1e-4, rtol=1e-4)
        assert torch.equal(alone.items[0], together.items[query])


def test_search_same_items_as_transformers_generate_with_allowed_tokens() -> None:
    model, semantic_ids, width = small_model(2), random_ids(9, 70), 8
    prompts, _ = random_prompts(10, 3)
    sizes = torch.full((3,), prompts.shape[1])
    children: dict[tuple[int, ...], list[int]] = {}
    for codes in semantic_ids:
        for level in range(3):
            children.setdefault(codes[:level], []).append(codes[level] + TOKENS.first[level])

    def allowed(_: int, sequence: torch.Tensor) -> list[int]:
        written = sequence[prompts.shape[1] :].tolist()
        return sorted(set(children[tuple(token - first for token, first in zip(written, TOKENS.first, strict=False))]))

    theirs = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=3, num_beams=width, num_return_sequences=width, do_sample=False,
        prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    ours = ConstrainedBeam(model, TOKENS, BeamConfig(width=width, scores="vocabulary")).search(
        prompts, sizes, catalogue(semantic_ids), width
    )
    torch.testing.assert_close(ours.scores.flatten(), theirs.sequences_scores, atol=1e-4, rtol=1e-4)
    written = theirs.sequences[:, prompts.shape[1] :] - torch.tensor(TOKENS.first)
    assert [semantic_ids[item] for item in ours.items.flatten().tolist()] == [tuple(row) for row in written.tolist()]


@given(
    drawn=st.lists(st.lists(st.integers(0, CODES - 1), min_size=1, max_size=3).map(tuple), min_size=1, max_size=60),
    seed=st.integers(0, 10_000),
    width=st.integers(1, 12),
    kind=st.sampled_from(SCORES),
    num_excluded=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_search_any_catalogue_and_width_finds_distinct_allowed_items_only(
    drawn: list[tuple[int, ...]], seed: int, width: int, kind: str, num_excluded: int
) -> None:
    semantic_ids = prefix_free(drawn)
    prompts, sizes = random_prompts(seed, 2, longest=4)
    rng = np.random.default_rng(seed)
    excluded = [rng.integers(0, len(semantic_ids), num_excluded), np.array([], int)]
    beam = ConstrainedBeam(small_model(seed % 3), TOKENS, BeamConfig(width=width, scores=kind))
    found = beam.search(prompts, sizes, catalogue(semantic_ids), width, excluded)
    for items, scores, gone in zip(found.items.numpy(), found.scores, excluded, strict=True):
        real = items[items >= 0]
        assert len(set(real.tolist())) == len(real)
        assert (real < len(semantic_ids)).all()
        assert not np.isin(real, gone).any()
        assert torch.equal(torch.isfinite(scores), torch.from_numpy(items >= 0))
        assert (scores[:-1] >= scores[1:]).all()
        assert len(real) > 0 or len(set(gone.tolist())) == len(semantic_ids)


def test_search_while_the_catalogue_is_swapped_each_answer_is_of_one_catalogue() -> None:
    beam = ConstrainedBeam(small_model(), TOKENS, BeamConfig(width=6))
    tries = [catalogue(random_ids(seed, 40), f"v{seed}") for seed in range(4)]
    expected = {}
    prompts, sizes = random_prompts(11, 2)
    for trie in tries:
        expected[trie.version] = beam.search(prompts, sizes, trie, 6).items
    live = LiveTrie(tries[0], TOKENS.counts, keep=4)
    stop, wrong, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            found = beam.search(prompts, sizes, live.current, 6)
            seen.add(found.trie.version)
            if not torch.equal(found.items, expected[found.trie.version]):
                wrong.append(found.trie.version)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(seen) < len(tries):
        for trie in tries:
            live.swap(trie)
        live.rollback()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_search_k_above_width_refused() -> None:
    beam, (prompts, sizes) = ConstrainedBeam(small_model(), TOKENS, BeamConfig(width=5)), random_prompts(0, 1)
    with pytest.raises(ConfigError, match="k = 6: must lie between 1 and the width of the beam, 5"):
        beam.search(prompts, sizes, catalogue([(0, 0, 0)]), 6)


def test_search_codes_without_tokens_refused() -> None:
    beam = ConstrainedBeam(small_model(), SidTokens((5, 11), (CODES, CODES)), BeamConfig())
    prompts, sizes = random_prompts(0, 1)
    with pytest.raises(SchemaError, match="the model knows"):
        beam.search(prompts, sizes, catalogue([(0, 0, 0)]), 5)


def test_beam_other_architectures_work_or_are_refused() -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    trie: Trie = catalogue(random_ids(0, 20))
    prompts, lengths = random_prompts(1, 2)
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, pad_token_id=0)).eval()
    found = ConstrainedBeam(llama, TOKENS, BeamConfig(width=20)).search(prompts, lengths, trie, 20)
    assert (found.items[:, : trie.num_items] >= 0).all()
    sliding = Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ConfigError, match="full attention"):
        ConstrainedBeam(Qwen3ForCausalLM(sliding).eval(), TOKENS, BeamConfig())


def test_search_bfloat16_runs() -> None:
    beam = ConstrainedBeam(small_model(dtype=torch.bfloat16), TOKENS, BeamConfig(width=5))
    found = beam.search(*random_prompts(1, 3), catalogue(random_ids(2, 40)), 5)
    assert (found.items >= 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_search_on_accelerator_equals_cpu() -> None:
    model, trie, (prompts, sizes) = small_model(), catalogue(random_ids(7, 80, mixed=True)), random_prompts(8, 5)
    excluded = [np.arange(query) for query in range(5)]
    here = ConstrainedBeam(model, TOKENS, BeamConfig(width=80)).search(prompts, sizes, trie, 80, excluded)
    there = ConstrainedBeam(model.cuda(), TOKENS, BeamConfig(width=80)).search(prompts.cuda(), sizes.cuda(), trie.to("cuda"), 80, excluded)
    assert_same_ranking(there.items[0].cpu(), there.scores[0].cpu(), here.scores[0][here.items[0].argsort()][: trie.num_items])
    torch.testing.assert_close(there.scores.cpu(), here.scores, atol=1e-3, rtol=1e-3)
