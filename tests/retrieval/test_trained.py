"""Trained towers as they are read back: later items, later events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from intently.core.config import Config
from intently.core.errors import SchemaError
from intently.core.schema import EMBEDDING, ITEM
from intently.core.workspace import Workspace, open_stage
from intently.retrieval.towers import TowerConfig, features_of
from intently.retrieval.trained import TrainedTowers, load_towers, put_towers
from intently.retrieval.training import LearningConfig, Sampler, TowerData, TowerObjective, TrainingConfig, build_towers, read_tower_data

from tests.retrieval.world import CATEGORIES, RING, WORDS, embeddings, items, user, write_world

CONFIG = TrainingConfig(
    towers=TowerConfig(dim=16, hidden=32, windows=(2, 4), item_dropout=0.1, dropout=0.0, token_buckets=64),
    learning=LearningConfig(batch_size=32, num_negatives=8, tag_batch_size=8, learning_rate=0.01),
)
TEXTS = embeddings("item", items()["item_id"].to_pylist(), [row // RING for row in range(3 * RING)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedTowers, np.ndarray, TowerData]:
    """Towers after a few hundred steps, what the artifact gives back of them, and h_v of the catalogue."""
    workspace = Workspace.open(tmp_path_factory.mktemp("trained"))
    write_world(workspace)
    names = ("history_train", "item", "tag", "item_embedding", "tag_embedding")
    data = read_tower_data(workspace, {name: workspace.artifact(name).version for name in names}, CONFIG)
    sampler = Sampler(data, CONFIG, torch.device("cpu"))
    module = TowerObjective(build_towers(data, CONFIG), CONFIG.learning, sampler.rates)
    optimizer = torch.optim.AdamW(module.parameters(), lr=CONFIG.learning.learning_rate)
    for epoch in range(30):
        for batch in sampler.epoch(epoch):
            optimizer.zero_grad()
            module(batch).total.backward()
            optimizer.step()
    towers = module.towers.eval()
    stage = open_stage(workspace, "towers", None, {}, Config())
    put_towers(stage, towers, CONFIG, data)
    return load_towers(stage.finish()), towers.item_vectors()[1].numpy(), data


def later_items() -> tuple[pa.Table, pa.Table]:
    """One new item of each category, one of a category and a brand that are new too; the last one has no text."""
    names = (*CATEGORIES, "Astronomy")
    rows = [
        {"item_id": f"new{n}", "title": "new", "category": name, "categories": [name], "price": 15.0, "attributes": [], "brand": "Later"}
        for n, name in enumerate(names)
    ]
    return ITEM.from_rows(rows), embeddings("item", ["new0", "new1", "new2"], [0, 1, 2])


def test_embed_items_of_training_equal_the_vectors_of_training(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    towers, vectors, _ = trained
    assert towers.embed_items(items(), TEXTS) == pytest.approx(vectors, abs=1e-6)
    # Each by itself and in another order, too.
    assert towers.embed_items(items().slice(7, 1), TEXTS) == pytest.approx(vectors[7:8], abs=1e-6)


def test_embed_items_later_item_lies_nearest_its_own_category(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    towers, vectors, data = trained
    later, texts = later_items()
    found = towers.embed_items(later, texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    means = np.stack([vectors[data.catalogue.categories == code].mean(axis=0) for code in range(3)])
    assert (found[:3] @ means.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert (found[:3] @ towers.tag_vectors(pa.array(WORDS)).T).argmax(axis=1).tolist() == [0, 1, 2]
    assert np.isfinite(found[3]).all()


def test_with_items_appends_later_ones_and_leaves_old_rows(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    towers, vectors, data = trained
    later, texts = later_items()
    grown = towers.with_items(pa.concat_tables([items().slice(0, 3), later]), texts)
    assert grown.item_ids.to_pylist() == [*items()["item_id"].to_pylist(), "new0", "new1", "new2", "new3"]
    assert torch.equal(grown.representations[:36], towers.representations)
    assert grown.embed_items(items(), TEXTS) == pytest.approx(vectors, abs=1e-6)
    assert grown.embed_items(later, texts) == pytest.approx(towers.embed_items(later, texts), abs=1e-6)
    assert np.array_equal(grown.user_vectors(data.past), towers.user_vectors(data.past))
    # An event on a later item moves the user towards its category.
    before, after = (grown.user_vector(None, rows, np.full(len(rows), 3)) for rows in (np.array([0]), np.array([0, 37, 37, 37])))
    garden = vectors[data.catalogue.categories == 1].mean(axis=0)
    assert after @ garden > before @ garden


def test_user_vector_of_known_user_after_own_history_is_theirs(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    towers, _, data = trained
    past = data.past
    rows = slice(past.offsets[5], past.offsets[6])
    expected = towers.user_vectors(past)[5]
    assert towers.user_vector(user(5), past.items[rows], past.behaviours[rows]) == pytest.approx(expected, abs=1e-6)
    stranger = towers.user_vector(None, past.items[rows], past.behaviours[rows])
    assert stranger != pytest.approx(expected, abs=1e-3)
    assert np.array_equal(towers.user_vector("nobody", past.items[rows], past.behaviours[rows]), stranger)
    assert np.linalg.norm(towers.user_vector(None, past.items[:0], past.behaviours[:0])) == pytest.approx(1, abs=1e-5)


def test_embed_items_vectors_of_another_encoder_refused(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    towers, _, _ = trained
    short = EMBEDDING.from_rows([{"kind": "item", "id": "new0", "vector": [1.0, 0.0], "model": "other"}])
    with pytest.raises(SchemaError, match="length 2"):
        towers.embed_items(later_items()[0], short)


def test_represent_hidden_id_is_that_of_a_later_item(trained: tuple[TrainedTowers, np.ndarray, TowerData]) -> None:
    data = trained[2]
    config = CONFIG.model_copy(update={"towers": CONFIG.towers.model_copy(update={"item_dropout": 1.0})})
    towers, row = build_towers(data, config), torch.tensor([3])
    hidden = towers.represent(row)
    towers.eval()
    later = features_of(data.catalogue, np.full(36, -1))
    assert torch.allclose(hidden, towers.item.represent(later)[3:4])
    assert not torch.allclose(hidden, towers.represent(row))
