"""What a replica holds in memory: the tables as Arrow columns with an index a key, and the retriever.

A user's or an item's rows lie together (`Grouped`), so that a lookup is one dictionary access and one slice. Nothing here changes after
loading: newer tables mean a new `State` in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from intently.core.workspace import Artifact, Workspace
from intently.retrieval.retriever import TowerRetriever

from serve.models import (
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

TABLES = ("history", "item", "user", "chunk", "user_interest", "tag", "explanation_store")


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
    """Users' behaviour by user id."""

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

    def items(self, user_id: str, last: int) -> tuple[list[str], list[str]]:
        """The user's `last` item-bearing events as (item ids, behaviours), oldest first."""
        item_ids, behaviours = self._values(user_id, "item_ids"), self._values(user_id, "behaviours")
        bearing = item_ids.is_valid()
        return item_ids.filter(bearing)[-last:].to_pylist(), behaviours.filter(bearing)[-last:].to_pylist()

    def page(self, user_id: str, offset: int, limit: int, catalogue: Catalogue) -> History:
        """`limit` events from the newest but `offset` backwards, and the whole history by month."""
        total = self.length(user_id)
        stop = max(0, total - offset)
        start = max(0, stop - limit)
        columns = {
            name: self._values(user_id, name)[start:stop].to_pylist()[::-1]
            for name in ("event_ids", "item_ids", "behaviours", "timestamps", "queries", "values")
        }
        events = [
            HistoryEvent(
                event_id=event_id,
                item_id=item_id,
                item=catalogue.card(item_id),
                behaviour=behaviour,
                timestamp=timestamp,
                query=query,
                value=value,
            )
            for event_id, item_id, behaviour, timestamp, query, value in zip(*columns.values(), strict=True)
        ]
        return History(
            user_id=user_id, total=total, next_offset=total - start if start else None, months=self._months(user_id), events=events
        )

    def _months(self, user_id: str) -> list[MonthCount]:
        moments = self._values(user_id, "timestamps").to_numpy(zero_copy_only=False)
        months, counts = np.unique(moments.astype("datetime64[M]"), return_counts=True)
        return [MonthCount(month=_first_day(month), events=int(count)) for month, count in zip(months, counts, strict=True)]

    def _values(self, user_id: str, name: str) -> pa.Array:
        return self._table[name].chunk(0)[self._row[user_id]].values


@dataclass(frozen=True)
class State:
    """Everything a request reads, from one set of artifact versions."""

    catalogue: Catalogue
    histories: Histories
    attributes: Grouped
    chunks: Grouped
    interests: Grouped
    tags: Grouped
    reasons: Reasons
    retriever: TowerRetriever
    versions: dict[str, str]

    @classmethod
    def load(cls, workspace: Workspace, reasons: ReasonsConfig | None = None) -> State:
        """Read the latest artifacts.

        Args:
            workspace: where they are.
            reasons: where reasons are looked up; None is the workspace's own file.
        Raises:
            MissingArtifactError: an artifact does not stand; the message names it.
            WorkspaceError: one cannot be read.
        """
        artifacts: dict[str, Artifact] = {name: workspace.artifact(name) for name in TABLES}
        retriever = TowerRetriever.load(workspace)
        return cls(
            catalogue=Catalogue(artifacts["item"].read()),
            histories=Histories(artifacts["history"].read()),
            attributes=Grouped(artifacts["user"].read(), "user_id"),
            chunks=Grouped(artifacts["chunk"].read(columns=["user_id", "chunk", "start", "end"]), "user_id", ["chunk"]),
            interests=Grouped(artifacts["user_interest"].read(), "user_id", ["chunk", "rank"]),
            tags=Grouped(artifacts["tag"].read(), "user_id", ["rank"]),
            reasons=Reasons.open(artifacts["explanation_store"], reasons or ReasonsConfig()),
            retriever=retriever,
            versions={name: artifact.version for name, artifact in artifacts.items()} | dict(retriever.versions),
        )

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
            InterestPeriod(chunk=chunk, start=spans.get(chunk, (None, None))[0], end=spans.get(chunk, (None, None))[1], interests=interests)
            for chunk, interests in sorted(by_chunk.items())
        ]
        return Interests(user_id=user_id, periods=periods)

    def tags_of(self, user_id: str) -> Tags:
        """The user's predicted item tags, best first."""
        rows = self.tags.rows(user_id)
        return Tags(user_id=user_id, tags=[TagCard(**{name: row[name] for name in TagCard.model_fields}) for row in rows])

    def some_users(self, limit: int) -> Users:
        """`limit` users, those with mined interests first."""
        ordered = sorted(self.histories.user_ids(), key=lambda user_id: user_id not in self.interests)[:limit]
        cards = [
            UserCard(
                user_id=user_id,
                attributes=next(iter(self.attributes.column(user_id, "attributes")), []),
                num_events=self.histories.length(user_id),
                num_interests=len(set(self.interests.column(user_id, "interest"))),
            )
            for user_id in ordered
        ]
        return Users(total=len(self.histories), users=cards)


def _first_day(month: np.datetime64) -> date:
    return month.astype("datetime64[D]").item()
