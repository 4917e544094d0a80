from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from intently.data.item_names import NameConfig, short_names

TOY_STORY = {
    "title": "Toy Story (1995)",
    "category": "Animation",
    "categories": ["Animation", "Children's", "Comedy"],
    "attributes": ["year: 1995", "director: John Lasseter"],
}
BOOTS = {
    "title": "Trailfox  waterproof\nhiking boots",
    "category": "Hiking",
    "brand": "Trailfox",
    "attributes": ["feature: waterproof", "colour: red"],
}
LONG = {"title": "Replacement screen protector, pack of three, for phones - clear and very thin", "category": "Cases", "brand": "Sanoxy"}


@pytest.mark.parametrize(
    ("item", "config", "name"),
    [
        (TOY_STORY, NameConfig(facets=("categories",)), "Toy Story (1995) [Animation/Children's/Comedy]"),
        (TOY_STORY, NameConfig(), "Toy Story (1995) [Animation; John Lasseter]"),
        (TOY_STORY, NameConfig(facets=()), "Toy Story (1995)"),
        (BOOTS, NameConfig(), "Trailfox waterproof hiking boots [red]"),
        (LONG, NameConfig(max_words=8), "Replacement screen protector, pack of three, for phones"),
        (LONG, NameConfig(max_words=6), "Replacement screen protector, pack of three"),
        ({"title": "x" * 30}, NameConfig(max_characters=10), "xxxxxxxxx…"),
        ({"title": "  "}, NameConfig(), "i"),
    ],
)
def test_short_name_says_what_the_words_allow_and_nothing_twice(
    make_items: Callable[..., pa.Table], item: dict[str, object], config: NameConfig, name: str
) -> None:
    assert short_names(make_items(i=item), config).rows() == [("i", name)]
