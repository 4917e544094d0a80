"""The real text encoder, loaded once, and a catalogue small enough to check by eye."""

from __future__ import annotations

import pyarrow as pa
import pytest
from intently.core.schema import ITEM
from intently.llm.encoder import EncoderConfig, TextEncoder


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    """MiniLM from its package."""
    return TextEncoder(EncoderConfig())


@pytest.fixture(scope="session")
def items() -> pa.Table:
    """Six items of three categories, two of each, with three brands."""
    rows = [
        ("boots", "Brenna waterproof hiking boots", "Hiking", "Brenna", 119.0, ["material: leather"]),
        ("poles", "Folding trekking poles", "Hiking", "Ostro", 49.5, ["length: 130 cm"]),
        ("grinder", "Stepless coffee burr grinder", "Coffee", "Ostro", 89.0, []),
        ("kettle", "Gooseneck coffee kettle", "Coffee", None, None, []),
        ("guitar", "Spruce acoustic guitar", "Music", "Lira Nova", 210.0, ["strings: 6"]),
        ("strings", "Bronze acoustic guitar strings", "Music", None, 9.0, []),
    ]
    names = ("item_id", "title", "category", "brand", "price", "attributes")
    return ITEM.from_rows([dict(zip(names, row, strict=True)) | {"categories": [row[2]]} for row in rows])
