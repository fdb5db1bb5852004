"""Bring the reference's embeddings to the size of the text's, and quieten dimensions that spread unlike the text's.

All functions work in float32, return the dtype that came and leave their inputs alone. Embeddings that are not finite
`(tokens, dims)`, or not as wide as the statistics, are a ValueError. The formulas are those of the Qwen3-VL
conditioning guide, sections 5 and 6; the matching of token RMS is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_choice, check_embeddings, check_number
from .embedding_statistics import EmbeddingStatistics, get_dimension_std, get_overall_std, get_token_rms


OutlierMasking = Literal["none", "zero", "clamp", "scale"]
OutlierDirection = Literal["excess", "deficit"]


def get_scale_factor(embeddings: Tensor, target_std: float) -> float:
    """Get the factor of `scale_embeddings`, `target_std / std(x)`; a ValueError where the embeddings do not vary."""
    target_std = check_number("target_std", target_std, "a number above 0", lambda x: 0 < x < float("inf"))
    std = get_overall_std(embeddings)
    if std == 0:
        raise ValueError(
            f"`embeddings` hold the same value everywhere, so they cannot be scaled to a std of {target_std}: use "
            "normalization 'token_rms' or 'none', or look into where the embeddings come from."
        )
    return target_std / std


def scale_embeddings(embeddings: Tensor, target_std: float) -> Tensor:
    """Normalise globally, `x * target_std / std(x)`, the std over all values (the guide, section 5).

    Args:
        embeddings: `(tokens, dims)`.
        target_std: > 0, the std to reach. The guide's constant is 70.0.

    Raises:
        ValueError: `target_std` is not above 0, or the embeddings do not vary.

    Example:
        >>> scale_embeddings(torch.tensor([[-1.0, 0.0, 1.0]]), 70.0).tolist()
        [[-70.0, 0.0, 70.0]]
    """
    return (embeddings.float() * get_scale_factor(embeddings, target_std)).to(embeddings.dtype)


def normalize_per_dimension(embeddings: Tensor, reference: EmbeddingStatistics) -> Tensor:
    """Normalise each dimension, `(x - mean_d) / std_d * ref_std_d + ref_mean_d` (the guide, section 5).

    A dimension that does not vary (any of a single token, or one that was zeroed) passes unchanged.

    Args:
        embeddings: `(tokens, dims)`.
        reference: Statistics of the text encoder, equally wide.

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([5.0, 5.0]), torch.tensor([2.0, 2.0]), count=100)
        >>> normalize_per_dimension(torch.tensor([[-1.0, 7.0], [0.0, 7.0], [1.0, 7.0]]), reference).tolist()
        [[3.0, 7.0], [5.0, 7.0], [7.0, 7.0]]
    """
    x = check_embeddings("embeddings", embeddings, reference.mean.shape[0])
    std = get_dimension_std(x)
    normalized = (x - x.mean(dim=0)) / torch.where(std > 0, std, 1.0) * reference.std.to(x) + reference.mean.to(x)
    return torch.where(std > 0, normalized, x).to(embeddings.dtype)


def normalize_hybrid(embeddings: Tensor, reference: EmbeddingStatistics, target_std: float) -> Tensor:
    """Take half of `scale_embeddings` and half of `normalize_per_dimension` (the guide, section 5).

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([0.0]), torch.tensor([4.0]), count=100)
        >>> normalize_hybrid(torch.tensor([[-1.0], [0.0], [1.0]]), reference, 2.0).tolist()
        [[-3.0], [0.0], [3.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    halves = 0.5 * scale_embeddings(x, target_std) + 0.5 * normalize_per_dimension(x, reference)
    return halves.to(embeddings.dtype)


def rescale_tokens(embeddings: Tensor, rms: Tensor) -> Tensor:
    """Give each token a root mean square: `x * rms / rms(x)`, `rms` being `(tokens,)`; a token of zeros stays zero.

    Example:
        >>> rescale_tokens(torch.tensor([[2.0, -2.0], [0.0, 0.0]]), torch.tensor([6.0, 6.0])).tolist()
        [[6.0, -6.0], [0.0, 0.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    if rms.shape != x.shape[:1]:
        raise ValueError(f"`rms` must hold one number for each of {x.shape[0]} tokens, got {tuple(rms.shape)}.")
    own = get_token_rms(x)
    factor = torch.where(own > 0, rms.to(x) / torch.where(own > 0, own, 1.0), 0.0)  # (tokens,)
    return (x * factor[:, None]).to(embeddings.dtype)


def match_token_rms(embeddings: Tensor, like: Tensor) -> Tensor:
    """Give each token the root mean square of its partner: `x * rms(like) / rms(x)`, token by token.

    After it the effective alpha of a linear blend is the nominal one: of a blend only the ratio of token sizes counts,
    since the transformer's caption embedder begins with an RMSNorm.

    Args:
        embeddings: `(tokens, dims)`. A token of zeros stays zero.
        like: `(tokens, any)`, as many tokens (else ValueError): the text's.

    Example:
        >>> match_token_rms(torch.tensor([[1.0, -1.0]]), like=torch.tensor([[10.0, 10.0]])).tolist()
        [[10.0, -10.0]]
    """
    tokens, partners = len(check_embeddings("embeddings", embeddings)), len(check_embeddings("like", like))
    if tokens != partners:
        raise ValueError(
            f"`embeddings` and `like` must have as many tokens, got {tokens} and {partners}. Align the reference to "
            "the text first (align_sequence)."
        )
    return rescale_tokens(embeddings, get_token_rms(like))


@dataclass(frozen=True)
class OutlierMaskingInfo:
    """The outliers that `mask_outlier_dimensions` found, and what it did.

    Attributes:
        masked_dimensions: The dimensions acted on, largest ratio first.
        masked_dim_ratios: Their ratios before.
        factors: What each was multiplied by.
        left_dim_ratios: Outliers found and left alone, with their ratios: deficits under "clamp" and "scale".
        directions: "excess" or "deficit" for every outlier found, masked or left alone.
    """

    masked_dimensions: list[int]
    masked_dim_ratios: dict[int, float]
    factors: dict[int, float]
    left_dim_ratios: dict[int, float]
    directions: dict[int, OutlierDirection]


def _find_outliers(
    embeddings: Tensor, reference: EmbeddingStatistics | None, threshold: float
) -> list[tuple[int, float, OutlierDirection]]:
    if reference is None or not hasattr(reference, "std"):
        raise TypeError(
            f"`reference` must be the text encoder's statistics, which spreads are compared with, got {reference!r}: "
            "take `pipe.text_statistics()`, or EmbeddingStatistics.from_embeddings of embeddings of your own."
        )
    threshold = check_number("threshold", threshold, "a number above 1", lambda x: 1 < x < float("inf"))
    x = check_embeddings("embeddings", embeddings, reference.std.shape[0])
    if x.shape[0] < 2:
        return []
    std = get_dimension_std(x).double()
    ref_std = reference.std.to(std)
    quotients = torch.where((std == 0) & (ref_std == 0), 1.0, std / ref_std)
    ratios = torch.maximum(quotients, 1 / quotients)  # (dims,)
    dims = [int(d) for d in torch.nonzero(ratios > threshold).flatten()]
    dims.sort(key=lambda d: (-float(ratios[d]), d))
    return [(d, float(ratios[d]), "excess" if float(quotients[d]) > 1 else "deficit") for d in dims]


def get_outlier_dimensions(
    embeddings: Tensor, reference: EmbeddingStatistics | None = None, threshold: float = 10.0
) -> list[tuple[int, float]]:
    """Get the dimensions whose spread differs from the reference's more than `threshold`-fold, in either direction.

    `ratio_d = max(q, 1/q)` with `q = std_d / ref_std_d` (the guide, section 6, whose 617.9 for dimension 396 is a
    deficit). A dimension that does not vary here but does there has the ratio inf; a single token has no outliers.

    Args:
        embeddings: `(tokens, dims)`.
        reference: Statistics of the text encoder, equally wide: `pipe.text_statistics()`. Without it a TypeError.
        threshold: > 1.

    Returns:
        `(dimension, ratio)`, largest ratio first.

    Example:
        >>> reference = EmbeddingStatistics(torch.zeros(3), torch.tensor([42.0, 1.0, 1.0]), count=100)
        >>> get_outlier_dimensions(torch.tensor([[-1.0, -1.0, -30.0], [0.0, 0.0, 0.0], [1.0, 1.0, 30.0]]), reference)
        [(0, 42.0), (2, 30.0)]
    """
    return [(dim, ratio) for dim, ratio, _ in _find_outliers(embeddings, reference, threshold)]


def scale_dimensions(embeddings: Tensor, factors: Mapping[int, float]) -> Tensor:
    """Multiply some dimensions of `(tokens, dims)` by a factor each, in a copy; the others keep their bits.

    Example:
        >>> scale_dimensions(torch.tensor([[1.0, 2.0]]), {1: 0.5}).tolist()
        [[1.0, 1.0]]
    """
    scaled = embeddings.float().clone()
    for dim, factor in factors.items():
        # Assigned rather than multiplied where the factor is 0, so that no -0.0 appears.
        scaled[:, dim] = scaled[:, dim] * factor if factor else 0.0
    return scaled.to(embeddings.dtype)


def mask_outlier_dimensions(
    embeddings: Tensor,
    reference: EmbeddingStatistics | None = None,
    threshold: float = 10.0,
    mode: OutlierMasking = "zero",
) -> tuple[Tensor, OutlierMaskingInfo]:
    """Quieten the outlier dimensions (the guide, section 6).

    "zero" sets each to 0, excess or deficit. "clamp" multiplies an excess by the factor that brings its ratio to the
    threshold, "scale" by the one that brings it to 1. Both leave deficits alone and report them: raising a dimension
    600-fold would drown the token. "none" only reports.

    Args:
        embeddings: `(tokens, dims)`: image tokens.
        reference: Statistics of the text encoder, as for `get_outlier_dimensions`.
        threshold: > 1, the ratio above which a dimension is an outlier.
        mode: "none", "zero", "clamp" or "scale".

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`, and what was done.

    Example:
        >>> reference = EmbeddingStatistics(torch.zeros(2), torch.ones(2), count=100)
        >>> x = torch.tensor([[-30.0, -1.0], [0.0, 0.0], [30.0, 1.0]])
        >>> masked, info = mask_outlier_dimensions(x, reference, mode="scale")
        >>> info.masked_dimensions, info.masked_dim_ratios, info.directions
        ([0], {0: 30.0}, {0: 'excess'})
    """
    check_choice("mode", mode, get_args(OutlierMasking))
    outliers = _find_outliers(embeddings, reference, threshold)
    factors: dict[int, float] = {}
    for dim, ratio, direction in outliers:
        if mode == "zero" and bool(embeddings[:, dim].any()):
            factors[dim] = 0.0
        elif mode in ("clamp", "scale") and direction == "excess":
            # Clamped to a hair under the threshold, so that masking twice is masking once.
            factors[dim] = (threshold * (1 - 1e-6) if mode == "clamp" else 1) / ratio
    info = OutlierMaskingInfo(
        masked_dimensions=list(factors),
        masked_dim_ratios={dim: ratio for dim, ratio, _ in outliers if dim in factors},
        factors=factors,
        left_dim_ratios={dim: ratio for dim, ratio, _ in outliers if dim not in factors},
        directions={dim: direction for dim, _, direction in outliers},
    )
    return scale_dimensions(embeddings, factors), info
