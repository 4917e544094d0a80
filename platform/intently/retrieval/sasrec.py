"""SASRec (Kang & McAuley 2018) trained with sampled softmax: the baseline of sequence models, on the same split and filter as the towers.

The published figures of SASRec that are copied from paper to paper come from a binary loss with one negative; with a softmax over a few
hundred negatives the same network is a strong baseline. Items drawn uniformly are all drawn equally often, so that log-Q is one
constant, which a softmax does not see.

Shapes: B sequences, L places (oldest first, empty ones at the end), G groups of examples, S sampled items each, I items, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from intently.core.config import Config
from intently.core.schema import Behaviour
from intently.retrieval.evaluate import Scorer
from intently.retrieval.interactions import BehaviourConfig, Interactions, first_events


class SASRecConfig(Config):
    """The network and how it learns."""

    dim: int = Field(64, ge=2, description="width of embeddings")
    num_blocks: int = Field(1, ge=1, description="transformer blocks")
    heads: int = Field(1, ge=1, description="heads of each block's attention")
    length: int = Field(50, ge=2, description="items that are looked back on; longer histories are cut into pieces of it")
    dropout: float = Field(0.5, ge=0, lt=1, description="of embeddings and of what each block adds")
    num_negatives: int = Field(256, ge=1, description="items drawn uniformly that an example is told from")
    negative_groups: int = Field(
        32,
        ge=1,
        description="parts of a step's examples, each with negatives of its own: no dearer than one part, and a step moves many more items",
    )
    batch_size: int = Field(128, ge=1, description="sequences of a step")
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW at the start; a cosine brings it to zero over num_epochs")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    num_epochs: int = Field(40, ge=1, description="most passes over the sequences")
    patience: int = Field(10, ge=1, description="epochs without a better validation figure after which training ends")
    evaluate_every: int = Field(1, ge=1, description="epochs between looks at validation")
    seed: int = Field(0, description="of initial weights and of every draw")


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each normalised before and added to what came in."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.project, self.merge = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)
        self.feed = nn.Sequential(nn.Linear(config.dim, 2 * config.dim), nn.GELU(), nn.Linear(2 * config.dim, config.dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, D] → [B, L, D]."""
        parts = self.project(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        hidden = hidden + self.dropout(self.merge(attended))
        return hidden + self.dropout(self.feed(self.forward_norm(hidden)))


class SASRec(nn.Module):
    """Item and place embeddings → blocks; a score is the inner product with an item's embedding."""

    def __init__(self, num_items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.items, self.places = nn.Embedding(num_items, config.dim), nn.Embedding(config.length, config.dim)
        for embedding in (self.items, self.places):
            nn.init.normal_(embedding.weight, std=config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """[B, L] catalogue rows → [B, L, D], each place with what came up to it."""
        hidden = self.dropout(self.items(items) + self.places.weight[: items.shape[1]])
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def loss(self, items: torch.Tensor, known: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """Mean of −log softmax of each next item against the negatives of its group.

        Args:
            items: [B, L] catalogue rows.
            known: [B, L] whether there is an item.
            negatives: [G, S] catalogue rows; neighbouring examples make up a group.
        """
        asked = known[:, 1:]
        queries, targets = self(items[:, :-1])[asked], items[:, 1:][asked]
        positive = (queries * self.items(targets)).sum(dim=-1)
        lacking = -len(targets) % len(negatives)
        grouped = F.pad(queries, (0, 0, 0, lacking)).unflatten(0, (len(negatives), -1))  # [G, n / G, D]
        same = F.pad(targets, (0, lacking), value=-1).view(len(negatives), -1, 1) == negatives[:, None]
        others = (grouped @ self.items(negatives).transpose(1, 2)).masked_fill_(same, -torch.inf)
        # The scores of the negatives are most of the time and the memory of a step: they are not copied behind the positive's.
        return (torch.logaddexp(positive, others.logsumexp(dim=-1).flatten()[: len(positive)]) - positive).mean()

    def scorer(self, past: Interactions, config: BehaviourConfig, behaviours: Iterable[Behaviour]) -> Scorer:
        """Scores after what users did in `past`: [b] user rows → [b, I]."""
        sequences = Sequences(past, config, behaviours, self.config.length)

        @torch.no_grad()
        def score(users: np.ndarray) -> np.ndarray:
            self.eval()
            items, known = sequences.latest(users)
            last = (known.sum(dim=1) - 1).clamp(min=0)
            return (self(items)[torch.arange(len(users)), last] @ self.items.weight.T).numpy()

        return score


class Sequences:
    """The items that each user took, in order of the first time, cut into pieces."""

    def __init__(self, past: Interactions, config: BehaviourConfig, behaviours: Iterable[Behaviour], length: int) -> None:
        places, _ = first_events(past, config, behaviours)
        self.items = torch.from_numpy(past.items[places])
        self.counts = np.bincount(past.users[places], minlength=past.num_users)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self.length = length

    def latest(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The last items of user rows: [B, L] catalogue rows, and whether there is one."""
        ends = self.offsets[users + 1]
        return self.cut(np.maximum(self.offsets[users], ends - self.length), ends)

    def cut(self, starts: np.ndarray, ends: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """[B] ranges of places → [B, L] catalogue rows, and whether there is one; L is the longest range."""
        longest = max(1, int((ends - starts).max(initial=0)))
        places = torch.from_numpy(starts)[:, None] + torch.arange(longest)
        known = places < torch.from_numpy(ends)[:, None]
        return torch.where(known, self.items[places.clamp(max=max(0, len(self.items) - 1))], 0), known

    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of all pieces of 2 to length + 1 items, from each user's last on; neighbours share the item where they meet."""
        num_pieces = -(-np.maximum(self.counts - 1, 0) // self.length)
        users = np.repeat(np.arange(len(self.counts)), num_pieces)
        nth = np.arange(len(users)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
        ends = self.offsets[users + 1] - nth * self.length
        return np.maximum(self.offsets[users], ends - self.length - 1), ends

    def batches(self, size: int, generator: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every piece once, in random batches of like length."""
        starts, ends = self.pieces()
        order = np.argsort(ends - starts + generator.random(len(starts)), kind="stable")
        groups = [order[first : first + size] for first in range(0, len(order), size)]
        for group in generator.permutation(len(groups)):
            yield self.cut(starts[groups[group]], ends[groups[group]])


def train_sasrec(
    past: Interactions,
    num_items: int,
    behaviours: BehaviourConfig,
    config: SASRecConfig,
    validate: Callable[[Scorer], float],
    read: Iterable[Behaviour] | None = None,
) -> SASRec:
    """Train until validation has not risen for a while; the weights of the best epoch.

    Args:
        past: history_train.
        num_items: I.
        behaviours: which behaviours count.
        config: network and learning.
        validate: a scorer's figure on validation, higher is better.
        read: behaviours that make up the sequences, by an item's first such event; None reads those by which items are taken.
    """
    torch.manual_seed(config.seed)
    generator, read = np.random.default_rng(config.seed), tuple(behaviours.taken if read is None else read)
    model, sequences = SASRec(num_items, config), Sequences(past, behaviours, read, config.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_epochs)
    best, best_epoch, kept = -np.inf, 0, model.state_dict()
    for epoch in range(1, config.num_epochs + 1):
        begin, total, num_steps = time.monotonic(), 0.0, 0
        model.train()
        for items, known in sequences.batches(config.batch_size, generator):
            loss = model.loss(items, known, torch.randint(num_items, (config.negative_groups, config.num_negatives)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, num_steps = total + loss.item(), num_steps + 1
        schedule.step()
        seconds = time.monotonic() - begin
        if epoch % config.evaluate_every:
            continue
        figure = validate(model.scorer(past, behaviours, read))
        if figure > best:
            best, best_epoch, kept = figure, epoch, {name: value.clone() for name, value in model.state_dict().items()}
        print(f"sasrec: epoch {epoch}, loss {total / num_steps:.4f}, validation {figure:.4f}, best {best:.4f}, {seconds:.1f} s", flush=True)
        if epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(kept)
    return model.eval()
