"""Masks, S_final and what the fused interests depend on."""

from __future__ import annotations

import pytest
import torch
from intently.ranking.fusion import FusionKind, InterestFusion, causal_mask, mean_of
from intently.ranking.knowledge import Visible
from intently.ranking.model import CtrModel, ModelConfig, Sizes, Tables

DIM, CHUNKS = 8, 4


def fusion(kind: FusionKind) -> InterestFusion:
    torch.manual_seed(0)
    return InterestFusion(kind, DIM, CHUNKS).eval()


def test_causal_mask_hides_later_chunks_and_padding() -> None:
    mask = causal_mask(torch.tensor([[True, False, True, False]]))[0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_tif_states_do_not_depend_on_later_chunks() -> None:
    tif = fusion(FusionKind.TIF)
    interests, valid = torch.randn(1, CHUNKS, DIM), torch.ones(1, CHUNKS, dtype=torch.bool)
    changed = interests.clone()
    changed[:, 2] += 1
    before, after = (tif.over_chunks(each, each, causal_mask(valid)) for each in (interests, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:])


@pytest.mark.parametrize("kind", FusionKind)
def test_fusion_shape_padding_and_rows_without_interests(kind: FusionKind) -> None:
    layer, item = fusion(kind), torch.randn(3, DIM)
    interests = torch.randn(3, CHUNKS, DIM)
    valid = torch.tensor([[True, True, False, False], [True, False, False, False], [False] * 4])
    fused = layer(interests, valid, item)
    assert fused.shape == (3, DIM)
    spoiled = torch.where(valid[..., None], interests, 1e3)
    assert torch.allclose(layer(spoiled, valid, item), fused, atol=1e-6)
    assert fused[2].tolist() == [0] * DIM
    assert fused.isfinite().all()
    # one chunk alone gives the same, whatever the room for others
    assert torch.allclose(layer(interests[1:2, :1], valid[1:2, :1], item[1:2]), fused[1:2], atol=1e-6)


@pytest.mark.parametrize("kind", FusionKind)
def test_fusion_depends_on_the_interests_and_gives_them_a_gradient(kind: FusionKind) -> None:
    layer, item = fusion(kind), torch.randn(1, DIM)
    interests, valid = torch.randn(1, CHUNKS, DIM, requires_grad=True), torch.ones(1, CHUNKS, dtype=torch.bool)
    fused = layer(interests, valid, item)
    assert not torch.allclose(fused, layer(torch.randn(1, CHUNKS, DIM), valid, item))
    fused.pow(2).sum().backward()
    assert interests.grad is not None
    assert (interests.grad[0].abs().sum(1) > 0).all()


def test_tif_asks_by_item_and_minds_the_order_where_means_do_not() -> None:
    interests, valid = torch.randn(1, CHUNKS, DIM), torch.ones(1, CHUNKS, dtype=torch.bool)
    one, other = torch.randn(1, DIM), torch.randn(1, DIM)
    for kind, minds in ((FusionKind.TIF, True), (FusionKind.MEAN, False)):
        layer = fusion(kind)
        fused = layer(interests, valid, one)
        assert torch.allclose(layer(interests, valid, other), fused, atol=1e-6) != minds
        assert torch.allclose(layer(interests.flip(1), valid, one), fused, atol=1e-6) != minds


def test_tif_positions_count_back_from_the_newest_chunk() -> None:
    tif = fusion(FusionKind.TIF)
    tif.positions.data[0] += 3  # the newest place
    interests, item = torch.randn(1, 2, DIM), torch.randn(1, DIM)
    short = tif(interests, torch.ones(1, 2, dtype=torch.bool), item)
    padded = tif(torch.cat([interests, torch.zeros(1, 2, DIM)], 1), torch.tensor([[True, True, False, False]]), item)
    assert torch.allclose(short, padded, atol=1e-6)


def test_mean_of_leaves_padding_out() -> None:
    vectors = torch.tensor([[[2.0], [4.0], [9.0]], [[1.0], [1.0], [1.0]]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_of(vectors, valid).tolist() == [[3.0], [0.0]]


def test_s_final_scales_each_chunk_before_it_is_fused() -> None:
    sizes = Sizes(num_items=2, num_categories=2, interest_width=3, item_width=3)
    vectors, scores = torch.randn(3, 3), torch.tensor([0.25, 1.0, 0.5])
    tables = Tables(torch.zeros(2, dtype=torch.long), vectors, scores, torch.randn(2, 3))
    visible = Visible(torch.tensor([[0, 2]]), torch.tensor([[True, True]]))
    for scored in (True, False):
        model = CtrModel(ModelConfig(interests=True, scored=scored, dim=DIM), sizes)
        found = model._interests(visible, tables)[0]
        expected = model.interest(vectors[[0, 2]] * (scores[[0, 2], None] if scored else 1))
        assert torch.allclose(found, expected, atol=1e-6)
