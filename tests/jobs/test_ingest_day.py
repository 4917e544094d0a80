"""Days appended one after another: none is lost, whatever is run again."""

from __future__ import annotations

from pathlib import Path

import ingest_day
import ingest_events
import pytest
from intently.core.workspace import Artifact, Workspace
from intently.data.days import open_histories
from intently.data.histories import DayBuilder, HistoryConfig, Spill, spill_source
from intently.data.sources import open_source

pytestmark = pytest.mark.usefixtures("ray_session")

COLUMNS = ("event_id", "user_id", "item_id", "behaviour", "timestamp")


def source(folder: Path, name: str) -> dict[str, object]:
    """Settings of a file with one event of each of eight people, named after the file."""
    events = folder / f"{name}.csv"
    if not events.exists():
        rows = [f"{name}-{user},u{user},i1,cart,{1_700_000_000 + user}" for user in range(8)]
        events.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    (items := folder / "items.csv").exists() or items.write_text("item_id,title,category\ni1,Tent,Camping\n")
    return {"kind": "files", "events": str(events), "items": str(items), "columns": dict(zip(COLUMNS, COLUMNS, strict=True))}


def ingest(folder: Path, workspace: Workspace, name: str = "log", num_buckets: int = 4) -> None:
    config = {"source": source(folder, name), "histories": {"num_buckets": num_buckets}}
    ingest_events.JOB.execute(ingest_events.IngestEventsConfig.parse(config), workspace)


def day_config(folder: Path, name: str) -> ingest_day.IngestDayConfig:
    return ingest_day.IngestDayConfig.parse({"source": source(folder, name)})


def append(folder: Path, workspace: Workspace, *names: str) -> list[Artifact]:
    return [ingest_day.JOB.execute(day_config(folder, name), workspace) for name in names]


def known_of(workspace: Workspace, user_id: str) -> list[str]:
    """Where the events of a user's history come from, in order of arrival."""
    rows = [row for _, part in open_histories(workspace).iter_parts() for row in part.to_pylist()]
    (events,) = (row["event_ids"] for row in rows if row["user_id"] == user_id)
    return [event.partition("-")[0] for event in events]


def test_day_that_is_run_again_leaves_the_later_ones_in_the_list(workspace: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, workspace)
    first, second, again = append(tmp_path, workspace, "d1", "d2", "d1")
    assert (again.version, workspace.latest_version("history_day")) == (first.version, second.version)
    append(tmp_path, workspace, "d3", "d2", "d3")
    assert known_of(workspace, "u3") == ["log", "d1", "d2", "d3"]
    assert len(open_histories(workspace).days) == 3


def test_day_that_is_run_again_leaves_the_days_up_to_one_as_they_were(workspace: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, workspace)
    first, second, _ = append(tmp_path, workspace, "d1", "d2", "d1")
    versions = {"history": workspace.artifact("history").version}
    up_to = [open_histories(workspace, versions | {"history_day": day.version}).days for day in (first, second)]
    assert [[day.version for day in days] for days in up_to] == [[first.version], [first.version, second.version]]


def test_day_that_was_cut_off_keeps_its_parts_and_joins_the_days_before(workspace: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, workspace)
    append(tmp_path, workspace, "d1")
    config, rules = day_config(tmp_path, "d2"), HistoryConfig(num_buckets=4)
    stage = ingest_day.JOB.stage(workspace, "history_day", config)
    spill = Spill.of(stage, 4)
    spill_source(open_source(config.source), spill, rules)
    DayBuilder(stage, spill)("bucket-00001")
    kept = Path(workspace.path("history_day", stage.version, "bucket-00001.parquet"))
    before = kept.stat().st_mtime_ns
    append(tmp_path, workspace, "d2")
    assert kept.stat().st_mtime_ns == before
    assert known_of(workspace, "u3") == ["log", "d1", "d2"]


def test_day_that_was_cut_off_and_overtaken_joins_behind(workspace: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, workspace)
    append(tmp_path, workspace, "d1")
    stage = ingest_day.JOB.stage(workspace, "history_day", day_config(tmp_path, "d2"))
    stage.put("days.json", b"{}")  # killed before its manifest
    append(tmp_path, workspace, "d3", "d2")
    assert known_of(workspace, "u3") == ["log", "d1", "d3", "d2"]


def test_days_of_a_history_that_is_named_again_are_appended_again(workspace: Workspace, tmp_path: Path) -> None:
    ingest(tmp_path, workspace)
    append(tmp_path, workspace, "d1", "d2")
    ingest(tmp_path, workspace, "other")
    append(tmp_path, workspace, "d1")
    assert known_of(workspace, "u3") == ["other", "d1"]
    ingest(tmp_path, workspace)
    append(tmp_path, workspace, "d3", "d1", "d2", "d3")
    assert known_of(workspace, "u3") == ["log", "d3", "d1", "d2"]
