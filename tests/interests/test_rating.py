"""The heads: what they are fed, the loss by hand, scores as probabilities, and what is said of their worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from intently.core.config import Config
from intently.core.errors import ConfigError, SchemaError
from intently.core.schema import INTEREST_RATING
from intently.core.workspace import Workspace, open_stage
from intently.interests.rating import (
    RatingData,
    RatingHeads,
    RatingModelConfig,
    RatingModels,
    put_rating_models,
    rating_loss,
    rating_quality,
    read_rating_data,
)
from intently.interests.vectors import interests_vector
from intently.llm.encoder import EncoderConfig, TextEncoder


def rating(user: str, sample: int, current: float, continuity: int | None, effectiveness: int) -> dict:
    return {
        "user_id": user,
        "bucket": 0,
        "chunk": 1,
        "sample": sample,
        "previous": [] if continuity is None else ["war films"],
        "interests": ["noir"] if effectiveness else ["romance", "musicals"],
        "num_items": 12,
        "auc_previous": None if continuity is None else 0.5,
        "auc_current": current,
        "auc_raw": 0.5,
        "continuity": continuity,
        "effectiveness": effectiveness,
    }


def test_interests_vector_is_the_mean_direction_and_does_not_depend_on_company(encoder: TextEncoder) -> None:
    noir, war = encoder.encode(["noir"])[0], encoder.encode(["war films"])[0]
    vector = interests_vector(["Noir!", "war films"], encoder)
    np.testing.assert_allclose(vector, (noir + war) / np.linalg.norm(noir + war), atol=1e-6)
    assert np.array_equal(interests_vector(["noir"], encoder), interests_vector(["Noir"], encoder))


def test_rating_loss_takes_each_head_over_the_rows_that_have_its_label() -> None:
    logits = (torch.tensor([0.0, 5.0]), torch.tensor([0.0, 0.0]))
    labels = torch.tensor([[1.0, 1.0], [float("nan"), 0.0]])
    assert rating_loss(logits, labels).item() == pytest.approx(2 * math.log(2))
    nobody = torch.tensor([[float("nan"), 1.0], [float("nan"), 0.0]])
    assert rating_loss(logits, nobody).item() == pytest.approx(math.log(2))


def test_read_rating_data_keeps_users_together_and_says_nothing_was_before(workspace: Workspace, encoder: TextEncoder) -> None:
    users = [f"user-{number}" for number in range(40)]
    rows = [rating(user, sample, 0.6, sample or None, sample) for user in users for sample in (0, 1)]
    stage = open_stage(workspace, "interest_rating", INTEREST_RATING, {}, Config())
    stage.write("part", INTEREST_RATING.from_rows(rows))
    version = stage.finish().version
    data = read_rating_data(workspace, version, RatingModelConfig())
    apart = data.held_out.reshape(40, 2)
    assert (apart[:, 0] == apart[:, 1]).all() and 0 < apart[:, 0].sum() < 20
    assert not data.previous[0].any() and data.labels[0].isnan().tolist() == [True, False]
    np.testing.assert_allclose(data.previous[1], interests_vector(["war films"], encoder), atol=1e-6)


def test_read_rating_data_of_one_user_cannot_be_split(workspace: Workspace) -> None:
    stage = open_stage(workspace, "interest_rating", INTEREST_RATING, {}, Config())
    stage.write("part", INTEREST_RATING.from_rows([rating("ann", 0, 0.6, 1, 1)]))
    with pytest.raises(SchemaError, match="1 rows of 1 users cannot be split"):
        read_rating_data(workspace, stage.finish().version, RatingModelConfig())


@pytest.fixture
def heads() -> RatingHeads:
    """Heads over two dimensions that pass the first dimension of the candidate on: S_e = σ(x), S_c = σ(0)."""
    made = RatingHeads(2, RatingModelConfig(hidden=1, dropout=0.0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.effectiveness[0].weight[0, 0] = made.effectiveness[3].weight[0, 0] = 1.0
    return made.eval()


def data_of(current: list[float], labels: list[tuple[float, int]], table_rows: list[dict], held_out: list[bool]) -> RatingData:
    vectors = torch.tensor([[value, 0.0] for value in current])
    return RatingData(torch.zeros_like(vectors), vectors, torch.tensor(labels), np.array(held_out), INTEREST_RATING.from_rows(table_rows))


def test_rating_models_loaded_again_score_a_step_as_probabilities(heads: RatingHeads, workspace: Workspace) -> None:
    stage = open_stage(workspace, "rating_model", None, {}, Config())
    data = data_of([1.0], [(1.0, 1)], [rating("ann", 0, 0.6, 1, 1)], [True])
    put_rating_models(stage, heads, data, RatingModelConfig(hidden=1, dropout=0.0))
    models = RatingModels.load(stage.finish())
    continuity, effectiveness = models.rate(np.array([1.0, 0.0], np.float32), np.array([[2.0, 0.0], [0.0, 1.0]], np.float32))
    assert continuity is not None and continuity.tolist() == [0.5, 0.5]
    assert effectiveness.tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0.5])
    assert models.rate(None, np.zeros((1, 2), np.float32))[0] is None
    assert models.encoder == EncoderConfig().model


def test_rating_models_refuse_another_encoder(heads: RatingHeads, encoder: TextEncoder) -> None:
    RatingModels(heads, encoder.name).require(encoder)
    with pytest.raises(ConfigError, match=r"encoder\.model = .*trained on another"):
        RatingModels(heads, "another").require(encoder)


def test_rating_quality_measures_on_held_out_users_alone(heads: RatingHeads) -> None:
    rows = [rating("ann", 0, 0.4, 1, 0), rating("ann", 1, 0.8, 0, 1), rating("bob", 0, 0.9, 1, 1)]
    data = data_of([0.0, 3.0, 0.0], [(1.0, 0), (0.0, 1), (1.0, 1)], rows, [True, True, False])
    quality = rating_quality(heads, data, 0.5)
    assert (quality["rows_taught"], quality["effectiveness_rows"], quality["steps_measured"]) == (1, 2, 1)
    assert quality["effectiveness_auc"] == 1.0 and quality["continuity_auc"] == 0.5
    high = 1 / (1 + math.exp(-3))
    assert quality["effectiveness_brier"] == pytest.approx((0.25 + (1 - high) ** 2) / 2)
    # S_final prefers the second candidate, whose interests foretold better: .8 against .6 on average.
    figures = [quality[f"auc_of_{name}_candidate"] for name in ("mean", "picked", "best")]
    assert figures == pytest.approx([0.6, 0.8, 0.8])
