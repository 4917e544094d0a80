"""Days that are appended to histories: new events lie beside the old buckets, and are merged where a bucket is read.

Appending writes a HISTORY artifact `history_day` that holds the new events alone, in the buckets of the `history` that it extends;
no old part is read or written, so a day costs what the day holds. `days.json` in it lists every day so far, oldest first. The day before
is an input of each, so a list follows from its day's version and never changes. Whoever reads through `open_histories` sees the whole:
base and days of a bucket, by user and time.

Rules. An event whose id its user has already is a duplicate: what arrived first stays, whatever its time, since what is written is
never rewritten; duplicates and late events (older than one that arrived before) are counted where they are merged. Events at
one moment stand in order of arrival. New people may appear; events on items that `item` does not hold are refused. The days belong to
one version of `history`: a full ingest begins anew, with none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from intently.core.schema import HISTORY
from intently.core.workspace import Artifact, Stage, Workspace
from intently.data.flat import EVENT_COLUMNS, as_arrow, flatten, fold

DAYS = "days.json"
ARTIFACT = "history_day"


@dataclass(frozen=True)
class Merged:
    """A bucket with its days.

    Attributes:
        history: HISTORY, by user_id.
        counts: what the days brought, name → number; empty without days.
    """

    history: pa.Table
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Histories:
    """A standing `history` and the days appended to it. Picklable: workers read their bucket themselves."""

    base: Artifact
    days: tuple[Artifact, ...]

    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return self.base.parts()

    @property
    def notes(self) -> dict[str, str]:
        """What the ingest noted."""
        return self.base.manifest.notes

    def read(self, part: str) -> pa.Table:
        """HISTORY rows of one bucket, the days included."""
        return self.merge(part).history

    def merge(self, part: str) -> Merged:
        """The same, with what the days brought."""
        return merge_days(self.base.read(part), [day.read(part) for day in self.days])

    def iter_parts(self) -> Iterator[tuple[str, pa.Table]]:
        """(part name, rows) one bucket at a time."""
        for part in self.parts():
            yield part, self.read(part)


def open_histories(workspace: Workspace, versions: Mapping[str, str] | None = None) -> Histories:
    """The standing `history` with the days that extend this very version of it.

    Args:
        workspace: where they stand.
        versions: version of `history`, and of `history_day` where the days up to one are wanted; None takes the latest of both.
    Raises:
        MissingArtifactError: nobody has written a history yet.
    """
    base = workspace.artifact("history", versions["history"] if versions else None)
    day = versions.get(ARTIFACT) if versions is not None else workspace.latest_version(ARTIFACT)
    if day is None:
        return Histories(base, ())
    latest = workspace.artifact(ARTIFACT, day)
    listed = json.loads(workspace.read_bytes(workspace.path(ARTIFACT, latest.version, DAYS)))
    if listed["history"] != base.version:
        return Histories(base, ())
    return Histories(base, tuple(workspace.artifact(ARTIFACT, version) for version in listed["days"]))


def list_days(stage: Stage, before: Histories) -> None:
    """Put the list of days into the stage of a new one; call it before `Stage.finish`."""
    listed = {"history": before.base.version, "days": [*(day.version for day in before.days), stage.version]}
    stage.put(DAYS, json.dumps(listed).encode())


def merge_days(base: pa.Table, days: Sequence[pa.Table]) -> Merged:
    """HISTORY rows of one bucket and of its days, oldest day first → HISTORY rows with all events."""
    if not days:
        return Merged(base)
    acting = pc.unique(pa.chunked_array([chunk for day in days for chunk in day["user_id"].chunks], pa.string()))
    touched = pc.is_in(base["user_id"], value_set=acting)
    arrived = pl.concat([_events_of(table, arrival) for arrival, table in enumerate([base.filter(touched), *days])])
    judged = arrived.with_columns(
        again=pl.struct("user_id", "event_id").is_first_distinct().not_(),
        late=(pl.col("arrival") > 0) & (pl.col("timestamp") < pl.col("timestamp").cum_max().over("user_id")),
    )
    # Stable: at one moment the order of arrival stays.
    kept = judged.filter(~pl.col("again")).sort("user_id", "timestamp", maintain_order=True)
    people = kept.unique("user_id", keep="first", maintain_order=True).select("user_id", "bucket")
    lists = fold(
        kept["user_id"].rle_id().to_numpy(), people.height, {name: as_arrow(kept[column]) for name, column in EVENT_COLUMNS.items()}
    )
    merged = HISTORY.check(pa.table({"user_id": as_arrow(people["user_id"]), "bucket": as_arrow(people["bucket"]), **lists}))
    counts = {
        "events_of_days": int(kept.select((pl.col("arrival") > 0).sum()).item()),
        "late_events_of_days": int(kept.select(pl.col("late").sum()).item()),
        "duplicates_of_days": judged.height - kept.height,
    }
    whole = pa.concat_tables([base.filter(pc.invert(touched)), merged])
    return Merged(whole.take(pc.sort_indices(whole["user_id"])), counts)


def _events_of(history: pa.Table, arrival: int) -> pl.DataFrame:
    events = flatten(history)
    row = pa.array(events["row"].to_numpy())
    who = pl.from_arrow(pa.table({"user_id": history["user_id"].take(row), "bucket": history["bucket"].take(row)}))
    assert isinstance(who, pl.DataFrame)
    return pl.concat([events.drop("row"), who], how="horizontal").with_columns(arrival=pl.lit(arrival))
