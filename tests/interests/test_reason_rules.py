"""Each rule on a text that breaks it and on one beside it that does not, over a catalogue small enough to check by eye."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from intently.core.schema import ITEM
from intently.interests.reason_rules import ReasonRules, RuleConfig
from intently.llm.encoder import TextEncoder

INTERESTS = ["guitar playing", "winter walks"]
GUITAR: dict[str, Any] = {
    "item_id": "guitar",
    "title": "Lira Nova spruce acoustic guitar",
    "category": "Music",
    "categories": ["Hobby", "Music"],
    "brand": "Lira Nova",
    "price": 210.0,
    "attributes": ["strings: 6", "feature: hand-rubbed", "colour: amber"],
    "description": "A full-size guitar for players of 2,500 songs. Tuned by hand.",
}
OTHERS = [
    ("Ostro folding capo", "Music", "Ostro", ["feature: spring-loaded", "colour: black"]),
    ("Ostro steel capo", "Music", "Ostro", ["feature: chrome-plated", "colour: red"]),
    ("Brenna waterproof hiking boots", "Shoes", "Brenna", ["feature: water-tight"]),
    ("Brenna light hiking boots", "Shoes", "Brenna", []),
    ("Brenna light rain jacket", "Coats", "Brenna", []),
    ("Warm evening light", "Lamps", None, []),
]


def rows() -> list[dict[str, Any]]:
    fixed = {"price": None, "description": None}
    others = [
        {"item_id": str(place), "title": title, "category": category, "categories": [category], "brand": brand, "attributes": told, **fixed}
        for place, (title, category, brand, told) in enumerate(OTHERS)
    ]
    return [GUITAR, *others]


@pytest.fixture(scope="module")
def rules(encoder: TextEncoder) -> ReasonRules:
    items: pa.Table = ITEM.from_rows(rows())
    return ReasonRules(items, INTERESTS, encoder.is_word, RuleConfig())


GOOD = [
    "Its spruce top suits evenings of quiet playing, with 6 strings for 210.00.",
    "A Lira Nova guitar for whoever knows 2500 songs.",
    "Hand-rubbed and amber: an acoustic guitar for guitar playing in a snug room.",
    "Spruce carries more and more of each note. No hassle, no clutter.",
    "A weatherproof-looking guitar that stays in tune.",
    "Never miss a note: the strings of this guitar lie low.",
]
BROKEN = {
    "Too short": "not 10 to 200 characters",
    "long guitar " * 21: "not 10 to 200 characters",
    "A guitar. Of spruce. For you.": "too many sentences",
    "Ask lira@nova.example about this guitar.": "personal data",
    "Guitar hotline: +49 170 123 45 67.": "personal data",
    "The guitar that Ms. Berger plays.": "personal data",
    "A guitar like the one you bought before.": "speaks of the person",
    "At your age a spruce guitar is easy to hold.": "speaks of the person",
    "Spruce guitar in a limited-time offer.": "a hard sell",
    "A guitar with 12 strings for full chords.": "a number that is no fact of the item",
    "This guitar sounds as warm as any Ostro does.": "names another brand",
    "A gguitar of spruce for quiet rooms.": "an invented word",
    "A hand-loaded guitar of spruce.": "an invented word",
    "A lolding guitar of spruce.": "an invented word",
    "G guitar of spruce for quiet rooms.": "an invented word",
    "A mhand guitar of spruce.": "an invented word",
    "A capo of spruce for guitar playing.": "names another kind of item",
    "A guitar, and warm evening light.": "names another kind of item",
    "Red guitar for quiet evenings.": "an attribute that the item lacks",
    "A chrome-plated guitar for quiet evenings.": "an attribute that the item lacks",
    "A guitar for your interest in winter walks.": "names another interest",
    "Sounds good in a quiet room.": "not about this item",
    "Hand-rubbed and amber, it is warm in the hand.": "not about this item",
    "It is for your interest in guitar playing.": "not about this item",
    "Lira Nova makes things that last.": "not about this item",
    "Spruce acoustic guitar, Lira Nova!": "repeats the title",
    "A warm warm guitar for quiet evenings.": "runs in circles",
    "A guitar that is hand-rubbed and hand-rubbed.": "runs in circles",
    "The guitar helps you help others play.": "runs in circles",
    "Take your guitar to the next level with warm tone.": "a cliché",
    "This guitar is a must-have for quiet evenings.": "a cliché",
}


@pytest.mark.parametrize("text", GOOD)
def test_rules_good_text_passes(rules: ReasonRules, text: str) -> None:
    assert rules.broken(text, GUITAR, "guitar playing") is None


@pytest.mark.parametrize(("text", "reason"), BROKEN.items())
def test_rules_each_is_broken_by_its_text(rules: ReasonRules, text: str, reason: str) -> None:
    assert rules.broken(text, GUITAR, "guitar playing") == reason


def test_rules_text_for_anybody_may_name_no_interest(rules: ReasonRules) -> None:
    text = "A spruce guitar for your interest in winter walks."
    assert rules.broken(text, GUITAR, "winter walks") is None
    assert rules.broken(text, GUITAR, "") == "names another interest"


def test_rules_kinds_are_words_that_end_titles_of_one_category(rules: ReasonRules) -> None:
    # "light" ends a lamp's title, but boots and a jacket are light as well: it names no kind.
    assert rules.broken("A guitar for a light evening.", GUITAR, "") is None
    assert rules.broken("A guitar for whoever walks in boots.", GUITAR, "") == "names another kind of item"


def test_rules_catalogue_without_attributes_or_brands_checks_what_is_there(encoder: TextEncoder) -> None:
    row = GUITAR | {"attributes": [], "brand": None, "price": None, "description": None, "categories": []}
    rules = ReasonRules(ITEM.from_rows([row]), [], encoder.is_word, RuleConfig())
    assert rules.broken("An acoustic guitar, red as wine.", row, "") is None
    assert rules.broken("An acoustic guitar for 210.00.", row, "") == "a number that is no fact of the item"


def test_rules_reason_from_facts_is_the_description_as_far_as_it_passes_else_the_attributes(rules: ReasonRules) -> None:
    assert rules.from_facts(GUITAR, "") == GUITAR["description"]
    assert rules.from_facts(GUITAR, "guitar playing") == f"For your interest in guitar playing: a{GUITAR['description'][1:]}"
    chatty = GUITAR | {"description": "A full-size guitar. Buy now, for it is on sale. Hurry."}
    assert rules.from_facts(chatty, "") == "A full-size guitar."
    silent = GUITAR | {"description": "Wow!"}
    assert rules.from_facts(silent, "") == "Music: 6, hand-rubbed, amber."
    assert rules.from_facts(silent | {"attributes": []}, "") == "Hobby, Music."
    for interest in ("", "guitar playing"):
        assert rules.from_facts(silent | {"attributes": [], "categories": []}, interest) is None
