"""Codebooks: what k-means and the autoencoder learn, and that codes are chosen alike everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from intently.core.config import Config
from intently.core.errors import ConfigError
from intently.core.workspace import Workspace, open_stage
from intently.generative.quality import meaning_report
from intently.generative.quantiser import (
    AutoencoderConfig,
    QuantiserConfig,
    fit_quantiser,
    kmeans,
    load_quantiser,
    put_quantiser,
    quantise,
)

AUTOENCODER = AutoencoderConfig(hidden=(16,), latent=6, warmup_epochs=5, num_epochs=150, batch_size=64, learning_rate=3e-3)


def grouped_vectors(seed: int = 0, num_items: int = 240) -> np.ndarray:
    """Items in 8 groups of 4 subgroups each."""
    rng = np.random.default_rng(seed)
    groups, subgroups = 6 * rng.normal(size=(8, 1, 12)), 2 * rng.normal(size=(8, 4, 12))
    item = np.arange(num_items)
    return ((groups + subgroups)[item % 8, item // 8 % 4] + 0.2 * rng.normal(size=(num_items, 12))).astype(np.float32)


def config(**settings: object) -> QuantiserConfig:
    return QuantiserConfig.parse({"num_levels": 3, "num_codes": 8, "autoencoder": AUTOENCODER.model_dump(), **settings})


def test_kmeans_two_heaps_finds_their_means_and_fills_an_empty_cluster() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [40.0]])
    centres = kmeans(points, 3, 20, torch.Generator().manual_seed(0))
    assert sorted(centres[:, 0].tolist()) == [0.5, 10.5, 40.0]
    doubled = torch.tensor([[1.0]] * 6 + [[2.0], [3.0]])  # first centres that are alike: all but one lose their points
    assert sorted(set(kmeans(doubled, 3, 20, torch.Generator().manual_seed(1))[:, 0].tolist())) == [1.0, 2.0, 3.0]


def test_quantise_by_hand() -> None:
    books = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    codes, left = quantise(torch.tensor([[5.0, 0.0], [0.0, 2.0]]), books)
    assert codes.tolist() == [[1, 0], [0, 1]]
    assert left.tolist() == [[[5, 0], [1, 0], [0, 0]], [[0, 2], [0, 2], [0, 1]]]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "rq_kmeans"},
        {"kind": "rq_vae"},
        {"kind": "rq_vae", "autoencoder": {**AUTOENCODER.model_dump(), "gradient": "rotation"}},
    ],
    ids=["rq_kmeans", "rq_vae", "rotation"],
)
def test_fit_quantiser_grouped_items_are_told_apart_and_given_back(settings: dict) -> None:
    vectors = grouped_vectors()
    quantiser = fit_quantiser(vectors, config(**settings))
    codes, _ = quantiser.encode(vectors)
    report = meaning_report(vectors, codes, quantiser)
    assert report["reconstruction_error"] < 0.1
    assert report["neighbour_purity"] > 0.9 > 0.4 > report["neighbour_purity_chance"]
    for level in range(2):
        assert len(np.unique(codes[:, level])) == 8, "no code is dead"
    again, _ = fit_quantiser(vectors, config(**settings)).encode(vectors)
    assert np.array_equal(codes, again)


def test_fit_quantiser_counter_learns_one_level_less() -> None:
    quantiser = fit_quantiser(grouped_vectors(), config(last_level="counter"))
    assert quantiser.codebooks.shape == (2, 8, 12)


def test_fit_quantiser_fewer_items_than_codes_refused() -> None:
    with pytest.raises(ConfigError, match="num_codes = 8: there are 5 items"):
        fit_quantiser(grouped_vectors()[:5], config())


@pytest.mark.parametrize("kind", ["rq_kmeans", "rq_vae"])
def test_quantiser_comes_back_from_an_artifact(workspace: Workspace, kind: str) -> None:
    vectors = grouped_vectors()
    quantiser = fit_quantiser(vectors, config(kind=kind, autoencoder={"num_epochs": 2, "warmup_epochs": 0}))
    stage = open_stage(workspace, "tokenizer", None, {}, Config())
    put_quantiser(stage, quantiser)
    loaded = load_quantiser(stage.finish())
    assert Path(workspace.path("tokenizer", stage.version, "quantiser.safetensors")).is_file()
    for ours, theirs in zip(quantiser.encode(vectors), loaded.encode(vectors), strict=True):
        assert np.array_equal(ours, theirs)
