"""User, item and tag tower (RecGPT, section on user-item-tag retrieval).

Shapes: B users, N events in a window (latest first), P pooled means, I items, T tags, D width of every vector,
G behaviours. All three towers end in vectors of length 1, so that an inner product is a cosine.
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
    def _windows_rise(self) -> TowerConfig:
        if list(self.windows) != sorted(set(self.windows)) or self.windows[0] < 1:
            raise ValueError("windows must be positive and rising")
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
    """What the user tower reads."""

    items: torch.Tensor
    """[B, N] catalogue rows, latest event first."""
    behaviours: torch.Tensor
    """[B, N] places in BehaviourConfig.history."""
    valid: torch.Tensor
    """[B, N] whether there is an event."""
    users: torch.Tensor
    """[B] user rows, −1 for someone unknown."""


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
    """User id embedding, the mean of r_v per behaviour over the longest window, and over each shorter one → MLP."""

    def __init__(self, config: TowerConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.num_behaviours = config, sizes.num_behaviours
        # Row 0 is the user whom nobody knows.
        self.identity = _embedding(sizes.num_users + 1, config.dim)
        num_means = sizes.num_behaviours + len(config.windows) - 1
        self.output = _mlp(config.dim * (1 + num_means), config)

    def forward(self, window: Window, representations: torch.Tensor) -> torch.Tensor:
        """Windows and r_v of their items [B, N, D] → h_u [B, D]."""
        rows = window.users + 1
        if self.training:
            rows = torch.where(torch.rand(rows.shape, device=rows.device) < self.config.user_dropout, 0, rows)
        means = torch.bmm(self.pooling(window), representations)  # [B, P, D]
        return F.normalize(self.output(torch.cat([self.identity(rows), means.flatten(1)], dim=-1)), dim=-1)

    @torch.no_grad()
    def vectors(self, past: Interactions, representations: torch.Tensor, block: int = 1024) -> torch.Tensor:
        """h_u [U, D] of all users, each after their whole past.

        Args:
            past: of the users that the tower was trained on, in the same order.
            representations: r_v [I, D] of the catalogue.
            block: users at a time.
        """
        cut = WindowCutter(past, self.config.windows[-1], representations.device)
        found = [representations.new_empty((0, self.config.dim))]
        for rows in torch.arange(past.num_users, device=representations.device).split(block):
            window = cut.window(rows, cut.offsets[rows + 1])
            found.append(self(window, F.embedding(window.items, representations)))
        return torch.cat(found)

    def pooling(self, window: Window) -> torch.Tensor:
        """[B, P, N] weights that turn a window into its means; a mean over no event is zero."""
        places = torch.arange(window.valid.shape[1], device=window.valid.device)
        recent = [(window.valid & (places < length))[:, None] for length in self.config.windows[:-1]]
        kinds = torch.arange(self.num_behaviours, device=window.valid.device)
        each = (window.behaviours[:, None] == kinds[:, None]) & window.valid[:, None]
        members = torch.cat([*recent, each], dim=1).float()
        return members / members.sum(dim=-1, keepdim=True).clamp(min=1)


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
    """Cuts the events before given places out of flat histories."""

    def __init__(self, past: Interactions, length: int, device: torch.device) -> None:
        self.offsets = torch.tensor(past.offsets, device=device)
        self.items = torch.tensor(past.items, device=device)
        self.behaviours = torch.tensor(past.behaviours, device=device)
        self.steps = torch.arange(1, length + 1, device=device)

    def window(self, users: torch.Tensor, ends: torch.Tensor) -> Window:
        """The last events of user rows [B] before event places `ends` [B]."""
        places = ends[:, None] - self.steps
        valid = places >= self.offsets[users][:, None]
        if not len(self.items):
            empty = torch.zeros_like(places)
            return Window(empty, empty, valid, users)
        places = places.clamp(min=0)
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
