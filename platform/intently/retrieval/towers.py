"""User, item and tag tower (RecGPT, section on user-item-tag retrieval).

Shapes: B stretches of one user's events each, Q queries of a stretch, W events that a query looks back on, N = W + Q − 1 events of a
stretch (oldest first), P pooled means, H heads, I items, T tags, D width of every vector. Query q sees events q … q + W − 1 of its
stretch and asks what came as event q + W; with one query a stretch is simply the last W events. All three towers end in vectors of
length 1, so that an inner product is a cosine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from intently.core.config import Config
from intently.retrieval.catalogue import Catalogue
from intently.retrieval.interactions import Interactions


class TowerConfig(Config):
    """Shapes of the towers."""

    dim: int = Field(64, ge=2, description="width of embeddings and of the vectors that are searched")
    hidden: int = Field(128, ge=2, description="width of the hidden layer of each tower")
    windows: tuple[int, ...] = Field(
        (3, 10, 50), min_length=1, description="events that are pooled, rising: the last one per behaviour, those before it as a whole"
    )
    heads: int = Field(4, ge=0, description="heads of the attention over the longest window; 0 leaves it out, as in the paper")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the user tower's hidden units dropped in training")
    user_dropout: float = Field(
        0.5, ge=0, le=1, description="share of training examples whose user id is hidden, so that the shared unknown user learns too"
    )
    item_dropout: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the items whose id is hidden in a step, so that the row that later items share learns too",
    )
    use_text: bool = Field(True, description="whether the item tower reads the items' text embeddings")
    price_bins: int = Field(16, ge=1, description="quantiles that prices are cut into")
    token_buckets: int = Field(16_384, ge=2, description="rows of the tag tower's hashed vocabulary")

    @model_validator(mode="after")
    def _shapes_fit(self) -> TowerConfig:
        if list(self.windows) != sorted(set(self.windows)) or self.windows[0] < 1:
            raise ValueError("windows must be positive and rising")
        if self.heads and self.dim % self.heads:
            raise ValueError("dim must be a multiple of heads")
        return self


class Sizes(Config):
    """What the data decides about the towers' shapes."""

    num_users: int = Field(description="known users")
    num_items: int = Field(description="items of the catalogue")
    num_categories: int = Field(description="category codes")
    num_brands: int = Field(description="brand codes, 'none' included")
    text_dim: int = Field(description="length of the items' text embeddings; 0 without")
    num_behaviours: int = Field(description="behaviours that are pooled on their own")


class Window(NamedTuple):
    """What the user tower reads: B stretches."""

    items: torch.Tensor
    """[B, N] catalogue rows, oldest event first."""
    behaviours: torch.Tensor
    """[B, N] places in BehaviourConfig.history."""
    valid: torch.Tensor
    """[B, N] whether there is an event."""
    users: torch.Tensor
    """[B] user rows, −1 for someone unknown."""
    hidden: torch.Tensor | None = None
    """[B, Q] catalogue rows that query q may not see in its past; None hides nothing."""


class Features(NamedTuple):
    """What the item tower reads of n items."""

    ids: torch.Tensor
    """[n] catalogue rows; −1 for an item that came after training, or whose id is hidden."""
    categories: torch.Tensor
    """[n] codes; −1 for a category that training did not see."""
    brands: torch.Tensor
    """[n] codes; 0 for none."""
    prices: torch.Tensor
    """[n] bins; 0 for none."""
    texts: torch.Tensor
    """[n, E] text embeddings."""


def features_of(catalogue: Catalogue, ids: np.ndarray) -> Features:
    """A catalogue as tensors, with the rows [I] that its items had in training (−1 for later ones)."""
    arrays = (ids, catalogue.categories, catalogue.brands, catalogue.prices, catalogue.texts)
    return Features(*(torch.from_numpy(array) for array in arrays))


class ItemTower(nn.Module):
    """Sparse and discretised dense features, each embedded, and the text embedding, projected; their sum → MLP.

    The sum r_v is the item's representation that the user tower pools; a sum of embeddings is a linear layer over their
    concatenation. Items that come after training share one id embedding, which learns because the ids of a share of the items are
    hidden in every training step; a category that training did not see adds nothing.
    """

    def __init__(self, config: TowerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.hidden_ids = config.item_dropout
        # Row 0 is the item whose id nobody knows.
        self.identity = _embedding(sizes.num_items + 1, config.dim)
        self.category = nn.Embedding(sizes.num_categories + 1, config.dim, padding_idx=0)
        nn.init.normal_(self.category.weight[1:].detach(), std=0.05)
        self.brand = _embedding(sizes.num_brands, config.dim)
        self.price = _embedding(config.price_bins + 1, config.dim)
        self.text = nn.Linear(sizes.text_dim, config.dim, bias=False) if sizes.text_dim else None
        self.output = _mlp(config.dim, config)

    def represent(self, items: Features) -> torch.Tensor:
        """Features of n items → r_v, [n, D]."""
        ids = items.ids + 1
        if self.training:
            ids = torch.where(torch.rand(ids.shape, device=ids.device) < self.hidden_ids, 0, ids)
        total = self.identity(ids) + self.category(items.categories + 1) + self.brand(items.brands) + self.price(items.prices)
        return total if self.text is None else total + self.text(items.texts)

    def forward(self, representation: torch.Tensor) -> torch.Tensor:
        """r_v [n, D] → h_v [n, D]."""
        return F.normalize(self.output(representation), dim=-1)


class UserTower(nn.Module):
    """User id, the mean of r_v per behaviour over the longest window and over each shorter one, attention over the window → MLP.

    The attention is one layer of a causal transformer, asked at the latest event: H heads over the W events, each with its behaviour and
    a learned bias by how long ago it was (in events).
    """

    def __init__(self, config: TowerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.num_behaviours, self.length = config, sizes.num_behaviours, config.windows[-1]
        # Row 0 is the user whom nobody knows.
        self.identity = _embedding(sizes.num_users + 1, config.dim)
        num_pooled = sizes.num_behaviours + len(config.windows) - 1
        if config.heads:
            self.attention = WindowAttention(config, sizes)
            num_pooled += 1
        self.output = _mlp(config.dim * (1 + num_pooled), config)

    def forward(self, window: Window, representations: torch.Tensor, asked: torch.Tensor | None = None) -> torch.Tensor:
        """Queries → h_u.

        Args:
            window: B stretches.
            representations: r_v of their items, [B, N, D].
            asked: [B, Q] queries that are wanted; None asks all.
        Returns:
            [n, D], of the n queries that are asked, stretch by stretch.
        """
        distance, visible = self.past(window)
        pooled = [torch.einsum("bpqn,bnd->bqpd", self.means(window, distance, visible), representations).flatten(2)]
        if self.config.heads:
            pooled.append(self.attention(window, representations, distance, visible))
        rows = (window.users + 1)[:, None].expand(visible.shape[:2])
        if asked is not None:
            rows, pooled = rows[asked], [each[asked] for each in pooled]
        rows, pooled = rows.flatten(), [each.reshape(-1, each.shape[-1]) for each in pooled]
        if self.training:
            rows = torch.where(torch.rand(rows.shape, device=rows.device) < self.config.user_dropout, 0, rows)
        return F.normalize(self.output(torch.cat([self.identity(rows), *pooled], dim=-1)), dim=-1)

    @torch.no_grad()
    def vectors(self, past: Interactions, representations: torch.Tensor, block: int = 1024) -> torch.Tensor:
        """h_u [U, D] of all users, each after their whole past.

        Args:
            past: of the users that the tower was trained on, in the same order.
            representations: r_v [I, D] of the catalogue.
            block: users at a time.
        """
        cut = WindowCutter(past, self.length, representations.device)
        found = [representations.new_empty((0, self.config.dim))]
        for rows in torch.arange(past.num_users, device=representations.device).split(block):
            window = cut.window(rows, cut.offsets[rows + 1])
            found.append(self(window, F.embedding(window.items, representations)))
        return torch.cat(found)

    def past(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """[Q, N] how many events before the query's own an event lies, and [B, Q, N] whether the query sees it."""
        events = torch.arange(window.items.shape[1], device=window.items.device)
        distance = torch.arange(len(events) - self.length + 1, device=events.device)[:, None] + self.length - events
        visible = ((distance >= 1) & (distance <= self.length)) & window.valid[:, None]
        if window.hidden is not None:
            visible = visible & (window.items[:, None] != window.hidden[:, :, None])
        return distance, visible

    def means(self, window: Window, distance: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """[B, P, Q, N] weights that turn a stretch into its means; a mean over no event is zero."""
        recent = [visible & (distance <= length) for length in self.config.windows[:-1]]
        each = [visible & (window.behaviours == kind)[:, None] for kind in range(self.num_behaviours)]
        members = torch.stack([*recent, *each], dim=1).float()
        return members / members.sum(dim=-1, keepdim=True).clamp(min=1)


class WindowAttention(nn.Module):
    """One attention layer over the window, whose query is the latest event."""

    def __init__(self, config: TowerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.length = config.heads, config.windows[-1]
        self.behaviour = _embedding(sizes.num_behaviours, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.query, self.key, self.value = (nn.Linear(config.dim, config.dim) for _ in range(3))
        # Column 0 is for events outside the window, which are never seen.
        self.bias = nn.Parameter(torch.zeros(config.heads, self.length + 1))

    def forward(self, window: Window, representations: torch.Tensor, distance: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Stretches and r_v [B, N, D], with `UserTower.past` of them → [B, Q, D]; zero where nothing is seen."""
        events = self.norm(representations + self.behaviour(window.behaviours))
        query, key, value = (layer(events).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        bias = self.bias[:, torch.where((distance >= 1) & (distance <= self.length), distance, 0)]  # [H, Q, N]
        # A query that sees nothing looks at everything alike, and is set to zero behind.
        mask = torch.where(visible[:, None], bias, -1e9)
        latest = query[:, :, self.length - 1 :]  # event q + W − 1
        attended = F.scaled_dot_product_attention(latest, key, value, attn_mask=mask)  # [B, H, Q, D / H]
        return attended.transpose(1, 2).flatten(2) * visible.any(dim=-1, keepdim=True)


class TagTower(nn.Module):
    """Mean of the embeddings of a tag's words, in a hashed vocabulary → MLP."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(config.token_buckets, config.dim, mode="mean")
        nn.init.normal_(self.words.weight, std=0.1)
        self.output = _mlp(config.dim, config)

    def forward(self, words: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """[W] hashed words of T tags and [T] where each tag's begin → h_t [T, D]."""
        return F.normalize(self.output(self.words(words, offsets)), dim=-1)


class Towers(nn.Module):
    """The three towers, and the catalogue that they are trained on."""

    def __init__(self, config: TowerConfig, sizes: Sizes, catalogue: Catalogue) -> None:
        super().__init__()
        self.config = config
        self.item, self.user, self.tag = ItemTower(config, sizes), UserTower(config, sizes), TagTower(config)
        for name, values in features_of(catalogue, np.arange(catalogue.num_items))._asdict().items():
            self.register_buffer(name, values, persistent=False)

    def represent(self, rows: torch.Tensor) -> torch.Tensor:
        """[n] catalogue rows → r_v, [n, D]."""
        return self.item.represent(Features(*(getattr(self, name)[rows] for name in Features._fields)))

    @torch.no_grad()
    def item_vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the whole catalogue: r_v [I, D] and h_v [I, D]."""
        representations = self.represent(torch.arange(len(self.ids), device=self.ids.device))
        return representations, self.item(representations)


class WindowCutter:
    """Cuts stretches out of flat histories."""

    def __init__(self, past: Interactions, length: int, device: torch.device) -> None:
        self.offsets = torch.tensor(past.offsets, device=device)
        self.items = torch.tensor(past.items, device=device)
        self.behaviours = torch.tensor(past.behaviours, device=device)
        self.length = length

    def window(self, users: torch.Tensor, starts: torch.Tensor, num_queries: int = 1) -> Window:
        """Stretches of user rows [B] whose queries ask for event places starts … starts + num_queries − 1."""
        places = starts[:, None] + torch.arange(-self.length, num_queries - 1, device=starts.device)
        valid = (places >= self.offsets[users][:, None]) & (places < self.offsets[users + 1][:, None])
        if not len(self.items):
            empty = torch.zeros_like(places)
            return Window(empty, empty, valid, users)
        places = places.clamp(0, len(self.items) - 1)
        return Window(self.items[places], self.behaviours[places], valid, users)


def sizes_of(catalogue: Catalogue, num_users: int, num_behaviours: int, config: TowerConfig) -> Sizes:
    """Shapes that follow from the data."""
    return Sizes(
        num_users=num_users,
        num_items=catalogue.num_items,
        num_categories=len(catalogue.category_names),
        num_brands=len(catalogue.vocabulary.brand_names) + 1,
        text_dim=catalogue.texts.shape[1] if config.use_text else 0,
        num_behaviours=num_behaviours,
    )


def _embedding(rows: int, dim: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, dim)
    nn.init.normal_(embedding.weight, std=0.05)
    return embedding


def _mlp(width: int, config: TowerConfig) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, config.hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.dim))
