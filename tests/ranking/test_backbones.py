"""Each backbone learns; the attention equals the library's; what is declared is what is looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from intently.core.errors import ConfigError
from intently.metrics.binary import auc
from intently.ranking.attention import TargetAttention
from intently.ranking.backbones import Backbone, history_pooling
from intently.ranking.features import read_catalogue, read_log, read_rows
from intently.ranking.knowledge import histogram_vectors
from intently.ranking.samples import SampleConfig, label_events, split_samples
from intently.ranking.training import BatchCutter, CtrData, CtrObjective, CtrTrainingConfig, build_model

from tests.ranking.worlds import chunks, history, items, lives

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> CtrData:
    """Eight people, 24 events each."""
    told, films, config = history(lives(8, 24)), items(), SampleConfig(min_events=1)
    catalogue = read_catalogue(films)
    log = read_log(told, catalogue)
    rows = {n: read_rows(part, log, catalogue) for n, part in split_samples(label_events(told, chunks(told), config), config).items()}
    interests, vectors = histogram_vectors(log, films, told, chunks(told))
    return CtrData(catalogue, log, rows, interests, vectors, torch.nn.functional.normalize(vectors, dim=1))


@pytest.mark.parametrize("knowing", [False, True], ids=["base", "knowledge"])
@pytest.mark.parametrize("backbone", Backbone)
def test_backbone_overfits_a_tiny_set(data: CtrData, backbone: Backbone, knowing: bool) -> None:
    model = {"backbone": backbone, "dim": 8, "hidden": [16, 8], "history": 3, "interests": knowing, "item_knowledge": knowing}
    config = CtrTrainingConfig.parse({"model": model})
    cutter = BatchCutter(data, "train", config.model, CPU)
    batch, labels = cutter.batch(torch.arange(32))
    objective = CtrObjective(build_model(data, config), data.tables(CPU))
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=0.03)
    first = objective(batch, labels).item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = objective(batch, labels)
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(0.69, abs=0.25)
    assert loss.item() < 0.1
    unused = [name for name, parameter in objective.model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert unused == []


def test_target_attention_equals_fuxictrs_layer() -> None:
    torch.manual_seed(1)
    ours = TargetAttention(12, 16)
    target, events, valid = torch.randn(5, 12), torch.randn(5, 7, 12), torch.rand(5, 7) > 0.3
    assert torch.allclose(ours(target, events, valid), ours.layer(target, events, valid), atol=1e-5)


@pytest.mark.parametrize("backbone", [Backbone.DIN, Backbone.DIEN, Backbone.DCNV2])
def test_history_pooling_does_not_see_padding_and_is_zero_without_events(backbone: Backbone) -> None:
    torch.manual_seed(2)
    pool, target, events = history_pooling(backbone, 12), torch.randn(3, 12), torch.randn(3, 4, 12)
    valid = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    pooled = pool(target, events, valid)
    assert torch.allclose(pool(target, torch.where(valid[..., None], events, 7.0), valid), pooled, atol=1e-6)
    assert pooled[2].tolist() == [0] * 12
    assert torch.allclose(pool(target[:1], events[:1, :2], valid[:1, :2]), pooled[:1], atol=1e-6)


def test_sim_looks_at_events_beyond_the_window(data: CtrData) -> None:
    config = CtrTrainingConfig.parse({"model": {"dim": 8, "history": 1, "similar": 4}})
    batch, _ = BatchCutter(data, "test", config.model, CPU).batch(torch.arange(6))
    assert batch.similar is not None
    assert batch.similar.valid.all()
    assert (data.catalogue.categories[batch.similar.items] == data.catalogue.categories[batch.items][:, None]).float().mean() > 0.9
    model = build_model(data, config)
    assert model(batch, data.tables(CPU)).shape == (6,)
    assert model.head.mlp.mlp[0].in_features == 8 * 8


def test_model_asking_for_knowledge_that_is_not_there_refused(data: CtrData) -> None:
    bare = CtrData(data.catalogue, data.log, data.rows)
    for setting in ("interests", "item_knowledge", "similar"):
        config = CtrTrainingConfig.parse({"model": {setting: 1}})
        with pytest.raises(ConfigError, match="vectors that the data does not hold"):
            BatchCutter(bare, "train", config.model, CPU)


def test_interests_tell_what_the_window_does_not(data: CtrData) -> None:
    """A log without stars does not tell who likes what; the histograms of earlier chunks, made with the stars, do."""
    data = replace(data, log=replace(data.log, signals=torch.ones_like(data.log.signals)))
    reached = {}
    for knowing in (False, True):
        model = {"backbone": "din", "dim": 8, "hidden": [16], "history": 1, "interests": knowing, "item_knowledge": knowing}
        config = CtrTrainingConfig.parse({"model": model})
        objective, tables = CtrObjective(build_model(data, config), data.tables(CPU)), data.tables(CPU)
        train, test = (BatchCutter(data, part, config.model, CPU) for part in ("train", "test"))
        optimizer = torch.optim.Adam(objective.model.parameters(), lr=0.01)
        batch, labels = train.batch(torch.arange(len(train)))
        for _ in range(80):
            optimizer.zero_grad()
            objective(batch, labels).backward()
            optimizer.step()
        seen, wanted = test.batch(torch.arange(len(test)))
        reached[knowing] = auc(objective.model(seen, tables).detach().numpy(), wanted.numpy())
    assert reached[True] > 0.95
    assert reached[False] < 0.75
