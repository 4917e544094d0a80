"""The teacher: simulates worlds of many seeds, asks itself the questions that the mining jobs ask, and answers from the truth.

A world goes through the very path of the pipeline (reliable extraction, compression, chunking, the tasks' templates), so that
an example reads exactly like what the student will be asked. Some worlds are disguised as rating logs with sparse item
facts, as MovieLens and the Amazon sets are. Chunks come in several sizes: short ones are the easy end of the curriculum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from intently.alignment.answers import completion, explanation_answer, interests_answer, item_answer, tags_answer
from intently.alignment.catalogue import CatalogueConfig
from intently.alignment.examples import prompt_text
from intently.alignment.truth import Wish, histories, read_truth
from intently.core.config import Config
from intently.core.schema import CHAT_EXAMPLE, TIMESTAMP, Behaviour
from intently.data.chunking import ChunkConfig, build_chunks
from intently.data.item_names import NameConfig, short_names
from intently.data.simulator import Simulation, SimulatorConfig, simulate
from intently.data.world import SEASONS, THEMES
from intently.llm.tasks import ITEM_LIKING, TASKS

STAGES = ("emerging", "active", "fading")
_DISGUISES = (("Films",), ("Films",), ("Films",), ("Beauty",), ("Phones", "Electronics"), ())
_GENRES = sorted({genre for theme in THEMES if theme.film for genre in theme.categories[1:]})


class TeacherConfig(Config):
    """How much the teacher writes, and about which worlds."""

    seed: int = Field(100_000, ge=0, description="seed of the first world; worlds of other seeds are left for measuring")
    num_worlds: int = Field(120, ge=1, description="worlds, one Parquet part each")
    users_per_world: int = Field(60, ge=1, description="people in a world")
    items_per_world: int = Field(600, ge=70, description="items in a world")
    events_per_user: float = Field(260.0, ge=10, description="mean behaviours a person")
    rating_share: float = Field(0.3, ge=0, le=1, description="share of worlds that are disguised as rating logs")
    chunk_sizes: tuple[int, ...] = Field((4, 8, 16, 30, 50), min_length=1, description="events in a chunk; a person is cut by one of them")
    chunks_per_user: int = Field(3, ge=1, description="chunks of a person that become examples, the newest")
    min_events: int = Field(2, ge=1, description="events by which an interest shows in a chunk")
    tags_per_world: int = Field(30, ge=0, description="examples of tags in a world")
    explanations_per_world: int = Field(50, ge=0, description="examples of explanations in a world")
    item_interests_per_world: int = Field(0, ge=0, description="examples of item interests in a world")
    likings_per_world: int = Field(0, ge=0, description="examples of liking in a world")
    catalogues: tuple[CatalogueConfig, ...] = Field((), description="real catalogues to write about, one Parquet part each")


@dataclass(frozen=True)
class World:
    """A simulated world and what its people did.

    Attributes:
        simulation: the world, its truth included.
        items: ITEM rows as the student sees them, the order of simulation.items.
        events: EVENT rows with their true times.
        shown: the same rows as the student sees them.
        names: item-level compression of this world.
    """

    simulation: Simulation
    items: pa.Table
    events: pa.Table
    shown: pa.Table
    names: NameConfig


def write_examples(config: TeacherConfig, world: int) -> pa.Table:
    """CHAT_EXAMPLE rows of one world, 0 to num_worlds - 1; the same arguments give the same rows."""
    rng = np.random.default_rng([config.seed, world])
    drawn = draw_world(config, world, rng)
    rows = [
        *_interest_rows(drawn, config, rng),
        *_tag_rows(drawn, config, rng),
        *_explanation_rows(drawn, config, rng),
        *_item_rows(drawn, config, rng),
        *_liking_rows(drawn, config, rng),
    ]
    for place, row in enumerate(rows):
        row |= {"example_id": f"{config.seed + world}-{row['task']}-{place}", "source": "teacher"}
    return CHAT_EXAMPLE.from_rows(rows)


def draw_world(config: TeacherConfig, world: int, rng: np.random.Generator) -> World:
    """The world of seed `config.seed + world`, disguised as a rating log or not."""
    disguised = rng.random() < config.rating_share
    departments = _DISGUISES[rng.integers(len(_DISGUISES))] if disguised else ()
    settings = SimulatorConfig(
        seed=config.seed + world,
        num_users=config.users_per_world,
        num_items=config.items_per_world,
        events_per_user=config.events_per_user * (1.6 if disguised else 1.0),
        years=float(rng.choice([1.0, 2.0, 2.0, 4.0])),
        departments=departments,
        pictures=False,
        users_per_block=config.users_per_world,
    )
    simulation = simulate(settings)
    events = pa.concat_tables(simulation.events())
    if not disguised:
        return World(simulation, simulation.items, events, events, NameConfig())
    ratings = _as_ratings(events, rng)
    shown = _in_one_sitting(ratings) if rng.random() < 0.4 else ratings
    if departments == ("Films",) and rng.random() < 0.7:
        return World(simulation, _films_by_genre(simulation.items, rng), ratings, shown, NameConfig(facets=("categories",)))
    return World(simulation, _sparse_items(simulation.items, rng), ratings, shown, NameConfig())


def _as_ratings(events: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Detailed views become ratings of 3 to 5 stars; the rest of the log is not there."""
    kept = events.filter(pc.equal(events["behaviour"], Behaviour.DETAIL_VIEW))
    stars = pa.array(rng.integers(3, 6, kept.num_rows).astype(np.float32))
    ratings = pa.array([Behaviour.RATING.value] * kept.num_rows, pa.string())
    return kept.set_column(
        kept.schema.get_field_index("behaviour"), "behaviour", ratings
    ).set_column(kept.schema.get_field_index("value"), "value", stars)  # fmt: skip


def _in_one_sitting(events: pa.Table) -> pa.Table:
    """The same order within a few hours, as when people rate from memory."""
    time = events["timestamp"].cast(pa.int64()).to_numpy()
    return events.set_column(
        events.schema.get_field_index("timestamp"), "timestamp", pa.array(time.max() - (time.max() - time) // 2000).cast(TIMESTAMP)
    )


def _sparse_items(items: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Items with fewer facts, and with any of their narrower categories as the one they go by."""
    bare = rng.random() < 0.6
    rows = items.select(["category", "categories", "attributes", "brand"]).to_pylist()
    dice = rng.random((len(rows), 2))
    for row, (which, known) in zip(rows, dice, strict=True):
        narrow = row["categories"][1:] or row["categories"]
        row["category"] = narrow[int(which * len(narrow))]
        row["attributes"] = [] if bare else row["attributes"]
        row["brand"] = row["brand"] if known < 0.7 else None
    return _with_columns(items, {name: [row[name] for row in rows] for name in ("category", "attributes", "brand")})


def _films_by_genre(items: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Films as MovieLens lists them: genres by the alphabet, some missing, some more; half of the titles say nothing of the theme."""
    rows = items.select(["title", "categories"]).to_pylist()
    others = rng.integers(len(rows), size=len(rows))
    titles, categories = [], []
    for row, other in zip(rows, others, strict=True):
        kept = [genre for genre in row["categories"][1:] if rng.random() < 0.9] or row["categories"][-1:]
        more = [_GENRES[rng.integers(len(_GENRES))]] if rng.random() < 0.25 else []
        categories.append(sorted({*kept, *more}))
        titles.append(rows[other]["title"] if rng.random() < 0.5 else row["title"])
    columns = {"title": titles, "categories": categories, "category": [genres[0] for genres in categories]}
    return _with_columns(items, columns | {"attributes": [[] for _ in rows], "brand": [None] * len(rows)})


def _with_columns(items: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        items = items.set_column(items.schema.get_field_index(name), name, pa.array(values, items.schema.field(name).type))
    return items


def world_chunks(world: World, num_events: int, users: np.ndarray | None = None) -> pa.Table:
    """CHUNK rows of a world's people (by their rank, None is all), as the pipeline makes them."""
    history = histories(world.shown)
    if users is not None:
        history = history.take(pa.array(users[users < history.num_rows]))
    return build_chunks(history, world.items, ChunkConfig(num_events=num_events, names=world.names))


def _interest_rows(world: World, config: TeacherConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    task = TASKS["user_interests"]
    size_of = rng.integers(len(config.chunk_sizes), size=config.users_per_world)
    for rank, size in enumerate(config.chunk_sizes):
        chunks = world_chunks(world, size, np.flatnonzero(size_of == rank))
        before: list[Wish] = []
        truth = read_truth(world.simulation, world.events, chunks, config.min_events)
        last = {user: place for place, user in enumerate(chunks["user_id"].to_pylist())}
        entries = zip(chunks["user_id"].to_pylist(), chunks["chunk"].to_pylist(), chunks["text"].to_pylist(), truth, strict=True)
        for place, (user, chunk, text, wishes) in enumerate(entries):
            known = before if chunk else []
            before = wishes
            if wishes and last[user] - place < config.chunks_per_user:
                fields = {"behaviours": text, "previous": _recalled(known, rng)}
                yield {
                    "task": task.name,
                    "prompt": prompt_text(task.render(**fields)),
                    "completion": completion(task, interests_answer(wishes)),
                    "difficulty": min(rank, 4),
                }


def _recalled(wishes: list[Wish], rng: np.random.Generator) -> list[str]:
    """Earlier interests as a student would recall them: some forgotten, now and then a wrong one, sometimes none."""
    if rng.random() < 0.2:
        return []
    kept = [wish.theme.phrase for wish in wishes if rng.random() < 0.85]
    if kept and rng.random() < 0.35:
        kept.insert(int(rng.integers(len(kept) + 1)), THEMES[rng.integers(len(THEMES))].phrase)
    return list(dict.fromkeys(kept))


def _tag_rows(world: World, config: TeacherConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    task = TASKS["item_tags"]
    themes = np.unique(world.simulation.item_themes)
    titles = np.array(world.items["title"].to_pylist(), dtype=object)
    for _ in range(config.tags_per_world):
        chosen = rng.choice(themes, size=min(int(rng.integers(1, 9)), len(themes)), replace=False)
        interests = [(THEMES[t].phrase, str(rng.choice(STAGES, p=(0.25, 0.6, 0.15)))) for t in chosen]
        own = np.flatnonzero(np.isin(world.simulation.item_themes, chosen))
        recent = rng.choice(titles[own], size=min(int(rng.integers(0, 13)), len(own)), replace=False).tolist()
        num_tags = int(rng.choice([5, 8, 10, 12, 16, 20, 30, 50], p=(0.1, 0.15, 0.2, 0.1, 0.25, 0.1, 0.05, 0.05)))
        season = str(rng.choice(list(SEASONS)))
        entries = [{"interest": phrase, "stage": stage} for phrase, stage in interests]
        fields = {"interests": entries, "recent": recent, "season": season, "num_tags": num_tags}
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(**fields)),
            "completion": completion(task, tags_answer(interests, recent, season, num_tags)),
            "difficulty": 1 if num_tags <= 10 else 2 if num_tags <= 20 else 3,
        }


def _explanation_rows(world: World, config: TeacherConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    task = TASKS["explanation"]
    columns = ["title", "category", "brand", "price", "attributes", "description"]
    for row in rng.choice(world.items.num_rows, size=min(config.explanations_per_world, world.items.num_rows), replace=False):
        item = world.items.select(columns).slice(int(row), 1).to_pylist()[0]
        forgotten = rng.random(3) < (0.2, 0.2, 0.15)
        item |= {name: None for name, drop in zip(("description", "price", "brand"), forgotten, strict=True) if drop}
        theme = THEMES[world.simulation.item_themes[row]]
        noun = int(world.simulation.catalogue.noun[row])
        dice = rng.random()
        neighbours = [other for other in THEMES if other.category == theme.category and other is not theme]
        interest = (
            None if dice < 0.3 else theme.phrase if dice < 0.75 or not neighbours else str(rng.choice([o.phrase for o in neighbours]))
        )
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(item=item, interest=interest)),
            "completion": completion(task, explanation_answer(item, theme, noun, interest)),
            "difficulty": 0 if interest is None else 1,
        }


def _item_rows(world: World, config: TeacherConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    task = TASKS["item_interests"]
    shown = world.items.select(["title", "category", "categories", "brand", "price", "attributes", "description"])
    for row in rng.permutation(world.items.num_rows)[: config.item_interests_per_world].tolist():
        item = shown.slice(row, 1).to_pylist()[0]
        theme, noun = THEMES[world.simulation.item_themes[row]], int(world.simulation.catalogue.noun[row])
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(item=item, look=None)),
            "completion": completion(task, item_answer(item, theme, noun)),
            "difficulty": 1,
        }


def _liking_rows(world: World, config: TeacherConfig, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Items of what a person wants in the next chunk, and as many of what nobody said they want."""
    if not config.likings_per_world:
        return
    names = short_names(world.items, world.names)["name"].to_list()
    themes = world.simulation.item_themes
    row_of = {item: row for row, item in enumerate(world.items["item_id"].to_pylist())}
    chunks = world_chunks(world, 16)
    truth = read_truth(world.simulation, world.events, chunks, config.min_events)
    rows = list(zip(chunks.select(["user_id", "item_ids", "text"]).to_pylist(), truth, strict=True))
    pairs = [(one, after) for one, after in pairwise(rows) if one[0]["user_id"] == after[0]["user_id"] and one[1] and after[1]]
    for number in range(config.likings_per_world if pairs else 0):
        (chunk, wishes), (later, wanted) = pairs[rng.integers(len(pairs))]
        wished = np.isin(themes, [THEMES.index(wish.theme) for wish in (*wanted, *wishes)])
        taken = [row_of[item] for item in later["item_ids"] if item and wished[row_of[item]]]
        if number % 2 and taken:
            row, word = taken[rng.integers(len(taken))], ITEM_LIKING.choices[0]
        else:
            row, word = int(rng.choice(np.flatnonzero(~wished))), ITEM_LIKING.choices[1]
        by_chunk = rng.random() < 0.25
        known = {"interests": [] if by_chunk else [wish.theme.phrase for wish in wishes], "behaviours": chunk["text"] if by_chunk else None}
        yield {
            "task": ITEM_LIKING.name,
            "prompt": prompt_text(ITEM_LIKING.render(item=names[row], **known)),
            "completion": word,
            "difficulty": 1,
        }
