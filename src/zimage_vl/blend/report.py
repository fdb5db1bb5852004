"""What a conditioning did: counts, sizes, what was masked, how far the embeddings moved. Never what was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .embedding_statistics import get_token_rms
from .normalize import OutlierDirection, OutlierMaskingInfo


def make_jsonable(value: object) -> object:
    """Turn dataclasses, tensors, tuples and dicts into what JSON knows: string keys, and "inf" or "nan" for such.

    Example:
        >>> make_jsonable({4: (1, float("inf"))})
        {'4': [1, 'inf']}
    """
    if is_dataclass(value):
        return {field.name: make_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return make_jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): make_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [make_jsonable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def get_effective_alpha(text_embeds: Tensor, aligned: Tensor, alpha: Tensor) -> Tensor:
    """Get the reference's share of each token of a linear blend: `a r / (a r + 1 - a)`, r = rms(v) / rms(t).

    The transformer's caption embedder begins with an RMSNorm, so only the ratio of token sizes counts. Both embeddings
    are `(tokens, dims)`, `alpha` (as it acted) and the result `(tokens,)`; 0 where both shares are empty.

    Example:
        >>> get_effective_alpha(torch.ones(1, 2), torch.full((1, 2), 4.0), torch.tensor([0.5])).tolist()
        [0.800000011920929]
    """
    # Both shares multiplied by rms(t), so that nothing divides by a token of zeros.
    reference = alpha * get_token_rms(aligned)  # (tokens,)
    total = reference + (1 - alpha) * get_token_rms(text_embeds)
    return torch.where(total > 0, reference / torch.where(total > 0, total, 1.0), reference)


def get_influence(text_embeds: Tensor, blended: Tensor) -> float:
    """Get how far the text turned, `1 - mean cosine(blended, text)` over the tokens: exactly 0 if nothing changed.

    Example:
        >>> get_influence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        1.0
    """
    cosine = functional.cosine_similarity(blended.float(), text_embeds.float(), dim=1)
    unchanged = (blended == text_embeds).all(dim=1)
    return float((1 - torch.where(unchanged, 1.0, cosine)).clamp_min(0).mean())


def measure_dose(report: ConditioningReport) -> tuple[float, int] | None:
    """Get the median effective alpha of the tokens that a reference acted on, and how many they are.

    Both are 0 where it acted on none; None unless the blend is linear.
    """
    if report.effective_alpha is None:
        return None
    acted = report.effective_alpha[report.effective_alpha > 0]
    return float(acted.median()) if len(acted) else 0.0, len(acted)


@dataclass(frozen=True)
class ReferenceReport:
    """What happened to one reference on its way to the text."""

    tokens: int  # of its whole sequence
    selected_tokens: int  # that took part: the selection's, less dropped sinks
    aligned_tokens: int | None  # after alignment; None where nothing was aligned ("adain_per_dim")
    covered_tokens: int | None  # text tokens it lies on; None with "adain_per_dim" and "concat"
    weight: float  # its share among the references
    layer_weights: dict[int, float]  # the layers that were mixed
    std_before: float  # over the tokens that took part, after mixing layers
    std_after: float  # the same after masking and normalisation, before alignment
    scale_factor: float | None  # the one factor of "global"; None with other normalisations
    masking: OutlierMaskingInfo  # the outlier dimensions found, masked or left alone
    sinks: tuple[int, ...]  # positions of the attention sinks in its whole sequence
    dropped_sinks: tuple[int, ...]  # positions of selected tokens dropped as sinks, its own or its neutral twin's
    text: str | None = None  # that stood beside the picture; with `vl_describe` the VL encoder's own
    reader: str | None = None  # that read it
    treatment: str | None = None  # done to the picture before


@dataclass(frozen=True, eq=False)
class ConditioningReport:
    """What happened to one prompt's embeddings. A std leaves out sinks where those were excluded."""

    text_tokens: int  # sequence length before
    out_tokens: int  # sequence length after; longer than before only with "concat"
    references: tuple[ReferenceReport, ...]  # those that were laid on the text
    text_std: float  # of the text embeddings before
    aligned_std: float | None  # of the references' embeddings as they met the text; None where none did
    out_std: float  # of the embeddings after
    text_sinks: tuple[int, ...]  # positions of the attention sinks in the text
    effective_alpha: Tensor | None  # (text tokens,) on the CPU, 0 where nothing acted; None unless linear
    influence: float | None  # `get_influence` over the text's tokens but sinks; None if any were appended
    active_steps: tuple[int, int] | None = None  # the first step under the reference, one past the last; None: unknown

    @property
    def appended_tokens(self) -> int:
        """Tokens of the references that stand behind the text ("concat")."""
        return self.out_tokens - self.text_tokens

    @property
    def reference_tokens(self) -> int:
        """Tokens of all references' whole sequences."""
        return sum(reference.tokens for reference in self.references)

    @property
    def scale_factor(self) -> float | None:
        """The factor of a single reference; None for several, which have one each in `references`."""
        return self.references[0].scale_factor if len(self.references) == 1 else None

    @property
    def masked_dimensions(self) -> list[int]:
        """The dimensions that were masked in any reference, largest ratio first."""
        return list(self.masked_dim_ratios)

    @property
    def masked_dim_ratios(self) -> dict[int, float]:
        """`{dimension: ratio}` of what was masked in any reference, the largest ratio of each, largest first."""
        return _merge_ratios(reference.masking.masked_dim_ratios for reference in self.references)

    @property
    def left_dim_ratios(self) -> dict[int, float]:
        """The same of outliers that were left alone: deficits under "clamp" and "scale"."""
        return _merge_ratios(reference.masking.left_dim_ratios for reference in self.references)

    @property
    def masked_dim_directions(self) -> dict[int, OutlierDirection]:
        """`{dimension: "excess" or "deficit"}` of what was masked, as in the reference with the largest ratio."""
        infos = [reference.masking for reference in self.references]
        loudest = {d: max(infos, key=lambda info: info.masked_dim_ratios.get(d, 0)) for d in self.masked_dimensions}
        return {dim: info.directions[dim] for dim, info in loudest.items()}

    @property
    def reference_sinks(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the attention sinks, one tuple per reference."""
        return tuple(reference.sinks for reference in self.references)

    def to_dict(self) -> dict[str, object]:
        """Return all of it as plain values that JSON can hold; keys are strings, and an infinite ratio is "inf"."""
        summed = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: make_jsonable(getattr(self, name)) for name in [*(f.name for f in fields(self)), *summed]}


def _merge_ratios(several: Iterable[Mapping[int, float]]) -> dict[int, float]:
    found = sorted(((dim, ratio) for ratios in several for dim, ratio in ratios.items()), key=lambda item: item[1])
    return dict(sorted(dict(found).items(), key=lambda item: (-item[1], item[0])))  # the largest of each, descending
