"""How large embeddings are: per token, per dimension, and with or without attention sinks.

Embeddings are `(tokens, dims)`; an empty or non-finite tensor, or one of another shape or width, is a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .checks import check_count, check_embeddings, check_flag, check_floating, check_kind, check_listed, check_number


def get_token_rms(embeddings: Tensor) -> Tensor:
    """Get the root mean square of each token, `sqrt(mean_d(x_d^2))`, as `(tokens,)` float32."""
    return check_embeddings("embeddings", embeddings).square().mean(dim=1).sqrt()


def find_sink_tokens(embeddings: Tensor, factor: float = 8.0) -> Tensor:
    """Find attention sinks: the tokens whose RMS is above `factor` (> 0) times the (lower) median of their sequence.

    Qwen3 parks its attention on the first token of a turn, whose hidden state is some 27 times as large as an ordinary
    one and makes up about 97 % of the variance of a prompt's embeddings. Takes a whole sequence, gives `(tokens,)`
    bool.

    Example:
        >>> find_sink_tokens(torch.tensor([[300.0, 300.0], [10.0, 10.0], [9.0, 11.0]])).tolist()
        [True, False, False]
    """
    factor = check_number("factor", factor, "a number above 0", lambda x: 0 < x < float("inf"))
    rms = get_token_rms(embeddings)
    return rms > factor * rms.median()


def get_dimension_std(embeddings: Tensor) -> Tensor:
    """Get the standard deviation of each dimension over the tokens (correction 1), as `(dims,)` float32.

    It is exactly 0 for a single token, and for a dimension that holds one value up to float32 rounding, so that
    nothing later divides by the rounding.
    """
    x = check_embeddings("embeddings", embeddings)
    if x.shape[0] < 2:
        return x.new_zeros(x.shape[1])
    std = x.std(dim=0)
    return torch.where(std > 1e-6 * x.mean(dim=0).abs(), std, 0.0)


def give_moments(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give each dimension of `(tokens, dims)` a mean and std; one that does not vary passes unchanged."""
    own = get_dimension_std(x)
    return torch.where(own > 0, (x - x.mean(dim=0)) / torch.where(own > 0, own, 1.0) * std + mean, x)


def get_overall_std(embeddings: Tensor) -> float:
    """Get the standard deviation over all values (correction 1); 0 for a single value."""
    x = check_embeddings("embeddings", embeddings)
    return float(x.std()) if x.numel() > 1 else 0.0


@dataclass(frozen=True, eq=False)
class EmbeddingStatistics:
    """Mean and standard deviation of each dimension over many tokens, of one text encoder and one layer.

    Values that cannot be (shapes that disagree, NaN or inf, a negative std, fewer than two tokens) are a ValueError.
    """

    mean: Tensor  # (dims,) float32
    std: Tensor  # (dims,) float32, torch's default correction of 1
    count: int  # tokens measured
    exclude_sinks: bool = False  # attention sinks were left out

    def __post_init__(self) -> None:
        mean, std = (check_floating(name, getattr(self, name), "(dims,)") for name in ("mean", "std"))
        check_flag("exclude_sinks", self.exclude_sinks)
        fit = mean.ndim == 1 and mean.shape == std.shape
        if not fit or not bool((mean.isfinite() & std.isfinite() & (std >= 0)).all()):
            got = f"shapes {tuple(mean.shape)} and {tuple(std.shape)}"
            raise ValueError(f"`mean` and `std` must both be (dims,) and finite, `std` not negative, got {got}.")
        if check_count("count", self.count) < 2:
            raise ValueError(f"Statistics need at least two tokens to have a spread, got a `count` of {self.count}.")

    def to(self, device: torch.device | str) -> EmbeddingStatistics:
        """Return the same on another device."""
        return EmbeddingStatistics(self.mean.to(device), self.std.to(device), self.count, self.exclude_sinks)

    @classmethod
    def from_embeddings(
        cls, embeddings: Tensor | Sequence[Tensor], exclude_sinks: bool = False
    ) -> EmbeddingStatistics:
        """Measure one `(tokens, dims)` sequence, or all tokens of a list of them, equally wide.

        Sinks are found on each whole sequence. No sequence, or fewer than two tokens, is a ValueError.

        Example:
            >>> EmbeddingStatistics.from_embeddings(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).mean.tolist()
            [2.0, 2.0]
        """
        sequences = [embeddings] if isinstance(embeddings, Tensor) else check_listed("embeddings", embeddings)
        check_flag("exclude_sinks", exclude_sinks)
        checked = [check_embeddings(f"embeddings[{i}]", x) for i, x in enumerate(sequences)]
        widths = sorted({x.shape[1] for x in checked})
        if len(widths) != 1:
            raise ValueError(f"`embeddings` must be at least one sequence, all equally wide, got widths {widths}.")
        tokens = torch.cat([x[~find_sink_tokens(x)] for x in checked] if exclude_sinks else checked)
        return cls(tokens.mean(dim=0), get_dimension_std(tokens), tokens.shape[0], exclude_sinks)


def check_statistics(name: str, statistics: object) -> EmbeddingStatistics:
    """Check that it is statistics and return it; the TypeError says where to get some."""
    expected = "the text encoder's statistics, pipe.text_statistics() or EmbeddingStatistics.from_embeddings(...)"
    check_kind(name, statistics, "exclude_sinks", expected)
    return cast("EmbeddingStatistics", statistics)


def per_dimension_correlation(embeddings: Tensor, reference: EmbeddingStatistics) -> float:
    """Get the Pearson correlation, -1 to 1, of two std vectors: how alike they spread over the dimensions.

    The guide (section 3) gives .999 for Qwen3-VL's text tokens against Qwen3-4B and .737 for its image tokens. A
    single token, or a std that is the same in all dimensions, is a ValueError.

    Example:
        >>> x = torch.tensor([[1.0, 10.0, 2.0], [3.0, -10.0, 2.5]])
        >>> round(per_dimension_correlation(x, EmbeddingStatistics.from_embeddings(5 * x)), 6)
        1.0
    """
    check_statistics("reference", reference)
    x = check_embeddings("embeddings", embeddings, reference.std.shape[0])
    correlation = float(torch.corrcoef(torch.stack([get_dimension_std(x), reference.std.to(x)]).double())[0, 1])
    if correlation != correlation:
        raise ValueError("A std is the same in all dimensions, as of a single token: the correlation is not defined.")
    return correlation
