"""DIN's attention of the target over past events, computed with a quarter of the arithmetic (Zhou et al. 2018).

DIN scores an event h against the target t by an MLP over [t, h, t − h, t·h]. The MLP's first layer is linear, so that with
W = [W₁ W₂ W₃ W₄] it equals (W₁ + W₃) t + (W₂ − W₃) h + W₄ (t·h): the target's part is computed once a row instead of once an
event, and what is left is two products instead of four, without the tensor of width 4D. The parameters are those of FuxiCTR's layer,
and so is the result.
"""

from __future__ import annotations

import torch
from fuxictr.pytorch.layers import DIN_Attention
from torch import nn


class TargetAttention(nn.Module):
    """Σ_h score(t, h) · h over the valid events, without a softmax, as DIN does it.

    Args:
        width: D of an event.
        hidden: units of the score's hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer = DIN_Attention(width, attention_units=[hidden], hidden_activations="ReLU")

    def forward(self, target: torch.Tensor, events: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, H, D], [B, H] → [B, D]."""
        first, activation, last = self.layer.attention_layer.mlp
        of_target, of_event, of_difference, of_product = first.weight.chunk(4, dim=1)
        hidden = nn.functional.linear(events, of_event - of_difference)
        hidden = hidden + nn.functional.linear(events * target[:, None], of_product)
        hidden = hidden + nn.functional.linear(target, of_target + of_difference, first.bias)[:, None]
        scores = last(activation(hidden)).squeeze(-1) * valid
        return (scores[:, None] @ events).squeeze(1)
