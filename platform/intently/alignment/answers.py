"""The teacher's pen: from what is true, the ideal answer to each task of `llm.tasks`.

Answers use the closed words of `data.world`, so that a small model can learn them: an interest is a theme's phrase, a reason
names what was seen and a motive that goes with it, a tag is modifiers and a core word of the theme.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from intently.alignment.truth import Wish
from intently.core.schema import Behaviour
from intently.data.world import THEMES, Theme
from intently.llm.tasks import Answer, ExplanationText, InterestDraft, ItemInterestDraft, ItemInterests, ItemTags, Task, UserInterests

PHRASES: dict[str, Theme] = {theme.phrase: theme for theme in THEMES}
_DEEDS = {
    Behaviour.PURCHASE: "bought",
    Behaviour.CART: "wanted to buy",
    Behaviour.FAVOURITE: "kept",
    Behaviour.RATING: "rated",
    Behaviour.REVIEW_READ: "read about",
    Behaviour.DETAIL_VIEW: "looked at",
}


def completion(task: Task, answer: Answer) -> str:
    """An answer as the model must write it: JSON without white space, keys in the order of the task's schema.

    Guided decoding forces the schema's own order of keys, so text in any other order would teach what is never asked.
    """
    schema = json.loads(task.json_schema)
    return json.dumps(_ordered(answer.model_dump(), schema, schema), separators=(",", ":"), ensure_ascii=False)


def interests_answer(wishes: Sequence[Wish]) -> UserInterests:
    """The true interests of a chunk, strongest first; at least one."""
    drafts = [InterestDraft(interest=wish.theme.phrase, stage=wish.stage, reason=interest_reason(wish)) for wish in wishes[:16]]
    return UserInterests(interests=drafts)


def interest_reason(wish: Wish) -> str:
    """What was done with what was seen, and the motive that goes with it; at most 160 characters."""
    theme = wish.theme
    names = [theme.nouns[n] for n in wish.nouns]
    motive = motive_of(theme, wish.nouns[0] if wish.nouns else 0)
    if theme.film:
        seen = f"{_DEEDS.get(Behaviour(wish.deed), 'looked at')} {_plural(theme.tag_nouns[0])}"
    elif wish.deed == Behaviour.SEARCH or wish.deed_noun is None:
        seen = f"searched for {wish.query}"
    else:
        main = theme.nouns[wish.deed_noun]
        others = [name for name in names if name != main][:1]
        seen = f"{_DEEDS[Behaviour(wish.deed)]} {main}" + "".join(f" and saw {name}" for name in others)
    return f"{seen}, wants to {motive}"[:160]


def motive_of(theme: Theme, noun: int) -> str:
    """The motive that goes with a noun, so that a small model can learn which to name."""
    return theme.motives[noun % len(theme.motives)]


def tags_answer(interests: Sequence[tuple[str, str]], recent: Sequence[str], season: str, num_tags: int) -> ItemTags:
    """Tags grouped by interest, in the order given.

    Interests out of season are left out while another is in season; a fading interest gets half the share. Core words that
    were touched lately come last.

    Args:
        interests: (phrase, stage), every phrase a theme's.
        recent: titles touched in the last month.
        season: spring, summer, autumn or winter.
        num_tags: how many tags.
    """
    themes = [(PHRASES[phrase], 1 if stage == "fading" else 2) for phrase, stage in interests]
    suiting = [(theme, weight) for theme, weight in themes if theme.suits(season)] or themes
    touched = " ; ".join(recent).lower()
    total = sum(weight for _, weight in suiting)
    drafts: list[dict[str, str]] = []
    spent = 0
    for theme, weight in suiting:
        spent += weight
        room = round(num_tags * spent / total) - len(drafts)
        drafts += [{"tag": tag, "interest": theme.phrase, "reason": reason} for tag, reason in _tags(theme, touched, room)]
    return ItemTags.model_validate({"tags": drafts[:60]})


def _tags(theme: Theme, touched: str, count: int) -> list[tuple[str, str]]:
    nouns = list(range(len(theme.tag_nouns)))
    fresh = [n for n in nouns if theme.tag_nouns[n] not in touched] or nouns
    tags = []
    for place in range(min(count, len(fresh) * len(theme.modifiers))):  # then every pair has been named once
        noun, lap = fresh[place % len(fresh)], place // len(fresh)
        modifier = theme.modifiers[(noun + lap) % len(theme.modifiers)]
        tags.append((f"{modifier} {theme.tag_nouns[noun]}", f"to {motive_of(theme, noun)}"))
    return tags


def explanation_answer(item: dict[str, Any], theme: Theme, noun: int, interest: str | None) -> ExplanationText:
    """One sentence from the item's own facts; where the interest is another than the item's theme it says only that they are close.

    Args:
        item: title, category, brand, price, description, attributes as the question shows them.
        theme: the item's theme.
        noun: the item's noun.
        interest: a theme's phrase, or None for a sentence that fits anybody.
    """
    facts = [fact.split(": ", 1)[1] for fact in item["attributes"] if fact.startswith(("feature:", "mood:"))]
    features = facts or [modifier for modifier in theme.modifiers if modifier in item["title"].lower()]
    kind = theme.tag_nouns[noun % len(theme.tag_nouns)]
    told = [motive for motive in theme.motives if motive in (item["description"] or "")]
    motive = told[0] if told else motive_of(theme, noun)
    fitting = [feature for feature in features if feature not in kind]
    what = f"{' and '.join(fitting[:2])} {kind}".strip()
    if interest is None:
        text = f"{what}, for anyone who wants to {motive}."
    elif interest == theme.phrase:
        text = f"{what} for your interest in {interest}: helps you {motive}."
    else:
        text = f"{what}, close to your interest in {interest}: helps you {motive}."
    return ExplanationText(explanation=text[:1].upper() + text[1:])


def item_answer(item: dict[str, Any], theme: Theme, noun: int) -> ItemInterests:
    """What an item says of those who choose it: surely its theme, perhaps the themes beside it.

    Args:
        item: title, categories and attributes as the question shows them.
        theme: the item's theme.
        noun: the item's noun.
    """
    facts = [fact.split(": ", 1)[1] for fact in item["attributes"] if fact.startswith(("feature:", "mood:"))]
    features = facts or [modifier for modifier in theme.modifiers if modifier in item["title"].lower()]
    kind = theme.tag_nouns[noun % len(theme.tag_nouns)]
    beside = [other for other in THEMES if other.category == theme.category and other is not theme][:2]
    drafts = [ItemInterestDraft(interest=theme.phrase, confidence=0.9)]
    drafts += [ItemInterestDraft(interest=other.phrase, confidence=0.3) for other in beside]
    return ItemInterests(attributes=[kind, *features[:3]], motivation=f"wants to {motive_of(theme, noun)}", interests=drafts)


def _plural(noun: str) -> str:
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"


def _ordered(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """A dumped answer with its keys in the order of the schema's properties, at any depth."""
    if "$ref" in schema:
        return _ordered(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    if isinstance(value, dict):
        return {name: _ordered(value[name], part, root) for name, part in schema["properties"].items()}
    if isinstance(value, list):
        return [_ordered(entry, schema["items"], root) for entry in value]
    return value
