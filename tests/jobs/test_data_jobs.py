"""Ingest, splits and compression as jobs: on the simulator, on files, resumed, and refused."""

from __future__ import annotations

from pathlib import Path

import build_splits
import compress_histories
import ingest_day
import ingest_events
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from intently.core.errors import SourceError
from intently.core.job import launch
from intently.core.workspace import Artifact, Workspace
from intently.data.days import open_histories
from intently.data.decompression import decompress
from intently.data.histories import HistoryBuilder, Spill, spill_source
from intently.data.sources import open_source

pytestmark = pytest.mark.usefixtures("ray_session")

CONFIG = ingest_events.IngestEventsConfig.parse(
    {
        "source": {"kind": "simulator", "num_users": 24, "num_items": 120, "events_per_user": 80, "users_per_block": 7, "pictures": False},
        "histories": {"num_buckets": 3},
    }
)
CHUNKS = compress_histories.CompressHistoriesConfig.parse({"chunks": {"max_tokens": 400}})
PARTS = ["bucket-00000", "bucket-00001", "bucket-00002"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Workspace:
    """A workspace in which all three jobs have run."""
    workspace = Workspace.open(tmp_path_factory.mktemp("finished"))
    ingest_events.JOB.execute(CONFIG, workspace)
    build_splits.JOB.execute(build_splits.BuildSplitsConfig(), workspace)
    compress_histories.JOB.execute(CHUNKS, workspace)
    return workspace


def test_ingest_writes_every_simulated_event_into_the_history_of_its_user(finished: Workspace) -> None:
    history = finished.artifact("history")
    assert history.parts() == finished.artifact("user").parts() == PARTS
    events = pa.concat_tables(open_source(CONFIG.source).events())
    assert history.manifest.metrics["events"] == events.num_rows
    written = pc.list_flatten(history.read(columns=["event_ids"])["event_ids"])
    assert sorted(written.to_pylist()) == sorted(events["event_id"].to_pylist())
    assert finished.artifact("user").read().num_rows == history.read().num_rows == 24
    assert finished.artifact("item").manifest.rows == 120
    assert finished.artifact("true_interest").manifest.rows > 24
    assert not Path(finished.path("history", history.version, "spill")).exists()


def test_ingest_that_was_cut_off_keeps_its_parts_and_gives_the_same_tables(finished: Workspace, workspace: Workspace) -> None:
    history, user = (ingest_events.JOB.stage(workspace, name, CONFIG) for name in ("history", "user"))
    spill = Spill.of(history, 3)
    spill_source(open_source(CONFIG.source), spill, CONFIG.histories)
    HistoryBuilder(history, user, spill)("bucket-00001")
    kept = Path(workspace.path("history", history.version, "bucket-00001.parquet"))
    before = kept.stat().st_mtime_ns
    ingest_events.JOB.execute(CONFIG, workspace)
    assert kept.stat().st_mtime_ns == before
    assert_same(workspace, finished, ("history", "user", "item", "true_interest"))
    assert workspace.artifact("history").manifest.metrics == finished.artifact("history").manifest.metrics


def test_ingest_cut_off_after_its_spill_was_removed_finishes_without_reading_again(finished: Workspace, workspace: Workspace) -> None:
    stages = [ingest_events.JOB.stage(workspace, name, CONFIG) for name in ("history", "user")]
    spill = Spill.of(stages[0], 3)
    spill_source(open_source(CONFIG.source), spill, CONFIG.histories)
    builder = HistoryBuilder(stages[0], stages[1], spill)
    for part in PARTS:
        builder(part)
    spill.remove()
    ingest_events.JOB.execute(CONFIG, workspace)
    assert not Path(spill.folder).exists()
    assert_same(workspace, finished, ("history", "user"))


def test_splits_never_show_a_target_and_fit_the_history(finished: Workspace) -> None:
    train, validation, test = (finished.artifact(f"history_{name}") for name in ("train", "validation", "test"))
    assert train.parts() == validation.parts() == test.parts() == PARTS
    history = {row["user_id"]: row for row in finished.artifact("history").read().to_pylist()}
    learnt = {row["user_id"]: row for row in train.read().to_pylist()}
    targets = {row["user_id"]: row for row in validation.read().to_pylist()}
    assert history.keys() == learnt.keys()
    assert len(targets) > 12
    assert train.manifest.metrics["validation_users"] == train.manifest.metrics["test_users"] == len(targets)
    for row in test.read().to_pylist():
        whole, seen, nearest = history[row["user_id"]], learnt[row["user_id"]], targets[row["user_id"]]
        places = [whole["event_ids"].index(event) for event in (*seen["event_ids"], *nearest["event_ids"], *row["event_ids"])]
        assert places == sorted(places)
        assert not {*row["item_ids"], *nearest["item_ids"]} & set(seen["item_ids"])
    assert "leave-last-out" in train.manifest.notes["split"]


def test_splits_that_were_cut_off_give_the_same_tables(finished: Workspace, workspace: Workspace) -> None:
    ingest_events.JOB.execute(CONFIG, workspace)
    config = build_splits.BuildSplitsConfig()
    names = ("history_train", "history_validation", "history_test")
    train, validation, test = (build_splits.JOB.stage(workspace, name, config) for name in names)
    build_splits.Splitter(open_histories(workspace), train, validation, test, config.split, None)("bucket-00002")
    build_splits.JOB.execute(config, workspace)
    assert_same(workspace, finished, names)


def test_splits_by_global_time_learn_from_nothing_after_the_cut(finished: Workspace, workspace: Workspace) -> None:
    ingest_events.JOB.execute(CONFIG, workspace)
    build_splits.JOB.execute(build_splits.BuildSplitsConfig.parse({"split": {"kind": "global_time"}}), workspace)
    train, validation, test = (workspace.artifact(f"history_{name}") for name in ("train", "validation", "test"))
    last, first, later = (pc.list_flatten(split.read()["timestamps"]) for split in (train, validation, test))
    assert pc.max(last).as_py() < pc.min(first).as_py()
    assert pc.max(first).as_py() < pc.min(later).as_py()
    assert f"test from {pc.min(later).as_py():%Y-%m}" in train.manifest.notes["split"]


def test_compression_covers_the_reliable_events_of_train_within_the_budget(finished: Workspace) -> None:
    chunks = finished.artifact("chunk")
    assert chunks.parts() == PARTS
    rows = chunks.read()
    assert max(rows["num_tokens"].to_pylist()) <= 400
    behaviours = {line.behaviour.split(" ")[0] for text in rows["text"].to_pylist() for line in decompress(text)}
    assert {"detail_view", "search", "purchase"} <= behaviours
    assert not behaviours & {"click", "impression"}
    metrics = chunks.manifest.metrics
    dropped = sum(count for name, count in metrics.items() if name.startswith("dropped, "))
    train = finished.artifact("history_train").read(columns=["event_ids"])["event_ids"]
    assert metrics["events"] + dropped == len(pc.list_flatten(train))
    assert metrics["dropped, behaviour does not count: impression"] > 0


def test_jobs_that_stand_are_reused(finished: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: finished.artifact(name).version for name in ("history", "history_train", "chunk")}
    ingest_events.JOB.execute(CONFIG, finished)
    build_splits.JOB.execute(build_splits.BuildSplitsConfig(), finished)
    compress_histories.JOB.execute(CHUNKS, finished)
    assert {name: finished.artifact(name).version for name in before} == before
    assert " bucket-" not in capsys.readouterr().out  # no progress line: no part was done again (Ray's own lines may still come in)


def test_ingest_of_csv_files_reports_what_it_refused_and_why(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,category\ni1,Tent,Camping\ni2,Lamp,Home\n,No name,Home\n")
    rows = ["u1,i1,cart,100000000", "u1,i1,cart,yesterday", "u2,i2,cart,1700000000", "u2,i9,cart,1700000000", "u2,i2,purchase,1700000000"]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,behaviour,timestamp", *rows]) + "\n")
    history = ingest_events.JOB.execute(files_config(tmp_path), workspace)
    assert history.manifest.reject_reasons == {"bad timestamp": 2, "unknown item": 1}
    assert {row["row"]: row["reason"] for row in history.rejects().to_pylist()} == {
        "log.csv:0": "bad timestamp",
        "log.csv:1": "bad timestamp",
        "log.csv:3": "unknown item",
    }
    (row,) = history.read().to_pylist()
    assert (row["user_id"], row["behaviours"]) == ("u2", ["cart", "purchase"])
    assert workspace.artifact("item").manifest.reject_reasons == {"missing item_id": 1}


def test_days_named_like_the_base_log_lose_no_event_and_the_base_log_again_adds_none(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,category\ni1,Tent,Camping\ni2,Lamp,Home\ni3,Rope,Home\n")
    base = files_config(tmp_path)
    (tmp_path / "log.csv").write_text("user_id,item_id,behaviour,timestamp\nu9,i1,cart,1700000000\n")
    ingest_events.JOB.execute(base, workspace)
    for folder, item in (("monday", "i2"), ("tuesday", "i3"), (".", "i1")):
        log = tmp_path / folder / "log.csv"
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"user_id,item_id,behaviour,timestamp\nu9,{item},cart,1700000000\n")
        source = {"kind": "files", "events": str(log), "items": str(tmp_path / "items.csv")}
        ingest_day.JOB.execute(ingest_day.IngestDayConfig.parse({"source": source}), workspace)
    histories = open_histories(workspace)
    merged = [histories.merge(part) for part in histories.parts()]
    assert [row["item_ids"] for part in merged for row in part.history.to_pylist()] == [["i1", "i2", "i3"]]
    assert sum(part.counts["duplicates_of_days"] for part in merged) == 1


def test_ingest_of_a_log_without_a_column_stops_and_names_it(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,category\ni1,Tent,Camping\n")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu1,i1,1700000000\n")
    with pytest.raises(SourceError, match=r"log\.csv: missing column\(s\) \['behaviour'\]"):
        ingest_events.JOB.execute(files_config(tmp_path), workspace)
    assert workspace.latest_version("history") is None


def test_ingest_of_a_missing_folder_ends_the_command_with_its_name(tmp_path: Path) -> None:
    arguments = ["--workspace", str(tmp_path), "--set", "source.kind=movielens", "--set", f"source.path={tmp_path / 'nowhere'}"]
    with pytest.raises(SystemExit, match=r"ingest_events: SourceError: .*nowhere/ratings\.dat: no such file"):
        launch(ingest_events.JOB, None, arguments)


def files_config(folder: Path) -> ingest_events.IngestEventsConfig:
    source = {"kind": "files", "events": str(folder / "log.csv"), "items": str(folder / "items.csv")}
    return ingest_events.IngestEventsConfig.parse({"source": source, "histories": {"num_buckets": 2}})


def assert_same(one: Workspace, other: Workspace, names: tuple[str, ...]) -> None:
    for name in names:
        mine, theirs = one.artifact(name), other.artifact(name)
        assert isinstance(mine, Artifact) and mine.version == theirs.version
        assert mine.parts() == theirs.parts()
        for part, rows in mine.iter_parts():
            assert rows.equals(theirs.read(part)), f"{name}/{part}"
