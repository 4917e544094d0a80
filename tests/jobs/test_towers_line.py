"""The jobs of retrieval, one after the other on a small world, and the retriever that serves what they left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import build_index
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import retrain_towers
import sweep_fusion
import sweep_losses
import train_towers
import update_vectors
from intently.core.config import Config
from intently.core.errors import ConfigError, MissingArtifactError, SchemaError
from intently.core.schema import CANDIDATE, EMBEDDING, HISTORY, ITEM, TAG, Table
from intently.core.workspace import Workspace, open_stage
from intently.retrieval import retriever as retriever_module
from intently.retrieval.retriever import STRANGER, TowerRetriever, UnknownUserError
from PIL import Image

from serve.reload import MUST_AGREE
from tests.jobs.killing import run_until
from tests.retrieval.world import CATEGORIES, NUM_USERS, RING, embeddings, item_of, items, put, user, write_world

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
    run_until("fusion: 4/41", "sweep_fusion", settings, line)
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


def test_build_index_killed_in_the_middle_builds_only_the_shards_that_are_missing(
    line: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"index": {"kind": "hnsw", "rows_per_shard": 2}, "resources": {"num_workers": 1, "cpus": 0.5}}
    config = build_index.BuildIndexConfig.parse(settings)
    run_until("build_index: 3/18", "build_index", settings, line)
    stage = build_index.JOB.stage(line, "index", config)
    done = [name for name in line.list_files(line.path(f"index/{stage.version}")) if name.startswith("shard-")]
    assert not stage.finished
    assert 3 <= len(done) < 18
    capsys.readouterr()
    found = build_index.JOB.execute(config, line)
    assert f"/{18 - len(done)} shard-" in capsys.readouterr().out
    assert (found.manifest.metrics["shards"], found.manifest.metrics["recall100"]) == (18, 1.0)
    build_index.JOB.execute(build_index.BuildIndexConfig(), line)  # LATEST names the index of the other tests again


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


LATER = [{**items().slice(n * RING, 1).to_pylist()[0], "item_id": f"new{n}", "title": f"new {CATEGORIES[n]}"} for n in range(3)]


def put_day(workspace: Workspace, name: str, table: Table, rows: pa.Table, day: int = 2) -> None:
    """A whole artifact under a version of its own."""
    stage = open_stage(workspace, name, table, {"(day)": str(day)}, Config())
    stage.write("part-00000", rows)
    stage.finish()


@pytest.fixture
def grown(line: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the line on its second day: three items more, one a category, and a tag that nobody had."""
    shutil.copytree(line.root, tmp_path / "grown")
    workspace = Workspace.open(tmp_path / "grown")
    put_day(workspace, "item", ITEM, pa.concat_tables([items(), ITEM.from_rows(LATER)]))
    texts = [line.artifact("item_embedding").read(), embeddings("item", [row["item_id"] for row in LATER], [0, 1, 2])]
    put_day(workspace, "item_embedding", EMBEDDING, pa.concat_tables(texts))
    tag = line.artifact("tag").read()
    fresh = {**tag.slice(0, 1).to_pylist()[0], "user_id": user(1), "rank": 2, "tag": "tiny garden tools"}
    put_day(workspace, "tag", TAG, pa.concat_tables([tag, TAG.from_rows([fresh])]))
    return workspace


def update(workspace: Workspace) -> None:
    update_vectors.JOB.execute(update_vectors.UpdateVectorsConfig(), workspace)


def test_update_vectors_appends_and_leaves_what_stands_bit_for_bit(line: Workspace, grown: Workspace) -> None:
    update(grown)
    for kind, number in (("item", 3), ("tag", 1)):
        before, after = line.artifact(f"{kind}_vector").read(), grown.artifact(f"{kind}_vector").read()
        assert after.slice(0, before.num_rows).equals(before)
        assert after.num_rows == before.num_rows + number
    assert grown.artifact("item_vector").read()["id"].to_pylist()[36:] == ["new0", "new1", "new2"]
    index = grown.artifact("index")
    assert (index.manifest.metrics["num_items"], index.manifest.metrics["appended"], index.manifest.metrics["recall100"]) == (39, 3, 1)
    assert grown.artifact("towers").version == line.artifact("towers").version
    for name, made_from in (("tag_vector", "tag"), ("index", "item_vector"), ("fusion", "towers"), ("fusion", "user_vector")):
        assert made_from in MUST_AGREE[name], "what serving asks for"
        assert grown.artifact(name).manifest.inputs[made_from] == grown.artifact(made_from).version


def test_update_vectors_new_items_are_found_and_new_tags_count(line: Workspace, retriever: TowerRetriever, grown: Workspace) -> None:
    update(grown)
    later = TowerRetriever.load(grown)
    found = later.retrieve([user(0)], k=39)["item_id"].to_pylist()
    assert {"new0", "new1", "new2"} <= set(found)
    # The new hiking item stands nearest to those who hike; user 0 does.
    assert found.index("new0") < min(found.index("new1"), found.index("new2"))
    assert "new2" in later.retrieve([user(0)], k=36, categories=["Kitchen"])["item_id"].to_pylist()
    session = later.retrieve_history(["new0"], ["purchase"], k=39, user_id=user(0))
    assert "new0" not in session["item_id"].to_pylist()
    moved = later.retrieve_history(["new1", "new1"], ["purchase", "purchase"], k=39)
    unmoved = later.retrieve_history([], [], k=39)
    assert not moved["item_id"].equals(unmoved["item_id"]), "an event on a new item is read"
    assert not np.array_equal(later.vectors.tags[1], retriever.vectors.tags[1])
    assert np.array_equal(later.vectors.tags[0], retriever.vectors.tags[0])


def test_update_vectors_again_writes_nothing_and_a_cut_off_run_is_made_up(grown: Workspace) -> None:
    base = grown.artifact("index")
    update(grown)
    names = ("item_vector", "tag_vector", "item_embedding", "index")
    versions = {name: grown.artifact(name).version for name in names}
    update(grown)
    assert {name: grown.artifact(name).version for name in names} == versions
    put_day(grown, "tag", TAG, grown.artifact("tag").read().slice(0, 9), day=3)  # another table, no new tag
    update(grown)
    assert grown.artifact("tag_vector").manifest.inputs["tag"] == grown.artifact("tag").version
    assert grown.artifact("tag_vector").read().equals(grown.artifact("tag_vector", versions["tag_vector"]).read())
    base.workspace.write_bytes(grown.path("index", "LATEST"), base.version.encode())  # as if killed before the index was done
    update(grown)
    assert grown.artifact("index").version == versions["index"]


def test_update_vectors_items_without_text_need_the_encoder_of_the_others(line: Workspace, grown: Workspace) -> None:
    put_day(grown, "item_embedding", EMBEDDING, line.artifact("item_embedding").read(), day=3)
    with pytest.raises(ConfigError, match=r"encoder.model.*encoded by test"):
        update(grown)


def test_retriever_item_that_left_the_catalogue_is_not_shown(grown: Workspace) -> None:
    update(grown)
    kept = grown.artifact("item").read().filter(pc.is_in(pc.field("item_id"), pa.array(["new0", item_of(0, 5)])) == pa.scalar(False))
    put_day(grown, "item", ITEM, kept, day=3)
    retriever = TowerRetriever.load(grown)
    found = retriever.retrieve([user(1)], k=39, filter_seen=False)["item_id"].to_pylist()
    assert len(found) == 37
    assert not {"new0", item_of(0, 5)} & set(found)
    assert len(retriever.retrieve_history(["new0", "new1"], ["purchase"] * 2, k=39)) == 36


def test_retrain_towers_when_they_are_old_or_it_was_cut_off(line: Workspace, grown: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    update(grown)
    learning = {"num_epochs": 1, "batch_size": 32, "num_negatives": 8, "tag_batch_size": 16}
    stages = {
        "train_towers": {"training": {**TRAIN.training.model_dump(mode="json"), "learning": learning}, "harness": {"launcher": "local"}},
        "sweep_fusion": {"fusion": SWEEP.fusion.model_dump(mode="json")},
    }
    after = ("train_towers", "sweep_fusion", "build_index")
    young = retrain_towers.RetrainTowersConfig.parse({"stages": stages, "run": after})
    standing = grown.artifact("index").version
    assert retrain_towers.JOB.execute(young, grown).version == standing
    assert "not due" in capsys.readouterr().out
    assert "days old" in str(retrain_towers.reason(young.model_copy(update={"every_days": 0.0}), grown))
    cut_off = young.model_copy(update={"force": True, "run": after[:1]})
    retrain_towers.JOB.execute(cut_off, grown)
    assert "fusion was not made from towers@" in str(retrain_towers.reason(young, grown))
    retrain_towers.JOB.execute(young, grown)
    assert retrain_towers.reason(young, grown) is None
    assert grown.artifact("towers").version != line.artifact("towers").version
    retriever = TowerRetriever.load(grown)
    assert len(retriever.towers.item_ids) == len(retriever.item_ids) == 39


def test_sweep_losses_leaves_the_best_pair_standing(line: Workspace, tmp_path: Path) -> None:
    shutil.copytree(line.root, tmp_path / "losses")
    workspace = Workspace.open(tmp_path / "losses")
    learning = {"num_epochs": 2, "batch_size": 32, "num_negatives": 8, "tag_batch_size": 16}
    stages = {
        "train_towers": {"training": {**TRAIN.training.model_dump(mode="json"), "learning": learning}, "harness": {"launcher": "local"}},
        "sweep_fusion": {"fusion": SWEEP.fusion.model_dump(mode="json")},
    }
    config = sweep_losses.SweepLossesConfig.parse({"alphas": [0.0, 1.0], "stages": stages})
    pairs = sweep_losses.JOB.execute(config, workspace)
    rows = [row for row in pairs.read().to_pylist() if row["name"] == "NDCG" and row["filter_seen"]]
    assert {row["setting"] for row in rows} == {f'{{"alpha": {a}, "beta": {b}}}' for a in (0.0, 1.0) for b in (0.0, 0.5, 1.0)}
    fusion, towers = workspace.artifact("fusion").manifest, workspace.artifact("towers").manifest
    assert fusion.metrics["beta"] == pairs.manifest.metrics["beta"]
    assert towers.config["training"]["learning"]["alpha"] == pairs.manifest.metrics["alpha"]
    chosen = [row["value"] for row in rows if row["setting"].startswith(f'{{"alpha": {pairs.manifest.metrics["alpha"]}')]
    assert max(chosen) == max(row["value"] for row in rows)
    assert TowerRetriever.load(workspace).versions["fusion"] == fusion.version


def test_retrain_towers_unknown_stage_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="no_such_stage"):
        retrain_towers.JOB.execute(retrain_towers.RetrainTowersConfig.parse({"run": ["no_such_stage"]}), workspace)
