"""From text embeddings and references to the embeddings that condition a picture. The only place that knows the order:

mix layers -> mask outliers (image tokens) -> normalise (over the selected tokens) -> align to the text -> token_rms ->
blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.embeds import ReferenceEmbeds
from .align import align_anchored
from .checks import check_embeddings
from .conditioning_inputs import (
    TextSide,
    check_needs,
    get_reference_weights,
    get_token_alphas,
    mix_layers,
    mix_neutral,
    read_text,
)
from .embedding_statistics import EmbeddingStatistics, find_sink_tokens, get_overall_std, get_token_rms
from .knobs import VLConditioning
from .mix import (
    align_sequence,
    blend_adain,
    blend_adain_per_dim,
    blend_embeddings,
    blend_slerp,
    blend_with_style_delta,
    compute_style_delta,
)
from .normalize import (
    get_scale_factor,
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    rescale_tokens,
    scale_embeddings,
)
from .normalize import OutlierMaskingInfo, mask_outlier_dimensions, scale_dimensions
from .regions import Region, select_tokens
from .report import ConditioningReport, ReferenceReport, get_effective_alpha, get_influence


_TOKEN_BLENDS = {
    "linear": blend_embeddings,
    "slerp": blend_slerp,
    "adain": blend_adain,
    "style_delta": blend_with_style_delta,
}


@dataclass(frozen=True)
class _LaidReference:
    """One reference after alignment; with "adain_per_dim" and "concat" it has a length of its own."""

    values: Tensor  # (tokens, dims) float32
    covered: Tensor  # (tokens,) bool: where something lies
    report: ReferenceReport


@dataclass(frozen=True)
class _BlendOutcome:
    """The blend, before it takes the text's dtype, and what went into it."""

    embeds: Tensor  # (tokens, dims) float32
    met: Tensor | None  # (any, dims): the references' tokens as they met the text
    alphas: Tensor  # (text tokens,): alpha as it acted, 0 where nothing did
    effective_alpha: Tensor | None  # (text tokens,) on the CPU; None unless linear


def condition_prompt_embeds(
    text_embeds: Tensor,
    text_regions: Tensor,
    references: Sequence[ReferenceEmbeds],
    conditioning: VLConditioning,
    *,
    alpha: Tensor | None = None,
    text_statistics: EmbeddingStatistics | None = None,
    neutral: ReferenceEmbeds | None = None,
    max_tokens: int | None = None,
) -> tuple[Tensor, ConditioningReport]:
    """Blend one or several references into the text embeddings of one prompt.

    Each reference alone: mix layers, mask outlier dimensions of its image tokens, normalise by statistics over the
    selected tokens, align to the text. Then the weighted mean of the references, rescaled to their weighted mean token
    RMS, takes the text tokens' RMS ("token_rms") and is blended. A reference token that has no text token of its own
    ("concat", "adain_per_dim") takes the median RMS of the text's.

    Args:
        text_embeds: `(tokens, dims)`, unpadded, of any floating-point dtype.
        text_regions: `(tokens,)` `Region` values.
        references: One or several; may be empty where alpha is 0 everywhere.
        conditioning: The knobs.
        alpha: `(tokens,)` from `resolve_alpha`; None derives it from `conditioning.vl_alpha`, which then must not name
            phrases.
        text_statistics: Of the text encoder, where `conditioning.needs_text_statistics`; measured without sinks if,
            and only if, `vl_exclude_sinks`.
        neutral: The neutral picture for "style_delta", with the same tokens as every reference.
        max_tokens: The most tokens that the transformer takes.

    Returns:
        `(tokens, dims)` in the dtype and on the device of `text_embeds` (longer with "concat"), and a report. Tokens
        on which nothing acts keep their bits; where alpha is 0 everywhere, `text_embeds` itself comes back.

    Raises:
        ValueError: Empty, non-finite or mismatched inputs, an empty selection, too many tokens; the message names the
            stage.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.WORDS])
        >>> text = torch.tensor([[1.0, -1.0], [2.0, 2.0]])
        >>> condition_prompt_embeds(text, regions, [], VLConditioning(vl_alpha=0.0))[0] is text
        True
    """
    text = read_text(text_embeds, text_regions, conditioning, text_statistics, max_tokens)
    alphas = get_token_alphas(text, conditioning, alpha)
    if not bool(alphas.any()) or (conditioning.vl_alignment == "concat" and text.appended == 0):
        return text_embeds, _make_report(text, text.embeds, [], _leave_text(text, alphas, conditioning))
    check_needs(conditioning, text, neutral)
    weights = get_reference_weights(references, conditioning)
    laid = [
        _lay_reference(f"reference {i}", reference, weight, text, conditioning, neutral)
        for i, (reference, weight) in enumerate(zip(references, weights, strict=True))
    ]
    blend = _blend_unaligned if conditioning.vl_blend_mode == "adain_per_dim" else _blend_aligned
    outcome = blend(text, laid, alphas, conditioning)
    out = _restore_untouched(text_embeds, outcome)
    return out, _make_report(text, out.float(), laid, outcome)


def _lay_reference(
    name: str,
    reference: ReferenceEmbeds,
    weight: float,
    text: TextSide,
    conditioning: VLConditioning,
    neutral: ReferenceEmbeds | None,
) -> _LaidReference:
    """One reference through all steps to alignment."""
    states, regions = mix_layers(name, reference, text, conditioning), reference.regions.to(text.embeds.device)
    plain = None if neutral is None else mix_neutral(neutral, states, regions, text, conditioning)
    sinks = find_sink_tokens(states)
    lost = sinks if plain is None else sinks | find_sink_tokens(plain)
    dropped = lost if conditioning.vl_exclude_sinks else torch.zeros_like(lost)
    selected = select_tokens(regions, conditioning.vl_token_selection)
    kept = selected & ~dropped
    _check_selection(name, selected, kept, conditioning)
    image = kept & (regions == Region.IMAGE)
    masked, info = _mask_outliers(states, image, text, conditioning)
    if plain is not None:
        masked = compute_style_delta(masked, _repeat_mask(plain, image, info))
    values, factor = _normalize(masked[kept], text, conditioning)
    check_embeddings(f"{name} after masking and normalisation", values)
    ready = masked.index_put((kept,), values)
    aligned, covered = _align(ready, regions, kept, dropped, text, conditioning)
    one_to_one = conditioning.vl_blend_mode != "adain_per_dim"
    report = ReferenceReport(
        tokens=len(regions),
        selected_tokens=int(kept.sum()),
        aligned_tokens=len(aligned) if one_to_one else None,
        covered_tokens=int(covered.sum()) if one_to_one and not text.appended else None,
        weight=weight,
        layer_weights=conditioning.layer_weights,
        std_before=get_overall_std(states[kept]),
        std_after=get_overall_std(values),
        scale_factor=factor,
        masked_dimensions=info.masked_dimensions,
        masked_dim_ratios=info.masked_dim_ratios,
        masked_dim_directions={dim: info.directions[dim] for dim in info.masked_dimensions},
        left_dim_ratios=info.left_dim_ratios,
        sinks=_get_positions(sinks),
        dropped_sinks=_get_positions(selected & dropped),
    )
    return _LaidReference(aligned, covered, report)


def _check_selection(name: str, selected: Tensor, kept: Tensor, conditioning: VLConditioning) -> None:
    if not bool(kept.any()):
        raise ValueError(
            f"vl_token_selection {conditioning.vl_token_selection!r} keeps none of the {len(kept)} tokens of {name} "
            f"({int(selected.sum())} selected, of which sinks were dropped): select others."
        )


def _mask_outliers(
    states: Tensor, image: Tensor, text: TextSide, conditioning: VLConditioning
) -> tuple[Tensor, OutlierMaskingInfo]:
    """Mask the outlier dimensions of the image tokens; the others keep their bits."""
    mode = conditioning.vl_outlier_masking
    if mode == "none" or text.statistics is None or not bool(image.any()):
        return states, OutlierMaskingInfo([], {}, {}, {}, {})
    threshold = conditioning.vl_outlier_threshold
    masked, info = mask_outlier_dimensions(states[image], text.statistics, threshold, mode)
    return states.index_put((image,), masked), info


def _repeat_mask(states: Tensor, image: Tensor, info: OutlierMaskingInfo) -> Tensor:
    """The mask found on a reference, put on its neutral twin: their difference must not come from the masking."""
    return states.index_put((image,), scale_dimensions(states[image], info.factors))


def _normalize(values: Tensor, text: TextSide, conditioning: VLConditioning) -> tuple[Tensor, float | None]:
    """The normalisations that come before alignment, and the factor where it is a single one."""
    mode, target_std = conditioning.vl_normalization, conditioning.vl_target_std
    if mode in ("global", "hybrid") and target_std is None:
        target_std = get_overall_std(text.embeds[text.counted])
    if mode == "global" and target_std is not None:
        return scale_embeddings(values, target_std), get_scale_factor(values, target_std)
    if mode == "hybrid" and target_std is not None and text.statistics is not None:
        return normalize_hybrid(values, text.statistics, target_std), None
    if mode == "per_dim" and text.statistics is not None:
        return normalize_per_dimension(values, text.statistics), None
    return values, None


def _align(
    states: Tensor, regions: Tensor, kept: Tensor, dropped: Tensor, text: TextSide, conditioning: VLConditioning
) -> tuple[Tensor, Tensor]:
    """The selected tokens at the text's length, and where something lies."""
    mode = conditioning.vl_alignment
    if conditioning.vl_blend_mode == "adain_per_dim":
        values = states[kept]
    elif mode == "anchored":
        return align_anchored(states, regions, text.regions, conditioning.vl_token_selection, dropped)
    elif mode == "concat":
        values = align_sequence(states[kept], text.appended)
    else:
        values = align_sequence(states[kept], text.embeds.shape[0], mode)
    return values, torch.ones(len(values), dtype=torch.bool, device=values.device)


def _merge_references(laid: Sequence[_LaidReference]) -> tuple[Tensor, Tensor]:
    """The weighted mean of those that lie on a token, rescaled to their weighted mean RMS; and where any lies."""
    if len(laid) == 1:
        return laid[0].values, laid[0].covered
    shares = torch.stack([one.report.weight * one.covered for one in laid])
    total = shares.sum(dim=0)
    shares = shares / torch.where(total > 0, total, torch.ones_like(total))
    mean = torch.stack([share[:, None] * one.values for share, one in zip(shares, laid, strict=True)]).sum(dim=0)
    rms = torch.stack([share * get_token_rms(one.values) for share, one in zip(shares, laid, strict=True)]).sum(dim=0)
    return rescale_tokens(mean, rms), total > 0


def _match_loudness(values: Tensor, text: TextSide, conditioning: VLConditioning, one_to_one: bool) -> Tensor:
    """The step "token_rms". Without a text token of its own a token takes the median RMS of the text's."""
    if conditioning.vl_normalization != "token_rms":
        return values
    if one_to_one:
        return match_token_rms(values, text.embeds)
    return rescale_tokens(values, get_token_rms(text.embeds[text.counted]).median().expand(len(values)))


def _leave_text(text: TextSide, alphas: Tensor, conditioning: VLConditioning) -> _BlendOutcome:
    """No blend at all."""
    untouched = torch.zeros_like(alphas)
    linear = conditioning.vl_blend_mode == "linear" and conditioning.vl_alignment != "concat"
    return _BlendOutcome(text.embeds, None, untouched, untouched.cpu() if linear else None)


def _blend_unaligned(
    text: TextSide, laid: Sequence[_LaidReference], alphas: Tensor, conditioning: VLConditioning
) -> _BlendOutcome:
    """Blend by statistics of each whole reference; of several, the weighted mean of the blends."""
    met = [_match_loudness(one.values, text, conditioning, one_to_one=False) for one in laid]
    counted = text.counted
    blends = [
        one.report.weight * blend_adain_per_dim(text.embeds[counted], values, alphas[counted])
        for one, values in zip(laid, met, strict=True)
    ]
    embeds = text.embeds.index_put((counted,), torch.stack(blends).sum(dim=0))
    return _BlendOutcome(embeds, torch.cat(met), alphas * counted, None)


def _blend_aligned(
    text: TextSide, laid: Sequence[_LaidReference], alphas: Tensor, conditioning: VLConditioning
) -> _BlendOutcome:
    """Blend token by token, or append."""
    values, covered = _merge_references(laid)
    values = _match_loudness(values, text, conditioning, one_to_one=not text.appended)
    if text.appended:
        return _BlendOutcome(torch.cat([text.embeds, values]), values, torch.zeros_like(alphas), None)
    # Nothing acts where nothing lies, nor on a sink that is kept out.
    counted, alphas = text.counted, alphas * text.counted * covered
    mode = conditioning.vl_blend_mode
    blend = _TOKEN_BLENDS[mode]
    blended = blend(text.embeds[counted], values[counted], alphas[counted])
    effective = get_effective_alpha(text.embeds, values, alphas).cpu() if mode == "linear" else None
    return _BlendOutcome(text.embeds.index_put((counted,), blended), values[covered], alphas, effective)


def _restore_untouched(text_embeds: Tensor, outcome: _BlendOutcome) -> Tensor:
    """The blend in the text's dtype, with the text's own bits wherever nothing acted."""
    out, length = outcome.embeds.to(text_embeds.dtype), len(text_embeds)
    acted = (outcome.alphas > 0)[:, None]
    out = torch.cat([torch.where(acted, out[:length], text_embeds), out[length:]])
    check_embeddings("the blended embeddings", out)
    return out


def _get_positions(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.nonzero(mask).flatten())


def _make_report(
    text: TextSide, out: Tensor, laid: Sequence[_LaidReference], outcome: _BlendOutcome
) -> ConditioningReport:
    """What happened; `out` is what comes back, as float32."""
    length, met = len(text.embeds), outcome.met
    counted = torch.cat([text.counted, text.counted.new_ones(len(out) - length)])
    ordinary = ~text.sinks
    return ConditioningReport(
        text_tokens=length,
        out_tokens=len(out),
        references=tuple(one.report for one in laid),
        text_std=get_overall_std(text.embeds[text.counted]),
        aligned_std=None if met is None or len(met) == 0 else get_overall_std(met),
        out_std=get_overall_std(out[counted]),
        text_sinks=_get_positions(text.sinks),
        effective_alpha=outcome.effective_alpha,
        influence=get_influence(text.embeds[ordinary], out[:length][ordinary]),
    )
