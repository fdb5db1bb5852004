from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding_samples import make_states, rms_of
from zimage_vl.blend.mix import (
    blend_adain,
    blend_adain_per_dim,
    blend_embeddings,
    blend_slerp,
    blend_with_style_delta,
    compute_style_delta,
)


TEXT, VL = make_states(6, seed=1), make_states(6, seed=2, rms=3.0)
BLENDS: dict[str, Callable[..., Tensor]] = {
    "linear": blend_embeddings,
    "slerp": blend_slerp,
    "adain": blend_adain,
    "adain_per_dim": blend_adain_per_dim,
    "style_delta": blend_with_style_delta,
}
ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.77, 1.0]


def slerp_in_float64(t: np.ndarray, v: np.ndarray, a: float) -> np.ndarray:
    lengths = np.linalg.norm(t), np.linalg.norm(v)
    p, q = t / lengths[0], v / lengths[1]
    theta = np.arccos(p @ q)
    turned = (np.sin((1 - a) * theta) * p + np.sin(a * theta) * q) / np.sin(theta)
    return ((1 - a) * lengths[0] + a * lengths[1]) * turned


# -- blending


@pytest.mark.parametrize("alpha", ALPHAS)
def test_linear_and_slerp_are_their_formulas(alpha: float) -> None:
    torch.testing.assert_close(blend_embeddings(TEXT, VL, alpha), alpha * VL + (1 - alpha) * TEXT)
    pairs = zip(TEXT.double().numpy(), VL.double().numpy(), strict=True)
    expected = np.stack([slerp_in_float64(t, v, alpha) for t, v in pairs])
    np.testing.assert_allclose(blend_slerp(TEXT, VL, alpha).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_slerp_sees_small_angles_that_a_float32_cosine_does_not(alpha: float) -> None:
    t = torch.tensor([[1.0, 0.0]])
    angle = 2e-4
    v = torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32)
    torch.testing.assert_close(blend_slerp(t, v, alpha)[0, 1].item(), np.sin(alpha * angle), rtol=1e-4, atol=0)


def test_slerp_is_linear_where_there_is_no_way_to_turn() -> None:
    zero = torch.zeros_like(TEXT)
    for other in (-TEXT, 3 * TEXT, zero):
        torch.testing.assert_close(blend_slerp(TEXT, other, 0.3), blend_embeddings(TEXT, other, 0.3))
        torch.testing.assert_close(blend_slerp(other, TEXT, 0.3), blend_embeddings(other, TEXT, 0.3))


@pytest.mark.parametrize("name", list(BLENDS))
def test_the_ends_are_kept_bit_for_bit(name: str) -> None:
    assert torch.equal(BLENDS[name](TEXT, VL, 0.0), TEXT)
    if name in ("linear", "slerp"):
        assert torch.equal(BLENDS[name](TEXT, VL, 1.0), VL)
        assert all(torch.equal(BLENDS[name](TEXT, TEXT.clone(), alpha), TEXT) for alpha in ALPHAS)
    elif name != "style_delta":
        torch.testing.assert_close(BLENDS[name](TEXT, TEXT, 0.7), TEXT)


@pytest.mark.parametrize("name", list(BLENDS))
def test_alpha_by_token_is_each_tokens_own(name: str) -> None:
    mixed = BLENDS[name](TEXT, VL, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for i in range(6):
        torch.testing.assert_close(mixed[i], BLENDS[name](TEXT, VL, 0.2 * i)[i])
    assert torch.equal(mixed, BLENDS[name](TEXT, VL, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])))


def test_the_adains_give_the_references_moments() -> None:
    longer = make_states(40, seed=3, rms=2.0) + 1
    for blend, like, dim in ((blend_adain, VL, 1), (blend_adain_per_dim, longer, 0)):
        styled = blend(TEXT, like, 1.0)
        torch.testing.assert_close(styled.mean(dim=dim), like.mean(dim=dim), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(styled.std(dim=dim), like.std(dim=dim))
        torch.testing.assert_close(blend(TEXT, like, 0.4), 0.4 * styled + 0.6 * TEXT)


def test_what_does_not_vary_passes_the_adains() -> None:
    flat = TEXT.clone()
    flat[2], flat[:, 5] = 0.1, 0.1
    assert torch.equal(blend_adain(flat, VL, 1.0)[2], flat[2])
    assert torch.equal(blend_adain_per_dim(flat, VL, 1.0)[:, 5], flat[:, 5])
    with pytest.raises(ValueError, match="at least two tokens of the reference"):
        blend_adain_per_dim(TEXT, VL[:1])


def test_style_delta_is_the_formula_over_median_sizes() -> None:
    neutral = make_states(6, seed=3)
    delta = compute_style_delta(VL, neutral)
    assert torch.equal(delta, VL - neutral)
    delta[0] = 0  # a row of zeros does not count
    ratio = rms_of(TEXT).median() / rms_of(delta[1:]).median()
    expected = TEXT.double() + 0.3 * delta.double() * ratio
    torch.testing.assert_close(blend_with_style_delta(TEXT, delta).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(blend_with_style_delta(TEXT, 50 * delta), blend_with_style_delta(TEXT, delta))
    assert torch.equal(blend_with_style_delta(TEXT, compute_style_delta(VL, VL), 1.0), TEXT)
    with pytest.raises(ValueError, match="same shape"):
        compute_style_delta(VL, VL[:3])


# -- all of them


@pytest.mark.parametrize("name", list(BLENDS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_texts_dtype_stays_and_the_work_is_in_float32(name: str, dtype: torch.dtype) -> None:
    text, vl = TEXT.to(dtype), VL.to(dtype)
    before = text.clone(), vl.clone()
    out = BLENDS[name](text, vl, 0.3)
    assert torch.equal(text, before[0])
    assert torch.equal(vl, before[1])
    assert torch.equal(out, BLENDS[name](text.float(), vl.float(), 0.3).to(dtype))


@pytest.mark.parametrize("name", list(BLENDS))
def test_bad_arguments_are_refused(name: str) -> None:
    lengths = [] if name == "adain_per_dim" else [(VL[:4], 0.3, "got 6 and 4")]
    for vl, alpha, message in (
        (VL, 1.1, "`alpha"),
        (VL, float("nan"), "`alpha"),
        (VL, [0.5] * 5, "`alpha"),
        (VL[:, :8], 0.3, r"16 wide.*got 8"),
        (VL.log(), 0.3, "NaN"),
        *lengths,
    ):
        with pytest.raises(ValueError, match=message):
            BLENDS[name](TEXT, vl, alpha)
