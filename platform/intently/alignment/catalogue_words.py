"""The words of a catalogue that tell one kind of its items from the others: counts of whole words, brands and names left out.

Shapes: N items, A aspects.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LEAST_TEXTS = 4
LEAST_LIFT = 2.0
_WORD = re.compile(r"[A-Za-z][a-z'-]*[a-z]")
_DULL = frozenset(
    "about after again against all also always amazon and another any are assorted away back based because become been before "  # noqa: SIM905
    "being best between both brand but called can color colour come comes could count day did different does doing done down "
    "during each end even ever every few film find finds first fluid for formula free from frustration full get gets give "
    "gives goes great had has have having help her here him himself his how inch inches into item its itself just know known "
    "large last left life like made make makes making man many more most movie much must natural new next not now off old "
    "once one only ordered other ounce ounces out over own pack packaging part people perfect piece pieces place plot premium "
    "product products professional pure quality real right said same see series set she should show size some soon special "
    "still story such take takes tell than that the their them then there these they things this those through time together "
    "too tries trying turn two under until use used using value very want wants was way well went were what when where which "
    "while who whole whose will with without work works world would year years yet you young your".split()
)
"""Words that tell nothing of an item."""

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


def said_words(text: str, lower_only: bool) -> set[str]:
    """The distinct words of a text that may count."""
    found = _WORD.findall(text)
    kept = {word.lower() for word in found if not lower_only or word.islower()} - _DULL
    return {word for word in kept if len(word) > 2 and "'" not in word and not word.endswith("ly")}


def telling_words(
    texts: Sequence[str], brands: Sequence[str | None], teachable: np.ndarray, shows: np.ndarray, lower_only: bool, keep: int
) -> list[tuple[str, ...]]:
    """[A] words that are frequent in the texts of an aspect's items and rare in others', the most telling first.

    Args:
        texts: [N] titles or descriptions.
        brands: [N] makers, whose words never count.
        teachable: [N] bool; texts of other items are not read.
        shows: [N, A].
        lower_only: count only words written in lower case, which names of people and places are not.
        keep: words of an aspect.
    """
    makers = {word for brand in brands if brand for word in brand.lower().split()}
    said = [said_words(text, lower_only) - makers if allowed else set() for text, allowed in zip(texts, teachable, strict=True)]
    total = Counter(word for words in said for word in words)
    num_items = max(int(teachable.sum()), 1)
    found = []
    for aspect in range(shows.shape[1]):
        rows = np.flatnonzero((shows[:, aspect] > 0) & teachable)
        inside = Counter(word for row in rows.tolist() for word in said[row])
        chance = {word: total[word] * len(rows) / num_items for word in inside}
        scores = {word: n * np.log(n / chance[word]) for word, n in inside.items() if n >= LEAST_TEXTS and n > LEAST_LIFT * chance[word]}
        found.append(tuple(sorted(scores, key=lambda word: (-scores[word], word))[:keep]))
    return found
