"""Mix a reference's tokens with the text's: the blends of the Qwen3-VL conditioning guide, and a spherical one.

Text first, then the reference, `(tokens, dims)` each, aligned to the text; `alpha` is a number from 0 to 1 or one per
text token, 0 being the text bit for bit. The work is done in float32, the result is new and in the text's dtype.
A ValueError: lengths or widths that differ, NaN or inf, an alpha out of range or of another length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_alpha, check_embeddings
from .embedding_statistics import get_dimension_std, get_token_rms, give_moments


TokenAlpha = float | Sequence[float] | Tensor


def _read_pair(
    text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha, name: str = "vl_embeds", aligned: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Both as float32, checked, and alpha as `(tokens, 1)`."""
    text = check_embeddings("text_embeds", text_embeds)
    vl = check_embeddings(name, vl_embeds, text.shape[1]).to(text.device)
    if aligned and len(text) != len(vl):
        got = f"{len(text)} and {len(vl)}: use align_sequence first"
        raise ValueError(f"`text_embeds` and `{name}` must have as many tokens, got {got}.")
    values = check_alpha("alpha", alpha)
    if not isinstance(values, tuple):
        return text, vl, text.new_full((len(text), 1), values)
    if len(values) != len(text):
        raise ValueError(f"`alpha` must hold one number for each of {len(text)} text tokens, got {len(values)}.")
    return text, vl, text.new_tensor(values)[:, None]


def blend_embeddings(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha) -> Tensor:
    """Blend linearly, `alpha * v + (1 - alpha) * t`. Alpha 1 is the reference bit for bit.

    Example:
        >>> blend_embeddings(torch.zeros(2, 1), torch.full((2, 1), 8.0), [0.25, 1.0]).tolist()
        [[2.0], [8.0]]
    """
    text, vl, a = _read_pair(text_embeds, vl_embeds, alpha)
    return torch.lerp(text, vl, a).to(text_embeds.dtype)


def blend_slerp(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha) -> Tensor:
    """Blend spherically, token by token: `((1 - a)|t| + a|v|) * slerp(t/|t|, v/|v|, a)`.

    `slerp(p, q, a) = (sin((1 - a) w) p + sin(a w) q) / sin w` (Shoemake 1985), w the angle between p and q. Where the
    sine is below 1e-4, or a token is zero and has no direction, the blend is linear. Alpha 1 is the reference bit for
    bit.

    Example:
        >>> blended = blend_slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 0.5)
        >>> round(blended.norm().item(), 4)
        3.0
    """
    text, vl, a = _read_pair(text_embeds, vl_embeds, alpha)
    text_norm, vl_norm = text.norm(dim=1, keepdim=True), vl.norm(dim=1, keepdim=True)  # (tokens, 1)
    tiny = torch.finfo(torch.float32).tiny
    p, q = text / text_norm.clamp_min(tiny), vl / vl_norm.clamp_min(tiny)
    # Half the angle from the diagonals of the rhombus: acos would lose all small angles to float32 rounding.
    angle = 2 * torch.atan2((p - q).norm(dim=1, keepdim=True), (p + q).norm(dim=1, keepdim=True))
    sine = angle.sin()
    straight = (sine < 1e-4) | (text_norm == 0) | (vl_norm == 0)
    direction = (torch.sin((1 - a) * angle) * p + torch.sin(a * angle) * q) / sine.clamp_min(1e-4)
    turned = ((1 - a) * text_norm + a * vl_norm) * direction
    blended = torch.where(straight, torch.lerp(text, vl, a), turned)
    return torch.where(a == 0, text, torch.where(a == 1, vl, blended)).to(text_embeds.dtype)


def blend_adain(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """Give each text token the mean and std of the reference's token (AdaIN, Huang and Belongie 2017), then blend.

    It nearly only rescales whole tokens, and the transformer normalises those: expect next to no effect.

    Example:
        >>> blend_adain(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([[50.0, 60.0, 70.0]]), 1.0).tolist()
        [[50.0, 60.0, 70.0]]
    """
    text, vl, a = _read_pair(text_embeds, vl_embeds, alpha)
    moved = give_moments(text.T, vl.T.mean(dim=0), get_dimension_std(vl.T)).T
    return torch.lerp(text, moved, a).to(text_embeds.dtype)


def blend_adain_per_dim(text_embeds: Tensor, vl_embeds: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """Give each dimension the mean and std that it has over the reference's tokens (AdaIN), then blend.

    `vl_embeds` needs no alignment, but at least two tokens.

    Example:
        >>> vl_embeds = torch.tensor([[50.0], [60.0], [70.0]])
        >>> blend_adain_per_dim(torch.tensor([[-1.0], [0.0], [1.0]]), vl_embeds, 1.0).tolist()
        [[50.0], [60.0], [70.0]]
    """
    text, vl, a = _read_pair(text_embeds, vl_embeds, alpha, aligned=False)
    if len(vl) < 2:
        raise ValueError("'adain_per_dim' needs at least two tokens of the reference, got 1: select more tokens.")
    moved = give_moments(text, vl.mean(dim=0), get_dimension_std(vl))
    return torch.lerp(text, moved, a).to(text_embeds.dtype)


def compute_style_delta(styled: Tensor, neutral: Tensor) -> Tensor:
    """Get what a style adds, `styled - neutral`: a reference's states less those of a neutral picture, token by token.

    Example:
        >>> compute_style_delta(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])).tolist()
        [[2.0, 0.0]]
    """
    x, y = check_embeddings("styled", styled), check_embeddings("neutral", neutral)
    if x.shape != y.shape:
        raise ValueError(
            f"`styled` and `neutral` must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    return (x - y.to(x.device)).to(styled.dtype)


def blend_with_style_delta(text_embeds: Tensor, style_delta: Tensor, alpha: TokenAlpha = 0.3) -> Tensor:
    """Add a style: `t + alpha * d * rms(t) / rms(d)`, rms the (lower) median over tokens that are not zero.

    A delta of zeros gives the text bit for bit. The guide scales the delta to the text's std, which the attention
    sink dominates: some eight times this dose.

    Example:
        >>> blend_with_style_delta(torch.tensor([[10.0, 10.0]]), torch.tensor([[2.0, -2.0]]), 0.5).tolist()
        [[15.0, 5.0]]
    """
    text, delta, a = _read_pair(text_embeds, style_delta, alpha, "style_delta")
    text_rms, delta_rms = get_token_rms(text), get_token_rms(delta)
    if not bool(delta_rms.any() and text_rms.any()):
        return text_embeds.clone()
    factor = text_rms[text_rms > 0].median() / delta_rms[delta_rms > 0].median()
    return (text + a * delta * factor).to(text_embeds.dtype)


# The blends of aligned tokens, one to one.
TOKEN_BLENDS = {
    "linear": blend_embeddings,
    "slerp": blend_slerp,
    "adain": blend_adain,
    "style_delta": blend_with_style_delta,
}
