"""φ: from a tag to the category that it falls into (RecGPT §3), a softmax regression on text vectors, trained on the catalogue's items.

Shapes: N texts, D the encoder's dimension, C categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from intently.core.config import Config
from intently.core.protocols import TextEncoder
from intently.interests.vectors import item_texts


class CategoryModelConfig(Config):
    """How φ is trained."""

    steps: int = Field(300, ge=1, description="full-batch steps of Adam")
    learning_rate: float = Field(0.1, gt=0, description="its first learning rate; it falls to 0 along a cosine")
    weight_decay: float = Field(1e-4, ge=0, description="pull of the weights towards 0")
    held_out: float = Field(0.1, ge=0, lt=1, description="share of items that are kept from training and measured on")
    seed: int = Field(0, description="of the held-out items")


@dataclass(frozen=True)
class CategoryModel:
    """A trained φ.

    Attributes:
        categories: [C] names, sorted.
        weights: [D + 1, C] float32; the last row is the bias.
        accuracy: on the held-out items; NaN if none was held out.
        baseline: share of the held-out items that are in the most frequent category.
    """

    categories: np.ndarray
    weights: np.ndarray
    accuracy: float
    baseline: float

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """[N, D] unit rows → [N] codes of the likeliest categories."""
        return self._logits(vectors).argmax(axis=1)

    def likely(self, vectors: np.ndarray) -> np.ndarray:
        """[N, D] unit rows → [N, C] probabilities."""
        logits = self._logits(vectors)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _logits(self, vectors: np.ndarray) -> np.ndarray:
        return vectors @ self.weights[:-1] + self.weights[-1]


def train_category_model(items: pa.Table, encoder: TextEncoder, config: CategoryModelConfig) -> CategoryModel:
    """ITEM rows → φ, on titles with and without their categories' names, as tags are worded by either.

    The accuracy is that on bare titles of held-out items: nothing in them names the category.
    """
    codes = items["category"].combine_chunks().dictionary_encode()
    names = np.array(codes.dictionary.to_pylist())
    categories = np.sort(names)
    target = np.searchsorted(categories, names)[codes.indices.to_numpy()]
    titles, worded = (encoder.encode(texts.to_pylist()) for texts in (items["title"], item_texts(items)))
    held_out = np.random.default_rng(config.seed).random(len(target)) < config.held_out
    kept = ~held_out
    weights = _fit(np.concatenate([titles[kept], worded[kept]]), np.tile(target[kept], 2), len(categories), config)
    model = CategoryModel(categories, weights, float("nan"), float("nan"))
    if not held_out.any():
        return model
    accuracy = float((model.predict(titles[held_out]) == target[held_out]).mean())
    most = np.bincount(target[kept], minlength=len(categories)).argmax()
    return CategoryModel(categories, weights, accuracy, float((target[held_out] == most).mean()))


def _fit(vectors: np.ndarray, target: np.ndarray, num_categories: int, config: CategoryModelConfig) -> np.ndarray:
    inputs, labels = torch.from_numpy(vectors), torch.from_numpy(target)
    layer = torch.nn.Linear(vectors.shape[1], num_categories)
    torch.nn.init.zeros_(layer.weight)  # a convex problem: where it starts does not matter, and zeros need no seed
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(inputs), labels).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.cat([layer.weight.T, layer.bias[None]]).numpy()
