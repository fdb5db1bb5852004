"""Dimensions in which the reference's embeddings spread far more, or far less, than the text encoder's.

The ratio is symmetric, `max(q, 1/q)` with `q = std_d / ref_std_d`, as in the Qwen3-VL conditioning guide's own
figures: its 617.9 for dimension 396 and 42.0 for dimension 4 are deficits, the image tokens lack the text's massive
activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_choice, check_embeddings, check_number
from .embedding_statistics import EmbeddingStatistics, get_dimension_std


OutlierMasking = Literal["none", "zero", "clamp", "scale"]
OutlierDirection = Literal["excess", "deficit"]


@dataclass(frozen=True)
class OutlierMaskingInfo:
    """What `mask_outlier_dimensions` found and did.

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


def _get_spread_quotients(embeddings: Tensor, reference: EmbeddingStatistics) -> Tensor:
    """`q = std_d / ref_std_d` as float64 `(dims,)`; 1 where neither side varies, and for a single token."""
    x = check_embeddings("embeddings", embeddings, reference.std.shape[0])
    std = get_dimension_std(x).double()
    ref_std = reference.std.to(std)
    if x.shape[0] < 2:
        return torch.ones_like(std)
    return torch.where((std == 0) & (ref_std == 0), torch.ones_like(std), std / ref_std)


def _find_outliers(
    embeddings: Tensor, reference: EmbeddingStatistics, threshold: float
) -> list[tuple[int, float, OutlierDirection]]:
    threshold = check_number("threshold", threshold, "a number above 1", lambda x: 1 < x < float("inf"))
    quotients = _get_spread_quotients(embeddings, reference)
    ratios = torch.maximum(quotients, 1 / quotients)
    dims = [int(d) for d in torch.nonzero(ratios > threshold).flatten()]
    dims.sort(key=lambda d: (-float(ratios[d]), d))
    return [(d, float(ratios[d]), "excess" if float(quotients[d]) > 1 else "deficit") for d in dims]


def get_outlier_dimensions(
    embeddings: Tensor, reference: EmbeddingStatistics, threshold: float = 10.0
) -> list[tuple[int, float]]:
    """The dimensions whose spread differs from the reference's more than `threshold`-fold, in either direction.

    `ratio_d = max(q, 1/q)` with `q = std_d / ref_std_d` (the guide, section 6). A dimension that does not vary here
    but does in the reference has the ratio inf; a single token has no spread and so no outliers.

    Args:
        embeddings: `(tokens, dims)`.
        reference: Statistics of the text encoder, equally wide.
        threshold: > 1.

    Returns:
        `(dimension, ratio)`, largest ratio first.

    Raises:
        ValueError: A threshold that is not above 1; another width than the reference's; NaN or inf.

    Example:
        >>> reference = EmbeddingStatistics(torch.zeros(3), torch.tensor([42.0, 1.0, 1.0]), count=100)
        >>> get_outlier_dimensions(torch.tensor([[-1.0, -1.0, -30.0], [0.0, 0.0, 0.0], [1.0, 1.0, 30.0]]), reference)
        [(0, 42.0), (2, 30.0)]
    """
    return [(dim, ratio) for dim, ratio, _ in _find_outliers(embeddings, reference, threshold)]


def scale_dimensions(embeddings: Tensor, factors: Mapping[int, float]) -> Tensor:
    """Multiply some dimensions by a factor each; the others keep their bits.

    Args:
        embeddings: `(tokens, dims)`.
        factors: `{dimension: factor}`.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`, a copy.

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
    reference: EmbeddingStatistics,
    threshold: float = 10.0,
    mode: OutlierMasking = "zero",
) -> tuple[Tensor, OutlierMaskingInfo]:
    """Quieten the outlier dimensions (the guide, section 6).

    "zero" sets each to 0, excess or deficit. "clamp" multiplies an excess by the factor that brings its ratio to the
    threshold, "scale" by the one that brings it to 1. Both leave deficits alone and report them: raising a dimension
    600-fold would drown the token. "none" only reports.

    Args:
        embeddings: `(tokens, dims)`: image tokens.
        reference: Statistics of the text encoder, equally wide.
        threshold: > 1, the ratio above which a dimension is an outlier.
        mode: "none", "zero", "clamp" or "scale".

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`, and what was done.

    Raises:
        ValueError: An unknown mode; otherwise as for `get_outlier_dimensions`.

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
        elif mode == "clamp" and direction == "excess":
            # A hair under the threshold, so that masking twice is masking once.
            factors[dim] = threshold / ratio * (1 - 1e-6)
        elif mode == "scale" and direction == "excess":
            factors[dim] = 1 / ratio
    info = OutlierMaskingInfo(
        masked_dimensions=list(factors),
        masked_dim_ratios={dim: ratio for dim, ratio, _ in outliers if dim in factors},
        factors=factors,
        left_dim_ratios={dim: ratio for dim, ratio, _ in outliers if dim not in factors},
        directions={dim: direction for dim, _, direction in outliers},
    )
    return scale_dimensions(embeddings, factors), info
