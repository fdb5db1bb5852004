"""Bringing the reference's embeddings to the size of the text's.

All work in float32, return the dtype that came and leave their inputs alone. The formulas are those of the Qwen3-VL
conditioning guide, section 5; `match_token_rms` is ours: of a blend, only the ratio of token sizes counts, since the
transformer's caption embedder begins with an RMSNorm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_embeddings, check_number
from .embedding_statistics import EmbeddingStatistics, get_dimension_std, get_overall_std, get_token_rms


def get_scale_factor(embeddings: Tensor, target_std: float) -> float:
    """The factor of `scale_embeddings`: `target_std / std(embeddings)`, the std over all values.

    Args:
        embeddings: `(tokens, dims)`.
        target_std: > 0.

    Raises:
        ValueError: `target_std` is not above 0, or the embeddings do not vary, so that no factor helps.

    Example:
        >>> get_scale_factor(torch.tensor([[-1.0, 0.0, 1.0]]), 70.0)
        70.0
    """
    target_std = check_number("target_std", target_std, "a number above 0", lambda x: 0 < x < float("inf"))
    std = get_overall_std(embeddings)
    if std == 0:
        raise ValueError(
            "`embeddings` hold the same value everywhere (std 0), so they cannot be scaled to a std of "
            f"{target_std}. Use normalization 'token_rms' or 'none', or look into where the embeddings come from."
        )
    return target_std / std


def scale_embeddings(embeddings: Tensor, target_std: float) -> Tensor:
    """Global normalisation: `x · target_std / std(x)`, the std over all values.

    Args:
        embeddings: `(tokens, dims)`.
        target_std: > 0, the std to reach. The guide's constant is 70.0.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`.

    Raises:
        ValueError: `target_std` is not above 0; embeddings that do not vary, are not `(tokens, dims)`, or not finite.

    Example:
        >>> scale_embeddings(torch.tensor([[-1.0, 0.0, 1.0]]), 70.0).tolist()
        [[-70.0, 0.0, 70.0]]
    """
    factor = get_scale_factor(embeddings, target_std)
    return (embeddings.float() * factor).to(embeddings.dtype)


def normalize_per_dimension(embeddings: Tensor, reference: EmbeddingStatistics) -> Tensor:
    """Per-dimension normalisation: `(x - mean_d) / std_d · ref_std_d + ref_mean_d`.

    A dimension that does not vary (any dimension of a single token, or one that was zeroed) passes unchanged.

    Args:
        embeddings: `(tokens, dims)`.
        reference: Statistics of the text encoder, equally wide.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`.

    Raises:
        ValueError: Another width than the reference's; not `(tokens, dims)`, or not finite.

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([5.0, 5.0]), torch.tensor([2.0, 2.0]), count=100)
        >>> normalize_per_dimension(torch.tensor([[-1.0, 7.0], [0.0, 7.0], [1.0, 7.0]]), reference).tolist()
        [[3.0, 7.0], [5.0, 7.0], [7.0, 7.0]]
    """
    x = check_embeddings("embeddings", embeddings, reference.mean.shape[0])
    std = get_dimension_std(x)
    # Divide by one where nothing varies: the result is not used there.
    divisor = torch.where(std > 0, std, torch.ones_like(std))
    ref_mean, ref_std = reference.mean.to(x), reference.std.to(x)
    normalized = (x - x.mean(dim=0)) / divisor * ref_std + ref_mean
    return torch.where(std > 0, normalized, x).to(embeddings.dtype)


def normalize_hybrid(embeddings: Tensor, reference: EmbeddingStatistics, target_std: float) -> Tensor:
    """Half of the global and half of the per-dimension normalisation.

    Args:
        embeddings: `(tokens, dims)`.
        reference: Statistics of the text encoder, equally wide.
        target_std: > 0, for the global half.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`.

    Raises:
        ValueError: As for `scale_embeddings` and `normalize_per_dimension`.

    Example:
        >>> reference = EmbeddingStatistics(torch.tensor([0.0]), torch.tensor([4.0]), count=100)
        >>> normalize_hybrid(torch.tensor([[-1.0], [0.0], [1.0]]), reference, 2.0).tolist()
        [[-3.0], [0.0], [3.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    halves = 0.5 * scale_embeddings(x, target_std) + 0.5 * normalize_per_dimension(x, reference)
    return halves.to(embeddings.dtype)


def rescale_tokens(embeddings: Tensor, rms: Tensor) -> Tensor:
    """Give each token a root mean square of its own: `x · rms / rms(x)`. A token of zeros stays zero.

    Args:
        embeddings: `(tokens, dims)`.
        rms: `(tokens,)`, >= 0.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`.

    Raises:
        ValueError: Not one RMS a token; not `(tokens, dims)`, or not finite.

    Example:
        >>> rescale_tokens(torch.tensor([[2.0, -2.0], [0.0, 0.0]]), torch.tensor([6.0, 6.0])).tolist()
        [[6.0, -6.0], [0.0, 0.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    if rms.shape != x.shape[:1]:
        raise ValueError(f"`rms` must hold one number for each of {x.shape[0]} tokens, got {tuple(rms.shape)}.")
    own = get_token_rms(x)
    factor = torch.where(own > 0, rms.to(x) / torch.where(own > 0, own, torch.ones_like(own)), torch.zeros_like(own))
    return (x * factor[:, None]).to(embeddings.dtype)


def match_token_rms(embeddings: Tensor, like: Tensor) -> Tensor:
    """Each token takes the root mean square of its partner: `x · rms(like) / rms(x)`, token by token.

    After it alpha means what it says: the effective alpha of a linear blend equals the nominal one.

    Args:
        embeddings: `(tokens, dims)`. A token of zeros stays zero.
        like: `(tokens, any)`, as many tokens: the text's.

    Returns:
        `(tokens, dims)` in the dtype of `embeddings`.

    Raises:
        ValueError: Numbers of tokens that differ; not `(tokens, dims)`, or not finite.

    Example:
        >>> match_token_rms(torch.tensor([[1.0, -1.0]]), like=torch.tensor([[10.0, 10.0]])).tolist()
        [[10.0, -10.0]]
    """
    check_embeddings("embeddings", embeddings)
    check_embeddings("like", like)
    if embeddings.shape[0] != like.shape[0]:
        raise ValueError(
            f"`embeddings` and `like` must have as many tokens, got {embeddings.shape[0]} and {like.shape[0]}. "
            "Align the reference to the text first (align_sequence)."
        )
    return rescale_tokens(embeddings, get_token_rms(like))
