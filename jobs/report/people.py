"""A few people of the line, told in full: what they did, what they want and how that changed, tags, items with reasons."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from intently.core.schema import Behaviour
from intently.interests.phrases import normalise

ANYBODY = ""


@dataclass(frozen=True)
class Cell:
    """One interest in one chunk: its stage and shift; `true` is None where no truth is known, `score` (S_final) without tree search."""

    stage: str
    shift: str
    reason: str
    true: bool | None
    score: float | None = None


@dataclass(frozen=True)
class Period:
    """One chunk's span of time."""

    chunk: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Wish:
    """One interest over a person's periods; None where it was not read."""

    interest: str
    cells: tuple[Cell | None, ...]

    @property
    def last(self) -> Cell:
        """The latest period that it was read in."""
        return next(cell for cell in reversed(self.cells) if cell is not None)


@dataclass(frozen=True)
class Offer:
    """A recommended item and why.

    Attributes:
        item_id, title, category, brand, price: of the item.
        picture: data URI; None without one.
        score: of the retriever.
        interest: the person's interest that it serves; None where only the general reason is known.
        reason: the explanation; None where none was written.
        is_target: whether this is what the person really went for next.
    """

    item_id: str
    title: str
    category: str
    brand: str | None
    price: float | None
    picture: str | None
    score: float
    interest: str | None
    reason: str | None
    is_target: bool


@dataclass(frozen=True)
class Person:
    """One person.

    Attributes:
        user_id: who.
        attributes: facts as 'name: value'.
        behaviours: behaviour → how often, in the histories that the line was trained on.
        recent: titles touched last (not merely seen), newest first, each with its last behaviour.
        periods: chunks that were read, oldest first.
        wishes: interests, those of the latest chunk first.
        truths: true interests that no period names, for simulated people.
        tags: (tag, interest), best first.
        offers: recommended items, best first.
        target: title of what the person really went for next; None where nothing was kept back.
    """

    user_id: str
    attributes: tuple[str, ...]
    behaviours: dict[str, int]
    recent: tuple[tuple[str, str], ...]
    periods: tuple[Period, ...]
    wishes: tuple[Wish, ...]
    truths: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    offers: tuple[Offer, ...]
    target: str | None


@dataclass(frozen=True)
class Tables:
    """The tables that people's stories are told from, by artifact."""

    history_train: pa.Table
    history_test: pa.Table
    item: pa.Table
    user: pa.Table
    true_interest: pa.Table
    chunk: pa.Table
    user_interest: pa.Table
    tag: pa.Table
    explanation: pa.Table


def choose_people(interests: pa.Table, candidates: Sequence[str], number: int) -> list[str]:
    """Users whose interests moved most (kinds of shift, then chunks, then distinct interests), among the candidates."""
    among = interests.filter(pc.is_in(interests["user_id"], pa.array(candidates, pa.string())))
    counted = [("shift", "count_distinct"), ("chunk", "count_distinct"), ("interest", "count_distinct")]
    moved = among.group_by(["user_id"]).aggregate(counted)
    order = [(f"{column}_{kind}", "descending") for column, kind in counted]
    return moved.sort_by([*order, ("user_id", "ascending")])["user_id"].to_pylist()[:number]


def tell(user_id: str, tables: Tables, candidates: pa.Table, num_recent: int = 8, num_tags: int = 12) -> Person:
    """One person's story.

    Args:
        user_id: who; must have a row in history_train.
        tables: everything there is.
        candidates: CANDIDATE rows of this user.
        num_recent: titles touched last that are shown.
        num_tags: tags that are shown.
    """
    history = _of(tables.history_train, user_id).to_pylist()[0]
    target_ids = [item for row in _of(tables.history_test, user_id)["item_ids"].to_pylist() for item in row]
    named = pa.array({*history["item_ids"], *target_ids, *candidates["item_id"].to_pylist()} - {None}, pa.string())
    items = _by_id(tables.item.drop_columns("image").filter(pc.is_in(tables.item["item_id"], named)), "item_id")
    touched: dict[str, str] = {}
    for item, act in zip(reversed(history["item_ids"]), reversed(history["behaviours"]), strict=True):
        if item in items and act != Behaviour.IMPRESSION:
            touched.setdefault(items[item]["title"], act)
    periods, wishes = read_path(user_id, tables.user_interest, tables.chunk, tables.true_interest)
    tags = _of(tables.tag, user_id).sort_by("rank").slice(0, num_tags)
    read = {normalise(wish.interest) for wish in wishes}
    truths = dict.fromkeys(_of(tables.true_interest, user_id).sort_by("start")["interest"].to_pylist())
    return Person(
        user_id,
        tuple(attribute for row in _of(tables.user, user_id)["attributes"].to_pylist() for attribute in row),
        dict(Counter(history["behaviours"]).most_common()),
        tuple(touched.items())[:num_recent],
        periods,
        wishes,
        tuple(truth for truth in truths if normalise(truth) not in read),
        tuple(zip(tags["tag"].to_pylist(), tags["interest"].to_pylist(), strict=True)),
        tuple(_offers(candidates, items, tables, [wish.interest for wish in wishes], target_ids)),
        items[target_ids[0]]["title"] if target_ids and target_ids[0] in items else None,
    )


def read_path(user_id: str, interests: pa.Table, chunks: pa.Table, truth: pa.Table) -> tuple[tuple[Period, ...], tuple[Wish, ...]]:
    """What a person wanted, stretch by stretch.

    Args:
        user_id: who.
        interests: USER_INTEREST rows.
        chunks: CHUNK rows; interests of chunks that are not there are left out.
        truth: TRUE_INTEREST rows; none of people who are not simulated.
    Returns:
        The stretches that were read, oldest first, and the interests, those of the latest first.
    """
    mined = _of(interests, user_id).sort_by([("chunk", "descending"), ("rank", "ascending")]).to_pylist()
    read = sorted({row["chunk"] for row in mined})
    spans = {row["chunk"]: row for row in _of(chunks, user_id).select(["chunk", "start", "end"]).to_pylist()}
    periods = tuple(Period(chunk, spans[chunk]["start"], spans[chunk]["end"]) for chunk in read if chunk in spans)
    truths = _of(truth, user_id).to_pylist()
    places = {period.chunk: place for place, period in enumerate(periods)}
    rows: dict[str, list[Cell | None]] = {}
    for row in mined:
        if row["chunk"] not in places:
            continue
        place = places[row["chunk"]]
        cells = rows.setdefault(row["interest"], [None] * len(periods))
        true = _was_true(row["interest"], periods[place], truths) if truths else None
        cells[place] = Cell(row["stage"], row["shift"], row["reason"], true, row["s_final"])
    return periods, tuple(Wish(interest, tuple(cells)) for interest, cells in rows.items())


def _was_true(interest: str, period: Period, truths: list[dict]) -> bool:
    said = normalise(interest)
    return any(normalise(t["interest"]) == said and t["start"] <= period.end and t["end"] >= period.start for t in truths)


def _offers(candidates: pa.Table, items: dict[str, dict], tables: Tables, wishes: list[str], targets: list[str]) -> list[Offer]:
    ranked = candidates.sort_by("rank")
    wanted = pc.is_in(tables.explanation["item_id"], ranked["item_id"].combine_chunks())
    written = {(row["item_id"], row["interest"]): row["text"] for row in tables.explanation.filter(wanted).to_pylist()}
    pictured = tables.item.select(["item_id", "image"]).filter(pc.is_in(tables.item["item_id"], ranked["item_id"].combine_chunks()))
    pictures = _by_id(pictured, "item_id")
    offers = []
    for item_id, score in zip(ranked["item_id"].to_pylist(), ranked["score"].to_pylist(), strict=True):
        item = items[item_id]
        interest = next((wish for wish in wishes if (item_id, wish) in written), None)
        offers.append(
            Offer(
                item_id,
                item["title"],
                item["category"],
                item["brand"],
                item["price"],
                _data_uri(pictures[item_id]["image"]),
                score,
                interest,
                written.get((item_id, interest if interest is not None else ANYBODY)),
                item_id in targets,
            )
        )
    return offers


def _data_uri(image: bytes | None) -> str | None:
    if image is None:
        return None
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _of(table: pa.Table, user_id: str) -> pa.Table:
    return table.filter(pc.equal(table["user_id"], user_id))


def _by_id(table: pa.Table, key: str) -> dict[str, dict]:
    return {row[key]: row for row in table.to_pylist()}
