"""Bring the reference's embeddings to the size of the text's, and quieten dimensions that spread unlike the text's.

All functions take `(tokens, dims)` embeddings, work in float32 and return a new tensor in the dtype that came. What is
not finite, or not as wide as the statistics of the text encoder (`reference`), is a ValueError. The formulas are those
of the Qwen3-VL conditioning guide, sections 5 and 6; the matching of token RMS is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_choice, check_embeddings, check_number
from .embedding_statistics import (
    EmbeddingStatistics,
    check_statistics,
    get_dimension_std,
    get_overall_std,
    get_token_rms,
    give_moments,
)
from .registry import OutlierMasking


OutlierDirection = Literal["excess", "deficit"]


def scale_embeddings(embeddings: Tensor, target_std: float) -> Tensor:
    """Normalise globally, `x * target_std / std(x)`, the std over all values.

    `target_std` > 0 is 70.0 in the guide. Embeddings that do not vary are a ValueError.

    Example:
        >>> scale_embeddings(torch.tensor([[-1.0, 0.0, 1.0]]), 70.0).tolist()
        [[-70.0, 0.0, 70.0]]
    """
    target_std = check_number("target_std", target_std, "a number above 0", lambda x: 0 < x < float("inf"))
    std = get_overall_std(embeddings)
    if std == 0:
        raise ValueError(
            f"`embeddings` hold the same value everywhere: they cannot be scaled to a std of {target_std}."
        )
    return (embeddings.float() * (target_std / std)).to(embeddings.dtype)


def normalize_per_dimension(embeddings: Tensor, reference: EmbeddingStatistics) -> Tensor:
    """Normalise each dimension, `(x - mean_d) / std_d * ref_std_d + ref_mean_d`.

    A dimension that does not vary (any of a single token, or one that was zeroed) passes unchanged.

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([5.0, 5.0]), torch.tensor([2.0, 2.0]), count=100)
        >>> normalize_per_dimension(torch.tensor([[-1.0, 7.0], [0.0, 7.0], [1.0, 7.0]]), reference).tolist()
        [[3.0, 7.0], [5.0, 7.0], [7.0, 7.0]]
    """
    check_statistics("reference", reference)
    x = check_embeddings("embeddings", embeddings, reference.mean.shape[0])
    return give_moments(x, reference.mean.to(x), reference.std.to(x)).to(embeddings.dtype)


def normalize_hybrid(embeddings: Tensor, reference: EmbeddingStatistics, target_std: float) -> Tensor:
    """Take half of `scale_embeddings` and half of `normalize_per_dimension`.

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([0.0]), torch.tensor([4.0]), count=100)
        >>> normalize_hybrid(torch.tensor([[-1.0], [0.0], [1.0]]), reference, 2.0).tolist()
        [[-3.0], [0.0], [3.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    halves = 0.5 * scale_embeddings(x, target_std) + 0.5 * normalize_per_dimension(x, reference)
    return halves.to(embeddings.dtype)


def rescale_tokens(embeddings: Tensor, rms: Tensor) -> Tensor:
    """Give each token a root mean square: `x * rms / rms(x)`, `rms` being `(tokens,)`; a token of zeros stays zero."""
    x = check_embeddings("embeddings", embeddings)
    if rms.shape != x.shape[:1]:
        raise ValueError(f"There must be as many tokens on both sides, got {len(x)} and {len(rms)}: align first.")
    own = get_token_rms(x)
    factor = torch.where(own > 0, rms.to(x) / torch.where(own > 0, own, 1.0), 0.0)  # (tokens,)
    return (x * factor[:, None]).to(embeddings.dtype)


def match_token_rms(embeddings: Tensor, like: Tensor) -> Tensor:
    """Give each token the root mean square of its partner: `x * rms(like) / rms(x)`, token by token.

    After it the effective alpha of a linear blend is the nominal one: of a blend only the ratio of token sizes counts,
    since the transformer's caption embedder begins with an RMSNorm. `like` is `(tokens, any)`, as many tokens.

    Example:
        >>> match_token_rms(torch.tensor([[1.0, -1.0]]), like=torch.tensor([[10.0, 10.0]])).tolist()
        [[10.0, -10.0]]
    """
    return rescale_tokens(embeddings, get_token_rms(check_embeddings("like", like)))


@dataclass(frozen=True)
class OutlierMaskingInfo:
    """The outliers that `mask_outlier_dimensions` found and what it did, largest ratio first."""

    masked_dim_ratios: dict[int, float] = field(default_factory=dict[int, float])  # of those acted on, before
    left_dim_ratios: dict[int, float] = field(default_factory=dict[int, float])  # of those left alone
    directions: dict[int, OutlierDirection] = field(default_factory=dict[int, OutlierDirection])  # of all
    factors: dict[int, float] = field(default_factory=dict[int, float])  # what each was multiplied by

    @property
    def masked_dimensions(self) -> list[int]:
        """The dimensions acted on."""
        return list(self.masked_dim_ratios)


def _find_outliers(
    embeddings: Tensor, reference: EmbeddingStatistics | None, threshold: float
) -> list[tuple[int, float, OutlierDirection]]:
    statistics = check_statistics("reference", reference)
    threshold = check_number("threshold", threshold, "a number above 1", lambda x: 1 < x < float("inf"))
    x = check_embeddings("embeddings", embeddings, statistics.std.shape[0])
    if x.shape[0] < 2:
        return []
    std, ref_std = get_dimension_std(x).double(), statistics.std.to(x.device, torch.float64)
    quotients = torch.where((std == 0) & (ref_std == 0), 1.0, std / ref_std)
    ratios = torch.maximum(quotients, 1 / quotients)  # (dims,)
    dims = [int(d) for d in torch.nonzero(ratios > threshold).flatten()]
    dims.sort(key=lambda d: (-float(ratios[d]), d))
    return [(d, float(ratios[d]), "excess" if float(quotients[d]) > 1 else "deficit") for d in dims]


def get_outlier_dimensions(
    embeddings: Tensor, reference: EmbeddingStatistics | None = None, threshold: float = 10.0
) -> list[tuple[int, float]]:
    """Get the dimensions whose spread differs from the reference's more than `threshold`-fold, as `(dim, ratio)`.

    `ratio_d = max(q, 1/q)` with `q = std_d / ref_std_d`, largest first: both ways, as the guide's 617.9 for dimension
    396 is a deficit. A dimension that does not vary here but does there has the ratio inf; a single token has no
    outliers. Without statistics (`pipe.text_statistics()`) a TypeError; a threshold not above 1 is a ValueError.

    Example:
        >>> reference = EmbeddingStatistics(torch.zeros(3), torch.tensor([42.0, 1.0, 1.0]), count=100)
        >>> get_outlier_dimensions(torch.tensor([[-1.0, -1.0, -30.0], [0.0, 0.0, 0.0], [1.0, 1.0, 30.0]]), reference)
        [(0, 42.0), (2, 30.0)]
    """
    return [(dim, ratio) for dim, ratio, _ in _find_outliers(embeddings, reference, threshold)]


def scale_dimensions(embeddings: Tensor, factors: Mapping[int, float]) -> Tensor:
    """Multiply some dimensions by a factor each; the others keep their bits."""
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
    """Quieten the dimensions that `get_outlier_dimensions` finds.

    "zero" sets each to 0, excess or deficit. "clamp" multiplies an excess by the factor that brings its ratio to the
    threshold, "scale" by the one that brings it to 1. Both leave deficits alone and report them: raising a dimension
    600-fold would drown the token. "none" only reports.

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
        {dim: ratio for dim, ratio, _ in outliers if dim in factors},
        {dim: ratio for dim, ratio, _ in outliers if dim not in factors},
        {dim: direction for dim, _, direction in outliers},
        factors,
    )
    return scale_dimensions(embeddings, factors), info
