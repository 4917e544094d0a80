"""The jobs of retrieval, one after the other on a small world, and the retriever that serves what they left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import build_index
import numpy as np
import pytest
import ray
import sweep_fusion
import train_towers
import yaml
from intently.core.errors import ConfigError, MissingArtifactError, SchemaError
from intently.core.schema import CANDIDATE, HISTORY
from intently.core.workspace import Workspace
from intently.retrieval import retriever as retriever_module
from intently.retrieval.retriever import STRANGER, TowerRetriever, UnknownUserError
from PIL import Image

from tests.retrieval.world import CATEGORIES, NUM_USERS, RING, item_of, put, user, write_world

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TRAIN = train_towers.TrainTowersConfig.parse(
    {
        "training": {
            "towers": {"dim": 16, "hidden": 32, "windows": [1, 4], "token_buckets": 256},
            "learning": {"num_epochs": 60, "batch_size": 32, "num_negatives": 36, "tag_batch_size": 16, "learning_rate": 0.01},
        },
        "harness": {"resources": {"cpus": 0.5}, "checkpoint_every": 60},
        "cutoffs": [3],
    }
)
SWEEP = sweep_fusion.SweepFusionConfig.parse({"fusion": {"betas": [0.0, 0.5, 1.0], "cutoffs": [3], "list_length": 3}})
ROOT = Path(__file__).parents[2]
UNTAGGED = user(NUM_USERS - 1)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Workspace]:
    """A workspace in which all three jobs have run; the last user has no tags."""
    workspace = Workspace.open(tmp_path_factory.mktemp("line"))
    write_world(workspace, tagged=range(NUM_USERS - 1))
    train_towers.JOB.execute(TRAIN, workspace)
    build_index.JOB.execute(build_index.BuildIndexConfig(), workspace)
    sweep_fusion.JOB.execute(SWEEP, workspace)
    yield workspace


@pytest.fixture(scope="module")
def retriever(line: Workspace) -> TowerRetriever:
    return TowerRetriever.load(line)


def test_train_towers_learns_the_next_step(line: Workspace) -> None:
    metrics = line.artifact("tower_metric").manifest.metrics
    assert metrics["hr3_user_tower"] > 0.9
    curve = line.artifact("towers").manifest.metrics
    assert curve["collaborative_epoch_60"] < 0.5 * curve["collaborative_epoch_1"]
    assert not list(Path(line.path("towers")).glob("*/training"))


def test_sweep_fusion_writes_every_point_and_beats_popularity(line: Workspace) -> None:
    fusion = line.artifact("fusion")
    metrics = fusion.manifest.metrics
    assert metrics["beta"] in (0.0, 0.5, 1.0)
    assert metrics["hr3_towers"] > metrics["hr3_popularity"]
    assert {"hr3_item_knn", "ndcg3_towers", "ndcg3_item_knn"} <= set(metrics)
    assert metrics["tagged_users"] == pytest.approx(1 - 1 / NUM_USERS)
    rows = fusion.read().to_pylist()
    points = {row["setting"] for row in rows if row["split"] == "validation"}
    assert points == {'{"beta": 0.0}', '{"beta": 0.5}', '{"beta": 1.0}'}
    assert {row["filter_seen"] for row in rows} == {True, False}
    best = max(
        (row for row in rows if row["split"] == "validation" and row["name"] == "NDCG" and row["filter_seen"]), key=lambda r: r["value"]
    )
    chosen = [row for row in rows if row["setting"] == f'{{"beta": {metrics["beta"]}}}' and row["name"] == "NDCG" and row["filter_seen"]]
    assert chosen[0]["value"] == best["value"]


def test_sweep_fusion_leaves_the_front_as_table_and_plot(line: Workspace) -> None:
    fusion = line.artifact("fusion")
    table = Path(fusion.fetch("front.csv")).read_text().splitlines()
    assert len(table) == 4
    assert [row.split(",")[0] for row in table if row.endswith("yes")] == [f"{fusion.manifest.metrics['beta']:g}"]
    assert Image.open(fusion.fetch("front.png")).format == "PNG"


def test_sweep_fusion_killed_in_the_middle_measures_only_what_is_missing(line: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"fusion": {"betas": [step / 40 for step in range(41)], "cutoffs": [3], "list_length": 3, "pooling": "max"}}
    many = sweep_fusion.SweepFusionConfig.parse(settings)
    config = Path(line.root).with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "jobs/sweep_fusion.py", "--config", str(config), "--workspace", line.root]
    environment = os.environ | {"PYTHONPATH": "platform", "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert any(said.startswith("fusion: 4/41") for said in driver.stdout), "the sweep ended before four points were measured"
        driver.send_signal(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    stage = sweep_fusion.JOB.stage(line, "fusion", many)
    done = [name for name in line.list_files(line.path(f"fusion/{stage.version}/trials")) if name.startswith("point-")]
    assert not stage.finished
    assert 4 <= len(done) < 41
    capsys.readouterr()
    found = sweep_fusion.JOB.execute(many, line)
    lines = [said for said in capsys.readouterr().out.splitlines() if said.startswith("fusion: ")]
    assert len(lines) <= 41 - len(done)
    assert lines[-1].startswith("fusion: 41/41")
    assert (found.manifest.metrics["num_points"], found.manifest.notes["pooling"]) == (41, "max")
    assert TowerRetriever.load(line).beta == found.manifest.metrics["beta"]
    sweep_fusion.JOB.execute(SWEEP, line)  # LATEST names the sweep of the other tests again


def test_build_index_is_exact_for_a_small_catalogue(line: Workspace) -> None:
    manifest = line.artifact("index").manifest
    assert (manifest.notes["kind"], manifest.metrics["recall100"], manifest.metrics["num_items"]) == ("flat", 1.0, 36)


def test_jobs_run_again_reuse_what_stands(line: Workspace) -> None:
    before = {name: line.artifact(name).manifest.ended for name in ("towers", "index", "fusion")}
    train_towers.JOB.execute(TRAIN, line)
    build_index.JOB.execute(build_index.BuildIndexConfig(), line)
    sweep_fusion.JOB.execute(SWEEP, line)
    assert {name: line.artifact(name).manifest.ended for name in before} == before


def test_retrieve_next_step_of_the_ring_comes_first(retriever: TowerRetriever) -> None:
    table = CANDIDATE.check(retriever.retrieve([user(n) for n in range(NUM_USERS)], k=1, beta=1.0))
    wanted = [item_of(n % 3, n // 3 + 4) for n in range(NUM_USERS)]
    assert np.mean([found == item for found, item in zip(table["item_id"].to_pylist(), wanted, strict=True)]) > 0.8


def test_retrieve_ranks_rise_and_scores_fall_and_seen_items_are_left_out(retriever: TowerRetriever) -> None:
    rows = retriever.retrieve([user(0), user(1)], k=40).to_pylist()
    first = [row for row in rows if row["user_id"] == user(0)]
    assert [row["rank"] for row in first] == list(range(36 - 4))
    assert (np.diff([row["score"] for row in first]) <= 0).all()
    assert not {row["item_id"] for row in first} & {item_of(0, step) for step in range(4)}
    assert retriever.retrieve([user(0)], k=40, filter_seen=False).num_rows == 36


def test_retrieve_beta_moves_from_behaviour_to_tags(retriever: TowerRetriever) -> None:
    tags_only = retriever.retrieve([user(1)], k=RING - 4, beta=0.0)
    assert {int(item[1:]) // RING for item in tags_only["item_id"].to_pylist()} == {CATEGORIES.index("Garden")}
    untagged = [retriever.retrieve([UNTAGGED], k=5, beta=beta)["item_id"].to_pylist() for beta in (0.0, 1.0)]
    assert untagged[0] == untagged[1]
    default = retriever.retrieve([user(1)], k=5)
    assert default.equals(retriever.retrieve([user(1)], k=5, beta=retriever.beta))


def test_retrieve_categories_only(retriever: TowerRetriever) -> None:
    found = retriever.retrieve([user(0)], k=36, categories=["Kitchen"])["item_id"].to_pylist()
    assert sorted(found) == [item_of(2, step) for step in range(RING)]


def test_retrieve_history_of_a_stranger_follows_the_ring(retriever: TowerRetriever) -> None:
    past = [item_of(1, step) for step in (3, 4, 5, 6)]
    rows = CANDIDATE.check(retriever.retrieve_history([*past, "no such item"], ["purchase"] * 5, k=3))
    assert set(rows["user_id"].to_pylist()) == {STRANGER}
    assert item_of(1, 7) in rows["item_id"].to_pylist()
    assert not set(past) & set(retriever.retrieve_history(past, ["purchase"] * 4, k=36)["item_id"].to_pylist())


def test_retrieve_excluded_items_do_not_come_and_leave_no_gaps(retriever: TowerRetriever) -> None:
    first = retriever.retrieve([user(0), user(1)], k=3)
    best = first["item_id"].to_pylist()
    rows = retriever.retrieve([user(0), user(1)], k=3, exclude=[best[0], "no such item"]).to_pylist()
    assert [row["rank"] for row in rows] == [0, 1, 2] * 2
    assert rows[0]["item_id"] == best[1]
    assert best[0] not in {row["item_id"] for row in rows}
    past = [item_of(1, step) for step in (3, 4, 5, 6)]
    found = retriever.retrieve_history(past, ["purchase"] * 4, k=36, exclude=[item_of(1, 7)])["item_id"].to_pylist()
    assert len(found) == 36 - 5
    assert item_of(1, 7) not in found


def test_retrieve_many_excluded_items_become_a_filter(retriever: TowerRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever_module, "MOST_PAIRS", 4)
    absent = [item_of(category, step) for category in (0, 1) for step in range(RING)]
    rows = retriever.retrieve([user(2)], k=36, exclude=absent, filter_seen=False)
    assert sorted(rows["item_id"].to_pylist()) == [item_of(2, step) for step in range(RING)]


def test_retrieve_history_of_known_user_moves_with_the_session(retriever: TowerRetriever) -> None:
    """User 0 stands at step 3 of the first ring; without events the answer is the user's own, after three more it is three steps on."""
    same = retriever.retrieve_history([], [], k=5, user_id=user(0))
    assert same["item_id"].equals(retriever.retrieve([user(0)], k=5)["item_id"])
    assert set(same["user_id"].to_pylist()) == {user(0)}
    session = [item_of(0, step) for step in (4, 5, 6)]
    moved = retriever.retrieve_history(session, ["purchase"] * 3, k=36, beta=1.0, user_id=user(0))["item_id"].to_pylist()
    assert moved[0] == item_of(0, 7)
    assert not {item_of(0, step) for step in range(7)} & set(moved)
    assert len(retriever.retrieve_history(session, ["purchase"] * 3, k=36, user_id=user(0), filter_seen=False)) == 36


def test_retrieve_history_of_nobody_known_by_that_name_refused(retriever: TowerRetriever) -> None:
    with pytest.raises(UnknownUserError, match="nobody"):
        retriever.retrieve_history([], [], k=3, user_id="nobody")


def test_retriever_loads_the_versions_that_are_named(line: Workspace, retriever: TowerRetriever) -> None:
    assert TowerRetriever.load(line, retriever.versions).versions == retriever.versions
    with pytest.raises(MissingArtifactError, match="fusion@000000000000"):
        TowerRetriever.load(line, {"fusion": "000000000000"})


def test_retrieve_history_tags_alone_find_their_category(retriever: TowerRetriever) -> None:
    rows = retriever.retrieve_history([], [], k=5, beta=0.0, tags=["sturdy kitchen knives"])
    assert {int(item[1:]) // RING for item in rows["item_id"].to_pylist()} == {2}


def test_retrieve_unknown_user_refused(retriever: TowerRetriever) -> None:
    assert not retriever.knows("nobody")
    with pytest.raises(UnknownUserError, match="nobody"):
        retriever.retrieve([user(0), "nobody"], k=3)


@pytest.mark.parametrize(
    ("arguments", "field"), [({"k": 0}, "k"), ({"k": 3, "beta": 1.5}, "beta"), ({"k": 3, "categories": ["Cars"]}, "categories")]
)
def test_retrieve_out_of_range_refused(retriever: TowerRetriever, arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        retriever.retrieve([user(0)], **arguments)
    assert refused.value.field == field


def test_retriever_without_artifacts_refused(workspace: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="towers"):
        TowerRetriever.load(workspace)


def test_sweep_fusion_no_validation_targets_refused(line: Workspace, workspace: Workspace) -> None:
    write_world(workspace)
    local = TRAIN.model_copy(update={"harness": TRAIN.harness.model_copy(update={"launcher": "local"})})
    few = local.training.model_copy(update={"learning": local.training.learning.model_copy(update={"num_epochs": 1})})
    put(workspace, "history_validation", HISTORY, HISTORY.empty())
    put(workspace, "history_test", HISTORY, HISTORY.empty())
    train_towers.JOB.execute(local.model_copy(update={"training": few}), workspace)
    with pytest.raises(SchemaError, match="history_validation"):
        sweep_fusion.JOB.execute(SWEEP, workspace)
