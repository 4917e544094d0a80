"""The jobs of ranking on a tiny world: samples, interests as vectors, a model that learns from them, alone and in a group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import build_ctr_samples
import embed_interests
import numpy as np
import pyarrow as pa
import pytest
import torch
import train_ctr
import yaml
from intently.core.errors import ConfigError, SchemaError
from intently.core.schema import CHUNK, EMBEDDING, HISTORY, ITEM, TABLES, USER_INTEREST
from intently.core.workspace import Workspace, open_stage
from intently.data.days import list_days, open_histories
from intently.llm.embedding import embedding_rows
from intently.ranking.training import CtrTrainingConfig, read_ctr_data, train_from_tables
from intently.runtime.train import TrainConfig, train

from tests.ranking.worlds import chunks, history, items, lives
from tests.retrieval.world import put

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
NUM_USERS = 12
ROOT = Path(__file__).parents[2]
SAMPLES = build_ctr_samples.BuildCtrSamplesConfig.parse({"samples": {"min_events": 1}})
MODEL = {"backbone": "din", "dim": 8, "hidden": [16], "history": 1, "interests": True, "item_knowledge": True}
LEARNING = {"num_epochs": 12, "patience": 12, "batch_size": 48, "learning_rate": 0.02}


def write_world(workspace: Workspace) -> None:
    """History, items, chunks, and what each user said to want."""
    told = history(lives(NUM_USERS, 40))
    cut = chunks(told)
    interests = [
        {
            "user_id": row["user_id"], "bucket": 0, "chunk": row["chunk"], "rank": 0, "stage": "active", "reason": "", "shift": "new",
            "interest": ("war films", "comedies")[int(row["user_id"][1:]) % 2], "evidence": [], "s_final": 0.5, "model": "test",
        }
        for row in cut.to_pylist()
    ]  # fmt: skip
    for name, table, rows in (
        ("history", HISTORY, told),
        ("chunk", CHUNK, cut),
        ("item", ITEM, items()),
        ("user_interest", USER_INTEREST, USER_INTEREST.from_rows(interests)),
        ("item_embedding", EMBEDDING, embedding_rows("item", items()["item_id"], np.eye(2, dtype=np.float32)[np.arange(8) % 2], "test")),
    ):
        put(workspace, name, table, rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the samples are built."""
    workspace = Workspace.open(tmp_path_factory.mktemp("ctr"))
    write_world(workspace)
    build_ctr_samples.JOB.execute(SAMPLES, workspace)
    return workspace


def trained(**training: object) -> train_ctr.TrainCtrConfig:
    return train_ctr.TrainCtrConfig.parse(
        {"training": {"model": MODEL, "learning": LEARNING, **training}, "harness": {"launcher": "local"}}
    )


def test_build_ctr_samples_splits_every_row_once_and_counts_them(world: Workspace) -> None:
    parts = {name: world.artifact(f"ctr_{name}") for name in ("train", "validation", "test")}
    assert {name: part.manifest.rows for name, part in parts.items()} == {
        "train": NUM_USERS * 28, "validation": NUM_USERS * 4, "test": NUM_USERS * 4,
    }  # fmt: skip
    metrics = parts["train"].manifest.metrics
    positive = sum(sum(part.read()["label"].to_pylist()) for part in parts.values())
    assert positive == sum(metrics[f"positive_{name}"] for name in parts)


def test_build_ctr_samples_of_people_who_did_too_little_refused(world: Workspace) -> None:
    with pytest.raises(SchemaError, match="41 events"):
        build_ctr_samples.JOB.execute(build_ctr_samples.BuildCtrSamplesConfig.parse({"samples": {"min_events": 41}}), world)


def test_build_ctr_samples_by_time_of_people_who_did_too_little_refused(world: Workspace) -> None:
    samples = {"min_events": 41, "split": "global_time"}
    with pytest.raises(SchemaError, match="41 events"):
        build_ctr_samples.JOB.execute(build_ctr_samples.BuildCtrSamplesConfig.parse({"samples": samples}), world)


def test_train_ctr_with_histograms_learns_keeps_the_best_and_measures(world: Workspace) -> None:
    artifact = train_ctr.JOB.execute(trained(histograms=True), world)
    measured = world.artifact("ctr_metric")
    found = {(row["split"], row["name"]): row["value"] for row in measured.read().to_pylist()}
    assert found["test", "auc"] > 0.9
    curve = artifact.manifest.metrics
    assert found["validation", "auc"] == pytest.approx(max(value for name, value in curve.items() if name.startswith("auc_epoch")))
    assert measured.manifest.metrics["log_loss_test"] == found["test", "log_loss"]
    assert not list(Path(world.path("ctr_model")).glob("*/training"))


def test_train_ctr_ends_when_validation_does_not_improve(world: Workspace) -> None:
    config = trained(histograms=True, learning={**LEARNING, "num_epochs": 40, "patience": 2, "learning_rate": 0.05})
    curve = train_ctr.JOB.execute(config, world).manifest.metrics
    scores = [curve[f"auc_epoch_{epoch}"] for epoch in range(1, len([name for name in curve if name.startswith("auc_")]) + 1)]
    assert len(scores) == int(np.argmax(scores)) + 1 + 2


def test_train_ctr_without_the_interests_it_asks_for_refused(world: Workspace) -> None:
    with pytest.raises(ConfigError, match="interest_embedding"):
        train_ctr.JOB.execute(trained(), world)


def test_train_ctr_reads_the_events_that_rows_were_counted_in(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    write_world(workspace)
    standing = workspace.artifact("history").read()
    # An event that comes late stands before others of its user, whose places move by one.
    (late,) = history({"u0": [("i3", 1.0)]}).to_pylist()
    late |= {"event_ids": ["late"], "timestamps": [standing["timestamps"][0][20].as_py()]}
    append(workspace, HISTORY.from_rows([late]))
    build_ctr_samples.JOB.execute(SAMPLES, workspace)
    # What arrives after the rows were cut is not theirs.
    (later,) = history({"u0": [("i4", 1.0)]}).to_pylist()
    append(workspace, HISTORY.from_rows([later | {"event_ids": ["later"], "timestamps": [standing["timestamps"][0][10].as_py()]}]))
    config = CtrTrainingConfig.parse({"model": {**MODEL, "interests": False, "item_knowledge": False}})
    data = read_ctr_data(workspace, {name: workspace.artifact(name).version for name in train_ctr.JOB.reads}, config)
    assert len(data.log.items) == NUM_USERS * 40 + 1
    for rows in data.rows.values():
        assert torch.equal(data.log.items[rows.places], rows.items)
        assert torch.equal(data.log.signals[rows.places] > 3, rows.labels > 0)


def read(workspace: Workspace, **config: object) -> None:
    standing = {name: workspace.latest_version(name) for name in (*train_ctr.JOB.reads, *train_ctr.JOB.optional)}
    versions = {name: version for name, version in standing.items() if version}
    read_ctr_data(workspace, versions, CtrTrainingConfig.parse({"model": MODEL, **config}))


def put_from(workspace: Workspace, name: str, **inputs: str) -> None:
    """What stands of an artifact once more, made from these versions of others."""
    standing = workspace.artifact(name)
    stage = open_stage(workspace, name, TABLES[name], inputs, build_ctr_samples.BuildCtrSamplesConfig())
    stage.write("part-00000", standing.read())
    stage.finish()


def test_read_ctr_data_of_interests_in_another_cut_of_chunks_refused(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    write_world(workspace)
    build_ctr_samples.JOB.execute(SAMPLES, workspace)
    cut = workspace.artifact("chunk").version
    put_from(workspace, "user_interest", chunk=cut)
    embed_interests.JOB.execute(embed_interests.EmbedInterestsConfig(), workspace)
    read(workspace)
    mined = workspace.artifact("user_interest").version
    # Chunks are cut anew, and mined anew: rows of the old cut would look into chunks that end after them.
    put_from(workspace, "chunk", item="grown")
    put_from(workspace, "user_interest", chunk=workspace.artifact("chunk").version)
    with pytest.raises(SchemaError, match=rf"user_interest: version .* was made from chunk@.*, chunk@{cut} is asked for"):
        read(workspace)
    with pytest.raises(SchemaError, match=r"ctr_train: version .* was made from chunk@"):
        read(workspace, histograms=True)
    # Rows of the new cut, but vectors of the interests that were mined before.
    build_ctr_samples.JOB.execute(SAMPLES, workspace)
    with pytest.raises(SchemaError, match=rf"interest_embedding: version .* was made from user_interest@{mined}"):
        read(workspace)
    embed_interests.JOB.execute(embed_interests.EmbedInterestsConfig(), workspace)
    read(workspace)
    read(workspace, histograms=True)


def test_read_ctr_data_of_rows_of_one_class_refused(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    write_world(workspace)
    config = {"samples": {"min_events": 1, "positive_above": 0.0}}
    build_ctr_samples.JOB.execute(build_ctr_samples.BuildCtrSamplesConfig.parse(config), workspace)
    with pytest.raises(SchemaError, match=rf"ctr_train: {NUM_USERS * 28} rows, {NUM_USERS * 28} of them positive; .* samples.sampled"):
        read(workspace, histograms=True)


def test_train_ctr_taken_up_after_it_had_ended_trains_no_further(world: Workspace, tmp_path: Path) -> None:
    learning = {**LEARNING, "num_epochs": 40, "patience": 2, "learning_rate": 0.05}
    config = CtrTrainingConfig.parse({"model": MODEL, "histograms": True, "learning": learning})
    versions = {name: world.artifact(name).version for name in (*train_ctr.JOB.reads, "chunk")}
    arguments = {"workspace": world, "versions": versions, "config": config}
    curves = []
    for _ in range(2):
        with train(train_from_tables, arguments, TrainConfig.parse({"launcher": "local"}), world, "ctr_model/ended/training") as result:
            curves.append(result.history)
    assert 3 <= len(curves[0]) < 40
    assert curves[1] == curves[0]


def test_train_ctr_under_torchrun_is_one_run_of_two_processes(world: Workspace, tmp_path: Path) -> None:
    learning = {**LEARNING, "num_epochs": 3}
    alone = train_ctr.JOB.execute(trained(histograms=True, learning=learning), world)
    apart = Workspace.open(tmp_path)
    write_world(apart)
    build_ctr_samples.JOB.execute(SAMPLES, apart)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(trained(histograms=True, learning=learning).model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "jobs/train_ctr.py", "--config", str(config), "--workspace", apart.root]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "platform"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train_ctr: test, ") == 1, "one process goes on behind the loop"
    together = apart.artifact("ctr_model")
    assert together.version == alone.version
    wanted = {name: value for name, value in alone.manifest.metrics.items() if not name.startswith("seconds")}
    assert {name: together.manifest.metrics[name] for name in wanted} == pytest.approx(wanted, rel=2e-3)
    assert not list(Path(apart.path("ctr_model")).glob("*/training"))


def append(workspace: Workspace, day: pa.Table) -> None:
    before = open_histories(workspace)
    stage = open_stage(workspace, "history_day", HISTORY, {"before": str(len(before.days))}, build_ctr_samples.BuildCtrSamplesConfig())
    stage.write(before.parts()[0], day)
    list_days(stage, before)
    stage.finish()


def test_embed_interests_then_two_workers_learn_as_one(world: Workspace, ray_session: None) -> None:
    embedded = embed_interests.JOB.execute(embed_interests.EmbedInterestsConfig(), world)
    assert embedded.read(columns=["id"])["id"].to_pylist()[:2] == ["u0/0", "u0/1"]
    config = CtrTrainingConfig.parse({"model": MODEL, "learning": {**LEARNING, "num_epochs": 3}})
    versions = {name: world.artifact(name).version for name in (*train_ctr.JOB.reads, *train_ctr.JOB.optional)}
    data = read_ctr_data(world, versions, config)
    assert data.interests is not None
    assert torch.equal(data.interests.scores, torch.full((NUM_USERS * 10,), 0.5))
    arguments = {"workspace": world, "versions": versions, "config": config}
    curves = []
    for launcher, num_workers in (("local", 1), ("ray", 2)):
        resources = {"num_workers": num_workers, "cpus": 0.5}
        harness = TrainConfig.parse({"launcher": launcher, "resources": resources, "checkpoint_every": 3})
        with train(train_from_tables, arguments, harness, world, f"ctr_model/{launcher}/training") as result:
            curves.append([[epoch[name] for name in ("loss", "auc", "log_loss")] for epoch in result.history])
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=2e-3)
    assert curves[0][-1][0] < 0.9 * curves[0][0][0]
