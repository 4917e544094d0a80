"""Short texts compared as people compare them: without case and punctuation, and by whole words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pyarrow as pa

_WORD = re.compile(r"[^\W_]+")
_JOINTS = frozenset({"and", "or", "you"})
_DOUBLED = frozenset({"more", "again", "over", "through"})
"""Words that people do say twice: "more and more"."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text, case folded, without punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def normalise(text: str) -> str:
    """What two spellings of one phrase have in common."""
    return " ".join(words(text))


def stutters(text: str) -> bool:
    """Whether a text runs in circles, as weak models do.

    A word right after itself, or the same on both sides of a joint ("warm and warm", "helps you help"), or two words three times.
    """
    said = words(text)
    pairs = Counter(pairwise(said))
    spoken = [part.strip(".,;:!?") for part in text.casefold().split()]  # compounds in one piece
    joined = (
        first
        for first, joint, last in zip(spoken, spoken[1:], spoken[2:], strict=False)
        if joint in _JOINTS and _bare(first) == _bare(last)
    )
    twice = any(first == second for first, second in pairs) or any(count > 2 for count in pairs.values())
    return twice or any(first not in _DOUBLED for first in joined)


def _bare(word: str) -> str:
    return word.removesuffix("s")


class BrandFinder:
    """Finds the brands of a catalogue in texts, as whole words.

    Runs of words are looked up in a set, so that a hundred thousand brands cost no more than one.

    Args:
        brands: names as in Item.brand; nulls are passed over.
        min_letters: shorter names are passed over: "3M" can be found, "X" is in too many texts that mean no brand.
    """

    def __init__(self, brands: Iterable[str | None], min_letters: int = 2) -> None:
        split = {brand: words(brand) for brand in brands if brand is not None}
        self._brands = {run: brand for brand, run in split.items() if sum(map(len, run)) >= min_letters}
        self._longest = max(map(len, self._brands), default=0)

    @classmethod
    def of_items(cls, items: pa.Table) -> BrandFinder:
        """The brands of ITEM rows, without words that only pass for one.

        Real catalogues give "Blue", "Wireless" or "Cell Phone" as a maker: a name that other items' titles use and its own
        items' titles never do is no name.
        """
        makers, titles = items["brand"].to_pylist(), items["title"].to_pylist()
        found = cls(makers)
        own, other = set[str](), set[str]()
        for maker, title in zip(makers, titles, strict=True):
            for brand in found.find(title):
                (own if maker is not None and words(maker) == words(brand) else other).add(brand)
        return cls(set(found._brands.values()) - (other - own))

    def find(self, text: str) -> list[str]:
        """The brands that the text names, in the order in which they appear."""
        split = words(text)
        runs = (split[start : start + length] for start in range(len(split)) for length in range(1, self._longest + 1))
        return list(dict.fromkeys(self._brands[run] for run in runs if run in self._brands))
