"""The words of a catalogue that tell one kind of its items from the others: counts of whole words, brands and names left out.

Shapes: N items, A aspects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[A-Za-z][a-z'-]*[a-z]")
_DULL = frozenset(
    """about after again all also always and another any are away back been before being best between both but can come comes could day
    did does done down during each end even ever every few find finds first for free from full get gets give gives goes great has have having
    help her here him his how into its itself just know known large last left life like made make makes making man many more most much must new
    next not now off old once one only other out over own part people perfect place professional pure real right said same see set she should
    show size some soon special still story such take takes tell than that the their them then there these they things this those through time
    together too tries trying turn two under until use using value very want wants was way well were what when where which while who whole whose will
    with without work works world would year years you young your film movie plot based fluid ounce ounces pack count inch inches
    assorted piece pieces because yet against himself become had used called different doing become went ordered item product products brand premium quality natural formula color colour amazon frustration packaging series""".split()  # noqa: SIM905
)

MOTIVES: dict[str, str] = {
    "action": "be swept along by speed and danger",
    "adventure": "set out for far places",
    "animation": "delight in drawn worlds",
    "children's": "share a story with the family",
    "comedy": "laugh",
    "crime": "see how a crime is done and undone",
    "documentary": "learn how things really are",
    "drama": "be moved by people's fates",
    "fantasy": "escape into what cannot be",
    "film-noir": "sink into shadows and doubt",
    "horror": "feel fear in safety",
    "musical": "enjoy song and dance",
    "mystery": "puzzle out what happened",
    "romance": "see love find its way",
    "sci-fi": "imagine other futures",
    "thriller": "sit in suspense",
    "war": "understand what war does to people",
    "western": "ride through open country",
}
"""What people look for in a kind of film; other kinds have a wish made of their names."""


def motive_of(wider: str) -> str:
    """What somebody wants who follows an aspect, by what the aspect belongs to."""
    return MOTIVES.get(wider, f"find good things for {wider}")


def modifiers_of(
    texts: Sequence[str], brands: Sequence[str | None], teachable: np.ndarray, shows: np.ndarray, lower_only: bool
) -> list[tuple[str, ...]]:
    """[A] words that tags of an aspect may begin with: frequent among its items, rarer among the others, the most telling first.

    Args:
        texts: [N] titles or descriptions.
        brands: [N] makers.
        teachable: [N] bool; texts of other items are not read.
        shows: [N, A].
        lower_only: count only words written in lower case, which names of people and places are not.
    """
    return _telling(texts, brands, teachable, shows, lower_only, at_least=4, keep=24)


def core_words(titles: Sequence[str], brands: Sequence[str | None], teachable: np.ndarray, shows: np.ndarray) -> list[tuple[str, ...]]:
    """[A] words of titles that give an aspect away."""
    return _telling(titles, brands, teachable, shows, lower_only=False, at_least=4, keep=16)


def said_words(text: str, lower_only: bool) -> set[str]:
    """The distinct words of a text that may count."""
    found = _WORD.findall(text)
    kept = (word for word in found if not lower_only or word.islower())
    return {word for word in (word.lower() for word in kept) if len(word) > 2 and "'" not in word and word not in _DULL and not word.endswith("ly")}


def _telling(
    texts: Sequence[str], brands: Sequence[str | None], teachable: np.ndarray, shows: np.ndarray, lower_only: bool, at_least: int, keep: int
) -> list[tuple[str, ...]]:
    makers = {word for brand in brands if brand for word in brand.lower().split()}
    said = [said_words(text, lower_only) - makers if allowed else set() for text, allowed in zip(texts, teachable, strict=True)]
    total = Counter(word for words in said for word in words)
    num_items = max(int(teachable.sum()), 1)
    found = []
    for aspect in range(shows.shape[1]):
        rows = np.flatnonzero((shows[:, aspect] > 0) & teachable)
        inside = Counter(word for row in rows.tolist() for word in said[row])
        share = len(rows) / num_items
        scores = {word: n * np.log(n / (total[word] * share)) for word, n in inside.items() if n >= at_least and n > 2 * total[word] * share}
        found.append(tuple(sorted(scores, key=lambda word: (-scores[word], word))[:keep]))
    return found
