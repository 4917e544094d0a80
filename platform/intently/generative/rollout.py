"""Groups of items drawn from the constrained policy: the history is read once, and its samples share its keys and values.

A draw is decided by one number in [0, 1) a level (inverse of the cumulative distribution), so that the same numbers give the same items
however the samples of a rollout are spread over workers, and again after a restart.

Shapes: U prompts, W samples a prompt, T tokens of the longest prompt, L levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from intently.generative.beam import ConstrainedBeam
from intently.generative.policy import child_log_probs, head_of
from intently.generative.trie import Trie


class Drawn(NamedTuple):
    """Samples of the policy."""

    items: torch.Tensor
    """[U, W] rows of the trie's items."""
    log_probs: torch.Tensor
    """[U, W, L] of each code; 0 behind the end of a shorter semantic ID."""


@torch.no_grad()
def draw_groups(
    beam: ConstrainedBeam, prompts: torch.Tensor, lengths: torch.Tensor, trie: Trie, numbers: torch.Tensor, temperature: float
) -> Drawn:
    """Sample items after each prompt.

    Args:
        beam: reads prompts and writes codes behind them; its model, tokens.
        prompts: [U, T] tokens, filled up on the right.
        lengths: [U] tokens of each prompt.
        trie: the catalogue, on the model's device.
        numbers: [U, W, L] in [0, 1).
        temperature: logits are divided by it.
    """
    num_prompts, width = numbers.shape[:2]
    device, head = prompts.device, head_of(beam.model)
    cache, hidden = beam.read(prompts, lengths)
    nodes = torch.zeros(num_prompts, width, dtype=torch.long, device=device)
    leaves, log_probs = nodes, []
    sees = (torch.arange(prompts.shape[1], device=device) < lengths[:, None, None]).expand(-1, width, -1)
    own = torch.eye(width, dtype=torch.bool, device=device).expand(num_prompts, -1, -1)
    for level in range(trie.depth):
        choices = child_log_probs(hidden.expand(-1, width, -1), head, nodes, level, trie, beam.tokens, temperature)
        chances = choices.log_probs.double().exp().masked_fill(~choices.valid, 0.0).cumsum(dim=-1)
        # Of the last choice with a chance at most: rounding may leave the sum below one.
        most = (choices.valid.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        chosen = torch.searchsorted(chances, (numbers[..., level, None] * chances[..., -1:]).contiguous(), right=True).minimum(most)
        alive = choices.valid.any(dim=-1)
        nodes = torch.where(alive, choices.children.gather(-1, chosen)[..., 0], -1)
        leaves = torch.where(alive, nodes, leaves)
        log_probs.append(torch.where(alive, choices.log_probs.gather(-1, chosen)[..., 0], 0.0))
        if level + 1 < trie.depth:
            sees = torch.cat([sees, own], dim=2)
            hidden = beam.step(trie, level, nodes, lengths, sees, cache)
    return Drawn(trie.items[leaves].long(), torch.stack(log_probs, dim=-1))


def numbers_of(seed: int, rollout: int, attempt: int, num_samples: int, depth: int) -> np.ndarray:
    """[num_samples, depth] numbers in [0, 1): of all workers' samples of one rollout, always the same."""
    return np.random.default_rng([seed, rollout, attempt, 23]).random((num_samples, depth))
