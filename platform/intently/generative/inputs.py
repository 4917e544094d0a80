"""What semantic IDs are made from: an item's own text, or its deep interests; joined with collaborative vectors if wanted.

Shapes: N items, D width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.protocols import TextEncoder


class InputConfig(Config):
    """What the codes shall tell of an item."""

    source: Literal["shallow", "deep"] = Field(
        "shallow", description="shallow: item_embedding; deep: item_interest, encoded (DeepInterestGR), where an item has interests"
    )
    min_confidence: float = Field(0.0, ge=0, le=1, description="deep: interests below are left out")
    collaborative_weight: float = Field(0.0, ge=0, lt=1, description="share of item_vector (the trained item tower) in squared length")


def item_inputs(
    item_ids: pa.Array,
    embeddings: pa.Table,
    interests: pa.Table | None,
    vectors: pa.Table | None,
    config: InputConfig,
    encoder: TextEncoder | None,
) -> np.ndarray:
    """[N, D] float32, the vectors that are quantised.

    Args:
        item_ids: [N] the catalogue.
        embeddings: EMBEDDING of kind item.
        interests: ITEM_INTEREST rows; needed for `deep`.
        vectors: EMBEDDING rows of collaborative item vectors; needed with a weight. An item without one has zeros there.
        config: what goes in.
        encoder: the encoder that made `embeddings`; needed for `deep`.
    Raises:
        ConfigError: what is asked for does not stand.
        SchemaError: an item has no embedding.
    """
    inputs = _unit(_aligned(embeddings, item_ids, everyone=True))
    if config.source == "deep":
        if interests is None or encoder is None:
            raise ConfigError("inputs.source", config.source, "no item_interest stands in the workspace; mine interests first")
        texts = interest_texts(interests, config.min_confidence)
        rows = pc.fill_null(pc.index_in(texts["item_id"], value_set=item_ids), -1).to_numpy(zero_copy_only=False)
        known = rows >= 0
        inputs[rows[known]] = _unit(encoder.encode(texts["text"].filter(pa.array(known)).to_pylist()))
    if config.collaborative_weight:
        if vectors is None:
            raise ConfigError("inputs.collaborative_weight", config.collaborative_weight, "no item_vector stands in the workspace")
        joined = _unit(_aligned(vectors, item_ids, everyone=False))
        weight = config.collaborative_weight
        inputs = np.concatenate([inputs * np.sqrt(1 - weight), joined * np.sqrt(weight)], axis=1)
    return inputs.astype(np.float32)


def interest_texts(interests: pa.Table, min_confidence: float) -> pa.Table:
    """ITEM_INTEREST rows → (item_id, text): each item's interests, surest first, joined by semicolons."""
    sure = interests.filter(pc.greater_equal(interests["confidence"], min_confidence))
    ranked = sure.sort_by([("item_id", "ascending"), ("confidence", "descending"), ("interest", "ascending")])
    grouped = ranked.group_by("item_id", use_threads=False).aggregate([("interest", "list")])
    return pa.table({"item_id": grouped["item_id"], "text": pc.binary_join(grouped["interest_list"], "; ")})


def _aligned(embeddings: pa.Table, item_ids: pa.Array, everyone: bool) -> np.ndarray:
    """[N, D] vectors in the catalogue's order; zeros where there is none, which is an error if everyone needs one."""
    flat = pc.list_flatten(embeddings["vector"]).to_numpy().astype(np.float32)
    width = len(flat) // max(1, embeddings.num_rows)
    found = pc.index_in(item_ids, value_set=embeddings["id"].combine_chunks() if embeddings.num_rows else pa.array([], pa.string()))
    rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
    missing = rows < 0
    if everyone and missing.any():
        first = item_ids[int(np.argmax(missing))].as_py()
        raise SchemaError(f"table item_embedding: {int(missing.sum())} item(s) have no vector, first {first!r}; run embed_texts again")
    vectors = np.zeros((len(item_ids), width), np.float32)
    vectors[~missing] = flat.reshape(-1, width)[rows[~missing]]
    return vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
