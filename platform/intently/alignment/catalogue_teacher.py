"""The catalogue teacher: asks the mining jobs' questions about a real catalogue's log, and answers by rule from counts and metadata.

What it writes is not what people said of themselves: an interest is what a chunk's liked items have more of than everybody's do, and
whether somebody likes an item is what they did in their next chunk. All of it is from the training part (`catalogue.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.alignment.answers import completion
from intently.alignment.catalogue import Catalogue, CatalogueConfig, open_catalogue
from intently.alignment.catalogue_answers import Seen, Shown, interests_of, item_answer, shown_aspects, tag_answer
from intently.alignment.examples import prompt_text
from intently.alignment.truth import histories
from intently.core.schema import CHAT_EXAMPLE
from intently.data.chunking import Chunker
from intently.data.item_names import NameConfig, short_names
from intently.llm.tasks import ITEM_LIKING, TASKS

STAGES = ("emerging", "active", "fading")
SHOWN_ATTRIBUTES = 6
_DAY_US = 86_400_000_000
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class _Chunk:
    """A chunk, what it shows, and the interests of the one before."""

    user: str
    text: str
    deed: str
    size: int
    seen: Seen
    shown: list[Shown]
    before: list[Shown]
    next_items: list[tuple[int, bool]]  # of the user's next chunk: item row, liked


def write_catalogue_examples(config: CatalogueConfig, seed: int) -> pa.Table:
    """CHAT_EXAMPLE rows of one catalogue; the same arguments and files give the same rows."""
    rng = np.random.default_rng([seed, config.users])
    catalogue = open_catalogue(config)
    chunks = _chunks(catalogue, rng)
    rows = [
        *_interest_rows(catalogue, chunks, rng),
        *_item_rows(catalogue, chunks, rng),
        *_tag_rows(catalogue, chunks, rng),
        *_liking_rows(catalogue, chunks, rng),
    ]
    for place, row in enumerate(rows):
        row |= {"example_id": f"{config.name}-{row['task']}-{place}", "source": "teacher"}
    return CHAT_EXAMPLE.from_rows(rows)


def _chunks(catalogue: Catalogue, rng: np.random.Generator) -> list[_Chunk]:
    """Chunks of several sizes of the chosen people, in order within a person."""
    config = catalogue.config
    everybody = pc.unique(catalogue.events["user_id"]).sort().to_pylist()
    chosen = np.array(everybody, dtype=object)[rng.permutation(len(everybody))[: config.users]]
    size_of = rng.integers(len(config.chunk_sizes), size=len(chosen))
    found: list[_Chunk] = []
    for rank, size in enumerate(config.chunk_sizes):
        events = catalogue.events.filter(pc.is_in(catalogue.events["user_id"], pa.array(chosen[size_of == rank], pa.string())))
        if events.num_rows:
            found += _cut(catalogue, events, size)
    return found


def _cut(catalogue: Catalogue, events: pa.Table, size: int) -> list[_Chunk]:
    chunker = Chunker(catalogue.items, catalogue.config.chunks.model_copy(update={"num_events": size}))
    told = told_of(events)
    rows = chunker.chunk(histories(events)).chunks.select(["user_id", "event_ids", "item_ids", "text"]).to_pylist()
    found: list[_Chunk] = []
    for row in rows:
        happened = [told[event] for event in row["event_ids"]]
        items = [catalogue.row[item] for item in row["item_ids"]]
        seen = seen_of(happened, items)
        shown = shown_aspects(catalogue, seen)
        same = bool(found) and found[-1].user == row["user_id"]
        if same:
            found[-1].next_items.extend((item, bool(event["liked"])) for item, event in zip(items, happened, strict=True))
        before = found[-1].shown if same else []
        found.append(_Chunk(row["user_id"], row["text"], happened[-1]["behaviour"], size, seen, shown, before, []))
    return found


def told_of(events: pa.Table) -> dict[str, dict[str, Any]]:
    """Event id → behaviour, liked, and time in microseconds."""
    rows = events.select(["event_id", "behaviour", "liked"]).append_column("time", events["timestamp"].cast(pa.int64())).to_pylist()
    return {row["event_id"]: row for row in rows}


def seen_of(happened: list[dict[str, Any]], items: list[int]) -> Seen:
    """Events of a chunk (`time` in microseconds, `liked`) and the catalogue rows of their items → what they liked and what not."""
    times = np.array([event["time"] for event in happened], np.float64)
    span = times[-1] - times[0]
    liked = np.array([event["liked"] for event in happened], bool)
    places = (times - times[0]) / span if span >= _DAY_US else np.zeros(len(times))
    rows = np.array(items, np.int64)
    return Seen(rows[liked], places[liked], bool(span < _DAY_US), rows[~liked])


def _interest_rows(catalogue: Catalogue, chunks: list[_Chunk], rng: np.random.Generator) -> Rows:
    task = TASKS["user_interests"]
    taken: dict[str, int] = {}
    for place in rng.permutation(len(chunks)).tolist():
        chunk = chunks[place]
        if not chunk.shown or taken.get(chunk.user, 0) == catalogue.config.chunks_per_user:
            continue
        taken[chunk.user] = taken.get(chunk.user, 0) + 1
        previous = _recalled(catalogue, chunk.before, rng)
        answer = interests_of(catalogue, chunk.shown, chunk.seen, chunk.text, previous, chunk.deed)
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(behaviours=chunk.text, previous=previous)),
            "completion": completion(task, answer),
            "difficulty": 1 if chunk.size <= 8 else 2 if chunk.size <= 16 else 3,
        }


def _recalled(catalogue: Catalogue, shown: list[Shown], rng: np.random.Generator) -> list[str]:
    """Earlier interests as a student would recall them: some forgotten, now and then a wrong one."""
    kept = [catalogue.aspects[one.aspect].phrase for one in shown if rng.random() < 0.85]
    if kept and rng.random() < 0.35:
        kept.insert(int(rng.integers(len(kept) + 1)), catalogue.aspects[rng.integers(len(catalogue.aspects))].phrase)
    return list(dict.fromkeys(kept)) if rng.random() < 0.85 else []


def aspect_confidence(catalogue: Catalogue, chunks: list[_Chunk]) -> np.ndarray:
    """[A] how much one liked item with an aspect speaks for a person who follows it: 0.5 says no more than chance.

    s / (s + b): s is the share of chunks that show the aspect among those with a liked item that has it, b among all chunks.
    """
    shows = np.zeros((len(chunks), len(catalogue.aspects)), bool)
    has = np.zeros_like(shows)
    for place, chunk in enumerate(chunks):
        shows[place, [one.aspect for one in chunk.shown]] = True
        has[place] = catalogue.shows[chunk.seen.items].any(axis=0)
    base = (shows.sum(axis=0) + 1) / (len(chunks) + 2)
    given = (shows.sum(axis=0) + 1) / (has.sum(axis=0) + 2)
    return np.clip(np.round(given / (given + base) * 20) / 20, 0.5, 0.95)


def _item_rows(catalogue: Catalogue, chunks: list[_Chunk], rng: np.random.Generator) -> Rows:
    task = TASKS["item_interests"]
    confidence = aspect_confidence(catalogue, chunks)
    useful = np.flatnonzero(catalogue.teachable & (catalogue.shows.sum(axis=1) > 0))
    shown = catalogue.items.select(["title", "category", "categories", "brand", "price", "attributes", "description"])
    for row in rng.permutation(useful)[: catalogue.config.item_examples].tolist():
        item = shown.slice(row, 1).to_pylist()[0]
        item["attributes"] = item["attributes"][:SHOWN_ATTRIBUTES]
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(item=item, look=None)),
            "completion": completion(task, item_answer(catalogue, row, confidence)),
            "difficulty": 1,
        }


def _tag_rows(catalogue: Catalogue, chunks: list[_Chunk], rng: np.random.Generator) -> Rows:
    task = TASKS["item_tags"]
    titles = catalogue.items["title"].to_pylist()
    useful = [chunk for chunk in chunks if any(catalogue.aspects[one.aspect].modifiers for one in chunk.shown)]
    for place in rng.permutation(len(useful))[: catalogue.config.tag_examples].tolist():
        chunk = useful[place]
        shown = [*chunk.shown, *(one for one in chunk.before if one.aspect not in {now.aspect for now in chunk.shown})]
        stages = rng.choice(STAGES, size=len(shown), p=(0.25, 0.6, 0.15)).tolist()
        aspects = [(catalogue.aspects[one.aspect], stage) for one, stage in zip(shown, stages, strict=True)]
        recent = [titles[item] for item in chunk.seen.items[-int(rng.integers(1, 9)) :]] if rng.random() < 0.8 else []
        num_tags = int(rng.choice([8, 10, 16, 20, 30, 50], p=(0.15, 0.2, 0.4, 0.1, 0.1, 0.05)))
        entries = [{"interest": aspect.phrase, "stage": stage} for aspect, stage in aspects]
        season = str(rng.choice(["spring", "summer", "autumn", "winter"]))
        yield {
            "task": task.name,
            "prompt": prompt_text(task.render(interests=entries, recent=recent, season=season, num_tags=num_tags)),
            "completion": completion(task, tag_answer(aspects, recent, num_tags)),
            "difficulty": 2,
        }


def _liking_rows(catalogue: Catalogue, chunks: list[_Chunk], rng: np.random.Generator) -> Rows:
    """Items of the next chunk, as many liked ones as others; where nothing is disliked, the others are what people at large took."""
    names = short_names(catalogue.items, NameConfig(facets=("categories",)))["name"].to_list()
    everything = pc.index_in(catalogue.events["item_id"], catalogue.items["item_id"].combine_chunks()).to_numpy()
    asked = [(place, *pair) for place, chunk in enumerate(chunks) for pair in chunk.next_items if chunk.shown]
    liked, others = [one for one in asked if one[2]], [one for one in asked if not one[2]]
    if not others:
        drawn = rng.choice(everything, size=len(liked)).tolist()
        touched: dict[str, set[int]] = {}
        for user, item in zip(catalogue.events["user_id"].to_pylist(), everything.tolist(), strict=True):
            touched.setdefault(user, set()).add(item)
        pairs = zip((place for place, _, _ in liked), drawn, strict=True)
        others = [(place, item, False) for place, item in pairs if item not in touched[chunks[place].user]]
    by_chunk = catalogue.config.liking_chunks
    for number in range(by_chunk + catalogue.config.liking_examples):
        pool = liked if number % 2 else others
        place, item, answer = pool[rng.integers(len(pool))]
        chunk = chunks[place]
        phrases = [catalogue.aspects[one.aspect].phrase for one in (chunk.before if chunk.before and rng.random() < 0.4 else chunk.shown)]
        known = {"interests": [], "behaviours": chunk.text} if number < by_chunk else {"interests": phrases, "behaviours": None}
        yield {
            "task": ITEM_LIKING.name,
            "prompt": prompt_text(ITEM_LIKING.render(item=names[item], **known)),
            "completion": ITEM_LIKING.choices[0 if answer else 1],
            "difficulty": 1,
        }
