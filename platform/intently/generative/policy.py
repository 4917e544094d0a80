"""The constrained policy: a decoder whose probabilities add up to one over what the catalogue allows, at every step.

One definition serves rollout, loss, ratio and KL (`child_log_probs`). Log-probabilities of a whole group are computed with its prompt read
once: the samples are branches behind it, and a mask lets each see the prompt and itself, as in the beam search. Short prompts share a row,
so that little is computed for padding. Whatever wraps the model (DDP, DeepSpeed) is called once, so that its hooks see the backward pass.

Shapes: B samples, U distinct prompts, P tokens of the longest prompt, L levels, K codes of a level, C most children, D width; R rows of
S tokens that prompts and samples are packed into.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from intently.generative.beam import SidTokens
from intently.generative.trie import Trie


class Scored(NamedTuple):
    """What the policy says of completions; 0 behind the end of a shorter one."""

    log_probs: torch.Tensor
    """[B, L] float32 of each code, given those before it."""
    entropies: torch.Tensor
    """[B, L] float32, in nats, of the choice that was made there."""


class Choices(NamedTuple):
    """What can be written next."""

    children: torch.Tensor
    """[..., C] nodes; 0 where there are fewer."""
    valid: torch.Tensor
    """[..., C] bool."""
    log_probs: torch.Tensor
    """[..., C] float32; very small where not valid, finite so that gradients are."""


def child_log_probs(
    hidden: torch.Tensor, head: torch.Tensor, nodes: torch.Tensor, level: int, trie: Trie, tokens: SidTokens, temperature: float
) -> Choices:
    """The policy's choice below some nodes.

    Args:
        hidden: [..., D] states behind the last token written.
        head: [V, D] output embeddings.
        nodes: [...] int64 nodes of `level`; those without children (ended) get no valid choice.
        level: from 0 on.
        trie: the catalogue.
        tokens: where the codes lie.
        temperature: logits are divided by it before they are normalised over the children.
    """
    first, count = tokens.first[level], tokens.counts[level]
    logits = (hidden @ head[first : first + count].T).float() / temperature
    children, valid = trie.children(nodes, level)
    steps = logits.gather(-1, trie.codes[children].long().clamp(max=count - 1))
    return Choices(children, valid, steps.masked_fill(~valid, torch.finfo(torch.float32).min).log_softmax(dim=-1))


def score_completions(
    model: torch.nn.Module,
    head: torch.Tensor,
    prompts: torch.Tensor,
    prompt_mask: torch.Tensor,
    completions: torch.Tensor,
    trie: Trie,
    tokens: SidTokens,
    temperature: float,
) -> Scored:
    """Log-probabilities and entropies of completions under the constrained policy, with gradients.

    Args:
        model: a causal language model of transformers, wrapped or not.
        head: [V, D] its output embeddings.
        prompts: [B, P] tokens, filled up on the left; equal ones are read once.
        prompt_mask: [B, P] 0 where filled up.
        completions: [B, L'] tokens of semantic IDs of the catalogue, filled up behind a shorter one.
        trie: the catalogue, on the model's device.
        tokens: where the codes lie.
        temperature: of the rollout.
    """
    depth, rows = completions.shape[1], torch.arange(len(completions), device=completions.device)
    packed = _pack(prompts, prompt_mask, completions)
    smallest = torch.finfo(head.dtype).min
    mask = torch.zeros(packed.sees.shape, dtype=head.dtype, device=head.device).masked_fill_(~packed.sees, smallest)[:, None]
    # The head is not asked for logits of the whole vocabulary; its rows of a level are multiplied here.
    answer = model(
        input_ids=packed.tokens,
        attention_mask=mask,
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=True,
        logits_to_keep=1,
    )
    hidden = answer.hidden_states[-1]  # [R, S, D], behind the last norm
    nodes, log_probs, entropies = torch.zeros_like(rows), [], []
    for level in range(depth):
        place = packed.asks if level == 0 else packed.codes + level - 1
        choices = child_log_probs(hidden[packed.row, place], head, nodes, level, trie, tokens, temperature)
        written = choices.valid & (trie.codes[choices.children] + tokens.first[level] == completions[:, level, None])
        alive = written.any(dim=-1)
        taken = written.int().argmax(dim=-1)
        log_probs.append(torch.where(alive, choices.log_probs[rows, taken], 0.0))
        entropies.append(torch.where(alive, -(choices.log_probs.exp() * choices.log_probs).masked_fill(~choices.valid, 0.0).sum(-1), 0.0))
        nodes = torch.where(alive, choices.children[rows, taken], -1)
    return Scored(torch.stack(log_probs, dim=1), torch.stack(entropies, dim=1))


def read_items(completions: torch.Tensor, trie: Trie, tokens: SidTokens) -> torch.Tensor:
    """[B, L'] tokens → [B] rows of the items that they are the semantic IDs of; −1 where they are of none."""
    nodes = torch.zeros(len(completions), dtype=torch.long, device=completions.device)
    for level in range(completions.shape[1]):
        children, valid = trie.children(nodes, level)
        written = valid & (trie.codes[children] + tokens.first[level] == completions[:, level, None])
        ended = (nodes > 0) & (trie.items[nodes.clamp(min=0)] >= 0)
        below = children.gather(1, written.int().argmax(dim=-1, keepdim=True))[:, 0]
        nodes = torch.where(ended, nodes, torch.where(written.any(dim=-1), below, -1))
    return torch.where(nodes > 0, trie.items[nodes.clamp(min=0)].long(), -1)


def imitation_loss(model: torch.nn.Module, prompts: torch.Tensor, prompt_mask: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
    """What fine-tuning minimises, on the same rows: mean cross entropy of a history's codes and of the item that came next.

    Args:
        model: wrapped or not.
        prompts: [B, P] tokens, filled up on the left; equal ones are read once.
        prompt_mask: [B, P] 0 where filled up.
        completions: [B, L] tokens of the items that came next, 0 behind a shorter one.
    """
    rows = torch.cat([prompts, completions], dim=1)
    counted = torch.cat([prompt_mask.bool(), completions > 0], dim=1)
    rows, owner = rows.unique(dim=0, return_inverse=True)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[owner] = counted
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=rows, attention_mask=mask.long(), position_ids=positions, use_cache=False).logits[:, :-1]
    asked = mask[:, 1:] & mask[:, :-1]  # the first token of a prompt is its mark, which nobody foretells
    return torch.nn.functional.cross_entropy(logits[asked].float(), rows[:, 1:][asked])


def head_of(model: PreTrainedModel) -> torch.Tensor:
    """[V, D] output embeddings."""
    return model.get_output_embeddings().weight


class _Packed(NamedTuple):
    tokens: torch.Tensor
    """[R, S] prompts, each with its samples' codes behind it, but the last, which foretells nothing."""
    positions: torch.Tensor
    """[R, S] within prompt and sample."""
    sees: torch.Tensor
    """[R, S, S] bool: what each place looks at."""
    row: torch.Tensor
    """[B] where each sample lies."""
    asks: torch.Tensor
    """[B] place of its prompt's last token."""
    codes: torch.Tensor
    """[B] place of its first code."""


def _pack(prompts: torch.Tensor, prompt_mask: torch.Tensor, completions: torch.Tensor) -> _Packed:
    device, steps = prompts.device, completions.shape[1] - 1
    distinct, owner = prompts.unique(dim=0, return_inverse=True)
    known = torch.zeros_like(distinct, dtype=torch.bool)
    known[owner] = prompt_mask.bool()
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner)
    slot = torch.empty_like(owner)
    slot[order] = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner[order]]
    lengths = known.sum(dim=1)
    row, start, width = _share_rows((lengths + counts * steps).tolist())
    rows, starts = torch.tensor(row, device=device), torch.tensor(start, device=device)
    shape = (int(rows.max()) + 1, width)
    tokens, positions = torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, dtype=torch.long, device=device)
    prompt, sample = torch.full(shape, -1, device=device), torch.full(shape, -1, device=device)
    of, column = known.nonzero(as_tuple=True)
    at = (known.cumsum(dim=1) - 1)[of, column]
    place = (rows[of], starts[of] + at)
    tokens[place], positions[place], prompt[place] = distinct[of, column], at, of
    codes = starts[owner] + lengths[owner] + slot * steps
    step = torch.arange(steps, device=device)
    behind = (rows[owner, None].expand(-1, steps), codes[:, None] + step)
    tokens[behind], positions[behind] = completions[:, :steps], lengths[owner, None] + step
    prompt[behind], sample[behind] = owner[:, None].expand(-1, steps), slot[:, None].expand(-1, steps)
    sees = (prompt[:, :, None] == prompt[:, None]) & (positions[:, :, None] >= positions[:, None])
    sees &= (sample[:, None] < 0) | (sample[:, None] == sample[:, :, None])
    return _Packed(tokens, positions, sees, rows[owner], starts[owner] + lengths[owner] - 1, codes)


def _share_rows(sizes: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Sizes → the row and the place in it where each begins, and the width of the rows, which is the largest size."""
    width = max(sizes)
    row, start, rooms = [0] * len(sizes), [0] * len(sizes), [(-width, 0)]  # a heap: the row with the most room first
    for one in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        if -rooms[0][0] < sizes[one]:
            heapq.heappush(rooms, (-width, len(rooms)))
        room, chosen = heapq.heappop(rooms)
        row[one], start[one] = chosen, width + room
        heapq.heappush(rooms, (room + sizes[one], chosen))
    return row, start, width
