"""From text embeddings and references to the embeddings that condition a picture. The only place that knows the order:

mix layers -> mask outliers (image tokens) -> normalise (over the selected tokens) -> align to the text -> token_rms ->
blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .align import align_anchored, align_sequence
from .checks import check_alpha, check_count, check_embeddings, check_kind, check_listed, skip_finite_checks
from .embedding_statistics import (
    EmbeddingStatistics,
    check_statistics,
    find_sink_tokens,
    get_overall_std,
    get_token_rms,
)
from .knobs import VLConditioning, resolve_alpha, share_weights
from .mix import TOKEN_BLENDS, blend_adain_per_dim, compute_style_delta
from .normalize import (
    OutlierMaskingInfo,
    mask_outlier_dimensions,
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    rescale_tokens,
    scale_dimensions,
    scale_embeddings,
)
from .regions import PromptToken, Region, check_regions, select_tokens
from .report import ConditioningReport, ReferenceReport, get_effective_alpha, get_influence


if TYPE_CHECKING:
    from ..reference.embeds import ReferenceEmbeds


@dataclass(frozen=True)
class _TextSide:
    """The prompt and the knobs, as every step needs them."""

    knobs: VLConditioning
    embeds: Tensor  # (tokens, dims) float32
    regions: Tensor  # (tokens,)
    sinks: Tensor  # (tokens,) bool
    counted: Tensor  # (tokens,) bool: what statistics and blend take, all tokens or all but sinks
    alphas: Tensor  # (tokens,): what was asked for
    appended: int  # tokens that "concat" appends, otherwise 0
    statistics: EmbeddingStatistics | None


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
    met: Tensor  # (any, dims): the references' tokens as they met the text
    alphas: Tensor  # (text tokens,): alpha as it acted, 0 where nothing did
    effective_alpha: Tensor | None = None  # (text tokens,); None unless linear


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

    Each reference goes through all steps to alignment alone. The weighted mean of them is rescaled to their weighted
    mean token RMS. A reference token that has no text token of its own ("concat", "adain_per_dim") takes, with
    "token_rms", the median RMS of the text's.

    Args:
        text_embeds: `(tokens, dims)`, unpadded, of any floating-point dtype.
        text_regions: `(tokens,)` `Region` values.
        references: One or several; may be empty where alpha is 0 everywhere.
        conditioning: The knobs.
        alpha: `(tokens,)` from `resolve_alpha`; with None, or "concat", that of `conditioning`, which then names no
            phrases.
        text_statistics: Of the text encoder, where `conditioning.needs_text_statistics`; measured without sinks if,
            and only if, `vl_exclude_sinks`.
        neutral: The neutral picture for "style_delta", with the same tokens as every reference; None: each reference
            muted, which it then has to hold.
        max_tokens: The most tokens that the transformer takes.

    Returns:
        `(tokens, dims)` in the dtype and on the device of `text_embeds` (longer with "concat"), and a report. Tokens
        on which nothing acts keep their bits; where alpha is 0 everywhere, `text_embeds` itself comes back.

    Raises:
        ValueError: Empty, non-finite or mismatched inputs, an empty selection, too many tokens, a result that is not
            finite; the message names the stage.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.WORDS])
        >>> text = torch.tensor([[1.0, -1.0], [2.0, 2.0]])
        >>> condition_prompt_embeds(text, regions, [], VLConditioning(vl_alpha=0.0))[0] is text
        True
    """
    embeds = check_embeddings("text_embeds", text_embeds)
    check_kind("conditioning", conditioning, "vl_alignment", "a VLConditioning")
    for i, reference in enumerate(check_listed("references", references)):
        check_kind(f"references[{i}]", reference, "hidden_states", "ReferenceEmbeds")
    check_regions("text_regions", text_regions, length := len(embeds))
    text = _read_text(embeds, text_regions, conditioning, alpha, text_statistics)
    check_caption(length, text.appended, max_tokens)
    if not bool(text.alphas.any()):
        return text_embeds, _make_report(text, embeds, [], None)
    _check_needs(references, conditioning, text_statistics, neutral)
    shares = share_weights(conditioning.reference_weights or [1.0] * len(references))
    laid: list[_LaidReference] = []
    for i, (reference, share) in enumerate(zip(references, shares, strict=True)):
        twin = neutral or (reference.muted if conditioning.needs_muted else None)
        states = _mix_layers(f"reference {i}", reference, text)
        plain = None if twin is None else _mix_layers("the neutral reference", twin, text)
        laid.append(_lay_reference(f"reference {i}", reference, states, plain, share, text))
    blend = _blend_unaligned if conditioning.vl_blend_mode == "adain_per_dim" else _blend_aligned
    outcome = blend(text, laid)
    out = outcome.embeds.to(text_embeds.dtype)
    # The text keeps its own bits wherever nothing acted.
    out = torch.cat([torch.where((outcome.alphas > 0)[:, None], out[:length], text_embeds), out[length:]])
    return out, _make_report(text, check_embeddings("the blended embeddings", out), laid, outcome)


def check_caption(length: int, appended: int, max_tokens: int | None) -> None:
    """Refuse a text that the transformer, which takes `max_tokens`, cannot take with what "concat" appends."""
    if max_tokens is not None and length + appended > check_count("max_tokens", max_tokens):
        got = f"{length} of the text and {appended} appended by 'concat'"
        raise ValueError(f"The transformer takes {max_tokens} tokens, got {got}: shorten the prompt or append fewer.")


@skip_finite_checks()
def _read_text(
    embeds: Tensor,
    regions: Tensor,
    knobs: VLConditioning,
    alpha: Tensor | None,
    statistics: EmbeddingStatistics | None,
) -> _TextSide:
    share = knobs.vl_alpha if knobs.vl_alignment == "concat" and isinstance(knobs.vl_alpha, float) else 0.0
    if alpha is None or share:
        tokens = [PromptToken(i, "", Region(int(region))) for i, region in enumerate(regions)]
        alpha = resolve_alpha(knobs.vl_alpha, tokens, None)
    values = check_alpha("alpha", alpha)
    if not isinstance(values, tuple) or len(values) != len(embeds):
        got = len(values) if isinstance(values, tuple) else values
        raise ValueError(f"`alpha` must have {len(embeds)} values, one per token, got {got}.")
    sinks = find_sink_tokens(embeds)
    counted = ~sinks if knobs.vl_exclude_sinks else torch.ones_like(sinks)
    alphas = embeds.new_tensor(values)
    appended = knobs.count_appended(len(embeds)) if share else 0
    return _TextSide(knobs, embeds, regions.to(embeds.device), sinks, counted, alphas, appended, statistics)


def _check_needs(
    references: Sequence[ReferenceEmbeds],
    knobs: VLConditioning,
    statistics: EmbeddingStatistics | None,
    neutral: ReferenceEmbeds | None,
) -> None:
    if statistics is not None:
        check_statistics("text_statistics", statistics)
    if knobs.needs_text_statistics and (statistics is None or statistics.exclude_sinks != knobs.vl_exclude_sinks):
        got = statistics and f"exclude_sinks={statistics.exclude_sinks}"
        raise ValueError(
            f"'per_dim', 'hybrid' and vl_outlier_masking need `text_statistics` with exclude_sinks="
            f"{knobs.vl_exclude_sinks}, as vl_exclude_sinks is, got {got}."
        )
    if neutral is not None:
        check_kind("neutral", neutral, "hidden_states", "ReferenceEmbeds")
    if (neutral is not None) != knobs.has_neutral_image:
        raise ValueError(f"`neutral` goes with has_neutral_image=True alone, got {knobs.has_neutral_image}.")
    if not references or len(knobs.reference_weights or references) != len(references):
        expected = "at least one" if knobs.reference_weights is None else len(knobs.reference_weights)
        raise ValueError(f"`references` must be {expected}, as `reference_weights` are, got {len(references)}.")
    for reference in references:
        if knobs.needs_muted and not reference.muted_states:
            raise ValueError("'style_delta' needs a `neutral_image`, or references encoded with muted=True.")
        if neutral is not None and neutral.regions.tolist() != reference.regions.tolist():
            got = f"{len(neutral.regions)} and {len(reference.regions)}"
            raise ValueError(f"The neutral reference must have the reference's size and text, thus tokens, got {got}.")


def _mix_layers(name: str, reference: ReferenceEmbeds, text: _TextSide) -> Tensor:
    """The weighted mean of the layers asked for, `(tokens, dims)` float32 on the text's device."""
    layers = [
        weight * check_embeddings(f"{name}, layer {layer}", reference.get_layer(layer), text.embeds.shape[1])
        for layer, weight in text.knobs.layer_weights.items()
    ]
    return torch.stack(layers).sum(dim=0).to(text.embeds.device)


@skip_finite_checks()
def _lay_reference(
    name: str, reference: ReferenceEmbeds, states: Tensor, plain: Tensor | None, share: float, text: _TextSide
) -> _LaidReference:
    """One reference, its layers mixed, through all steps to alignment; `plain` is its neutral twin."""
    knobs, regions = text.knobs, reference.regions.to(states.device)
    sinks = find_sink_tokens(states)
    dropped = (sinks if plain is None else sinks | find_sink_tokens(plain)) & knobs.vl_exclude_sinks
    selected = select_tokens(regions, knobs.vl_token_selection)
    kept = selected & ~dropped  # (tokens,)
    if not bool(kept.any()):
        raise ValueError(
            f"vl_token_selection {knobs.vl_token_selection!r} keeps none of the {len(kept)} tokens of {name} "
            f"({int(selected.sum())} selected, of which sinks were dropped): select others."
        )
    masked, info = _mask_image_tokens(states, plain, kept & (regions == Region.IMAGE), text)
    values, factor = _normalize(masked[kept], text)
    aligned, covered = _align(masked.index_put((kept,), values), regions, kept, dropped, text)
    one_to_one, made = knobs.vl_blend_mode != "adain_per_dim", reference.provenance
    report = ReferenceReport(
        tokens=len(regions),
        selected_tokens=int(kept.sum()),
        aligned_tokens=len(aligned) if one_to_one else None,
        covered_tokens=int(covered.sum()) if one_to_one and not text.appended else None,
        weight=share,
        layer_weights=knobs.layer_weights,
        std_before=get_overall_std(states[kept]),
        std_after=get_overall_std(values),
        scale_factor=factor,
        masking=info,
        sinks=_positions(sinks),
        dropped_sinks=_positions(selected & dropped),
        text=made.text,
        reader=made.reader,
        treatment=made.treatment,
    )
    return _LaidReference(aligned, covered, report)


def _positions(tokens: Tensor) -> tuple[int, ...]:
    return tuple(tokens.nonzero().flatten().tolist())


def _mask_image_tokens(
    states: Tensor, plain: Tensor | None, image: Tensor, text: _TextSide
) -> tuple[Tensor, OutlierMaskingInfo]:
    """The states, masked where `image` (tokens,) says so; less their neutral twin, where they have one."""
    info, mode = OutlierMaskingInfo(), text.knobs.vl_outlier_masking
    if mode != "none" and bool(image.any()):
        quiet, info = mask_outlier_dimensions(states[image], text.statistics, text.knobs.vl_outlier_threshold, mode)
        states = states.index_put((image,), quiet)
    if plain is not None:
        # The mask found on the reference, put on its twin: their difference must not come from the masking.
        states = compute_style_delta(states, plain.index_put((image,), scale_dimensions(plain[image], info.factors)))
    return states, info


def _normalize(values: Tensor, text: _TextSide) -> tuple[Tensor, float | None]:
    """The normalisations that come before alignment, and the factor where it is a single one."""
    mode, target_std, statistics = text.knobs.vl_normalization, text.knobs.vl_target_std, text.statistics
    if mode == "per_dim" and statistics is not None:
        return normalize_per_dimension(values, statistics), None
    if mode not in ("global", "hybrid"):
        return values, None
    target_std = get_overall_std(text.embeds[text.counted]) if target_std is None else target_std
    if mode == "hybrid" and statistics is not None:
        return normalize_hybrid(values, statistics, target_std), None
    return scale_embeddings(values, target_std), target_std / get_overall_std(values)


def _align(states: Tensor, regions: Tensor, kept: Tensor, dropped: Tensor, text: _TextSide) -> tuple[Tensor, Tensor]:
    """The selected tokens at the text's length, and where something lies."""
    mode, values = text.knobs.vl_alignment, states[kept]
    if mode == "anchored":
        return align_anchored(states, regions, text.regions, text.knobs.vl_token_selection, dropped)
    if mode == "concat":
        values = align_sequence(values, text.appended)
    elif text.knobs.vl_blend_mode != "adain_per_dim":
        values = align_sequence(values, len(text.embeds), mode)
    return values, torch.ones(len(values), dtype=torch.bool, device=values.device)


def _merge_references(laid: Sequence[_LaidReference]) -> tuple[Tensor, Tensor]:
    """The weighted mean of those that lie on a token, rescaled to their weighted mean RMS; and where any lies."""
    if len(laid) == 1:
        return laid[0].values, laid[0].covered
    shares = torch.stack([one.report.weight * one.covered for one in laid])  # (references, tokens)
    total = shares.sum(dim=0)
    shares = shares / torch.where(total > 0, total, 1.0)
    values = torch.stack([one.values for one in laid])  # (references, tokens, dims)
    rms = torch.stack([get_token_rms(one.values) for one in laid])  # (references, tokens)
    return rescale_tokens((shares[:, :, None] * values).sum(dim=0), (shares * rms).sum(dim=0)), total > 0


def _match_loudness(values: Tensor, text: _TextSide, one_to_one: bool) -> Tensor:
    """The step "token_rms". Without a text token of its own a token takes the median RMS of the text's."""
    if text.knobs.vl_normalization != "token_rms":
        return values
    if one_to_one:
        return match_token_rms(values, text.embeds)
    return rescale_tokens(values, get_token_rms(text.embeds[text.counted]).median().expand(len(values)))


@skip_finite_checks()
def _blend_unaligned(text: _TextSide, laid: Sequence[_LaidReference]) -> _BlendOutcome:
    """Blend by statistics of each whole reference; of several, the weighted mean of the blends."""
    met = [_match_loudness(one.values, text, one_to_one=False) for one in laid]
    embeds, alphas = text.embeds[text.counted], text.alphas[text.counted]
    blends = [blend_adain_per_dim(embeds, values, alphas) for values in met]
    blended = torch.stack([one.report.weight * x for one, x in zip(laid, blends, strict=True)]).sum(dim=0)
    return _BlendOutcome(text.embeds.index_put((text.counted,), blended), torch.cat(met), text.alphas * text.counted)


@skip_finite_checks()
def _blend_aligned(text: _TextSide, laid: Sequence[_LaidReference]) -> _BlendOutcome:
    """Blend token by token, or append."""
    values, covered = _merge_references(laid)
    values = _match_loudness(values, text, one_to_one=not text.appended)
    if text.appended:
        return _BlendOutcome(torch.cat([text.embeds, values]), values, torch.zeros_like(text.alphas))
    # Nothing acts where nothing lies, nor on a sink that is kept out.
    counted, alphas, mode = text.counted, text.alphas * text.counted * covered, text.knobs.vl_blend_mode
    blended = TOKEN_BLENDS[mode](text.embeds[counted], values[counted], alphas[counted])
    effective = get_effective_alpha(text.embeds, values, alphas) if mode == "linear" else None
    return _BlendOutcome(text.embeds.index_put((counted,), blended), values[covered], alphas, effective)


@skip_finite_checks()
def _make_report(
    text: _TextSide, out: Tensor, laid: Sequence[_LaidReference], outcome: _BlendOutcome | None
) -> ConditioningReport:
    """What happened; `out` is what comes back, as float32. Without an outcome nothing acted."""
    length, ordinary = len(text.embeds), ~text.sinks
    counted = torch.cat([text.counted, text.counted.new_ones(len(out) - length)])
    linear = text.knobs.vl_blend_mode == "linear" and text.knobs.vl_alignment != "concat"
    effective = outcome.effective_alpha if outcome else text.alphas if linear else None
    return ConditioningReport(
        text_tokens=length,
        out_tokens=len(out),
        references=tuple(one.report for one in laid),
        text_std=get_overall_std(text.embeds[text.counted]),
        aligned_std=get_overall_std(outcome.met) if outcome and len(outcome.met) else None,
        out_std=get_overall_std(out[counted]),
        text_sinks=_positions(text.sinks),
        effective_alpha=None if effective is None else effective.cpu(),
        influence=None if text.appended else get_influence(text.embeds[ordinary], out[:length][ordinary]),
    )
