"""A real catalogue as the catalogue teacher reads it: a split log, and a closed vocabulary of interests made of metadata and counts.

Split first. Of every person only the training part is read: all but the last tenth of the events, and at least all but the last two.
A fifth of the people and a fifth of the items, told by a hash of their ids, are never read at all: they are for measuring.

Shapes: N items, A aspects.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.alignment.catalogue_words import core_words, modifiers_of
from intently.core.config import Config
from intently.core.schema import Behaviour
from intently.data.chunking import ChunkConfig
from intently.data.raw import validate
from intently.data.sources import SourceConfig, open_source

HELD_OUT_SHARE = 0.2


class CatalogueConfig(Config):
    """One catalogue, and how much the teacher writes about it."""

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
        events: training events of people who are not held out, by user and time, on teachable items: EVENT's columns and `liked`.
        rate: [A] share of the liked training events whose item has the aspect.
    """

    config: CatalogueConfig
    items: pa.Table
    row: dict[str, int]
    teachable: np.ndarray
    aspects: tuple[Aspect, ...]
    shows: np.ndarray
    events: pl.DataFrame
    rate: np.ndarray


def held_out(identifier: str) -> bool:
    """Whether a person or an item is kept from the teacher: the first fifth of a fixed shuffle, which mining's `max_users` begins with too."""
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
    events = training_part(log_of(source.events(), items), config.min_rating)
    kept = {user: not held_out(user) for user in events["user_id"].unique().to_list()}
    known = [item for item, allowed in zip(ids, teachable, strict=True) if allowed]
    events = events.filter(pl.col("user_id").replace_strict(kept, return_dtype=pl.Boolean), pl.col("item_id").is_in(known))
    aspects, shows = _vocabulary(items, teachable, config)
    liked = np.array([row[item] for item in events.filter("liked")["item_id"].to_list()], np.int64)
    rate = np.bincount(liked, minlength=len(ids)) @ shows / max(len(liked), 1)
    return Catalogue(config, items, row, teachable, aspects, shows, events, rate)


def log_of(blocks: Iterable[pa.Table], items: pa.Table) -> pl.DataFrame:
    """Raw blocks → the rows that the pipeline would accept, by user and time."""
    known = items["item_id"].combine_chunks()
    good = pa.concat_tables([validate(block, known, date(1990, 1, 1), date(2100, 1, 1))[0] for block in blocks])
    frame = pl.from_arrow(good)
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("user_id", "timestamp", "position")


def training_part(events: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Each person's events without the last tenth, and without the last two at least, with a column `liked`."""
    left = pl.len() - pl.max_horizontal(2, (0.1 * pl.len()).ceil().cast(pl.Int64))
    unrated = pl.col("behaviour") != str(Behaviour.RATING)
    return events.filter(pl.int_range(pl.len()).over("user_id") < left.over("user_id")).with_columns(
        liked=unrated | (pl.col("value") >= min_rating)
    )


def _vocabulary(items: pa.Table, teachable: np.ndarray, config: CatalogueConfig) -> tuple[tuple[Aspect, ...], np.ndarray]:
    """Aspects with enough items, and which item has which."""
    columns = items.select(["title", "description", "brand", "categories", "attributes"]).to_pylist()
    named = [_flat_names(row, config.noun) if config.levels == "flat" else _path_names(row["categories"]) for row in columns]
    leaves = Counter(row["categories"][-1].lower() for row in {tuple(row["categories"]): row for row in columns}.values() if row["categories"])
    if config.levels == "path":
        named = [[_apart(name, leaves) for name in names] for names in named]
    count = Counter(name.phrase for row, names in enumerate(named) if teachable[row] for name in names)
    chosen = {name.phrase: name for names in named for name in names if count[name.phrase] >= config.min_items}
    place = {phrase: number for number, phrase in enumerate(sorted(chosen))}
    shows = np.zeros((len(columns), len(place)), np.float32)
    for row, names in enumerate(named):
        for name in names:
            if name.phrase in place:
                shows[row, place[name.phrase]] = 1
    texts = modifiers_of([row["description"] or "" for row in columns] if config.levels == "flat" else [row["title"] for row in columns],
                         [row["brand"] for row in columns], teachable, shows, config.levels == "flat")
    titles = core_words([row["title"] for row in columns], [row["brand"] for row in columns], teachable, shows)
    aspects = []
    for number, phrase in enumerate(sorted(chosen)):
        name = chosen[phrase]
        words = name.words if config.levels == "flat" else titles[number]
        aspects.append(Aspect(phrase, words, name.core, _without(texts[number], name.core + " " + phrase), name.wider))
    return tuple(aspects), shows


@dataclass(frozen=True)
class _Name:
    """A phrase that an item's categories give it."""

    phrase: str
    words: tuple[str, ...]
    core: str
    wider: str
    leaf: str = ""
    above: str = ""


def decade_of(attributes: Sequence[str]) -> str | None:
    """'year: 1987' among facts → '1980s'."""
    years = [fact.removeprefix("year: ") for fact in attributes if fact.startswith("year: ")]
    return f"{years[0][:3]}0s" if years else None


def _flat_names(row: dict, noun: str) -> list[_Name]:
    """Of categories of one level: each, each two together, each within its decade."""
    one = noun.removesuffix("s")
    kinds = [kind.lower() for kind in row["categories"]]
    names = [_Name(f"{kind} {noun}", (kind,), f"{kind} {one}", kind) for kind in kinds]
    names += [_Name(f"{a} {b} {noun}", (a, b), f"{a} {b} {one}", a) for a, b in combinations(kinds, 2)]
    if decade := decade_of(row["attributes"]):
        names += [_Name(f"{decade} {kind} {noun}", (kind,), f"{decade} {kind} {one}", kind) for kind in kinds]
    return names


def _path_names(path: Sequence[str]) -> list[_Name]:
    """Of a path: its end, and its second level where that is not the end."""
    told = [part.lower().replace(" & ", " and ") for part in path]
    if not told:
        return []
    above = told[1] if len(told) > 2 else told[0]
    names = [_Name(told[-1], (), told[-1], above, path[-1].lower(), above)]
    if len(told) > 2:
        second = told[1] if " " in told[1] else f"{told[1].removesuffix('s') if not told[1].endswith(chr(39) + 's') else told[1]} {told[0]}"
        names.append(_Name(second, (), second, told[0]))
    return names


def _apart(name: _Name, leaves: Counter[str]) -> _Name:
    """A phrase that says which of several ends of one name is meant: 'creams for eyes'."""
    if leaves[name.leaf] < 2 or name.leaf == name.above:
        return name
    return _Name(f"{name.leaf.replace(' & ', ' and ')} for {name.above}", (), name.core, name.wider)


def _without(words: Sequence[str], said: str) -> tuple[str, ...]:
    """Words that a core does not say already."""
    return tuple(word for word in words if word not in said and word.removesuffix("s") not in said)[:12]


def history_of(events: pl.DataFrame) -> pa.Table:
    """Event rows, by user and time, as the Arrow table that `truth.histories` takes."""
    return pa.table({name: events[name].to_arrow() for name in events.columns if name != "liked"})
