from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding_samples import make_states, rms_of
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.normalize import (
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    rescale_tokens,
    scale_embeddings,
)


REFERENCE = EmbeddingStatistics.from_embeddings(make_states(40, seed=9) * torch.linspace(0.2, 6, 16) + 3)
TEXT = make_states(8, seed=5)

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "global": lambda x: scale_embeddings(x, 70.0),
    "per_dim": lambda x: normalize_per_dimension(x, REFERENCE),
    "hybrid": lambda x: normalize_hybrid(x, REFERENCE, 70.0),
    "token_rms": lambda x: match_token_rms(x, TEXT),
}


def test_global_reaches_the_target_by_one_factor() -> None:
    x = make_states(8) + 5
    scaled = scale_embeddings(x, 70.0)
    assert scaled.double().numpy().std(ddof=1) == pytest.approx(70, rel=1e-5)
    ratio = scaled / x
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_per_dim_takes_the_references_moments() -> None:
    normalized = normalize_per_dimension(make_states(8) * 3 - 1, REFERENCE).double().numpy()
    np.testing.assert_allclose(normalized.mean(axis=0), REFERENCE.mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(normalized.std(axis=0, ddof=1), REFERENCE.std.numpy(), rtol=1e-4)


def test_per_dim_is_the_formula() -> None:
    x = make_states(8).double().numpy()
    mean, std = REFERENCE.mean.double().numpy(), REFERENCE.std.double().numpy()
    expected = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1) * std + mean
    np.testing.assert_allclose(
        normalize_per_dimension(make_states(8), REFERENCE).numpy(), expected, rtol=1e-4, atol=1e-4
    )


def test_per_dim_lets_what_does_not_vary_pass() -> None:
    single = make_states(1)
    assert torch.equal(normalize_per_dimension(single, REFERENCE), single)
    x = make_states(8)
    x[:, 3], x[:, 7] = 0.0, 0.1
    normalized = normalize_per_dimension(x, REFERENCE)
    assert torch.equal(normalized[:, [3, 7]], x[:, [3, 7]])
    assert not torch.isclose(normalized[:, 4], x[:, 4]).any()


def test_hybrid_is_half_of_each() -> None:
    x = make_states(8)
    halves = (scale_embeddings(x, 30.0) + normalize_per_dimension(x, REFERENCE)) / 2
    torch.testing.assert_close(normalize_hybrid(x, REFERENCE, 30.0), halves)


def test_token_rms_keeps_directions_and_takes_sizes() -> None:
    x = make_states(8, rms=0.3)
    matched = match_token_rms(x, TEXT)
    torch.testing.assert_close(rms_of(matched), rms_of(TEXT), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(matched, x), torch.ones(8))


def test_token_rms_is_unchanged_when_the_reference_is_scaled() -> None:
    x = make_states(8)
    assert torch.equal(match_token_rms(4 * x, TEXT), match_token_rms(x, TEXT))
    torch.testing.assert_close(match_token_rms(123.4 * x, TEXT), match_token_rms(x, TEXT))


def test_token_rms_of_the_text_itself_is_the_text() -> None:
    assert torch.equal(match_token_rms(TEXT, TEXT), TEXT)


def test_a_token_of_zeros_has_no_size_to_take() -> None:
    x = make_states(8)
    x[2] = 0
    matched = match_token_rms(x, TEXT)
    assert not matched[2].any()
    assert torch.isfinite(matched).all()


@pytest.mark.parametrize("name", ["global", "per_dim", "token_rms"])
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


@pytest.mark.parametrize("target", [0, -1, float("nan"), float("inf")])
def test_a_bad_target_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="`target_std` must be a number above 0"):
        scale_embeddings(make_states(2), target)


@pytest.mark.parametrize("target", [True, "70"])
def test_a_target_that_is_no_number_is_refused(target: float) -> None:
    with pytest.raises(TypeError, match="`target_std`"):
        scale_embeddings(make_states(2), target)


def test_what_cannot_be_normalized_is_refused() -> None:
    with pytest.raises(ValueError, match="same value everywhere"):
        scale_embeddings(torch.ones(3, 3), 70.0)
    with pytest.raises(ValueError, match=r"16 wide.*got 8"):
        normalize_per_dimension(make_states(3, 8), REFERENCE)
    with pytest.raises(ValueError, match="got 8 and 7"):
        match_token_rms(make_states(8), make_states(7))
    with pytest.raises(ValueError, match="each of 8 tokens"):
        rescale_tokens(make_states(8), torch.ones(3))
    for normalize in NORMALIZERS.values():
        with pytest.raises(ValueError, match="NaN"):
            normalize(make_states(8).log())
