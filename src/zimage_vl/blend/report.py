"""What a conditioning did: counts, sizes, what was masked, how far the embeddings moved. Never what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .embedding_statistics import get_token_rms
from .normalize import OutlierDirection


def make_jsonable(value: object) -> Any:
    """Reports, tensors, tuples and dicts as what JSON knows. Keys become strings, inf and NaN become "inf", "nan".

    Example:
        >>> make_jsonable({4: (1, float("inf"))})
        {'4': [1, 'inf']}
    """
    if isinstance(value, (ReferenceReport, ConditioningReport)):
        return {field.name: make_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return [make_jsonable(item) for item in cast("list[object]", value.tolist())]  # pyright: ignore[reportUnknownMemberType]
    if isinstance(value, Mapping):
        return {str(key): make_jsonable(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [make_jsonable(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def get_effective_alpha(text_embeds: Tensor, aligned: Tensor, alpha: Tensor) -> Tensor:
    """How much of each token of a linear blend is the reference: `a r / (a r + 1 - a)`, r = rms(v) / rms(t).

    The transformer's caption embedder begins with an RMSNorm, so only the ratio of token sizes counts.

    Args:
        text_embeds: `(tokens, dims)`.
        aligned: `(tokens, dims)`, the reference as it meets the text.
        alpha: `(tokens,)`, 0..1, as it acted.

    Returns:
        `(tokens,)` float32; 0 where both shares are empty.

    Raises:
        ValueError: Not `(tokens, dims)`, no token, NaN or inf.

    Example:
        >>> get_effective_alpha(torch.ones(1, 2), torch.full((1, 2), 4.0), torch.tensor([0.5])).tolist()
        [0.800000011920929]
    """
    # Both shares multiplied by rms(t), so that nothing divides by a token of zeros.
    reference = alpha * get_token_rms(aligned)
    total = reference + (1 - alpha) * get_token_rms(text_embeds)
    return torch.where(total > 0, reference / torch.where(total > 0, total, torch.ones_like(total)), reference)


def get_influence(text_embeds: Tensor, blended: Tensor) -> float:
    """How far the text turned: `1 - mean cosine(blended, text)` over the tokens.

    Args:
        text_embeds: `(tokens, dims)`, without sinks.
        blended: `(tokens, dims)`, the same tokens after the blend.

    Returns:
        0.0 (exactly, if nothing changed) to 2.0.

    Example:
        >>> get_influence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        1.0
    """
    cosine = functional.cosine_similarity(blended.float(), text_embeds.float(), dim=1)
    unchanged = (blended == text_embeds).all(dim=1)
    return float((1 - torch.where(unchanged, torch.ones_like(cosine), cosine)).clamp_min(0).mean())


@dataclass(frozen=True)
class ReferenceReport:
    """What happened to one reference on its way to the text.

    Attributes:
        tokens: Tokens of its whole sequence.
        selected_tokens: Tokens that took part: the selection's, less dropped sinks.
        aligned_tokens: Its length after alignment; None where nothing was aligned ("adain_per_dim").
        covered_tokens: Text tokens on which something of it lies; None where nothing was aligned.
        weight: Its share among the references, these sum to 1.
        layer_weights: The layers that were mixed, `{layer: weight}`.
        std_before: Std over the tokens that took part, after mixing layers.
        std_after: The same after masking and normalisation, before alignment.
        scale_factor: The one factor it was multiplied by; None unless the normalisation was global.
        masked_dimensions: Outlier dimensions that were changed, largest ratio first.
        masked_dim_ratios: Their ratios before, `{dimension: ratio}`.
        masked_dim_directions: `{dimension: "excess" or "deficit"}`.
        left_dim_ratios: Outlier dimensions found and left alone (deficits under "clamp" and "scale").
        sinks: Positions of the attention sinks in its whole sequence.
        dropped_sinks: Positions of selected tokens that were dropped as sinks, of the reference or its neutral twin.
    """

    tokens: int
    selected_tokens: int
    aligned_tokens: int | None
    covered_tokens: int | None
    weight: float
    layer_weights: dict[int, float]
    std_before: float
    std_after: float
    scale_factor: float | None
    masked_dimensions: list[int]
    masked_dim_ratios: dict[int, float]
    masked_dim_directions: dict[int, OutlierDirection]
    left_dim_ratios: dict[int, float]
    sinks: tuple[int, ...]
    dropped_sinks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ConditioningReport:
    """What happened to one prompt's embeddings.

    Attributes:
        text_tokens: Sequence length before.
        out_tokens: Sequence length after; longer than before only with "concat".
        references: One report a reference that was laid on the text; empty where none was.
        text_std: Std of the text embeddings before (without sinks where those were excluded).
        aligned_std: Std of the references' embeddings as they met the text, all steps done; None where none did.
        out_std: Std of the embeddings after (without sinks where those were excluded).
        text_sinks: Positions of the attention sinks in the text.
        effective_alpha: `(text tokens,)` float32 on the CPU: `alpha r / (alpha r + 1 - alpha)`, r the RMS of what lies
            on a token over its own; 0 where nothing lies or the token was kept. None unless the blend was linear.
        influence: `1 - mean cosine` of the text tokens after and before, sinks left out: 0 if nothing turned.
    """

    text_tokens: int
    out_tokens: int
    references: tuple[ReferenceReport, ...]
    text_std: float
    aligned_std: float | None
    out_std: float
    text_sinks: tuple[int, ...]
    effective_alpha: Tensor | None
    influence: float

    @property
    def reference_tokens(self) -> int:
        """Tokens of all references' whole sequences."""
        return sum(reference.tokens for reference in self.references)

    @property
    def selected_tokens(self) -> int:
        """Tokens of all references that took part."""
        return sum(reference.selected_tokens for reference in self.references)

    @property
    def aligned_tokens(self) -> int | None:
        """The references' common length after alignment; None where nothing was aligned."""
        return self.references[0].aligned_tokens if self.references else None

    @property
    def scale_factor(self) -> float | None:
        """The factor of a single reference; None for several, which have one each in `references`."""
        return self.references[0].scale_factor if len(self.references) == 1 else None

    @property
    def masked_dim_ratios(self) -> dict[int, float]:
        """`{dimension: ratio}` of what was masked in any reference, the largest ratio of each, largest first."""
        ratios: dict[int, float] = {}
        for reference in self.references:
            for dim, ratio in reference.masked_dim_ratios.items():
                ratios[dim] = max(ratio, ratios.get(dim, ratio))
        return dict(sorted(ratios.items(), key=lambda item: (-item[1], item[0])))

    @property
    def masked_dimensions(self) -> list[int]:
        """The dimensions that were masked in any reference, largest ratio first."""
        return list(self.masked_dim_ratios)

    @property
    def masked_dim_directions(self) -> dict[int, OutlierDirection]:
        """`{dimension: "excess" or "deficit"}` of what was masked, as in the reference with the largest ratio."""
        return {
            dim: max(
                (r for r in self.references if dim in r.masked_dim_ratios), key=lambda r: r.masked_dim_ratios[dim]
            ).masked_dim_directions[dim]
            for dim in self.masked_dimensions
        }

    @property
    def reference_sinks(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the attention sinks, one tuple a reference."""
        return tuple(reference.sinks for reference in self.references)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold; keys are strings, and an infinite ratio is "inf"."""
        summary = {
            name: make_jsonable(getattr(self, name))
            for name in (
                "reference_tokens",
                "selected_tokens",
                "aligned_tokens",
                "scale_factor",
                "masked_dimensions",
                "masked_dim_ratios",
                "masked_dim_directions",
                "reference_sinks",
            )
        }
        return {**make_jsonable(self), **summary}
