"""Laying one sequence on another, and mixing the two.

Text first, then the reference. All work in float32, return the dtype of the first argument and leave their inputs
alone. Alpha is a number or one a text token: 0 is the text bit for bit, 1 with the linear and the spherical blend the
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_alpha, check_choice, check_embeddings
from .embedding_statistics import get_dimension_std, get_token_rms
from .normalize import rescale_tokens


SequenceAlignment = Literal["pool", "interpolate", "truncate"]
TokenAlpha = float | Sequence[float] | Tensor


def align_sequence(embeddings: Tensor, length: int, mode: SequenceAlignment = "pool") -> Tensor:
    """Bring a sequence to another length. To the same length it is the identity.

    Args:
        embeddings: `(tokens, dims)`.
        length: Tokens wanted, >= 1.
        mode: "pool": adaptive averaging, which reads every token, each pooled token then rescaled to the mean RMS of
            the tokens it averages (alignment changes what tokens say, not how loud). "interpolate": linear with
            `align_corners=True`, the first and last token kept; one token is repeated. "truncate": the first tokens.

    Returns:
        `(length, dims)` in the dtype of `embeddings`, a copy.

    Raises:
        ValueError: An unknown mode; a length below 1; "truncate" with fewer tokens than wanted; NaN or inf.
        TypeError: A length that is not an int.

    Example:
        >>> align_sequence(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), 2).tolist()
        [[2.0], [6.0]]
        >>> align_sequence(torch.tensor([[1.0], [3.0]]), 3, mode="interpolate").tolist()
        [[1.0], [2.0], [3.0]]
    """
    check_choice("mode", mode, get_args(SequenceAlignment))
    if isinstance(length, bool) or not isinstance(length, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`length` must be an int of at least 1, got {length!r} of type {type(length).__name__}.")
    if length < 1:
        raise ValueError(f"`length` must be an int of at least 1, got {length}.")
    x = check_embeddings("embeddings", embeddings)
    if x.shape[0] == length:
        return embeddings.clone()
    if mode == "truncate":
        if x.shape[0] < length:
            raise ValueError(
                f"Truncation needs at least {length} tokens of the reference, got {x.shape[0]}: use another alignment "
                "('anchored', 'pool' or 'interpolate'), or select more tokens."
            )
        return embeddings[:length].clone()
    channels = x.T[None]  # (1, dims, tokens), as torch's resampling wants it
    if mode == "interpolate":
        resampled = F.interpolate(channels, size=length, mode="linear", align_corners=True)[0].T
        return resampled.contiguous().to(embeddings.dtype)
    pooled = F.adaptive_avg_pool1d(channels, length)[0].T
    loudness = F.adaptive_avg_pool1d(get_token_rms(x)[None, None], length)[0, 0]
    return rescale_tokens(pooled, loudness).to(embeddings.dtype)


def _make_alpha_column(alpha: TokenAlpha, text: Tensor) -> Tensor:
    """Alpha as `(tokens, 1)` float32, checked against the text's length."""
    values = check_alpha("alpha", alpha)
    if not isinstance(values, tuple):
        return text.new_full((text.shape[0], 1), values)
    if len(values) != text.shape[0]:
        raise ValueError(f"`alpha` must hold one number for each of {text.shape[0]} text tokens, got {len(values)}.")
    return text.new_tensor(values)[:, None]


def _check_pair(text_embeds: Tensor, vl_embeds: Tensor, name: str = "vl_embeds") -> tuple[Tensor, Tensor]:
    """Both as float32, equally wide and long."""
    text = check_embeddings("text_embeds", text_embeds)
    vl = check_embeddings(name, vl_embeds, text.shape[1]).to(text.device)
    if text.shape[0] != vl.shape[0]:
        raise ValueError(
            f"`text_embeds` and `{name}` must have as many tokens, got {text.shape[0]} and {vl.shape[0]}. "
            "Align the reference to the text first (align_sequence)."
        )
    return text, vl


def blend_embeddings(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha) -> Tensor:
    """Linear blend, `alpha · v + (1 - alpha) · t` (the Qwen3-VL conditioning guide, section 1).

    Args:
        text_embeds: `(tokens, dims)`.
        vl_embeds: `(tokens, dims)`, aligned to the text.
        alpha: 0..1, a number or one a token. 0 gives the text and 1 the reference bit for bit, and where the two are
            equal nothing changes at any alpha.

    Returns:
        `(tokens, dims)` in the dtype of `text_embeds`.

    Raises:
        ValueError: Shapes that differ; alpha NaN, outside 0..1 or of the wrong length; NaN or inf.

    Example:
        >>> blend_embeddings(torch.zeros(2, 1), torch.full((2, 1), 8.0), [0.25, 1.0]).tolist()
        [[2.0], [8.0]]
    """
    text, vl = _check_pair(text_embeds, vl_embeds)
    return torch.lerp(text, vl, _make_alpha_column(alpha, text).expand_as(text)).to(text_embeds.dtype)


def _get_norms(x: Tensor) -> Tensor:
    """`(tokens, 1)`: the length of each token."""
    return x.square().sum(dim=1, keepdim=True).sqrt()


def blend_slerp(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha) -> Tensor:
    """Spherical blend, token by token: `((1 - a)|t| + a|v|) · slerp(t/|t|, v/|v|, a)`.

    `slerp(p, q, a) = (sin((1 - a)θ) p + sin(aθ) q) / sin θ` (Shoemake 1985), θ the angle between p and q. Where the
    sine is below 1e-4, or a token is zero and has no direction, the blend is linear.

    Args:
        text_embeds: `(tokens, dims)`.
        vl_embeds: `(tokens, dims)`, aligned to the text.
        alpha: 0..1, a number or one a token. 0 gives the text and 1 the reference bit for bit.

    Returns:
        `(tokens, dims)` in the dtype of `text_embeds`.

    Raises:
        ValueError: As for `blend_embeddings`.

    Example:
        >>> blended = blend_slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 0.5)
        >>> round(blended.norm().item(), 4)
        3.0
    """
    text, vl = _check_pair(text_embeds, vl_embeds)
    column = _make_alpha_column(alpha, text)
    text_norm, vl_norm = _get_norms(text), _get_norms(vl)
    tiny = torch.finfo(torch.float32).tiny
    p, q = text / text_norm.clamp_min(tiny), vl / vl_norm.clamp_min(tiny)
    # Half the angle from the diagonals of the rhombus: acos would lose all small angles to float32 rounding.
    theta = 2 * torch.atan2(_get_norms(p - q), _get_norms(p + q))
    sine = theta.sin()
    straight = (sine < 1e-4) | (text_norm == 0) | (vl_norm == 0)
    direction = (torch.sin((1 - column) * theta) * p + torch.sin(column * theta) * q) / sine.clamp_min(1e-4)
    blended = ((1 - column) * text_norm + column * vl_norm) * direction
    blended = torch.where(straight, torch.lerp(text, vl, column.expand_as(text)), blended)
    return torch.where(column == 0, text, torch.where(column == 1, vl, blended)).to(text_embeds.dtype)


def _give_moments(x: Tensor, std: Tensor, like_mean: Tensor, like_std: Tensor, dim: int) -> Tensor:
    """AdaIN, `(x - mean(x)) / std(x) · like_std + like_mean` along `dim`; what does not vary passes unchanged."""
    divisor = torch.where(std > 0, std, torch.ones_like(std))
    moved = (x - x.mean(dim=dim, keepdim=True)) / divisor * like_std + like_mean
    return torch.where(std > 0, moved, x)


def blend_adain(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """AdaIN token by token, then the linear blend (the Qwen3-VL conditioning guide, "AdaIN Blending", `per_token`).

    Each text token takes the mean and std (over its dimensions) of the reference's token:
    `adain(t, v) = (t - mean(t)) / std(t) · std(v) + mean(v)` (Huang and Belongie 2017), then
    `alpha · adain + (1 - alpha) · t`. It only rescales whole tokens, nearly, and the transformer normalises those:
    expect next to no effect.

    Args:
        text_embeds: `(tokens, dims)`.
        vl_embeds: `(tokens, dims)`, aligned to the text.
        alpha: 0..1, a number or one a token.

    Returns:
        `(tokens, dims)` in the dtype of `text_embeds`. A text token that holds one value throughout passes unchanged.

    Raises:
        ValueError: As for `blend_embeddings`.

    Example:
        >>> blend_adain(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([[50.0, 60.0, 70.0]]), 1.0).tolist()
        [[50.0, 60.0, 70.0]]
    """
    text, vl = _check_pair(text_embeds, vl_embeds)
    # The transposed tokens are the columns of get_dimension_std, which guards against a std of rounding errors.
    text_std, vl_std = get_dimension_std(text.T)[:, None], get_dimension_std(vl.T)[:, None]
    styled = _give_moments(text, text_std, vl.mean(dim=1, keepdim=True), vl_std, dim=1)
    return torch.lerp(text, styled, _make_alpha_column(alpha, text).expand_as(text)).to(text_embeds.dtype)


def blend_adain_per_dim(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """AdaIN by dimension, then the linear blend (the Qwen3-VL conditioning guide, "AdaIN Blending", `per_dim`).

    Each dimension of the text takes the mean and std that it has over the reference's tokens:
    `(t - mean_d(t)) / std_d(t) · std_d(v) + mean_d(v)`, then `alpha · adain + (1 - alpha) · t`.

    Args:
        text_embeds: `(tokens, dims)`. A dimension that does not vary over them passes unchanged.
        vl_embeds: `(any, dims)`, at least two tokens; they need no alignment.
        alpha: 0..1, a number or one a text token.

    Returns:
        `(tokens, dims)` in the dtype of `text_embeds`.

    Raises:
        ValueError: A single reference token, which has no spread; widths that differ; otherwise as `blend_embeddings`.

    Example:
        >>> vl_embeds = torch.tensor([[50.0], [60.0], [70.0]])
        >>> blend_adain_per_dim(torch.tensor([[-1.0], [0.0], [1.0]]), vl_embeds, 1.0).tolist()
        [[50.0], [60.0], [70.0]]
    """
    text = check_embeddings("text_embeds", text_embeds)
    vl = check_embeddings("vl_embeds", vl_embeds, text.shape[1]).to(text.device)
    if vl.shape[0] < 2:
        raise ValueError(
            "'adain_per_dim' needs at least two tokens of the reference to measure their spread, got 1: select more "
            "tokens or use another blend."
        )
    styled = _give_moments(text, get_dimension_std(text), vl.mean(dim=0, keepdim=True), get_dimension_std(vl), dim=0)
    return torch.lerp(text, styled, _make_alpha_column(alpha, text).expand_as(text)).to(text_embeds.dtype)


def compute_style_delta(styled: Tensor, neutral: Tensor) -> Tensor:
    """What a style adds: `styled - neutral` (the Qwen3-VL conditioning guide, "Style Delta").

    Args:
        styled: `(tokens, dims)`, the reference's states.
        neutral: `(tokens, dims)`, those of a neutral picture of the same size with the same text.

    Returns:
        `(tokens, dims)` in the dtype of `styled`.

    Raises:
        ValueError: Shapes that differ; NaN or inf.

    Example:
        >>> compute_style_delta(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])).tolist()
        [[2.0, 0.0]]
    """
    x, y = check_embeddings("styled", styled), check_embeddings("neutral", neutral)
    if x.shape != y.shape:
        raise ValueError(
            f"`styled` and `neutral` must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}: bring the "
            "neutral picture to the reference's pixels and give both the same text."
        )
    return (x - y.to(x.device)).to(styled.dtype)


def _get_median_rms(embeddings: Tensor) -> Tensor:
    """The median RMS of the tokens that are not zero; 0 if all are."""
    rms = get_token_rms(embeddings)
    return rms[rms > 0].median() if bool((rms > 0).any()) else rms.new_zeros(())


def blend_with_style_delta(text_embeds: Tensor, style_delta: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """Add a style: `t + alpha · d · rms(t) / rms(d)`, rms the median over tokens that are not zero.

    The guide adds the delta scaled to the text's std, which the attention sink dominates: some eight times this dose.

    Args:
        text_embeds: `(tokens, dims)`.
        style_delta: `(tokens, dims)`, aligned to the text. A delta of zeros gives the text bit for bit.
        alpha: 0..1, a number or one a token.

    Returns:
        `(tokens, dims)` in the dtype of `text_embeds`.

    Raises:
        ValueError: As for `blend_embeddings`.

    Example:
        >>> blend_with_style_delta(torch.tensor([[10.0, 10.0]]), torch.tensor([[2.0, -2.0]]), 0.5).tolist()
        [[15.0, 5.0]]
    """
    text, delta = _check_pair(text_embeds, style_delta, "style_delta")
    column = _make_alpha_column(alpha, text)
    delta_rms = _get_median_rms(delta)
    if float(delta_rms) == 0:
        return text_embeds.clone()
    return (text + column * delta * (_get_median_rms(text) / delta_rms)).to(text_embeds.dtype)
