"""SIGKILL in the middle: of the driver, of a worker. What is run again ends in the same tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import build_splits
import compress_histories
import ingest_events
import pytest
from intently.core.config import Resources
from intently.core.job import Job
from intently.core.schema import CHUNK
from intently.core.workspace import Artifact, Workspace, open_stage
from intently.runtime.mapping import map_parts

from tests.jobs.dying import DiesOnce
from tests.jobs.killing import run_until

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_BUCKETS = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "ingest_events": {
        "source": {
            "kind": "simulator",
            "num_users": 60,
            "num_items": 120,
            "events_per_user": 100,
            "users_per_block": 20,
            "pictures": False,
        },
        "histories": {"num_buckets": NUM_BUCKETS},
    },
    "compress_histories": {"chunks": {"max_tokens": 400}},
}
INGEST = ingest_events.IngestEventsConfig.parse(SETTINGS["ingest_events"])
COMPRESS = compress_histories.CompressHistoriesConfig.parse(SETTINGS["compress_histories"])
TABLES = ("history", "user", "item", "true_interest", "history_train", "chunk")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Workspace:
    """A workspace that nobody disturbed."""
    workspace = Workspace.open(tmp_path_factory.mktemp("undisturbed"))
    ingest_events.JOB.execute(INGEST, workspace)
    build_splits.JOB.execute(build_splits.BuildSplitsConfig(), workspace)
    compress_histories.JOB.execute(COMPRESS, workspace)
    return workspace


def start_and_kill(job: Job, workspace: Workspace) -> None:
    """Killed as soon as it says that the first bucket is written."""
    run_until(f"{job.name}: 1/{NUM_BUCKETS}", job.name, SETTINGS[job.name], workspace)


def assert_same(one: Workspace, other: Workspace) -> None:
    for name in TABLES:
        mine, theirs = one.artifact(name), other.artifact(name)
        assert mine.version == theirs.version
        assert mine.manifest.metrics == theirs.manifest.metrics
        assert_same_parts(mine, theirs)


def assert_same_parts(one: Artifact, other: Artifact) -> None:
    assert one.parts() == other.parts()
    for part, rows in one.iter_parts():
        assert rows.equals(other.read(part)), f"{one.name}/{part}"


def test_drivers_killed_in_the_middle_run_again_give_the_same_tables(finished: Workspace, workspace: Workspace) -> None:
    start_and_kill(ingest_events.JOB, workspace)
    history = ingest_events.JOB.stage(workspace, "history", INGEST)
    assert not history.finished
    assert 0 < len(history.pending(INGEST.histories.parts)) < NUM_BUCKETS
    ingest_events.JOB.execute(INGEST, workspace)
    build_splits.JOB.execute(build_splits.BuildSplitsConfig(), workspace)
    start_and_kill(compress_histories.JOB, workspace)
    assert workspace.latest_version("chunk") is None
    compress_histories.JOB.execute(COMPRESS, workspace)
    assert_same(workspace, finished)


def test_worker_killed_in_the_middle_is_replaced_and_the_chunks_are_the_same(
    finished: Workspace, workspace: Workspace, tmp_path: Path
) -> None:
    chunk = finished.artifact("chunk")
    stage = open_stage(workspace, "chunk", CHUNK, {}, COMPRESS)
    marker = tmp_path / "killed"
    arguments = {
        "history": finished.artifact("history_train"),
        "items": finished.artifact("item"),
        "chunk": stage,
        "config": COMPRESS.chunks,
        "marker": str(marker),
    }
    map_parts(DiesOnce, arguments, chunk.parts(), Resources(), "compress")
    assert marker.exists(), "a worker was killed"
    assert_same_parts(stage.finish(), chunk)
