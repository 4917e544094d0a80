"""Semantic IDs and generator, one job after the other on a small world, and the generator that serves what they left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import build_semantic_ids
import numpy as np
import pyarrow as pa
import pytest
import train_generator
from intently.core.config import Config
from intently.core.errors import ConfigError, MissingArtifactError, SchemaError
from intently.core.schema import CANDIDATE, EMBEDDING, ITEM
from intently.core.workspace import Workspace, open_stage
from intently.generative.beam import BeamConfig
from intently.generative.generator import TrainedGenerator, put_generator
from intently.generative.semantic_ids import semantic_id_rows
from intently.generative.training import DecoderConfig, build_decoder, read_generator_data
from intently.generative.training import train_generator as generator_loop
from intently.generative.trie import code_matrix, read_trie
from intently.runtime.train import Store, TrainSession, train

from tests.retrieval.world import NUM_USERS, RING, embeddings, history, item_of, items, user, walk, write_world

pytestmark = [
    # DeepSpeed 0.19 and Ray 2.60 use names that torch 2.13 and Python call old; TRL and accelerate do so of one another.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

IDS = build_semantic_ids.BuildSemanticIdsConfig.parse({"quantiser": {"num_codes": 8, "num_levels": 3}})


class KilledError(Exception):
    """Stands for a machine that is gone."""


@dataclass(frozen=True)
class LastStore:
    """Keeps one checkpoint, then everything ends."""

    kept: Store

    def latest(self, into: Path) -> bool:
        return self.kept.latest(into)

    def save(self, folder: Path, epoch: int) -> None:
        self.kept.save(folder, epoch)
        raise KilledError


def train_to_the_first_checkpoint(session: TrainSession, **arguments: object) -> None:
    session.store = LastStore(session.store)
    generator_loop(session, **arguments)


TRAIN = {
    "generator": {
        "decoder": {"hidden": 48, "layers": 2, "heads": 2, "kv_heads": 2, "head_size": 24, "feed_forward": 96, "text_tokens": 300},
        "sft": {"num_epochs": 60, "batch_size": 8, "learning_rate": 6e-3},
    },
    "harness": {"launcher": "local", "resources": {"cpus": 1}, "checkpoint_every": 10},
    "beam": {"width": 12},
    "cutoffs": [1, 3],
}


def train_config(**settings: dict) -> train_generator.TrainGeneratorConfig:
    return train_generator.TrainGeneratorConfig.parse(TRAIN | settings)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Workspace]:
    """A workspace in which both jobs have run, training in Ray."""
    workspace = Workspace.open(tmp_path_factory.mktemp("line"))
    write_world(workspace)
    build_semantic_ids.JOB.execute(IDS, workspace)
    train_generator.JOB.execute(train_config(harness={"resources": {"cpus": 0.5}, "checkpoint_every": 60}), workspace)
    yield workspace


@pytest.fixture(scope="module")
def generator(line: Workspace) -> TrainedGenerator:
    return TrainedGenerator.load(line, BeamConfig(width=36))


def test_build_semantic_ids_twelve_items_of_one_vector_get_an_id_each(line: Workspace) -> None:
    artifact = line.artifact("semantic_id")
    codes = code_matrix(artifact.read()["codes"])
    assert len(np.unique(codes, axis=0)) == 36
    metrics = artifact.manifest.metrics
    # Three vectors for 36 items: all share their nearest codes, and twelve do not fit below one prefix of eight.
    assert (metrics["collisions_before"], metrics["unique_ratio_before"], metrics["collisions_after"]) == (1.0, 3 / 36, 0.0)
    assert line.artifact("tokenizer").manifest.metrics == metrics


def test_build_semantic_ids_appended_catalogue_keeps_what_is_published(line: Workspace) -> None:
    before = line.artifact("semantic_id")
    old_items, old_vectors = line.artifact("item"), line.artifact("item_embedding")
    grown = pa.concat_tables([items(), ITEM.from_rows([items().slice(3, 1).to_pylist()[0] | {"item_id": "new"}])])
    put_grown(line, grown, embeddings("item", grown["item_id"].to_pylist(), [*(n // RING for n in range(36)), 0]))
    after = build_semantic_ids.JOB.execute(IDS.model_copy(update={"append_to": before.version}), line)
    assert after.read().slice(0, 36).equals(before.read())
    assert after.read()["item_id"].to_pylist()[36:] == ["new"]
    swapped = TrainedGenerator.load(line, BeamConfig(width=37))
    swapped.swap_catalogue(after.read(), after.version)
    assert swapped.generate_items([item_of(0, 2)], 37)["item_id"].to_pylist().count("new") == 1
    assert swapped.live.rollback().version == before.version
    assert "new" not in swapped.generate_items([item_of(0, 2)], 36)["item_id"].to_pylist()
    for artifact in (before, old_items, old_vectors):
        line.write_bytes(line.path(artifact.name, "LATEST"), artifact.version.encode())


def test_build_semantic_ids_appended_counter_is_a_code_that_the_generator_knows(workspace: Workspace) -> None:
    write_world(workspace)
    counter = build_semantic_ids.BuildSemanticIdsConfig.parse({"quantiser": {"num_codes": 16, "num_levels": 3, "last_level": "counter"}})
    before = build_semantic_ids.JOB.execute(counter, workspace)
    put_untrained(workspace)
    generator = TrainedGenerator.load(workspace, BeamConfig(width=37))
    grown = pa.concat_tables([items(), ITEM.from_rows([items().slice(3, 1).to_pylist()[0] | {"item_id": "new"}])])
    put_grown(workspace, grown, embeddings("item", grown["item_id"].to_pylist(), [*(n // RING for n in range(36)), 0]))
    after = build_semantic_ids.JOB.execute(counter.model_copy(update={"append_to": before.version}), workspace)
    counters = [read_trie(ids.read(), ids.version).code_counts[-1] for ids in (before, after)]
    assert counters == [RING, RING + 1], "no item had the new one's counter before"
    generator.swap_catalogue(after.read(), after.version)
    assert "new" in generator.generate_items([item_of(0, 2)], 37)["item_id"].to_pylist()


def put_untrained(workspace: Workspace) -> None:
    """A generator with the weights that training begins with."""
    config = train_config().generator
    versions = {name: workspace.artifact(name).version for name in ("semantic_id", "item", "history_train")}
    data = read_generator_data(workspace, versions, config)
    model, vocabulary = build_decoder(config.decoder, data.titles, data.trie.code_counts, seed=0)
    stage = open_stage(workspace, "generator", None, {}, Config())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        vocabulary.tokenizer.save_pretrained(folder)
        put_generator(stage, Path(folder), data.trie, config)
    stage.finish()


def put_grown(workspace: Workspace, grown: pa.Table, vectors: pa.Table) -> None:
    """A later catalogue beside the first."""
    for name, table, rows in (("item", ITEM, grown), ("item_embedding", EMBEDDING, vectors)):
        stage = open_stage(workspace, name, table, {"day": "2"}, Config())
        stage.write("part-00000", rows)
        stage.finish()


def test_train_generator_learns_the_next_step(line: Workspace) -> None:
    metrics = line.artifact("generator_metric").manifest.metrics
    assert metrics["hr1"] > 0.7
    curve = line.artifact("generator").manifest.metrics
    assert curve["loss_epoch_60"] < 0.4 * curve["loss_epoch_1"]
    assert not list(Path(line.path("generator")).glob("*/training"))
    rows = line.artifact("generator_metric").read().to_pylist()
    assert {(row["split"], row["filter_seen"]) for row in rows} == {(s, f) for s in ("validation", "test") for f in (False, True)}


def test_train_generator_runs_again_reuses_what_stands(line: Workspace) -> None:
    before = line.artifact("generator").manifest.ended
    train_generator.JOB.execute(train_config(), line)
    assert line.artifact("generator").manifest.ended == before


def test_generate_next_step_comes_first_and_seen_items_do_not_come(generator: TrainedGenerator) -> None:
    past = history({user(n): walk(n, 0, 5) for n in range(NUM_USERS)})
    rows = CANDIDATE.check(generator.generate(past, k=3)).to_pylist()
    first = [row["item_id"] for row in rows if row["rank"] == 0]
    assert np.mean([found == item_of(n % 3, n // 3 + 5) for n, found in enumerate(first)]) > 0.7
    assert [row["user_id"] for row in rows] == [user(n) for n in range(NUM_USERS) for _ in range(3)]
    seen = {(user(n), item) for n in range(NUM_USERS) for item, _ in walk(n, 0, 5)}
    assert not {(row["user_id"], row["item_id"]) for row in rows} & seen
    assert {row["source"] for row in rows} == {"generative"}


def test_generate_items_strangers_unknown_items_and_exclusions(generator: TrainedGenerator) -> None:
    known = [item_of(1, step) for step in (3, 4, 5)]
    found = CANDIDATE.check(generator.generate_items(["no such item", *known, known[0]], k=36))
    assert sorted(found["item_id"].to_pylist()) == sorted({item_of(c, s) for c in range(3) for s in range(RING)} - set(known))
    assert generator.generate_items(known, k=5).equals(generator.generate_items(["no such item", *known, known[0]], k=5))
    best = found["item_id"][0].as_py()
    assert best not in generator.generate_items(known, k=33, exclude=[best])["item_id"].to_pylist()
    assert generator.generate_items(known, k=36, filter_seen=False).num_rows == 36
    assert generator.generate_items([], k=36).num_rows == 36


def test_generator_catalogue_that_the_model_cannot_write_is_refused(generator: TrainedGenerator) -> None:
    with pytest.raises(SchemaError, match="the model knows"):
        generator.swap_catalogue(semantic_id_rows(pa.array(["a"]), np.array([[9, 0, 0]], np.int32)), "v2")
    assert generator.live.current.version != "v2"


def test_train_generator_killed_and_resumed_has_the_same_loss_curve(line: Workspace, tmp_path: Path) -> None:
    short = {**TRAIN["generator"], "sft": {"num_epochs": 4, "batch_size": 8}, "mixture": {"item_dropout": 0.3}}
    curves = []
    for halves in (False, True):
        workspace = Workspace.open(tmp_path / f"{halves}")
        write_world(workspace)
        build_semantic_ids.JOB.execute(IDS, workspace)
        settings = train_config(generator=short, harness=TRAIN["harness"] | {"checkpoint_every": 2})
        if halves:
            stage = train_generator.JOB.stage(workspace, "generator", settings)
            versions = {name: workspace.artifact(name).version for name in train_generator.JOB.reads}
            arguments = {"workspace": workspace, "versions": versions, "config": settings.generator}
            place = f"generator/{stage.version}/training"
            with (
                pytest.raises(KilledError),
                train(train_to_the_first_checkpoint, arguments, settings.harness, workspace, place),
            ):
                pass
        train_generator.JOB.execute(settings, workspace)
        metrics = workspace.artifact("generator").manifest.metrics
        curves.append([metrics[f"loss_epoch_{epoch}"] for epoch in range(1, 5)])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


# PEFT says that it saves embeddings which were resized: new tokens have to be saved.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_train_generator_lora_on_a_checkpoint_learns_codes_and_is_merged(line: Workspace, tmp_path: Path) -> None:
    base = TrainedGenerator.load(line)
    fresh, vocabulary = build_decoder(DecoderConfig.parse(TRAIN["generator"]["decoder"]), ["a title"], (2,), seed=1)
    fresh.save_pretrained(tmp_path / "base")
    vocabulary.tokenizer.save_pretrained(tmp_path / "base")
    workspace = Workspace.open(tmp_path / "workspace")
    write_world(workspace)
    build_semantic_ids.JOB.execute(IDS, workspace)
    sft = {"num_epochs": 12, "batch_size": 8, "learning_rate": 1e-2, "lora_rank": 8}
    settings = train_config(generator={"decoder": {"checkpoint": str(tmp_path / "base")}, "sft": sft})
    artifact = train_generator.JOB.execute(settings, workspace)
    curve = artifact.manifest.metrics
    assert curve["loss_epoch_12"] < 0.5 * curve["loss_epoch_1"]
    merged = TrainedGenerator.load(workspace)
    assert merged.generate_items([item_of(1, 3)], 5).num_rows == 5
    assert type(merged.beam.model) is type(base.beam.model)
    assert workspace.artifact("generator_metric").manifest.metrics["hr3"] > 3 / 36


def test_train_generator_more_cutoffs_than_beams_refused() -> None:
    with pytest.raises(ConfigError, match="ask for more items than the beam is wide"):
        train_config(cutoffs=[20])


def test_generator_without_artifact_refused(workspace: Workspace) -> None:
    with pytest.raises(MissingArtifactError, match="generator"):
        TrainedGenerator.load(workspace)
