"""Words, spellings, brands."""

from __future__ import annotations

import pyarrow as pa
import pytest
from intently.interests.phrases import BrandFinder, normalise, stutters


def test_normalise_case_and_punctuation_are_one_phrase() -> None:
    assert normalise("  Trail-Running,  at NIGHT! ") == normalise("trail running at night") == "trail running at night"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("buoyant kayak paddle paddle", True),
        ("to escape to escape to escape", True),
        ("to win, to learn, to win again", False),
        ("one", False),
        ("", False),
    ],
)
def test_stutters_word_after_itself_or_pair_three_times(text: str, found: bool) -> None:
    assert stutters(text) is found


def test_brand_finder_whole_words_only() -> None:
    brands = BrandFinder(["Nova", "Lira Nova", None, "X"])
    assert brands.find("a LIRA-nova guitar") == ["Lira Nova", "Nova"]
    assert brands.find("novation of lira, size X") == []


def test_brand_finder_no_brands_finds_nothing() -> None:
    assert BrandFinder([None]).find("anything at all") == []


def test_brand_finder_of_items_word_of_others_titles_only_is_no_brand() -> None:
    rows = [
        ("Samsung charger", "Samsung"),
        ("Blue case for a Samsung", "Blue Sky"),
        ("Blue blue cable", None),
        ("Film", "Ann Lee"),
        ("Cable", "Blue"),
    ]
    items = pa.table({"title": [title for title, _ in rows], "brand": [brand for _, brand in rows]})
    brands = BrandFinder.of_items(items)
    assert brands.find("blue samsung case by Ann Lee, blue sky") == ["Samsung", "Ann Lee", "Blue Sky"]
