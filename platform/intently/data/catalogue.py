"""The simulated marketplace's goods: items with title, description, category, brand, price, facts and a drawn picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from intently.core.schema import ITEM
from intently.data.pictures import COLOURS, draw_picture
from intently.data.world import THEMES, Theme

BRANDS_PER_DEPARTMENT = 6
TASTE_SIZE = 6
_HEADS = (
    "vel", "or", "tan", "mir", "kel", "bru", "sol", "dav", "fen", "gal",
    "hu", "jor", "lin", "nev", "pra", "rou", "sten", "tev", "ulm", "zan",
)  # fmt: skip
_TAILS = (
    "mora", "vik", "dale", "tis", "quell", "ora", "bel", "nix", "sted", "luma",
    "rano", "vant", "kin", "dori", "sway",
)  # fmt: skip
_FILM_WORDS = (
    "last", "silent", "crimson", "broken", "hidden", "golden", "lost", "midnight", "second", "burning",
    "forgotten", "distant",
)  # fmt: skip


@dataclass(frozen=True)
class Catalogue:
    """Items, sorted by theme, with what the simulator knows about each.

    Attributes:
        items: ITEM rows; row i is item i below.
        theme: [N] index into world.THEMES, non-decreasing.
        first: [len(THEMES) + 1] items of theme t are rows first[t] to first[t + 1].
        noun: [N] index into the theme's nouns.
        brand: [N] index of the brand within its department.
        price_place: [N] place in the theme's price range, 0 to 1.
        taste: [N, TASTE_SIZE] latent qualities that no text shows.
        popularity: [N] weights, Zipf within the theme.
    """

    items: pa.Table
    theme: np.ndarray
    first: np.ndarray
    noun: np.ndarray
    brand: np.ndarray
    price_place: np.ndarray
    taste: np.ndarray
    popularity: np.ndarray


def draw_catalogue(num_items: int, departments: Sequence[str], zipf: float, pictures: bool, rng: np.random.Generator) -> Catalogue:
    """Items for the themes of some departments (none named: all), each theme at least one item while there are enough."""
    allowed = np.array([t for t, theme in enumerate(THEMES) if not departments or theme.categories[0] in departments])
    order = rng.permutation(allowed)
    share = 1.0 / np.arange(1, len(order) + 1) ** 0.4
    extra = rng.choice(order, size=max(0, num_items - len(order)), p=share / share.sum())
    theme = np.sort(np.concatenate([order[:num_items], extra]))
    first = np.searchsorted(theme, np.arange(len(THEMES) + 1))
    place = np.arange(num_items) - first[theme]
    popularity = 1.0 / (1.0 + place) ** zipf
    num_nouns = np.array([len(t.nouns) for t in THEMES])
    noun = (place + rng.integers(0, 7, num_items)) % num_nouns[theme]
    brand = rng.integers(0, BRANDS_PER_DEPARTMENT, num_items)
    price_place = rng.random(num_items)
    items = _item_table(theme, noun, brand, price_place, pictures, rng)
    return Catalogue(items, theme, first, noun, brand, price_place, rng.normal(size=(num_items, TASTE_SIZE)), popularity)


def _item_table(
    theme: np.ndarray, noun: np.ndarray, brand: np.ndarray, price_place: np.ndarray, pictures: bool, rng: np.random.Generator
) -> pa.Table:
    departments = sorted({t.categories[0] for t in THEMES})
    names = _brand_names(len(departments) * BRANDS_PER_DEPARTMENT, rng)
    choices = rng.random((len(theme), 6))
    colours = list(COLOURS)
    rows = []
    for i, t in enumerate(theme):
        kind = THEMES[t]
        maker = names[departments.index(kind.categories[0]) * BRANDS_PER_DEPARTMENT + brand[i]]
        colour = colours[int(choices[i, 5] * len(colours))]
        words = _film_words(kind, noun[i], choices[i], maker) if kind.film else _goods_words(kind, noun[i], choices[i], maker, colour)
        low, high = kind.price
        rows.append(
            words
            | {
                "item_id": f"i{i:05d}",
                "category": kind.category,
                "categories": list(kind.categories),
                "brand": maker,
                "price": round(low * (high / low) ** price_place[i], 2),
                "image": draw_picture(kind.categories[0], kind.category, kind.phrase, colour) if pictures else None,
            }
        )
    return ITEM.from_rows(rows)


def _goods_words(theme: Theme, noun: int, choices: np.ndarray, brand: str, colour: str) -> dict[str, Any]:
    count = len(theme.modifiers)
    start, step = int(choices[0] * count), 1 + int(choices[1] * (count - 1))
    modifier, second = theme.modifiers[start], theme.modifiers[(start + step) % count]
    name = theme.nouns[noun]
    motive = theme.motives[int(choices[2] * len(theme.motives))]
    shown = f"{brand} {modifier} {second} {name}" if choices[3] < 0.5 else f"{brand} {modifier} {name}"
    return {
        "title": _title_case(shown),
        "description": f"{_title_case(modifier)} and {second}, in {colour}. Made for people who want to {motive}.",
        "attributes": [f"feature: {modifier}", f"feature: {second}", f"colour: {colour}"],
    }


def _film_words(theme: Theme, noun: int, choices: np.ndarray, director: str) -> dict[str, Any]:
    name = theme.nouns[noun]
    word = _FILM_WORDS[int(choices[0] * len(_FILM_WORDS))]
    year = 1935 + int(90 * choices[1] ** 0.5)
    mood = theme.modifiers[int(choices[2] * len(theme.modifiers))]
    motive = theme.motives[int(choices[4] * len(theme.motives))]
    title = f"The {word} {name}" if choices[3] < 0.7 else f"{word} {name}"
    return {
        "title": f"{_title_case(title)} ({year})",
        "description": f"{_title_case(mood)}, directed by {director}. For evenings when one wants to {motive}.",
        "attributes": [f"genres: {'/'.join(theme.categories[1:])}", f"mood: {mood}", f"year: {year}"],
    }


def _title_case(text: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split())


def _brand_names(count: int, rng: np.random.Generator) -> list[str]:
    pairs = rng.permutation(len(_HEADS) * len(_TAILS))[:count]
    return [(_HEADS[pair // len(_TAILS)] + _TAILS[pair % len(_TAILS)]).capitalize() for pair in pairs]
