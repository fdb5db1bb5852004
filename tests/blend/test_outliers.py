from __future__ import annotations

from typing import get_args

import pytest
import torch

from embedding_samples import make_states, make_tokens_of_std
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.normalize import OutlierMasking, get_outlier_dimensions, mask_outlier_dimensions, scale_dimensions


# Dimension 0 is an excess of 30, 1 an excess of 12, 2 a deficit of 20; the rest ordinary.
STD = torch.tensor([30.0, 12.0, 0.05, 1.0, 2.0, 0.5])
TOKENS = make_tokens_of_std(STD) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
REFERENCE = EmbeddingStatistics(torch.zeros(6), torch.ones(6), 100)


def test_the_guides_figures_come_out() -> None:
    """Dimension 396: Qwen3-4B 927.6, image tokens 1.5 (1.5012 before rounding); dimension 4: 2689.6 and 64.1."""
    std, ref_std = torch.full((2560,), 7.0), torch.full((2560,), 11.0)
    std[396], ref_std[396] = 1.5012, 927.6
    std[4], ref_std[4] = 64.1, 2689.6
    tokens = make_tokens_of_std(std, tokens=300)
    reference = EmbeddingStatistics(torch.zeros(2560), ref_std, 220)
    found = get_outlier_dimensions(tokens, reference)
    assert [(dim, round(ratio, 1)) for dim, ratio in found] == [(396, 617.9), (4, 42.0)]
    masked, info = mask_outlier_dimensions(tokens, reference)
    assert info.masked_dimensions == [396, 4]
    assert info.masked_dim_ratios == dict(found)
    assert info.directions == {396: "deficit", 4: "deficit"}
    assert not masked[:, [4, 396]].any()


def test_ratios_are_symmetric_and_descend() -> None:
    found = get_outlier_dimensions(TOKENS, REFERENCE)
    assert [dim for dim, _ in found] == [0, 2, 1]
    assert [ratio for _, ratio in found] == pytest.approx([30, 20, 12], rel=1e-4)


def test_the_threshold_bounds_what_is_found() -> None:
    assert [dim for dim, _ in get_outlier_dimensions(TOKENS, REFERENCE, 15)] == [0, 2]
    assert get_outlier_dimensions(TOKENS, REFERENCE, 31) == []


def test_zero_empties_excesses_and_deficits_and_nothing_else() -> None:
    masked, info = mask_outlier_dimensions(TOKENS, REFERENCE, mode="zero")
    assert not masked[:, :3].any()
    assert torch.equal(masked[:, 3:], TOKENS[:, 3:])
    assert info.masked_dimensions == [0, 2, 1]
    assert info.directions == {0: "excess", 2: "deficit", 1: "excess"}
    assert info.left_dim_ratios == {}


@pytest.mark.parametrize(("mode", "goal"), [("clamp", 10.0), ("scale", 1.0)])
def test_clamp_and_scale_bring_an_excess_to_its_ratio_and_leave_deficits(mode: OutlierMasking, goal: float) -> None:
    masked, info = mask_outlier_dimensions(TOKENS, REFERENCE, mode=mode)
    assert masked[:, :2].std(dim=0).tolist() == pytest.approx([goal, goal], rel=1e-4)
    # By one factor a dimension, the mean included.
    torch.testing.assert_close(masked[:, 0] / TOKENS[:, 0], torch.full((64,), goal / 30), rtol=1e-4, atol=0)
    assert torch.equal(masked[:, 2:], TOKENS[:, 2:])
    assert info.masked_dimensions == [0, 1]
    assert info.masked_dim_ratios == pytest.approx({0: 30, 1: 12}, rel=1e-4)
    assert info.left_dim_ratios == pytest.approx({2: 20}, rel=1e-4)
    assert info.directions[2] == "deficit"


def test_none_only_reports() -> None:
    masked, info = mask_outlier_dimensions(TOKENS, REFERENCE, mode="none")
    assert torch.equal(masked, TOKENS)
    assert info.masked_dimensions == []
    assert list(info.left_dim_ratios) == [0, 2, 1]


@pytest.mark.parametrize("mode", get_args(OutlierMasking))
@pytest.mark.parametrize("threshold", [2.0, 10.0, 13.7])
def test_masking_twice_is_masking_once(mode: OutlierMasking, threshold: float) -> None:
    once, _ = mask_outlier_dimensions(TOKENS, REFERENCE, threshold, mode)
    twice, info = mask_outlier_dimensions(once, REFERENCE, threshold, mode)
    assert torch.equal(twice, once)
    assert info.masked_dimensions == []


@pytest.mark.parametrize("mode", ["clamp", "scale"])
def test_masking_twice_is_masking_once_whatever_the_rounding(mode: OutlierMasking) -> None:
    for seed in range(40):
        x = make_states(50, 64, seed=seed) * torch.linspace(1, 60, 64)
        reference = EmbeddingStatistics(torch.zeros(64), torch.linspace(3, 9, 64), 100)
        once, first = mask_outlier_dimensions(x, reference, 3.7, mode)
        twice, second = mask_outlier_dimensions(once, reference, 3.7, mode)
        assert len(first.masked_dimensions) > 30
        assert torch.equal(twice, once)
        assert second.masked_dimensions == []


def test_a_dimension_without_spread_is_an_infinite_deficit() -> None:
    x = TOKENS.clone()
    x[:, 3] = -44.0
    assert get_outlier_dimensions(x, REFERENCE)[0] == (3, float("inf"))
    assert not mask_outlier_dimensions(x, REFERENCE)[0][:, 3].any()


def test_no_spread_on_either_side_is_no_outlier() -> None:
    x = TOKENS[:, 3:].clone()
    x[:, 0] = 1.0
    assert get_outlier_dimensions(x, EmbeddingStatistics(torch.zeros(3), torch.tensor([0.0, 2.0, 0.5]), 9)) == []


def test_a_single_token_has_no_outliers() -> None:
    assert get_outlier_dimensions(TOKENS[:1], REFERENCE) == []
    assert torch.equal(mask_outlier_dimensions(TOKENS[:1], REFERENCE)[0], TOKENS[:1])


def test_inputs_and_dtype_stay() -> None:
    x = TOKENS.bfloat16()
    before = x.clone()
    masked, _ = mask_outlier_dimensions(x, REFERENCE, mode="scale")
    assert torch.equal(x, before)
    assert masked.dtype == torch.bfloat16
    same = scale_dimensions(TOKENS, {})
    assert torch.equal(same, TOKENS)
    assert same.data_ptr() != TOKENS.data_ptr()


@pytest.mark.parametrize("threshold", [1, 0.5, float("nan"), float("inf")])
def test_a_bad_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="`threshold` must be a number above 1"):
        get_outlier_dimensions(TOKENS, REFERENCE, threshold)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`mode` must be one of .*'clamp'.*got 'soft'"):
        mask_outlier_dimensions(TOKENS, REFERENCE, mode="soft")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="6 wide"):
        get_outlier_dimensions(make_states(4), REFERENCE)
