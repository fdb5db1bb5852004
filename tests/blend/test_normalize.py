from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding_samples import make_states, make_tokens_of_std, rms_of
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.normalize import (
    OutlierMasking,
    get_outlier_dimensions,
    mask_outlier_dimensions,
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    scale_embeddings,
)


REFERENCE = EmbeddingStatistics.from_embeddings(make_states(40, seed=9) * torch.linspace(0.2, 6, 16) + 3)
TEXT = make_states(8, seed=5)

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "global": lambda x: scale_embeddings(x, 70.0),
    "per_dim": lambda x: normalize_per_dimension(x, REFERENCE),
    "hybrid": lambda x: normalize_hybrid(x, REFERENCE, 70.0),
    "token_rms": lambda x: match_token_rms(x, TEXT),
    "clamp": lambda x: mask_outlier_dimensions(x, REFERENCE, 2.0, "clamp")[0],
}


def test_global_reaches_the_target_by_one_factor() -> None:
    x = make_states(8) + 5
    scaled = scale_embeddings(x, 70.0)
    assert scaled.double().numpy().std(ddof=1) == pytest.approx(70, rel=1e-5)
    ratio = scaled / x
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_per_dim_is_the_formula_and_hybrid_half_of_it() -> None:
    x = make_states(8).double().numpy()
    mean, std = REFERENCE.mean.double().numpy(), REFERENCE.std.double().numpy()
    expected = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1) * std + mean
    normalized = normalize_per_dimension(make_states(8), REFERENCE)
    np.testing.assert_allclose(normalized.numpy(), expected, rtol=1e-4, atol=1e-4)
    halves = (scale_embeddings(make_states(8), 30.0) + normalized) / 2
    torch.testing.assert_close(normalize_hybrid(make_states(8), REFERENCE, 30.0), halves)


def test_per_dim_lets_what_does_not_vary_pass() -> None:
    single = make_states(1)
    assert torch.equal(normalize_per_dimension(single, REFERENCE), single)
    x = make_states(8)
    x[:, 3], x[:, 7] = 0.0, 0.1
    normalized = normalize_per_dimension(x, REFERENCE)
    assert torch.equal(normalized[:, [3, 7]], x[:, [3, 7]])
    assert not torch.isclose(normalized[:, 4], x[:, 4]).any()


def test_token_rms_keeps_directions_and_takes_sizes() -> None:
    x = make_states(8, rms=0.3)
    matched = match_token_rms(x, TEXT)
    torch.testing.assert_close(rms_of(matched), rms_of(TEXT), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(matched, x), torch.ones(8))
    assert torch.equal(match_token_rms(4 * x, TEXT), matched)
    torch.testing.assert_close(match_token_rms(123.4 * x, TEXT), matched)
    x[2] = 0  # which has no size to take
    matched = match_token_rms(x, TEXT)
    assert not matched[2].any()
    assert torch.isfinite(matched).all()


@pytest.mark.parametrize("name", ["global", "per_dim", "token_rms", "clamp"])
def test_twice_is_once(name: str) -> None:
    once = NORMALIZERS[name](make_states(8))
    torch.testing.assert_close(NORMALIZERS[name](once), once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(NORMALIZERS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_stays_and_the_work_is_in_float32(name: str, dtype: torch.dtype) -> None:
    x = make_states(8).to(dtype)
    before = x.clone()
    out = NORMALIZERS[name](x)
    assert torch.equal(x, before)
    assert torch.equal(out, NORMALIZERS[name](x.float()).to(dtype))


def test_what_cannot_be_normalized_is_refused() -> None:
    for target, error in ((0, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), (True, TypeError)):
        with pytest.raises(error, match="`target_std` must be a number above 0"):
            scale_embeddings(make_states(2), target)
    with pytest.raises(ValueError, match="same value everywhere"):
        scale_embeddings(torch.ones(3, 3), 70.0)
    with pytest.raises(ValueError, match=r"16 wide.*got 8"):
        normalize_per_dimension(make_states(3, 8), REFERENCE)
    with pytest.raises(ValueError, match="got 8 and 7"):
        match_token_rms(make_states(8), make_states(7))
    for normalize in NORMALIZERS.values():
        with pytest.raises(ValueError, match="NaN"):
            normalize(make_states(8).log())


# -- outlier dimensions


# Dimension 0 is an excess of 30, 1 an excess of 12, 2 a deficit of 20; the rest ordinary.
STD = torch.tensor([30.0, 12.0, 0.05, 1.0, 2.0, 0.5])
TOKENS = make_tokens_of_std(STD) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
SPREADS = EmbeddingStatistics(torch.zeros(6), torch.ones(6), 100)


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


def test_zero_empties_excesses_and_deficits_and_none_only_reports() -> None:
    masked, info = mask_outlier_dimensions(TOKENS, SPREADS, mode="zero")
    assert not masked[:, :3].any()
    assert torch.equal(masked[:, 3:], TOKENS[:, 3:])
    assert info.masked_dimensions == [0, 2, 1]  # ratios are symmetric, and descend
    assert info.masked_dim_ratios == pytest.approx({0: 30, 2: 20, 1: 12}, rel=1e-4)
    assert get_outlier_dimensions(TOKENS, SPREADS) == list(info.masked_dim_ratios.items())
    assert [dim for dim, _ in get_outlier_dimensions(TOKENS, SPREADS, 15)] == [0, 2]
    assert info.directions == {0: "excess", 2: "deficit", 1: "excess"}
    assert info.left_dim_ratios == {}
    untouched, none = mask_outlier_dimensions(TOKENS, SPREADS, mode="none")
    assert torch.equal(untouched, TOKENS)
    assert (none.masked_dimensions, none.left_dim_ratios) == ([], info.masked_dim_ratios)


@pytest.mark.parametrize(("mode", "goal"), [("clamp", 10.0), ("scale", 1.0)])
def test_clamp_and_scale_bring_an_excess_to_its_ratio_and_leave_deficits(mode: OutlierMasking, goal: float) -> None:
    masked, info = mask_outlier_dimensions(TOKENS, SPREADS, mode=mode)
    assert masked[:, :2].std(dim=0).tolist() == pytest.approx([goal, goal], rel=1e-4)
    # By one factor a dimension, the mean included.
    torch.testing.assert_close(masked[:, 0] / TOKENS[:, 0], torch.full((64,), goal / 30), rtol=1e-4, atol=0)
    assert torch.equal(masked[:, 2:], TOKENS[:, 2:])
    assert info.masked_dimensions == [0, 1]
    assert info.masked_dim_ratios == pytest.approx({0: 30, 1: 12}, rel=1e-4)
    assert info.left_dim_ratios == pytest.approx({2: 20}, rel=1e-4)
    assert info.directions[2] == "deficit"


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
    assert get_outlier_dimensions(x, SPREADS)[0] == (3, float("inf"))
    assert not mask_outlier_dimensions(x, SPREADS)[0][:, 3].any()
    both_flat = EmbeddingStatistics(torch.zeros(6), torch.tensor([30.0, 12.0, 0.05, 0.0, 2.0, 0.5]), 9)
    assert get_outlier_dimensions(x, both_flat) == []
    assert get_outlier_dimensions(TOKENS[:1], SPREADS) == []  # a single token has no spread to judge


def test_bad_masking_is_refused() -> None:
    for threshold in (1, 0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`threshold` must be a number above 1"):
            get_outlier_dimensions(TOKENS, SPREADS, threshold)
    with pytest.raises(ValueError, match=r"`mode` must be one of .*'clamp'.*got 'soft'"):
        mask_outlier_dimensions(TOKENS, SPREADS, mode="soft")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="6 wide"):
        get_outlier_dimensions(make_states(4), SPREADS)
    # As the guide calls them: with embeddings and a threshold alone.
    with pytest.raises(TypeError, match=r"pipe.text_statistics\(\)"):
        get_outlier_dimensions(TOKENS, threshold=10.0)
    with pytest.raises(TypeError, match=r"pipe.text_statistics\(\).*got 10.0 of type float"):
        mask_outlier_dimensions(TOKENS, 10.0, mode="clamp")  # pyright: ignore[reportArgumentType]
