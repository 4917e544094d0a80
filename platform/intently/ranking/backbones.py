"""The eight backbones, over one tensor of fields (HiT-LBM §4.1.2).

Shapes: B rows, F fields, D width of a field, H events looked back on, E = 3D width of an event (item, category, what was done).

DIN and DIEN differ in how the history becomes fields (`history_pooling`), the other six in how fields become a logit
(`backbone_head`); those six take the mean of the history, and DIN and DIEN a plain MLP. Layers are FuxiCTR's where it has them; its
models and loops are not used.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    CompressedInteractionNet,
    CrossNetV2,
    InnerProductInteraction,
    MLP_Block,
    SqueezeExcitation,
)
from model_zoo.LongCTR.DIEN.DIEN import AttentionLayer, DynamicGRU
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from intently.ranking.attention import TargetAttention
from intently.ranking.fusion import mean_of

ATTENTION_UNITS = 64


class Backbone(StrEnum):
    """Which model ranks."""

    AUTOINT = "autoint"
    DEEPFM = "deepfm"
    XDEEPFM = "xdeepfm"
    FIGNN = "fignn"
    FIBINET = "fibinet"
    DCNV2 = "dcnv2"
    DIN = "din"
    DIEN = "dien"


class MeanPooling(nn.Module):
    """The mean of the history's events, whatever the target."""

    def forward(self, target: torch.Tensor, events: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """[B, E], [B, H, E], [B, H] → [B, E]."""
        return mean_of(events, valid)


class InterestEvolution(nn.Module):
    """DIEN's two recurrent layers: a GRU over the events, then one whose update gate is scaled by attention to the target."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extract = nn.GRU(width, width, batch_first=True)
        self.attention = AttentionLayer(width, attention_type="bilinear_attention")
        self.evolve = DynamicGRU(width, width, gru_type="AUGRU")

    def forward(self, target: torch.Tensor, events: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """[B, E], [B, H, E], [B, H] with padding on the right → [B, E]; zeros where there is no event."""
        lengths = valid.sum(1).clamp(min=1).cpu()  # packing asks for at least one event, and for lengths in main memory
        packed = pack_padded_sequence(events, lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.extract(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=events.shape[1])
        scores = self.attention(padded, target, valid)
        _, last = self.evolve(states, pack_padded_sequence(scores, lengths, batch_first=True, enforce_sorted=False))
        return last * valid.any(1, keepdim=True)


def history_pooling(backbone: Backbone, width: int) -> nn.Module:
    """(target [B, E], events [B, H, E], valid [B, H]) → [B, E]."""
    match backbone:
        case Backbone.DIN:
            return TargetAttention(width, ATTENTION_UNITS)
        case Backbone.DIEN:
            return InterestEvolution(width)
        case _:
            return MeanPooling()


class Tower(nn.Module):
    """An MLP over all fields side by side: the deep part of every backbone, all of DIN and DIEN."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.mlp = MLP_Block(num_fields * dim, hidden_units=hidden, output_dim=1)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        return self.mlp(fields.flatten(1)).squeeze(1)


class AutoInt(nn.Module):
    """Two layers of self-attention among fields with residuals, beside the tower."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.deep = Tower(num_fields, dim, hidden)
        self.layers = nn.ModuleList(nn.MultiheadAttention(dim, 2, batch_first=True) for _ in range(2))
        self.residuals = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.out = nn.Linear(num_fields * dim, 1)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        crossed = fields
        for layer, residual in zip(self.layers, self.residuals, strict=True):
            crossed = torch.relu(layer(crossed, crossed, crossed, need_weights=False)[0] + residual(crossed))
        return self.out(crossed.flatten(1)).squeeze(1) + self.deep(fields)


class DeepFM(nn.Module):
    """First order, factorisation machine, tower."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.deep, self.linear = Tower(num_fields, dim, hidden), nn.Linear(num_fields * dim, 1)
        self.pairs = InnerProductInteraction(num_fields, output="product_sum")

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        return (self.linear(fields.flatten(1)) + self.pairs(fields)).squeeze(1) + self.deep(fields)


class XDeepFM(nn.Module):
    """First order, compressed interaction network, tower."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.deep, self.linear = Tower(num_fields, dim, hidden), nn.Linear(num_fields * dim, 1)
        self.cin = CompressedInteractionNet(num_fields, [16, 16])

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        return (self.linear(fields.flatten(1)) + self.cin(fields)).squeeze(1) + self.deep(fields)


class FiGNN(nn.Module):
    """Fields as a graph in which every two are joined (Li et al. 2019): attention weighs the edges, a GRU takes in what arrives.

    An edge from field i to j carries W_in[j] W_out[i] v_i, weighed by a softmax over j's neighbours.
    """

    def __init__(self, num_fields: int, dim: int, num_steps: int = 2) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.edge = nn.Linear(2 * dim, 1, bias=False)
        self.send, self.receive = (nn.Parameter(torch.randn(num_fields, dim, dim) * dim**-0.5) for _ in range(2))
        self.update = nn.GRUCell(dim, dim)
        self.score, self.weight = nn.Linear(dim, 1), nn.Linear(num_fields * dim, num_fields)
        self.register_buffer("itself", torch.eye(num_fields, dtype=torch.bool), persistent=False)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        dim = fields.shape[-1]
        of_receiver, of_sender = (fields @ part for part in self.edge.weight[0].split(dim))
        edges = nn.functional.leaky_relu(of_receiver[:, :, None] + of_sender[:, None])  # [B, F to, F from]
        edges = edges.masked_fill(self.itself, -torch.inf).softmax(-1)
        state = fields
        for _ in range(self.num_steps):
            sent = torch.einsum("bfd,fde->bfe", state, self.send)
            arriving = torch.einsum("bfd,fde->bfe", edges @ sent, self.receive)
            state = self.update(arriving.flatten(0, 1), state.flatten(0, 1)).view_as(fields) + fields
        return (self.score(state).squeeze(-1) * torch.sigmoid(self.weight(state.flatten(1)))).sum(1)


class FiBiNet(nn.Module):
    """Fields and fields weighed by squeeze-and-excitation, each crossed by pairs, into one MLP."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.excite = SqueezeExcitation(num_fields)
        self.plain, self.excited = (BilinearInteractionV2(num_fields, dim, "field_all") for _ in range(2))
        self.linear = nn.Linear(num_fields * dim, 1)
        self.deep = Tower(num_fields * (num_fields - 1), dim, hidden)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        crossed = torch.cat([self.plain(fields), self.excited(self.excite(fields))], dim=1)
        return self.linear(fields.flatten(1)).squeeze(1) + self.deep(crossed)


class DCNv2(nn.Module):
    """Three full-matrix cross layers beside an MLP, joined by one linear layer."""

    def __init__(self, num_fields: int, dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.cross = CrossNetV2(num_fields * dim, 3)
        self.deep = MLP_Block(num_fields * dim, hidden_units=hidden)
        self.out = nn.Linear(num_fields * dim + hidden[-1], 1)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """[B, F, D] → [B]."""
        flat = fields.flatten(1)
        return self.out(torch.cat([self.cross(flat), self.deep(flat)], dim=1)).squeeze(1)


def backbone_head(backbone: Backbone, num_fields: int, dim: int, hidden: list[int]) -> nn.Module:
    """[B, F, D] fields → [B] logits.

    Args:
        backbone: which.
        num_fields: F.
        dim: D.
        hidden: units of the MLP's layers.
    """
    match backbone:
        case Backbone.AUTOINT:
            return AutoInt(num_fields, dim, hidden)
        case Backbone.DEEPFM:
            return DeepFM(num_fields, dim, hidden)
        case Backbone.XDEEPFM:
            return XDeepFM(num_fields, dim, hidden)
        case Backbone.FIGNN:
            return FiGNN(num_fields, dim)
        case Backbone.FIBINET:
            return FiBiNet(num_fields, dim, hidden)
        case Backbone.DCNV2:
            return DCNv2(num_fields, dim, hidden)
        case Backbone.DIN | Backbone.DIEN:
            return Tower(num_fields, dim, hidden)
