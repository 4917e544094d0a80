"""What a simulated person really wanted within a chunk: the truth that ideal answers are written from, and measured against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.schema import HISTORY, Behaviour
from intently.data.simulator import Simulation, query_themes
from intently.data.world import THEMES, Theme

HOUR_US = 3_600_000_000
_BY_STRENGTH = (
    Behaviour.PURCHASE, Behaviour.CART, Behaviour.FAVOURITE, Behaviour.SEARCH,
    Behaviour.RATING, Behaviour.REVIEW_READ, Behaviour.DETAIL_VIEW,
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """One true interest that shows in a chunk.

    Attributes:
        theme: what is wanted.
        num_events: the chunk's events that serve it while it was in force.
        stage: emerging, active or fading within the chunk.
        nouns: indices of the theme's nouns seen, most frequent first.
        deed: the strongest behaviour.
        deed_noun: noun index of that behaviour's item, None if it names none.
        query: a query typed for it, or None.
    """

    theme: Theme
    num_events: int
    stage: str
    nouns: tuple[int, ...]
    deed: str
    deed_noun: int | None
    query: str | None


def histories(events: pa.Table) -> pa.Table:
    """EVENT rows, ordered by user and time, → HISTORY rows; all of bucket 0."""
    user = events["user_id"].combine_chunks().dictionary_encode()
    counts = np.bincount(user.indices.to_numpy(), minlength=len(user.dictionary))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists = {
        "event_ids": "event_id", "item_ids": "item_id", "behaviours": "behaviour", "timestamps": "timestamp",
        "values": "value", "queries": "query", "dwell_s": "dwell_s",
    }  # fmt: skip
    columns = {name: pa.ListArray.from_arrays(offsets, events[column].combine_chunks()) for name, column in lists.items()}
    return HISTORY.check(pa.table({"user_id": user.dictionary, "bucket": np.zeros(len(counts), np.int32), **columns}))


def read_truth(simulation: Simulation, events: pa.Table, chunks: pa.Table, min_events: int) -> list[list[Wish]]:
    """What each chunk's person wanted, as far as the chunk shows it, strongest first.

    Args:
        simulation: the world.
        events: EVENT rows that hold all events of the chunks.
        chunks: CHUNK rows.
        min_events: an interest with fewer events in the chunk does not show.
    Returns:
        one list a chunk.
    """
    spells = _spells(simulation)
    lengths = pc.list_value_length(chunks["event_ids"]).to_numpy()
    rows = pc.index_in(pc.list_flatten(chunks["event_ids"]), events["event_id"].combine_chunks()).to_numpy()
    item = pc.index_in(events["item_id"], simulation.items["item_id"].combine_chunks()).fill_null(-1).to_numpy()[rows]
    typed = events["query"].combine_chunks().take(pa.array(rows)).to_pylist()
    of_query = query_themes()
    theme = np.where(item >= 0, simulation.item_themes[item], [of_query.get(query or "", -1) for query in typed])
    noun = np.where(item >= 0, simulation.catalogue.noun[item], -1)
    time = events["timestamp"].cast(pa.int64()).to_numpy()[rows]
    behaviour = events["behaviour"].combine_chunks().take(pa.array(rows)).to_pylist()
    found = []
    first = 0
    for user, length in zip(chunks["user_id"].to_pylist(), lengths, strict=True):
        part = slice(first, first + length)
        found.append(_wishes(spells.get(user, {}), theme[part], noun[part], time[part], behaviour[part], typed[part], min_events))
        first += length
    return found


def _spells(simulation: Simulation) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """User → theme index → (start, end) of each spell, microseconds since 1970."""
    numbers = {theme.phrase: t for t, theme in enumerate(THEMES)}
    truth = simulation.true_interests
    spells: dict[str, dict[int, list[tuple[int, int]]]] = {}
    columns = [truth["user_id"].to_pylist(), truth["interest"].to_pylist()]
    times = [truth[name].cast(pa.int64()).to_pylist() for name in ("start", "end")]
    for user, phrase, start, end in zip(*columns, *times, strict=True):
        spells.setdefault(user, {}).setdefault(numbers[phrase], []).append((start, end))
    return spells


def _wishes(
    spells: dict[int, list[tuple[int, int]]],
    theme: np.ndarray,
    noun: np.ndarray,
    time: np.ndarray,
    behaviour: list[str],
    typed: list[str | None],
    min_events: int,
) -> list[Wish]:
    wishes = []
    for t in np.unique(theme).tolist():
        inside = np.zeros(len(theme), bool)
        for start, end in spells.get(t, []):
            inside |= (theme == t) & (time >= start - HOUR_US) & (time <= end + HOUR_US)
        rows = np.flatnonzero(inside)
        if len(rows) < min_events:
            continue
        deed = min(rows.tolist(), key=lambda row: _BY_STRENGTH.index(Behaviour(behaviour[row])))
        nouns = Counter(noun[rows][noun[rows] >= 0].tolist())
        wishes.append(
            Wish(
                theme=THEMES[t],
                num_events=len(rows),
                stage=_stage(spells[t], int(time[0]), int(time[-1])),
                nouns=tuple(n for n, _ in nouns.most_common()),
                deed=behaviour[deed],
                deed_noun=int(noun[deed]) if noun[deed] >= 0 else None,
                query=next((typed[row] for row in rows if typed[row]), None),
            )
        )
    return sorted(wishes, key=lambda wish: -wish.num_events)


def _stage(spells: list[tuple[int, int]], begin: int, finish: int) -> str:
    """Emerging if it first began in the later part of the chunk, fading if it ended in the earlier part, else active."""
    span = finish - begin
    if min(start for start, _ in spells) > begin + 0.4 * span:
        return "emerging"
    if max(end for start, end in spells if start <= finish) < begin + 0.7 * span:
        return "fading"
    return "active"
