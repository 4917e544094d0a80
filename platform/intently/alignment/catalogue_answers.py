"""The catalogue teacher's pen: what a chunk shows beyond chance, and the answers that follow from counts and metadata by rule.

Shapes: N items, A aspects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intently.alignment.catalogue import Aspect, Catalogue, decade_of
from intently.alignment.catalogue_words import motive_of, said_words
from intently.core.schema import Behaviour
from intently.llm.tasks import InterestDraft, ItemInterestDraft, ItemInterests, ItemTags, UserInterests

_DEEDS = {Behaviour.PURCHASE: "bought", Behaviour.RATING: "liked"}
HALF = 0.45
DEGREES = ((0.9, "nearly all"), (0.7, "most"), (HALF, "half"), (0.2, "some"), (0.0, "few"))
"""Share of what was seen that was liked, from which on a reason says so, and the word."""
LEAST_LIFT = 1.2
MOST_SHARED = 0.6


@dataclass(frozen=True)
class Shown:
    """An aspect that a chunk shows beyond chance.

    Attributes:
        aspect: its place in the vocabulary.
        first: when it first shows, 0 to 1 of the chunk's time.
        last: when it last shows.
    """

    aspect: int
    first: float
    last: float


@dataclass(frozen=True)
class Seen:
    """What a chunk's events liked, and what they did not.

    Attributes:
        items: [E] rows of the catalogue, of the liked events.
        times: [E] 0 to 1, where in the chunk's time each stands; all 0 where the chunk is one sitting.
        sitting: whether all of it happened within a day.
        others: [F] rows of the catalogue, of the events that liked nothing.
    """

    items: np.ndarray
    times: np.ndarray
    sitting: bool
    others: np.ndarray


def shown_aspects(catalogue: Catalogue, seen: Seen) -> list[Shown]:
    """What a chunk's liked items have more of than everybody's do, the strongest first: c·log(c / expected).

    Two aspects that rest on much the same items are one, the stronger. A chunk of more than five liked items shows an aspect from two on.
    What was watched much and liked less than half the time, and less than the rest, is no wish.
    """
    size = len(seen.items)
    has = catalogue.shows[seen.items]  # [E, A]
    count = has.sum(axis=0)
    lift = count / np.maximum(size * catalogue.rate, 1e-9)
    least = 1 if size <= 5 else 2
    seen_count = count + catalogue.shows[seen.others].sum(axis=0)
    share = count / np.maximum(seen_count, 1)
    rest = (size - count) / np.maximum(size + len(seen.others) - seen_count, 1)
    shows = (count >= least) & (lift >= LEAST_LIFT) & ((share >= HALF) | (share >= rest))
    score = np.where(shows, count * np.log(np.maximum(lift, 1e-9)), 0.0)
    chosen: list[int] = []
    for aspect in np.argsort(-score, kind="stable").tolist():
        if score[aspect] <= 0 or len(chosen) == _room(size, catalogue.config.max_interests):
            break
        if all(_shared(has[:, aspect], has[:, other]) < MOST_SHARED for other in chosen):
            chosen.append(aspect)
    found = []
    for aspect in chosen:
        when = seen.times[has[:, aspect] > 0]
        found.append(Shown(aspect, float(when.min()), float(when.max())))
    return found


def _room(size: int, most: int) -> int:
    return min(most, 2 + size // 8)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.minimum(one, other).sum() / np.maximum(np.maximum(one, other).sum(), 1))


def interests_of(catalogue: Catalogue, shown: Sequence[Shown], seen: Seen, text: str, previous: Sequence[str], deed: str) -> UserInterests:
    """The answer of a chunk.

    Args:
        catalogue: where its items are from.
        shown: what it shows, at least one.
        seen: its liked events.
        text: the chunk as the question shows it; reasons name words of it.
        previous: the interests that the question carries.
        deed: what people do in this catalogue.
    """
    drafts = []
    for one in shown:
        aspect = catalogue.aspects[one.aspect]
        what, rest = _what(aspect, text), ""
        if Behaviour(deed) is Behaviour.RATING:  # whoever rates says what they did not like, too
            degree, other = _degrees(catalogue.shows[:, one.aspect] > 0, seen)
            what, rest = f"{degree} {what}", f", {other} of the rest" if other else ""
        reason = f"{_DEEDS[Behaviour(deed)]} {what}{rest}, wants to {motive_of(aspect.wider)}"
        drafts.append(InterestDraft(interest=aspect.phrase, stage=_stage(one, seen, aspect.phrase, previous), reason=reason))
    return UserInterests(interests=drafts)


def _what(aspect: Aspect, text: str) -> str:
    """What it was done with; the words are the aspect's, and stand in the chunk."""
    there = set(text.lower().replace("/", " ").replace("[", " ").replace("]", " ").replace(",", " ").replace("\\", " ").split())
    named = [word for word in aspect.words if word in there][:2]
    return " and ".join(named) if named else aspect.core


def _degrees(has: np.ndarray, seen: Seen) -> tuple[str, str]:
    """How much was liked of the items that have an aspect ([N] bool), and of the rest; empty for a rest of nothing."""
    words = []
    for mine in (has, ~has):
        liked, others = int(mine[seen.items].sum()), int(mine[seen.others].sum())
        share = liked / max(liked + others, 1)
        words.append(next(word for least, word in DEGREES if share >= least) if liked + others else "")
    return words[0], words[1]


def _stage(one: Shown, seen: Seen, phrase: str, previous: Sequence[str]) -> str:
    """By time as in simulated worlds; within one sitting what the chunk before did not show is emerging."""
    if phrase in previous:
        return "fading" if not seen.sitting and one.last < 0.7 else "active"
    if seen.sitting:
        return "emerging" if previous else "active"
    if one.first > 0.4:
        return "emerging"
    return "fading" if one.last < 0.7 else "active"


def item_answer(catalogue: Catalogue, row: int, confidence: np.ndarray) -> ItemInterests:
    """What an item says of those who choose it.

    Args:
        catalogue: its catalogue.
        row: the item.
        confidence: [A] of each aspect.
    """
    item = catalogue.items.slice(row, 1).to_pylist()[0]
    mine = np.flatnonzero(catalogue.shows[row])
    aspects = [catalogue.aspects[a] for a in mine.tolist()]
    narrow = min(aspects, key=lambda aspect: catalogue.rate[mine[aspects.index(aspect)]])
    decade = decade_of(item["attributes"])
    attributes = [category.lower().replace(" & ", " and ") for category in item["categories"]][-4:]
    attributes += [f"from the {decade}"] if decade else []
    said = said_words(f"{item['title']} {(item['description'] or '')[:400]}", lower_only=False)
    told = [word for word in narrow.modifiers if word in said and word not in attributes][:2]
    wanted = list(dict.fromkeys(motive_of(aspect.wider) for aspect in sorted(aspects, key=lambda a: len(a.phrase))))[:2]
    order = sorted(range(len(mine)), key=lambda place: (-confidence[mine[place]], aspects[place].phrase))[:4]
    drafts = [ItemInterestDraft(interest=aspects[place].phrase, confidence=round(float(confidence[mine[place]]), 2)) for place in order]
    return ItemInterests(attributes=(attributes + told)[:6], motivation=f"wants to {' and '.join(wanted)}", interests=drafts)


def tag_answer(aspects: Sequence[tuple[Aspect, str]], recent: Sequence[str], num_tags: int) -> ItemTags:
    """Tags grouped by interest, a fading one with half the share: modifier and core word; what titles touched lately say comes last.

    Args:
        aspects: interests, each with its stage.
        recent: titles touched in the last month.
        num_tags: how many tags.
    """
    touched = said_words(" ".join(recent), lower_only=False)
    weights = [1 if stage == "fading" else 2 for _, stage in aspects]
    drafts: list[dict[str, str]] = []
    taken: set[str] = set()
    spent = 0
    for (aspect, _), weight in zip(aspects, weights, strict=True):
        spent += weight
        room = round(num_tags * spent / sum(weights)) - len(drafts)
        words = sorted(aspect.modifiers, key=lambda word: word in touched)
        tags = [tag for tag in (f"{word} {aspect.core}" for word in words) if tag not in taken and len(tag) <= 60][:room]
        taken.update(tags)
        drafts += [{"tag": tag, "interest": aspect.phrase, "reason": f"to {motive_of(aspect.wider)}"} for tag in tags]
    return ItemTags.model_validate({"tags": drafts[:60]})
