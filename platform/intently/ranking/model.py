"""A CTR model: embeddings, the history as fields, lifelong knowledge as two more fields, a backbone over all of them.

Shapes: B rows, H events, D width of a field, E = 3D width of an event, F fields, V widths of knowledge vectors.

Fields, in order: item, category, the pooled history's item, category and signal; with SIM the same three of the similar events; with
knowledge e_user and e_item (Eq. 14), each projected to D.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import nn

from intently.core.config import Config
from intently.ranking.backbones import Backbone, backbone_head, history_pooling
from intently.ranking.features import NUM_SIGNALS, Events
from intently.ranking.fusion import FusionKind, InterestFusion
from intently.ranking.knowledge import Selection, Visible

SPREAD = 0.02
"""Standard deviation of embeddings at the start."""


class ModelConfig(Config):
    """Shapes and parts of a model."""

    backbone: Backbone = Field(Backbone.DIN, description="din, dien, dcnv2, autoint, deepfm, xdeepfm, fibinet or fignn")
    dim: int = Field(32, ge=4, multiple_of=2, description="D, width of a field")
    hidden: tuple[int, ...] = Field((200, 80), min_length=1, description="units of the MLP")
    history: int = Field(5, ge=1, description="events looked back on")
    similar: int = Field(0, ge=0, description="SIM: of all earlier events so many whose items are most like the target")
    interests: bool = Field(False, description="e_user from lifelong interests as a field")
    item_knowledge: bool = Field(False, description="e_item, what is known of the item, as a field")
    fusion: FusionKind = Field(FusionKind.TIF, description="how the interests of the chunks become e_user")
    selection: Selection = Field(Selection.ALL, description="which finished chunks are looked at: all, last (TRSR) or first (KAR)")
    scored: bool = Field(True, description="interests are scaled by S_final, where they have one")
    max_chunks: int = Field(16, ge=1, description="chunks looked at, the newest")

    @property
    def num_fields(self) -> int:
        """F."""
        return 5 + 3 * (self.similar > 0) + self.interests + self.item_knowledge


class Sizes(NamedTuple):
    """What the data decides about a model's shapes."""

    num_items: int
    """I + 1."""
    num_categories: int
    """The empty one included."""
    interest_width: int
    """V of chunk vectors; 0 without."""
    item_width: int
    """V of item vectors; 0 without."""


class Tables(NamedTuple):
    """What all rows look things up in; no parameters."""

    categories: torch.Tensor
    """[I + 1]."""
    interests: torch.Tensor
    """[N, V] chunk vectors."""
    scores: torch.Tensor
    """[N] S_final."""
    items: torch.Tensor
    """[I + 1, V] item vectors."""


class Batch(NamedTuple):
    """Rows as a model reads them."""

    items: torch.Tensor
    """[B]."""
    history: Events
    similar: Events | None
    visible: Visible | None


class CtrModel(nn.Module):
    """Logits of rows.

    Args:
        config: parts.
        sizes: of the data.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.item, self.category = nn.Embedding(sizes.num_items, dim), nn.Embedding(sizes.num_categories, dim)
        self.signal = nn.Embedding(NUM_SIGNALS, dim)
        for table in (self.item, self.category, self.signal):
            nn.init.normal_(table.weight, std=SPREAD)
        self.pool = history_pooling(config.backbone, 3 * dim)
        if config.similar:
            self.pool_similar = history_pooling(Backbone.DIN, 3 * dim)
        if config.interests:
            # No bias: a chunk scaled by S_final is then the same before and after (Eq. 11).
            self.interest = nn.Linear(sizes.interest_width, dim, bias=False)
            self.fusion = InterestFusion(config.fusion, dim, config.max_chunks)
        if config.interests or config.item_knowledge:
            self.knowledge = nn.Linear(sizes.item_width, dim)
        self.head = backbone_head(config.backbone, config.num_fields, dim, list(config.hidden))

    def forward(self, batch: Batch, tables: Tables) -> torch.Tensor:
        """[B] logits."""
        facts = torch.cat([self.item.weight, self.category(tables.categories)], dim=1)  # [I + 1, 2D], looked up once a batch
        target = nn.functional.embedding(batch.items, facts)
        unseen = self.signal.weight[:1].expand(len(target), -1)
        parts = [target, self._pooled(self.pool, batch.history, facts, torch.cat([target, unseen], dim=1))]
        if batch.similar is not None:
            parts.append(self._pooled(self.pool_similar, batch.similar, facts, torch.cat([target, unseen], dim=1)))
        if self.config.interests or self.config.item_knowledge:
            item = nn.functional.embedding(batch.items, self.knowledge(tables.items).float())
            if batch.visible is not None:
                parts.append(self.fusion(self._interests(batch.visible, tables), batch.visible.valid, item).float())
            if self.config.item_knowledge:
                parts.append(item)
        return self.head(torch.cat(parts, dim=1).unflatten(1, (-1, self.config.dim)))

    def _pooled(self, pool: nn.Module, events: Events, facts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([nn.functional.embedding(events.items, facts), self.signal(events.signals)], dim=-1)  # [B, H, E]
        if torch.is_autocast_enabled(tokens.device.type):
            # Once, and after the lookups, whose gradients are sums that half precision would spoil.
            dtype = torch.get_autocast_dtype(tokens.device.type)
            tokens, target = tokens.to(dtype), target.to(dtype)
        return pool(target, tokens, events.valid).float()

    def _interests(self, visible: Visible, tables: Tables) -> torch.Tensor:
        """[B, T, D] projected interests, scaled by S_final."""
        projected = self.interest(tables.interests).float()
        if self.config.scored:
            projected = projected * tables.scores[:, None]
        return nn.functional.embedding(visible.chunks, projected)
