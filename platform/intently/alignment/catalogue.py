"""A real catalogue as the catalogue teacher reads it: a split log, and a closed vocabulary of interests made of metadata and counts.

Split first. Of every person only the training part is read: all but the last tenth of the events, and at least all but the last two.
A fifth of the people and a fifth of the items, told by a hash of their ids, are for measuring. Nothing of those people is read, and of
those items no event, title or text. Their categories, decades and brands are counted with everybody's: which kinds stand beside which, what
a path is called, which words are makers' names.

Shapes: N items, A aspects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.alignment.catalogue_words import telling_words
from intently.core.config import Config
from intently.data.chunking import ChunkConfig
from intently.data.sources import SourceConfig, open_source
from intently.data.training_log import read_log

HELD_OUT_SHARE = 0.2


class CatalogueConfig(Config):
    """One catalogue, and how much the teacher writes about it."""

    name: str = Field(min_length=1, pattern="^[a-z0-9_]+$", description="names its part of the table")
    source: SourceConfig = Field(description="where its log comes from")
    levels: Literal["flat", "path"] = Field(description="categories of an item: several of one level, or one path from broad to narrow")
    noun: str = Field("", description="what its items are, in the plural, after a category's name; empty where the category says it")
    chunks: ChunkConfig = Field(ChunkConfig(), description="as the mining line makes chunks of it; num_events is the curriculum's")
    min_rating: float = Field(4.0, ge=0, description="stars from which a rating is liking; other behaviours are liking")
    min_items: int = Field(15, ge=1, description="items that a phrase of the vocabulary must fit")
    chunk_sizes: tuple[int, ...] = Field((8, 16, 30, 50), min_length=1, description="events in a chunk; a person is cut by one of them")
    chunks_per_user: int = Field(2, ge=1, description="chunks of a person that become examples")
    max_interests: int = Field(6, ge=1, le=16, description="interests named of one chunk")
    users: int = Field(1300, ge=0, description="people who are asked about")
    item_examples: int = Field(1000, ge=0, description="examples of item interests")
    tag_examples: int = Field(450, ge=0, description="examples of tags")
    liking_examples: int = Field(3000, ge=0, description="examples of liking, by interests")
    liking_chunks: int = Field(500, ge=0, description="examples of liking, by what a person did")


@dataclass(frozen=True)
class Aspect:
    """One phrase of the vocabulary.

    Attributes:
        phrase: the interest, as answers name it.
        words: what of the items' names shows it, in lower case.
        core: what its tags end in.
        modifiers: what its tags begin with, the most telling first.
        wider: the phrase or name of what it belongs to.
    """

    phrase: str
    words: tuple[str, ...]
    core: str
    modifiers: tuple[str, ...]
    wider: str


@dataclass(frozen=True)
class Catalogue:
    """A catalogue with its training log.

    Attributes:
        config: its settings.
        items: ITEM rows, held-out ones included.
        row: item id → its row.
        teachable: [N] bool, items that are not held out.
        aspects: the vocabulary.
        shows: [N, A] float32, 1 where an item has an aspect.
        events: training events of people who are not held out, by user and time, on teachable items: EVENT's columns, `liked`, `later`.
        measured: all events of the held-out people, on any item; `later` marks what comes after the training part.
        rate: [A] share of the liked training events whose item has the aspect.
    """

    config: CatalogueConfig
    items: pa.Table
    row: dict[str, int]
    teachable: np.ndarray
    aspects: tuple[Aspect, ...]
    shows: np.ndarray
    events: pa.Table
    measured: pa.Table
    rate: np.ndarray


def held_out(identifier: str) -> bool:
    """Whether a person or an item is kept from the teacher: the first fifth of the shuffle that mining's `max_users` takes the first of."""
    return int(hashlib.sha256(identifier.encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 2**32


def open_catalogue(config: CatalogueConfig) -> Catalogue:
    """Read a catalogue's source, split its log, and make its vocabulary.

    Raises:
        SourceError: a file or a column is missing.
    """
    source = open_source(config.source)
    items = source.items
    ids = items["item_id"].to_pylist()
    row = {item: place for place, item in enumerate(ids)}
    teachable = np.array([not held_out(item) for item in ids])
    log = read_log(source, config.min_rating)
    people = pc.unique(log["user_id"])
    apart = pc.is_in(log["user_id"], people.filter(pa.array([held_out(user) for user in people.to_pylist()])))
    known = pa.array([item for item, allowed in zip(ids, teachable, strict=True) if allowed], pa.string())
    events = log.filter(pc.and_(pc.invert(pc.or_(apart, log["later"])), pc.is_in(log["item_id"], known)))
    aspects, shows = _vocabulary(items, teachable, config)
    liked = pc.index_in(events.filter(events["liked"])["item_id"], items["item_id"].combine_chunks()).to_numpy()
    rate = np.bincount(liked, minlength=len(ids)) @ shows / max(len(liked), 1)
    return Catalogue(config, items, row, teachable, aspects, shows, events, log.filter(apart), rate)


def _vocabulary(items: pa.Table, teachable: np.ndarray, config: CatalogueConfig) -> tuple[tuple[Aspect, ...], np.ndarray]:
    """Aspects with enough items, and which item has which."""
    columns = items.select(["title", "description", "brand", "categories", "attributes"]).to_pylist()
    if config.levels == "path":
        paths = {tuple(part.lower() for part in row["categories"]) for row in columns if row["categories"]}
        inner = {path[:2] for path in paths if len(path) > 2}
        leaves = Counter(path[-1] for path in paths if path not in inner)
        named = [_path_names([part.lower() for part in row["categories"]], inner, leaves) for row in columns]
    else:
        named = [_flat_names(row["categories"], decade_of(row["attributes"]), config.noun) for row in columns]
    count = Counter(name.phrase for row, names in enumerate(named) if teachable[row] for name in names)
    chosen = {name.phrase: name for names in named for name in names if count[name.phrase] >= config.min_items}
    place = {phrase: number for number, phrase in enumerate(sorted(chosen))}
    shows = np.zeros((len(columns), len(place)), np.float32)
    for row, names in enumerate(named):
        for name in names:
            if name.phrase in place:
                shows[row, place[name.phrase]] = 1
    brands, titles = [row["brand"] for row in columns], [row["title"] for row in columns]
    flat = config.levels == "flat"
    texts = [row["description"] or "" for row in columns] if flat else titles
    begins = telling_words(texts, brands, teachable, shows, lower_only=flat, keep=24)
    gives = telling_words(titles, brands, teachable, shows, lower_only=False, keep=16)
    facets = [[*(kind.lower() for kind in row["categories"]), decade_of(row["attributes"])] for row in columns]
    aspects = []
    for number, phrase in enumerate(sorted(chosen)):
        name = chosen[phrase]
        beside = _beside(facets, np.flatnonzero(shows[:, number]), phrase) if flat else []
        modifiers = _without([*beside, *begins[number]], f"{name.core} {phrase}")
        aspects.append(Aspect(phrase, name.words or gives[number], name.core, modifiers, name.wider))
    return tuple(aspects), shows


def _beside(facets: Sequence[Sequence[str | None]], rows: np.ndarray, phrase: str) -> list[str]:
    """The six kinds and decades that an aspect's items most often have besides."""
    count = Counter(facet for row in rows.tolist() for facet in facets[row] if facet and facet not in phrase)
    dated = phrase[0].isdigit()
    found = [facet for facet in sorted(count, key=lambda facet: (-count[facet], facet)) if not (dated and facet[0].isdigit())]
    return found[:6]


@dataclass(frozen=True)
class _Name:
    """A phrase that an item's categories give it."""

    phrase: str
    words: tuple[str, ...]
    core: str
    wider: str


def decade_of(attributes: Sequence[str]) -> str | None:
    """'year: 1987' among facts → '1980s'."""
    years = [fact.removeprefix("year: ") for fact in attributes if fact.startswith("year: ")]
    return f"{years[0][:3]}0s" if years else None


def _flat_names(categories: Sequence[str], decade: str | None, noun: str) -> list[_Name]:
    """Of categories of one level: each, each two together, each within its decade."""
    one = noun.removesuffix("s")
    kinds = [kind.lower() for kind in categories]
    names = [_Name(f"{kind} {noun}", (kind,), f"{kind} {one}", kind) for kind in kinds]
    names += [_Name(f"{a} {b} {noun}", (a, b), f"{a} {b} {one}", a) for a, b in combinations(kinds, 2)]
    names += [_Name(f"{decade} {kind} {noun}", (kind,), f"{decade} {kind} {one}", kind) for kind in kinds if decade]
    return names


def _path_names(path: Sequence[str], inner: Collection[tuple[str, ...]], leaves: Mapping[str, int]) -> list[_Name]:
    """Of a path: its second level where others go on from there, and its end; 'creams for eyes' where there are several ends 'creams'.

    Args:
        path: in lower case, broad to narrow.
        inner: first two levels of longer paths.
        leaves: in how many paths an end is found.
    """
    told = [part.replace(" & ", " and ") for part in path]
    names = []
    if tuple(path[:2]) in inner:
        second = told[1] if " " in told[1] or told[1].endswith("'s") else told[1].removesuffix("s")
        phrase = second if " " in second else f"{second} {told[0]}"
        names.append(_Name(phrase, (), phrase, told[0]))
    if told and tuple(path) not in inner:
        above = told[1] if len(told) > 2 else told[0]
        phrase = told[-1] if leaves[path[-1]] < 2 or told[-1] == above else f"{told[-1]} for {above}"
        names.append(_Name(phrase, (), told[-1], above))
    return names


def _without(words: Sequence[str], said: str) -> tuple[str, ...]:
    """Words that a core does not say already."""
    return tuple(word for word in words if word not in said and word.removesuffix("s") not in said)[:12]
