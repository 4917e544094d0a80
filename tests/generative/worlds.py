"""Small random models and catalogues for the tests of this room."""

from __future__ import annotations

import numpy as np
import torch
from intently.generative.beam import SidTokens
from intently.generative.trie import END, Trie, build_trie
from transformers import Qwen3Config, Qwen3ForCausalLM

CODES = 6
TOKENS = SidTokens(first=(5, 11, 17), counts=(CODES, CODES, CODES))
VOCABULARY = 40


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    """Two layers with random weights, large enough that probabilities differ."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.to(dtype).eval()


def prefix_free(semantic_ids: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Distinct semantic IDs, without those that begin with another one."""
    kept: set[tuple[int, ...]] = set()
    for codes in sorted(set(semantic_ids), key=len):
        if not any(codes[:length] in kept for length in range(1, len(codes))):
            kept.add(codes)
    return sorted(kept)


def matrix(semantic_ids: list[tuple[int, ...]], depth: int = 3) -> np.ndarray:
    """Tuples → [N, depth] int32, filled up with END."""
    return np.array([[*codes, *[END] * (depth - len(codes))] for codes in semantic_ids], np.int32)


def catalogue(semantic_ids: list[tuple[int, ...]], version: str = "v1") -> Trie:
    """A trie whose item n is called `i<n>`."""
    return build_trie(matrix(semantic_ids), np.array([f"i{n}" for n in range(len(semantic_ids))], object), version)


def random_ids(seed: int, count: int, mixed: bool = False) -> list[tuple[int, ...]]:
    """About `count` semantic IDs; mixed: one that begins with 0 ends there, one whose second code is 0 ends there."""
    drawn = [tuple(int(code) for code in codes) for codes in np.random.default_rng(seed).integers(0, CODES, (count, 3))]
    if mixed:
        drawn = [codes[: 1 if codes[0] == 0 else 2 if codes[1] == 0 else 3] for codes in drawn]
    return prefix_free(drawn)


def random_prompts(seed: int, num_queries: int, longest: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts filled up with random tokens on the right, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(0, VOCABULARY, (num_queries, longest), generator=generator)
    return prompts, torch.randint(1, longest + 1, (num_queries,), generator=generator)
