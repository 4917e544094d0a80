"""φ on the real encoder: it learns the catalogue's categories and files tags that no item is called by."""

from __future__ import annotations

import numpy as np
import pytest
from intently.core.schema import ITEM
from intently.interests.categories import CategoryModelConfig, train_category_model
from intently.llm.encoder import TextEncoder

KINDS = {"Coffee": ("coffee grinder", "espresso cup", "pour-over kettle"), "Hiking": ("hiking boots", "trekking poles", "summit backpack")}
MODIFIERS = ("light", "folding", "handmade", "steel", "compact", "sturdy", "classic", "blue", "robust", "slim")


def test_category_model_files_titles_and_tags_it_never_saw(encoder: TextEncoder) -> None:
    rows = [
        {
            "item_id": f"{category}-{modifier}-{noun}",
            "title": f"{modifier} {noun}",
            "category": category,
            "categories": [],
            "attributes": [],
        }
        for category, nouns in KINDS.items()
        for noun in nouns
        for modifier in MODIFIERS
    ]
    model = train_category_model(ITEM.from_rows(rows), encoder, CategoryModelConfig(held_out=0.3))
    assert model.categories.tolist() == ["Coffee", "Hiking"]
    assert model.accuracy == 1.0 and model.baseline < 0.7
    tags = encoder.encode(["warm mountain boots", "cold brew coffee maker"])
    assert model.categories[model.predict(tags)].tolist() == ["Hiking", "Coffee"]
    assert model.likely(tags).sum(axis=1) == pytest.approx(1, abs=1e-5)
    again = train_category_model(ITEM.from_rows(rows), encoder, CategoryModelConfig(held_out=0.3))
    np.testing.assert_array_equal(model.weights, again.weights)
