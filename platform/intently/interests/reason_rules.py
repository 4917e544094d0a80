"""What an explanation must hold to by rule: facts of its own item only, nothing about the person, short, plain, and about this very item.

Rules cannot judge taste; they are for what can be checked against the item's row and the catalogue. A broken rule has a name that can be
counted. What they cannot see: a claim in words that the catalogue does not know.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pydantic import Field

from intently.core.config import Config
from intently.interests.phrases import BrandFinder, normalise, stutters, words
from intently.llm.encoder import ENDINGS

REVISION = 4
"""Goes into the version of what the rules let through: raise it when a rule changes what passes."""

CLICHES = (
    "a must have", "must have item", "game changer", "look no further", "next level", "elevate your", "treat yourself", "you deserve",
    "stand out from the crowd", "makes a great gift for anyone", "perfect for everyone", "something for everyone", "best of the best",
    "one of a kind", "unleash your", "like never before", "essential gadget", "second to none", "say goodbye to", "whole new level",
    "take it to the next", "the perfect choice", "great value for money", "you will love", "you ll love", "practical and versatile",
    "any occasion", "every occasion", "your best friend", "world of possibilities",
)  # fmt: skip
"""Wordings, normalised, that say nothing about the item."""

HARD_SELL = (
    "buy now", "order now", "order today", "limited offer", "limited time", "time limited", "while stocks last", "hurry",
    "best price", "on sale", "discount", "guaranteed", "guarantees", "never fails", "lasts forever", "miracle", "cures", "risk free",
    "money back", "number one",
)  # fmt: skip
"""Wordings, normalised, that press or promise what no fact can hold."""

ABOUT_THE_PERSON = (
    "your age", "for your age", "as a woman", "as a man", "as a mother", "as a father", "your wife", "your husband", "your illness",
    "your condition", "your diagnosis", "your pregnancy", "your religion", "your income", "your salary", "your address", "your email",
    "your phone number", "your weight", "you bought", "you purchased", "you searched", "you viewed", "you clicked", "you recently",
    "you rated", "your last purchase", "your recent purchase", "your recent order", "your search history", "your browsing",
    "we know that you",
)  # fmt: skip
"""Wordings, normalised, that speak of the person instead of the item: a reason is written for anybody with the interest."""

SHORTEST, LONGEST = 10, 200
NAMELESS = "not about this item"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_SENTENCE_END = re.compile(r"[.!?…](?=\s|$)")
_CONTACT = re.compile(r"\S@\S|(?i:https?:|www\.)|(?<!\w)@\w|\+?\d[\d\s()/-]{7,}\d|\b(?:(?i:mr|mrs|ms|dr)\b\.?|Miss)\s+[A-Z]")
_COMPOUND = re.compile(r"(?<![\w-])([^\W\d_]+)-(?:[^\W\d_]+-)*([^\W\d_]+)")
_LETTER = re.compile(r"(?<![\w'’&.-])[^\W\d_ai](?![\w'’&.-])", re.IGNORECASE)
SHORT_TITLE = 7
"""Words up to which a title is taken for a name and no more."""
FACTS = ["title", "category", "categories", "brand", "attributes", "description"]
_PLAIN = frozenset(
    "a an and any are as at be but by can for from has have helps if in interest into is it its more no not of on one or "  # noqa: SIM905
    "other out so than that the their them then these they this to up use used uses want wants when where which while who "
    "whoever will with without you your".split()
)
"""Words that name nothing."""


class RuleConfig(Config):
    """Where the rules draw their lines."""

    max_sentences: int = Field(2, ge=1, description="longer texts are refused")
    title_overlap: float = Field(0.8, ge=0, le=1, description="share of common words from which a text merely repeats the title")
    kind_share: float = Field(
        0.5,
        ge=0,
        le=1.01,
        description="a word names a kind of item if it ends this share of the titles it is in, and this share of them is of one "
        "category; a text may name no kind but its item's own; 1.01 lets it name any",
    )


@dataclass(frozen=True)
class Reasoned:
    """A text to be checked.

    Attributes:
        text: the explanation.
        item: the item's row: title, category, categories, brand, price, attributes, description.
        interest: the interest that was asked about; empty for a reason that fits anybody.
        said: the text's words.
        own: the words of the item's facts and of the interest.
        facts: the item's facts as one normalised text with a space at both ends.
    """

    text: str
    item: dict[str, Any]
    interest: str
    said: tuple[str, ...]
    own: frozenset[str]
    facts: str


class ReasonRules:
    """The rules over one catalogue.

    Args:
        items: ITEM rows of the whole catalogue; they tell which words are brands, kinds and attributes of which items.
        interests: every interest that reasons are written for; a text may name the one it was asked about.
        is_word: whether a word is English.
        config: where the lines are.
    """

    def __init__(self, items: pa.Table, interests: Sequence[str], is_word: Callable[[str], bool], config: RuleConfig) -> None:
        self._config, self._is_word = config, cache(is_word)
        self._is_broken = cache(self._looks_broken)
        self._brands = BrandFinder.of_items(items)
        self._interests = BrandFinder(interests)
        self._kinds = _kind_words(items["title"].to_pylist(), items["category"].to_pylist(), config.kind_share)
        self._kinds |= {
            f"{first} {last}" for first, last in (said[-2:] for said in map(words, items["title"].to_pylist()) if len(said) > 1)
        }
        self._values = _attribute_values(items["attributes"].to_pylist())
        texts = [*(_facts(item) for item in items.select(FACTS).to_pylist()), *interests]
        self._known = frozenset(word for text in texts for word in words(text))
        self._by_ending: dict[str, list[str]] = {}
        for word in sorted(self._known):
            if len(word) > 3:
                self._by_ending.setdefault(word[-3:], []).append(word)
        self._compounds = frozenset(compound for text in texts for compound in _compounds(text))
        self._halves = frozenset(half for first, last in self._compounds for half in (f"{first}-", f"-{last}"))
        # In the order in which a reader would mind; the first broken one is the reason of the refusal.
        self._checks: tuple[tuple[str, Callable[[Reasoned], bool]], ...] = (
            ("not 10 to 200 characters", lambda one: not SHORTEST <= len(one.text) <= LONGEST),
            ("too many sentences", lambda one: len(_SENTENCE_END.findall(one.text)) > config.max_sentences),
            ("personal data", lambda one: bool(_CONTACT.search(one.text))),
            ("speaks of the person", lambda one: _names(one.said, ABOUT_THE_PERSON)),
            ("a hard sell", lambda one: _names(one.said, HARD_SELL)),
            ("a number that is no fact of the item", _foreign_number),
            ("names another brand", self._foreign_brand),
            ("an invented word", self._invented_word),
            ("names another kind of item", self._foreign_kind),
            ("an attribute that the item lacks", self._foreign_attribute),
            ("names another interest", self._foreign_interest),
            (NAMELESS, _nameless),
            ("repeats the title", self._repeats_title),
            ("runs in circles", lambda one: stutters(one.text)),
            ("a cliché", lambda one: _names(one.said, CLICHES)),
        )

    def broken(self, text: str, item: dict[str, Any], interest: str) -> str | None:
        """The first rule that an explanation breaks, or None.

        Args:
            text: the explanation.
            item: the item's row.
            interest: the interest that was asked about; empty for a reason that fits anybody.
        """
        facts = _facts(item)
        one = Reasoned(text, item, interest, words(text), frozenset(words(f"{facts} ; {interest}")), f" {normalise(facts)} ")
        return next((name for name, is_broken in self._checks if is_broken(one)), None)

    def from_facts(self, item: dict[str, Any], interest: str) -> str | None:
        """A reason made of the item's own description, attributes or categories, for when no model finds one.

        None where the row says too little.

        Args:
            item: the item's row.
            interest: what it is for, named at the head; empty for a reason that fits anybody.
        """
        description = " ".join((item["description"] or "").split())
        ends = [match.end() for match in _SENTENCE_END.finditer(description)][: self._config.max_sentences]
        values = [value for _, separator, value in (attribute.partition(": ") for attribute in item["attributes"]) if separator]
        attributes = f"{item['category']}: {', '.join(values)}." if values else ""
        told = [*(description[:end] for end in reversed(ends)), description, attributes, f"{', '.join(item['categories'])}."]
        head = f"For your interest in {interest}: " if interest else ""
        made = [head + (_continuing(text) if head else text) for text in told if len(text) >= SHORTEST]
        # What an item is need not be said again of facts that are its own.
        return next((text for text in made if self.broken(text, item, interest) in (None, NAMELESS)), None)

    def _foreign_brand(self, one: Reasoned) -> bool:
        return any(f" {normalise(brand)} " not in one.facts for brand in self._brands.find(one.text))

    def _foreign_kind(self, one: Reasoned) -> bool:
        pairs = (f"{first} {last}" for first, last in pairwise(one.said))
        return any(word in self._kinds and not _shares(word, one.own) for word in one.said) or any(
            pair in self._kinds and f" {pair} " not in one.facts for pair in pairs
        )

    def _invented_word(self, one: Reasoned) -> bool:
        """A broken word, or a compound put together of halves of the catalogue's: "pre-proof" of "pre-washed" and "water-proof"."""
        made_up = (
            (first, last) not in self._compounds and (f"{first}-" in self._halves or f"-{last}" in self._halves)
            for first, last in _compounds(one.text)
        )
        stray = (letter.casefold() not in one.own for letter in _LETTER.findall(one.text))
        return any(made_up) or any(stray) or any(self._is_broken(word) for word in one.said if word.isalpha() and word not in self._known)

    def _looks_broken(self, word: str) -> bool:
        """Whether a word that nobody knows is one of the catalogue's with another beginning ("thooden"), or that and a rest ("glight")."""
        if self._is_word(word):
            return False
        cuts = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
        if any(len(first) > 2 and len(last) > 2 and self._is_whole(first) and self._is_whole(last) for first, last in cuts):
            return False
        sides = [side for pair in cuts for side in (pair, pair[::-1])]
        rests = [rest for half, rest in sides if half in self._known and (len(half) > 3 or (len(half) == 3 and len(rest) == 1))]
        if any(map(self._is_whole, rests)):
            return False
        alike = get_close_matches(word, self._by_ending.get(word[-3:], []), n=3, cutoff=0.75)
        return bool(rests) or any(known[:3] != word[:3] for known in alike)

    def _is_whole(self, part: str) -> bool:
        return len(part) > 1 and (part in self._known or self._is_word(part) or f"##{part}" in ENDINGS)

    def _foreign_attribute(self, one: Reasoned) -> bool:
        names = {_split(attribute)[0] for attribute in one.item["attributes"]} & self._values.keys()
        named = {value for name in names for value in self._values[name].find(one.text)}
        return any(f" {value} " not in one.facts and not set(value.split()) <= one.own for value in named)

    def _foreign_interest(self, one: Reasoned) -> bool:
        asked = f" {normalise(one.interest)} "
        named = (f" {normalise(phrase)} " for phrase in self._interests.find(one.text))
        return any(phrase not in asked and phrase not in one.facts for phrase in named)

    def _repeats_title(self, one: Reasoned) -> bool:
        said, title = set(one.said), set(words(one.item["title"]))
        return len(said & title) >= self._config.title_overlap * len(said | title)


def _kind_words(titles: list[str], categories: list[str], share: float) -> frozenset[str]:
    """What items are called, not what they are like: the words that end most of the titles they are in, and keep to a category.

    Long titles end in sizes and colours; a word that ends one of those is a kind only if it ends another title as well.
    """
    ends: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {}
    for title, category in zip(titles, categories, strict=True):
        said = words(title)
        for word in set(said) - _PLAIN:
            found.setdefault(word, Counter())[category] += 1
        if said:
            ends[said[-1]] += 2 if len(said) <= SHORT_TITLE else 1
    of_one_category = (word for word in ends if word in found and found[word].most_common(1)[0][1] >= share * found[word].total())
    return frozenset(
        word for word in of_one_category if word.isalpha() and ends[word] > 1 and ends[word] >= 2 * share * found[word].total()
    )


def _compounds(text: str) -> list[tuple[str, str]]:
    """The compounds of a text as (first, last) word: "chip-resistant"."""
    return [(first.casefold(), last.casefold()) for first, last in _COMPOUND.findall(text)]


def _attribute_values(attributes: list[list[str]]) -> dict[str, BrandFinder]:
    """Attribute name → finder of every value that it has in the catalogue, normalised; numbers are checked as numbers."""
    values: dict[str, set[str]] = {}
    for name, value in {_split(attribute) for row in attributes for attribute in row}:
        if value and not value.replace(" ", "").isdigit():
            values.setdefault(name, set()).add(value)
    return {name: BrandFinder(known) for name, known in values.items()}


def _split(attribute: str) -> tuple[str, str]:
    name, _, value = attribute.partition(": ")
    return name, normalise(value)


def _continuing(text: str) -> str:
    """A sentence as it goes on after a colon; names in capitals stay as they are."""
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def _shares(word: str, own: frozenset[str]) -> bool:
    """Whether a word is the item's own, in the singular or the plural."""
    forms = (word, f"{word}s", f"{word}es", word.removesuffix("s"), word.removesuffix("es"), f"{word.removesuffix('ies')}y")
    return any(form in own for form in forms) or (word.endswith("y") and f"{word[:-1]}ies" in own)


def _names(said: tuple[str, ...], wordings: tuple[str, ...]) -> bool:
    text = f" {' '.join(said)} "
    return any(f" {wording} " in text for wording in wordings)


def _nameless(one: Reasoned) -> bool:
    """Neither a word of the title that is more than a brand or an attribute, nor of a category: it does not say what the item is."""
    item = one.item
    qualities = frozenset(words(" ; ".join([item["brand"] or "", *(value for _, value in map(_split, item["attributes"]))])))
    categories = frozenset(words(" ; ".join([item["category"], *(item.get("categories") or [])])))
    own = (frozenset(words(item["title"])) - qualities | categories) - _PLAIN
    # An interest may be called like a category; naming it says nothing of the item.
    beside = f" {' '.join(one.said)} ".replace(f" {normalise(one.interest)} ", " ").split()
    return not any(_shares(word, own) for word in beside if word not in _PLAIN)


def _foreign_number(one: Reasoned) -> bool:
    return bool(_numbers(one.text) - _numbers(_facts(one.item)) - _prices(one.item["price"]))


def _facts(item: dict[str, Any]) -> str:
    categories = item.get("categories") or []
    return " ; ".join([item["title"], item["category"], *categories, item["brand"] or "", item["description"] or "", *item["attributes"]])


def _numbers(text: str) -> set[str]:
    return {_THOUSANDS.sub("", number).replace(",", ".") for number in _NUMBER.findall(text)}


def _prices(price: float | None) -> set[str]:
    """The ways in which a price may be written."""
    return set() if price is None else {f"{price:.2f}", f"{price:.1f}", f"{price:.0f}", f"{price:g}"}
