"""From the interests of a user's chunks and one item to one vector: temporal interest fusion (HiT-LBM §3.4) and its alternatives (Table 5).

Shapes: B rows, T chunks that a row may see (oldest first, padding on the right), D width.

Where the paper's Eq. 13 puts the item on the key side, softmax runs over one key and the interests fall out of the result. Here the
item asks (query) and the fused interests answer (keys, values).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import nn


class FusionKind(StrEnum):
    """How interests become one vector."""

    TIF = "tif"
    """Positions, causal self-attention over the chunks, then the item attends to them."""
    MEAN = "mean"
    """The mean over the chunks: CUBE alone."""
    MLP = "mlp"
    """A layer on the mean."""
    SELF_ATTENTION = "self_attention"
    """Self-attention in which every chunk sees every chunk, then the mean."""
    GRU = "gru"
    """The last state of a GRU over the chunks."""


def causal_mask(valid: torch.Tensor) -> torch.Tensor:
    """[B, T] → [B, T, T] bool, who may look at whom: earlier chunks that are there, and always oneself (Eq. 12).

    Padding looks at itself alone, so that no softmax runs over nothing; nobody looks at padding.
    """
    length = valid.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    return (earlier & valid[:, None]) | torch.eye(length, dtype=torch.bool, device=valid.device)


def mean_of(vectors: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """[B, T, D], [B, T] → [B, D] mean over what is valid; zeros where nothing is."""
    kept = (vectors * valid[..., None]).sum(1)
    return kept / valid.sum(1, keepdim=True).clamp(min=1)


class Attention(nn.Module):
    """Attention of one head with a mask a row, with as few products as it can be written with.

    Of the query's and the key's matrix only the product counts, and a value's matrix may as well come after the weighted mean: neither keys
    nor values are computed for every chunk.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, asking: torch.Tensor, asked: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, Q, D], [B, T, D], [B, Q, T] bool → [B, Q, D]."""
        scores = self.query(asking) @ asked.transpose(1, 2) * asked.shape[-1] ** -0.5
        return self.value(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ asked)


class InterestFusion(nn.Module):
    """Interests of the visible chunks → e_user.

    Args:
        kind: which fusion.
        dim: D.
        max_chunks: T at most; positions are counted back from the newest chunk that a row may see.
    """

    def __init__(self, kind: FusionKind, dim: int, max_chunks: int) -> None:
        super().__init__()
        self.kind = kind
        match kind:
            case FusionKind.TIF:
                self.positions = nn.Parameter(torch.randn(max_chunks, dim) * 0.02)
                self.over_chunks, self.of_item = Attention(dim), Attention(dim)
                self.norm, self.item_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            case FusionKind.MLP:
                self.layer = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            case FusionKind.SELF_ATTENTION:
                self.over_chunks = Attention(dim)
            case FusionKind.GRU:
                self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, interests: torch.Tensor, valid: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """e_user of each row, zeros for one that may see no interest.

        Args:
            interests: [B, T, D], scaled by S_final (Eq. 11); what padding holds does not matter.
            valid: [B, T] bool.
            item: [B, D] knowledge of the target; TIF alone reads it.
        """
        interests = interests * valid[..., None]
        match self.kind:
            case FusionKind.TIF:
                fused = self._temporal(interests, valid, item)
            case FusionKind.MEAN:
                fused = mean_of(interests, valid)
            case FusionKind.MLP:
                fused = self.layer(mean_of(interests, valid))
            case FusionKind.SELF_ATTENTION:
                everywhere = valid[:, None] | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
                fused = mean_of(interests + self.over_chunks(interests, interests, everywhere), valid)
            case FusionKind.GRU:
                states, _ = self.gru(interests)
                newest = (valid * torch.arange(1, valid.shape[1] + 1, device=valid.device)).amax(1).clamp(min=1) - 1
                fused = states[torch.arange(len(states), device=states.device), newest]
        return fused * valid.any(1, keepdim=True)

    def _temporal(self, interests: torch.Tensor, valid: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        places = torch.arange(valid.shape[1], device=valid.device)
        newest = (valid * places).amax(1, keepdim=True)
        positioned = interests + self.positions[(newest - places).clamp(min=0)]  # Eq. 11
        fused = self.norm(positioned + self.over_chunks(positioned, positioned, causal_mask(valid)))  # Eq. 12
        seen = valid | ~valid.any(1, keepdim=True)  # a row without interests looks at padding; its result is zeroed above
        return self.of_item(self.item_norm(item)[:, None], fused, seen[:, None]).squeeze(1)  # Eq. 13, the item asking
