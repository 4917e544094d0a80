"""Words, spellings, brands."""

from __future__ import annotations

from intently.interests.phrases import BrandFinder, normalise


def test_normalise_case_and_punctuation_are_one_phrase() -> None:
    assert normalise("  Trail-Running,  at NIGHT! ") == normalise("trail running at night") == "trail running at night"


def test_brand_finder_whole_words_only() -> None:
    brands = BrandFinder(["Nova", "Lira Nova", None, "X"])
    assert brands.find("a LIRA-nova guitar") == ["Lira Nova", "Nova"]
    assert brands.find("novation of lira, size X") == []


def test_brand_finder_no_brands_finds_nothing() -> None:
    assert BrandFinder([None]).find("anything at all") == []
