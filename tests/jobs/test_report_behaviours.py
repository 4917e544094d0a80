"""How much of a life fits: the figures of a hand-counted history, and the job on a small world with a day appended."""

from __future__ import annotations

from pathlib import Path

import ingest_day
import ingest_events
import pyarrow as pa
import pytest
import report_behaviours
from intently.core.schema import HISTORY, ITEM
from intently.core.workspace import Workspace
from intently.data.coverage import CoverageConfig, CoverageMeter
from report.behaviours import figures_of

START = 1_714_521_600_000_000  # 2024-05-01


def history(**users: list[str]) -> pa.Table:
    rows = []
    for user, items in users.items():
        events = {"event_ids": [str(n) for n in range(len(items))], "item_ids": items, "behaviours": ["cart"] * len(items)}
        nothing = {name: [None] * len(items) for name in ("values", "queries", "dwell_s")}
        rows.append({"user_id": user, "bucket": 0, **events, "timestamps": [START] * len(items), **nothing})
    return HISTORY.from_rows(rows)


def item(item_id: str, title: str) -> dict:
    return {"item_id": item_id, "title": title, "category": "unknown", "categories": [], "attributes": []}


def test_coverage_counts_tokens_before_and_after_by_hand() -> None:
    items = ITEM.from_rows([item("i1", "one two three"), item("i2", "four")])
    config = CoverageConfig.parse({"tokenizer": None, "names": {"max_words": 2}, "trim_to": 16})
    measured = CoverageMeter(items, config).measure(history(a=["i1", "i1", "i2"], nobody=[], b=["i2"]))
    # "2024-05-01 (cart) | " is 5 + 3 + 1 words and signs; the second of a line's items adds a comma.
    assert measured["raw"].to_pylist() == [12 + 12 + 10, 0, 10]
    assert measured["named"].to_pylist() == [11 + 11 + 10, 0, 10]
    assert measured["compressed"].to_pylist() == [9 + 2 + 1 + 1, 0, 10]
    figures = figures_of(measured)
    assert (figures["users"], figures["events"]) == (2, 4)
    assert figures["token_reduction"] == pytest.approx(1 - 23 / 44)
    assert figures["users_trimmed"] == 0


def test_coverage_trims_whoever_is_over_the_budget_and_counts_it() -> None:
    items = ITEM.from_rows([item(f"i{n}", f"thing {n}") for n in range(9)])
    config = CoverageConfig.parse({"tokenizer": None, "trim_to": 20})
    measured = CoverageMeter(items, config).measure(history(a=[f"i{n}" for n in range(9)], b=["i1"]))
    assert measured["compressed"].to_pylist() == [9 + 9 * 2 + 8, 11]
    assert measured["fitting"].to_pylist()[1] == 1
    assert 1 <= measured["fitting"].to_pylist()[0] <= 4
    assert figures_of(measured)["users_trimmed"] == 1


@pytest.mark.usefixtures("ray_session")
def test_report_tells_the_whole_history_and_the_appended_day(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,category\ni1,Tent,Camping\ni2,Lamp,Home\n")
    (tmp_path / "log.csv").write_text("user_id,item_id,behaviour,timestamp\nu1,i1,cart,1700000000\nu2,i2,cart,1700000000\n")
    (tmp_path / "day.csv").write_text(
        "user_id,item_id,behaviour,timestamp\nu1,i2,purchase,1700090000\nu3,i1,cart,1700090000\nu3,i9,cart,1\n"
    )
    source = {"kind": "files", "items": str(tmp_path / "items.csv")}
    log = {"source": {**source, "events": str(tmp_path / "log.csv")}, "histories": {"num_buckets": 2}}
    base = ingest_events.JOB.execute(ingest_events.IngestEventsConfig.parse(log), workspace)
    before = {path: path.stat().st_mtime_ns for path in files_of(base.workspace, "history")}
    first = report_behaviours.JOB.execute(report_behaviours.ReportBehavioursConfig(), workspace)
    day = ingest_day.IngestDayConfig.parse({"source": {**source, "events": str(tmp_path / "day.csv")}})
    appended = ingest_day.JOB.execute(day, workspace)
    assert appended.manifest.reject_reasons == {"bad timestamp": 1}
    assert (appended.manifest.metrics["events"], appended.manifest.metrics["users"]) == (2, 2)
    assert ingest_day.JOB.execute(day, workspace).version == appended.version
    assert {path: path.stat().st_mtime_ns for path in files_of(base.workspace, "history")} == before, "old buckets stay as they were"
    report = report_behaviours.JOB.execute(report_behaviours.ReportBehavioursConfig(), workspace)
    assert (first.manifest.metrics["users"], report.manifest.metrics["users"]) == (2, 3)
    assert report.manifest.metrics["events"] == 4
    assert "98%" in report.fetch("summary.txt").read_text()
    assert all(report.fetch(name).read_bytes().startswith(b"\x89PNG") for name in ("tokens.png", "events.png", "saved.png"))


def files_of(workspace: Workspace, name: str) -> list[Path]:
    return sorted(path for path in Path(workspace.path(name)).rglob("*") if path.is_file())
