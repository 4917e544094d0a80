"""What a replica holds in memory: the tables as Arrow columns with an index a key, and the retriever.

A user's or an item's rows lie together (`Grouped`), so that a lookup is one dictionary access and one slice. Nothing here changes after
loading: newer tables mean a new `State` in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.schema import HISTORY, INTEREST_NODE, Behaviour
from intently.core.workspace import Artifact, Workspace
from intently.data.days import ARTIFACT as DAY
from intently.data.days import Histories as StandingHistories
from intently.data.days import merge_days, open_histories
from intently.retrieval.retriever import TowerRetriever

from serve.models import (
    Branch,
    Evidence,
    History,
    HistoryEvent,
    Interest,
    InterestPeriod,
    Interests,
    ItemCard,
    MonthCount,
    TagCard,
    Tags,
    UserCard,
    Users,
)
from serve.reasons import Reasons, ReasonsConfig
from serve.session import SessionEvent, is_dislike

if TYPE_CHECKING:
    from intently.generative.generator import TrainedGenerator

GENERATOR = "generator"
"""Artifact of the strategy `generative`; where there is none, the service answers without it."""
GENERATED_AT_MOST = 100
"""Width of the beam: as many items as a request may ask for."""
TREES = "interest_node"
"""Artifact of the search trees behind the interests, where they were found by tree search."""
TABLES = ("history", "item", "user", "chunk", "user_interest", "tag", "explanation_store")
MOST_REMEMBERED = 50_000
"""Users of whom a replica remembers what the tables say."""

Told = tuple[str, str, float | None]
"""What an event tells of an item: item id, behaviour, value."""


class Grouped:
    """A table whose rows lie together by a key."""

    def __init__(self, table: pa.Table, key: str, order: Sequence[str] = ()) -> None:
        """Sort `table` by `key` and then `order`, and note where each key's rows lie."""
        self.table = table.sort_by([(name, "ascending") for name in (key, *order)]).combine_chunks()
        runs = pc.run_end_encode(pc.fill_null(self.table[key], "").combine_chunks())
        stops = runs.run_ends.to_pylist()
        starts = [0, *stops][:-1]
        self._span = dict(zip(runs.values.to_pylist(), zip(starts, stops, strict=True), strict=True))

    def __len__(self) -> int:
        return len(self._span)

    def __contains__(self, key: str) -> bool:
        return key in self._span

    def span(self, key: str) -> tuple[int, int]:
        """First row of a key and the row after its last; (0, 0) for a key without rows."""
        return self._span.get(key, (0, 0))

    def column(self, key: str, name: str) -> list:
        """One column of a key's rows."""
        start, stop = self.span(key)
        return self.table[name].slice(start, stop - start).to_pylist()

    def rows(self, key: str) -> list[dict]:
        """A key's rows."""
        start, stop = self.span(key)
        return self.table.slice(start, stop - start).to_pylist()


class Catalogue:
    """Items by id."""

    def __init__(self, items: pa.Table) -> None:
        self._table = items.combine_chunks()
        self._row = {item_id: row for row, item_id in enumerate(self._table["item_id"].to_pylist())}
        self._has_image = self._table["image"].is_valid().to_pylist()
        self._cards: dict[str, ItemCard] = {}

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._row

    def card(self, item_id: str | None) -> ItemCard | None:
        """An item as a card; None if the catalogue does not have it."""
        row = self._row.get(item_id) if item_id is not None else None
        if item_id is None or row is None:
            return None
        if item_id not in self._cards:
            fields = {name: self._table[name][row].as_py() for name in ("item_id", "title", "category", "brand", "price")}
            if fields["price"] is not None:
                # float32 on disk: 12.5 stays 12.5, 9.99 does not become 9.989999771118164.
                fields["price"] = round(fields["price"], 2)
            image = f"v1/items/{quote(item_id, safe='')}/image" if self._has_image[row] else None
            self._cards[item_id] = ItemCard(**fields, image=image)
        return self._cards[item_id]

    def title(self, item_id: str) -> str | None:
        """An item's title; None if the catalogue does not have it."""
        card = self.card(item_id)
        return card.title if card else None

    def image(self, item_id: str) -> bytes | None:
        """An item's picture, PNG or JPEG; None if it has none."""
        return self._table["image"][self._row[item_id]].as_py()


class Histories:
    """Users' behaviour by user id. Of users whom it does not know it has no events."""

    def __init__(self, histories: pa.Table) -> None:
        self._table = histories.combine_chunks()
        self._row = {user_id: row for row, user_id in enumerate(self._table["user_id"].to_pylist())}

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._row

    def user_ids(self) -> Iterable[str]:
        """All users, in the table's order."""
        return self._row

    def length(self, user_id: str) -> int:
        """How many events a user has."""
        return len(self._values(user_id, "event_ids"))

    def told(self, user_id: str, last: int | None = None) -> list[Told]:
        """The user's `last` item-bearing events, or all of them, oldest first."""
        if user_id not in self._row:
            return []
        start = None if last is None else -last
        columns = [self._values(user_id, name) for name in ("item_ids", "behaviours", "values")]
        bearing = columns[0].is_valid()
        return list(zip(*(column.filter(bearing)[start:].to_pylist() for column in columns), strict=True))

    def beyond(self, user_id: str, session: Sequence[SessionEvent]) -> list[SessionEvent]:
        """Those events of a session that the user's history does not have yet."""
        if not session or user_id not in self._row:
            return list(session)
        ids = pa.array([event.event_id for event in session], pa.string())
        stands = pc.is_in(ids, value_set=self._values(user_id, "event_ids")).to_pylist()
        return [event for event, known in zip(session, stands, strict=True) if not known]

    def page(self, user_id: str, offset: int, limit: int, catalogue: Catalogue, session: Sequence[SessionEvent] = ()) -> History:
        """`limit` events from the newest but `offset` backwards, those of the session first, and the whole history by month."""
        fresh = self.beyond(user_id, session)[::-1]
        length = self.length(user_id)
        total = length + len(fresh)
        events = [
            HistoryEvent(
                event_id=event.event_id,
                item_id=event.item_id,
                item=catalogue.card(event.item_id),
                behaviour=event.behaviour,
                timestamp=event.timestamp,
                query=event.query,
                value=event.value,
                session=True,
            )
            for event in fresh[offset : offset + limit]
        ]
        stop = max(0, total - max(offset, len(fresh)))
        start = max(0, min(stop, total - offset - limit))
        columns = {
            name: self._values(user_id, name)[start:stop].to_pylist()[::-1]
            for name in ("event_ids", "item_ids", "behaviours", "timestamps", "queries", "values")
        }
        events += [
            HistoryEvent(
                event_id=event_id,
                item_id=item_id,
                item=catalogue.card(item_id),
                behaviour=behaviour,
                timestamp=timestamp,
                query=query,
                value=value,
                session=False,
            )
            for event_id, item_id, behaviour, timestamp, query, value in zip(*columns.values(), strict=True)
        ]
        end = offset + limit
        return History(
            user_id=user_id, total=total, next_offset=end if end < total else None, months=self._months(user_id, fresh), events=events
        )

    def _months(self, user_id: str, fresh: Sequence[SessionEvent]) -> list[MonthCount]:
        moments = self._values(user_id, "timestamps").to_numpy(zero_copy_only=False).astype("datetime64[M]")
        recent = np.array([event.timestamp.replace(tzinfo=None) for event in fresh], "datetime64[M]")
        months, counts = np.unique(np.concatenate([moments, recent]), return_counts=True)
        return [MonthCount(month=_first_day(month), events=int(count)) for month, count in zip(months, counts, strict=True)]

    def _values(self, user_id: str, name: str) -> pa.Array:
        column = self._table[name].chunk(0)
        row = self._row.get(user_id)
        return column.values[:0] if row is None else column[row].values


@dataclass(frozen=True)
class About:
    """What the tables say of a user, as answers need it.

    Attributes:
        interests: the newest stretch first; within one, fading interests come last.
        by_category: item category → the interest of the user's best tag in it.
    """

    interests: tuple[str, ...]
    by_category: Mapping[str, str]

    def interests_after(self, item_ids: Sequence[str], catalogue: Catalogue) -> list[str]:
        """The same interests, those first whose category a session's items (oldest first) fall into, the newest before the others."""
        cards = [catalogue.card(item_id) for item_id in reversed(item_ids)]
        touched = [self.by_category[card.category] for card in cards if card is not None and card.category in self.by_category]
        return list(dict.fromkeys([*touched, *self.interests]))


@dataclass(frozen=True)
class State:
    """Everything a request reads, from one set of artifact versions.

    Attributes:
        histories: all events, those of all days included.
        users: all users, those with mined interests first.
        later: the events of the days that were appended after the split that the towers were trained on: no vector stands for them.
    """

    catalogue: Catalogue
    histories: Histories
    later: Histories
    attributes: Grouped
    chunks: Grouped
    interests: Grouped
    tags: Grouped
    reasons: Reasons
    retriever: TowerRetriever
    versions: dict[str, str]
    trees: Grouped
    users: tuple[str, ...]
    generator: TrainedGenerator | None = None
    remembered: dict[str, About] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, workspace: Workspace, reasons: ReasonsConfig | None = None, versions: Mapping[str, str] | None = None) -> State:
        """Read artifacts.

        Args:
            workspace: where they are.
            reasons: where reasons are looked up; None is the workspace's own file.
            versions: artifact → version of everything that is read, `history_day` where days were appended; None takes the latest.
        Raises:
            MissingArtifactError: an artifact does not stand; the message names it.
            WorkspaceError: one cannot be read.
        """
        wanted = versions or {}
        artifacts: dict[str, Artifact] = {name: workspace.artifact(name, wanted.get(name)) for name in TABLES}
        retriever = TowerRetriever.load(workspace, versions)
        written = wanted.get(GENERATOR) if versions else workspace.latest_version(GENERATOR)
        standing = open_histories(workspace, versions)
        histories = Histories(pa.concat_tables([rows for _, rows in standing.iter_parts()]))
        interests = Grouped(artifacts["user_interest"].read(), "user_id", ["chunk", "rank"])
        return cls(
            catalogue=Catalogue(artifacts["item"].read()),
            histories=histories,
            later=Histories(_later_events(workspace, standing, retriever.versions["history_train"])),
            attributes=Grouped(artifacts["user"].read(), "user_id"),
            chunks=Grouped(artifacts["chunk"].read(columns=["user_id", "chunk", "start", "end"]), "user_id", ["chunk"]),
            interests=interests,
            tags=Grouped(artifacts["tag"].read(), "user_id", ["rank"]),
            reasons=Reasons.open(artifacts["explanation_store"], reasons or ReasonsConfig()),
            retriever=retriever,
            versions=dict(versions)
            if versions
            else _versions(artifacts.values(), standing) | dict(retriever.versions) | ({GENERATOR: written} if written else {}),
            trees=Grouped(_trees_of(workspace, artifacts["user_interest"]), "user_id", ["chunk", "sample"]),
            users=tuple(sorted(histories.user_ids(), key=lambda user_id: user_id not in interests)),
            generator=_load_generator(workspace, written) if written else None,
        )

    def about(self, user_id: str) -> About:
        """What the tables say of a user; remembered, because it does not change."""
        if user_id not in self.remembered:
            if len(self.remembered) >= MOST_REMEMBERED:
                self.remembered.clear()
            self.remembered[user_id] = About(tuple(self.current_interests(user_id)), self.interest_of_category(user_id))
        return self.remembered[user_id]

    def session_acts(self, user_id: str, session: Sequence[SessionEvent]) -> tuple[list[tuple[str, str]], list[str]]:
        """What a user did since the split that the towers were trained on: in the days appended after it, then in the session.

        Returns:
            (item id, behaviour) of what was wanted, oldest first, and the items that were not; items of the catalogue alone.
        """
        return self._acts(self.later.told(user_id), user_id, session)

    def all_acts(self, user_id: str, session: Sequence[SessionEvent], last: int | None = None) -> tuple[list[tuple[str, str]], list[str]]:
        """The same of the user's `last` events in the tables, or all of them, then of the session."""
        return self._acts(self.histories.told(user_id, last), user_id, session)

    def _acts(self, told: Sequence[Told], user_id: str, session: Sequence[SessionEvent]) -> tuple[list[tuple[str, str]], list[str]]:
        fresh = [(event.item_id, event.behaviour, event.value) for event in self.histories.beyond(user_id, session)]
        known = [one for one in (*told, *fresh) if one[0] in self.catalogue]
        disliked = dict.fromkeys(item_id for item_id, behaviour, value in known if is_dislike(behaviour, value))
        wanted = [(item_id, behaviour) for item_id, behaviour, _ in known if item_id not in disliked and behaviour != Behaviour.IMPRESSION]
        return wanted, list(disliked)

    def generated(self, item_ids: Sequence[str], behaviours: Sequence[str], k: int, filter_seen: bool, exclude: Sequence[str]) -> pa.Table:
        """What the generator writes after a history, as CANDIDATE rows; what was not taken counts as not seen."""
        assert self.generator is not None, "asked for only where there is one"
        taken = self.generator.config.sequences.behaviours
        history = [item for item, behaviour in zip(item_ids, behaviours, strict=True) if behaviour in taken]
        return self.generator.generate_items(history, k, filter_seen, exclude)

    def current_interests(self, user_id: str) -> list[str]:
        """The user's interests, the newest stretch first; within one, fading interests come last."""
        chunks, stages, names = (self.interests.column(user_id, name) for name in ("chunk", "stage", "interest"))
        ordered = sorted(range(len(names)), key=lambda row: (-chunks[row], stages[row] == "fading", row))
        return list(dict.fromkeys(names[row] for row in ordered))

    def interest_of_category(self, user_id: str) -> dict[str, str]:
        """Item category → the interest of the user's best tag in it."""
        pairs = zip(self.tags.column(user_id, "category"), self.tags.column(user_id, "interest"), strict=True)
        found: dict[str, str] = {}
        for category, interest in pairs:
            if category is not None:
                found.setdefault(category, interest)
        return found

    def interests_of(self, user_id: str) -> Interests:
        """The user's interests by stretch of history."""
        spans: dict[int, tuple[datetime, datetime]] = {row["chunk"]: (row["start"], row["end"]) for row in self.chunks.rows(user_id)}
        by_chunk: dict[int, list[Interest]] = {chunk: [] for chunk in spans}
        branches: dict[int, list[Branch]] = {}
        for node in self.trees.rows(user_id):
            branches.setdefault(node["chunk"], []).append(Branch(**{name: node[name] for name in Branch.model_fields}))
        for row in self.interests.rows(user_id):
            by_chunk.setdefault(row["chunk"], []).append(
                Interest(
                    rank=row["rank"],
                    interest=row["interest"],
                    stage=row["stage"],
                    shift=row["shift"],
                    reason=row["reason"],
                    evidence=[Evidence(item_id=item_id, title=self.catalogue.title(item_id)) for item_id in row["evidence"]],
                    score=row["s_final"],
                )
            )
        periods = [
            InterestPeriod(
                chunk=chunk,
                start=spans.get(chunk, (None, None))[0],
                end=spans.get(chunk, (None, None))[1],
                interests=interests,
                branches=branches.get(chunk, []),
            )
            for chunk, interests in sorted(by_chunk.items())
        ]
        return Interests(user_id=user_id, periods=periods)

    def tags_of(self, user_id: str) -> Tags:
        """The user's predicted item tags, best first."""
        rows = self.tags.rows(user_id)
        return Tags(user_id=user_id, tags=[TagCard(**{name: row[name] for name in TagCard.model_fields}) for row in rows])

    def some_users(self, limit: int) -> Users:
        """`limit` users, those with mined interests first."""
        cards = [
            UserCard(
                user_id=user_id,
                attributes=next(iter(self.attributes.column(user_id, "attributes")), []),
                num_events=self.histories.length(user_id),
                num_interests=len(set(self.interests.column(user_id, "interest"))),
            )
            for user_id in self.users[:limit]
        ]
        return Users(total=len(self.histories), users=cards)


def _later_events(workspace: Workspace, histories: StandingHistories, split: str) -> pa.Table:
    """HISTORY rows of the days behind the last one that a version of history_train was split from."""
    last = workspace.artifact("history_train", split).manifest.inputs.get(DAY)
    versions = [day.version for day in histories.days]
    start = versions.index(last) + 1 if last in versions else 0
    return merge_days(HISTORY.empty(), [day.read() for day in histories.days[start:]]).history


def _trees_of(workspace: Workspace, interests: Artifact) -> pa.Table:
    """INTEREST_NODE rows of the run that found these interests; none where that was no tree search, or another one came later."""
    version = workspace.latest_version(TREES)
    nodes = workspace.artifact(TREES, version) if version else None
    if nodes is None or (nodes.manifest.inputs, nodes.manifest.config) != (interests.manifest.inputs, interests.manifest.config):
        return INTEREST_NODE.empty()
    return nodes.read()


def _load_generator(workspace: Workspace, version: str) -> TrainedGenerator:
    # transformers takes seconds to import: only where there is a generator.
    from intently.generative.beam import BeamConfig
    from intently.generative.generator import TrainedGenerator

    return TrainedGenerator.load(workspace, BeamConfig(width=GENERATED_AT_MOST), versions={GENERATOR: version})


def _versions(artifacts: Iterable[Artifact], histories: StandingHistories) -> dict[str, str]:
    return {artifact.name: artifact.version for artifact in (*artifacts, *histories.days[-1:])}


def _first_day(month: np.datetime64) -> date:
    return month.astype("datetime64[D]").item()
