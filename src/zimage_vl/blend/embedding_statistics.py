"""How large embeddings are: per token, per dimension, and with or without attention sinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_embeddings, check_number


def get_token_rms(embeddings: Tensor) -> Tensor:
    """The root mean square of each token, `sqrt(mean_d(x_d²))`.

    Args:
        embeddings: `(tokens, dims)`.

    Returns:
        `(tokens,)` float32.

    Raises:
        ValueError: Not `(tokens, dims)`, no token, NaN or inf.

    Example:
        >>> get_token_rms(torch.tensor([[3.0, -3.0], [0.0, 0.0]])).tolist()
        [3.0, 0.0]
    """
    return check_embeddings("embeddings", embeddings).square().mean(dim=1).sqrt()


def find_sink_tokens(embeddings: Tensor, factor: float = 8.0) -> Tensor:
    """Which tokens are attention sinks: those whose RMS is above `factor` × the median RMS of their sequence.

    Qwen3 parks its attention on the first token of a turn, whose hidden state is some 27 times as large as an ordinary
    one and makes up about 97 % of the variance of a prompt's embeddings.

    Args:
        embeddings: `(tokens, dims)`, one whole sequence.
        factor: > 0. How many times the median (the lower one of an even count) counts as a sink.

    Returns:
        `(tokens,)` bool.

    Raises:
        ValueError: Not `(tokens, dims)`, no token, NaN or inf; a factor that is not above 0.
        TypeError: Not a tensor, or a factor that is not a number.

    Example:
        >>> find_sink_tokens(torch.tensor([[300.0, 300.0], [10.0, 10.0], [9.0, 11.0]])).tolist()
        [True, False, False]
    """
    factor = check_number("factor", factor, "a number above 0", lambda x: 0 < x < float("inf"))
    rms = get_token_rms(embeddings)
    return rms > factor * rms.median()


def get_dimension_std(embeddings: Tensor) -> Tensor:
    """The standard deviation of each dimension over the tokens (correction 1); 0 for a single token.

    Args:
        embeddings: `(tokens, dims)`.

    Returns:
        `(dims,)` float32. A dimension that holds one value up to float32 rounding has exactly 0, so that nothing
        later divides by the rounding.

    Raises:
        ValueError: Not `(tokens, dims)`, no token, NaN or inf.

    Example:
        >>> get_dimension_std(torch.tensor([[1.0, 0.1], [3.0, 0.1]])).tolist()
        [1.4142135381698608, 0.0]
    """
    x = check_embeddings("embeddings", embeddings)
    if x.shape[0] < 2:
        return x.new_zeros(x.shape[1])
    std = x.std(dim=0)
    return torch.where(std > 1e-6 * x.mean(dim=0).abs(), std, torch.zeros_like(std))


def get_overall_std(embeddings: Tensor) -> float:
    """The standard deviation over all values (correction 1); 0 for a single value.

    Args:
        embeddings: `(tokens, dims)`.

    Raises:
        ValueError: Not `(tokens, dims)`, no token, NaN or inf.

    Example:
        >>> get_overall_std(torch.tensor([[-1.0, 0.0, 1.0]]))
        1.0
    """
    x = check_embeddings("embeddings", embeddings)
    return float(x.std()) if x.numel() > 1 else 0.0


@dataclass(frozen=True, eq=False)
class EmbeddingStatistics:
    """Mean and standard deviation of each dimension over many tokens.

    The reference of `normalize_per_dimension` and of the outlier functions. It belongs to one text encoder and one
    layer: measure it with the model in use.

    Attributes:
        mean: `(dims,)` float32.
        std: `(dims,)` float32, >= 0, with torch's default correction of 1.
        count: How many tokens were measured.
        exclude_sinks: Whether attention sinks were left out.

    Raises:
        ValueError: Shapes that do not agree, NaN or inf, a negative std, fewer than two tokens.
    """

    mean: Tensor
    std: Tensor
    count: int
    exclude_sinks: bool = False

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"`mean` and `std` must both be (dims,), got {tuple(self.mean.shape)} and {tuple(self.std.shape)}."
            )
        if not bool(torch.isfinite(self.mean).all() and torch.isfinite(self.std).all()):
            raise ValueError("`mean` and `std` must be finite, got NaN or inf.")
        if bool((self.std < 0).any()):
            raise ValueError(f"`std` must not be negative, got {float(self.std.min())}.")
        if self.count < 2:
            raise ValueError(f"Statistics need at least two tokens to have a spread, got {self.count}.")

    def to(self, device: torch.device | str) -> EmbeddingStatistics:
        """The same on another device."""
        return EmbeddingStatistics(self.mean.to(device), self.std.to(device), self.count, self.exclude_sinks)

    @classmethod
    def from_embeddings(
        cls, embeddings: Tensor | Sequence[Tensor], exclude_sinks: bool = False
    ) -> EmbeddingStatistics:
        """Measure one sequence or several.

        Args:
            embeddings: One `(tokens, dims)` tensor, or a list of such: one a sequence.
            exclude_sinks: Leave attention sinks out. They are found on each whole sequence.

        Returns:
            The statistics over all tokens of all sequences.

        Raises:
            ValueError: No sequence, fewer than two tokens, widths that differ, NaN or inf.

        Example:
            >>> EmbeddingStatistics.from_embeddings(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).mean.tolist()
            [2.0, 2.0]
        """
        sequences = [embeddings] if isinstance(embeddings, Tensor) else list(embeddings)
        if not sequences:
            raise ValueError("`embeddings` must be a (tokens, dims) tensor or a list of at least one, got none.")
        checked = [check_embeddings(f"embeddings[{i}]", x) for i, x in enumerate(sequences)]
        widths = sorted({x.shape[1] for x in checked})
        if len(widths) > 1:
            raise ValueError(f"All sequences must be equally wide, got widths {widths}.")
        if exclude_sinks:
            checked = [x[~find_sink_tokens(x)] for x in checked]
        tokens = torch.cat(checked)
        return cls(tokens.mean(dim=0), get_dimension_std(tokens), tokens.shape[0], exclude_sinks)


def per_dimension_correlation(embeddings: Tensor, reference: EmbeddingStatistics) -> float:
    """How alike two sets of embeddings spread over the dimensions: the Pearson correlation of their std vectors.

    The Qwen3-VL conditioning guide gives .999 for the VL model's text tokens against Qwen3-4B and .737 for its image
    tokens.

    Args:
        embeddings: `(tokens, dims)`, at least two tokens.
        reference: Statistics of the text encoder, equally wide.

    Returns:
        A number from -1 to 1.

    Raises:
        ValueError: A single token, another width, or a std vector that is the same in all dimensions: then the
            correlation is not defined.

    Example:
        >>> x = torch.tensor([[1.0, 10.0, 2.0], [3.0, -10.0, 2.5]])
        >>> round(per_dimension_correlation(x, EmbeddingStatistics.from_embeddings(5 * x)), 6)
        1.0
    """
    check_embeddings("embeddings", embeddings, reference.std.shape[0])
    if embeddings.shape[0] < 2:
        raise ValueError("`embeddings` must have at least two tokens to have a spread, got 1.")
    pair = torch.stack([get_dimension_std(embeddings), reference.std.to(embeddings.device, torch.float32)]).double()
    pair = pair - pair.mean(dim=1, keepdim=True)
    norms = pair.square().sum(dim=1).sqrt()
    if bool((norms == 0).any()):
        raise ValueError("The std is the same in all dimensions, so the correlation is not defined.")
    return float((pair[0] @ pair[1]) / (norms[0] * norms[1]))
