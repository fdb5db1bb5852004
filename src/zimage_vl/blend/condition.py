"""From text embeddings and references to the embeddings that condition a picture. The only place that knows the order:

mix layers -> mask outliers (image tokens) -> normalise (over the selected tokens) -> align to the text -> token_rms ->
blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .align import align_anchored, align_sequence
from .checks import check_alpha, check_embeddings, skip_finite_checks
from .embedding_statistics import EmbeddingStatistics, find_sink_tokens, get_overall_std, get_token_rms
from .knobs import VLConditioning, resolve_alpha, share_weights
from .mix import TOKEN_BLENDS, blend_adain_per_dim, compute_style_delta
from .normalize import (
    OutlierMaskingInfo,
    get_scale_factor,
    mask_outlier_dimensions,
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    rescale_tokens,
    scale_dimensions,
    scale_embeddings,
)
from .regions import PromptToken, Region, select_tokens
from .report import ConditioningReport, ReferenceReport, get_effective_alpha, get_influence


if TYPE_CHECKING:
    from ..reference.embeds import ReferenceEmbeds


@dataclass(frozen=True)
class _TextSide:
    """The prompt, as every step needs it."""

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
    met: Tensor | None  # (any, dims): the references' tokens as they met the text
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
        alpha: `(tokens,)` from `resolve_alpha`; None: from `conditioning.vl_alpha`, which then must not name phrases.
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
    text = _read_text(check_embeddings("text_embeds", text_embeds), text_regions, conditioning, alpha, text_statistics)
    length = len(text.embeds)
    check_caption(length, text.appended, max_tokens)
    if not bool(text.alphas.any()):
        linear = conditioning.vl_blend_mode == "linear" and conditioning.vl_alignment != "concat"
        untouched = _BlendOutcome(text.embeds, None, text.alphas, text.alphas if linear else None)
        return text_embeds, _make_report(text, text.embeds, [], untouched)
    _check_needs(text, references, neutral, conditioning)
    laid: list[_LaidReference] = []
    shares = share_weights(conditioning.reference_weights or [1.0] * len(references))
    for i, (reference, share) in enumerate(zip(references, shares, strict=True)):
        states = _mix_layers(f"reference {i}", reference, text.embeds, conditioning)
        regions = reference.regions.to(states.device)
        twin = neutral or (reference.muted if conditioning.needs_muted else None)
        plain = None if twin is None else _mix_layers("the neutral reference", twin, text.embeds, conditioning)
        one = _lay_reference(f"reference {i}", states, regions, plain, share, text, conditioning)
        made = reference.provenance
        report = replace(one.report, text=made.text, reader=made.reader, treatment=made.treatment)
        laid.append(replace(one, report=report))
    blend = _blend_unaligned if conditioning.vl_blend_mode == "adain_per_dim" else _blend_aligned
    outcome = blend(text, laid, conditioning)
    out = outcome.embeds.to(text_embeds.dtype)
    # The text keeps its own bits wherever nothing acted.
    out = torch.cat([torch.where((outcome.alphas > 0)[:, None], out[:length], text_embeds), out[length:]])
    return out, _make_report(text, check_embeddings("the blended embeddings", out), laid, outcome)


def check_caption(length: int, appended: int, max_tokens: int | None) -> None:
    """Refuse a text that the transformer, which takes `max_tokens`, cannot take with what "concat" appends."""
    if max_tokens is not None and length + appended > max_tokens:
        raise ValueError(
            f"The transformer takes {max_tokens} tokens, got {length} of the text and {appended} appended by "
            "vl_alignment 'concat': shorten the prompt, append fewer or use another alignment."
        )


@skip_finite_checks()
def _read_text(
    embeds: Tensor,
    regions: Tensor,
    knobs: VLConditioning,
    alpha: Tensor | None,
    statistics: EmbeddingStatistics | None,
) -> _TextSide:
    if regions.shape != embeds.shape[:1]:
        got = tuple(regions.shape)
        raise ValueError(f"`text_regions` must hold one region for each of {len(embeds)} text tokens, got {got}.")
    if alpha is None:
        tokens = [PromptToken(i, "", Region(int(region))) for i, region in enumerate(regions)]
        alpha = resolve_alpha(knobs.vl_alpha, tokens, None)
    values = check_alpha("alpha", alpha)
    if not isinstance(values, tuple) or len(values) != len(embeds):
        got = tuple(alpha.shape)
        raise ValueError(f"`alpha` must hold one number for each of {len(embeds)} text tokens, got {got}.")
    alphas, appended = embeds.new_tensor(values), 0
    if knobs.vl_alignment == "concat" and isinstance(knobs.vl_alpha, float):
        if not torch.allclose(alphas, alphas.new_tensor(knobs.vl_alpha)):
            got = f"values from {min(values)} to {max(values)}"
            raise ValueError(
                f"vl_alignment 'concat' needs `alpha` to be vl_alpha, {knobs.vl_alpha}, everywhere, got {got}."
            )
        appended = knobs.count_appended(len(embeds))
    sinks = find_sink_tokens(embeds)
    counted = ~sinks if knobs.vl_exclude_sinks else torch.ones_like(sinks)
    appended = appended if bool(alphas.any()) else 0
    return _TextSide(embeds, regions.to(embeds.device), sinks, counted, alphas, appended, statistics)


def _check_needs(
    text: _TextSide, references: Sequence[ReferenceEmbeds], neutral: ReferenceEmbeds | None, knobs: VLConditioning
) -> None:
    statistics, excluded = text.statistics, knobs.vl_exclude_sinks
    if knobs.needs_text_statistics and statistics is None:
        raise ValueError(
            f"vl_normalization {knobs.vl_normalization!r} with vl_outlier_masking {knobs.vl_outlier_masking!r} needs "
            "`text_statistics` of the text encoder, got None."
        )
    if knobs.needs_text_statistics and statistics is not None and statistics.exclude_sinks != excluded:
        got = f"exclude_sinks={statistics.exclude_sinks}: measure them alike"
        raise ValueError(f"vl_exclude_sinks is {excluded}, but `text_statistics` were measured with {got}.")
    if (neutral is not None) != knobs.has_neutral_image:
        got = "None" if neutral is None else "one"
        raise ValueError(
            f"`neutral` goes with has_neutral_image=True alone: got {got} with {knobs.has_neutral_image} and "
            f"vl_blend_mode {knobs.vl_blend_mode!r}."
        )
    if knobs.needs_muted and not all(reference.muted_states for reference in references):
        raise ValueError(
            "vl_blend_mode 'style_delta' needs a `neutral_image`, or references that were read muted too: encode them "
            "with muted=True."
        )
    if not references:
        raise ValueError("`references` must hold at least one reference where alpha is not 0, got none.")
    weights = knobs.reference_weights or references
    if len(weights) != len(references):
        raise ValueError(
            f"`reference_weights` must hold one number for each of {len(references)} references, got {len(weights)}."
        )
    for reference in references:
        if neutral is not None and neutral.regions.tolist() != reference.regions.tolist():
            raise ValueError(
                f"The neutral reference must have the same tokens as the reference, got {len(neutral.regions)} and "
                f"{len(reference.regions)}: bring it to the reference's pixels and give both the same text."
            )


def _mix_layers(name: str, reference: ReferenceEmbeds, like: Tensor, knobs: VLConditioning) -> Tensor:
    """The weighted mean of the layers asked for, `(tokens, dims)` float32 on the text's device."""
    layers: list[Tensor] = []
    for layer, weight in knobs.layer_weights.items():
        try:
            held = reference.get_layer(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        states = check_embeddings(f"{name}, layer {layer}", held, like.shape[1])
        if reference.regions.shape != states.shape[:1]:
            got = tuple(reference.regions.shape)
            raise ValueError(f"The regions of {name} must be one for each of {len(states)} tokens, got {got}.")
        layers.append(weight * states.to(like.device))
    return torch.stack(layers).sum(dim=0)


@skip_finite_checks()
def _lay_reference(
    name: str,
    states: Tensor,
    regions: Tensor,
    plain: Tensor | None,
    share: float,
    text: _TextSide,
    knobs: VLConditioning,
) -> _LaidReference:
    """One reference, its layers mixed, through all steps to alignment; `plain` is its neutral twin."""
    sinks = find_sink_tokens(states)
    lost = sinks if plain is None else sinks | find_sink_tokens(plain)
    dropped = lost & knobs.vl_exclude_sinks
    selected = select_tokens(regions, knobs.vl_token_selection)
    kept = selected & ~dropped  # (tokens,)
    if not bool(kept.any()):
        raise ValueError(
            f"vl_token_selection {knobs.vl_token_selection!r} keeps none of the {len(kept)} tokens of {name} "
            f"({int(selected.sum())} selected, of which sinks were dropped): select others."
        )
    masked, info, image = states, OutlierMaskingInfo(), kept & (regions == Region.IMAGE)
    if knobs.vl_outlier_masking != "none" and bool(image.any()):
        threshold, mode = knobs.vl_outlier_threshold, knobs.vl_outlier_masking
        quiet, info = mask_outlier_dimensions(states[image], text.statistics, threshold, mode)
        masked = states.index_put((image,), quiet)  # the other tokens keep their bits
    if plain is not None:
        # The mask found on the reference, put on its twin: their difference must not come from the masking.
        masked = compute_style_delta(masked, plain.index_put((image,), scale_dimensions(plain[image], info.factors)))
    values, factor = _normalize(masked[kept], text, knobs)
    aligned, covered = _align(masked.index_put((kept,), values), regions, kept, dropped, text, knobs)
    one_to_one = knobs.vl_blend_mode != "adain_per_dim"
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
        sinks=tuple(sinks.nonzero().flatten().tolist()),
        dropped_sinks=tuple((selected & dropped).nonzero().flatten().tolist()),
    )
    return _LaidReference(aligned, covered, report)


def _normalize(values: Tensor, text: _TextSide, knobs: VLConditioning) -> tuple[Tensor, float | None]:
    """The normalisations that come before alignment, and the factor where it is a single one."""
    mode, statistics = knobs.vl_normalization, text.statistics
    if mode == "per_dim" and statistics is not None:
        return normalize_per_dimension(values, statistics), None
    if mode not in ("global", "hybrid"):
        return values, None
    target_std = get_overall_std(text.embeds[text.counted]) if knobs.vl_target_std is None else knobs.vl_target_std
    if mode == "hybrid" and statistics is not None:
        return normalize_hybrid(values, statistics, target_std), None
    return scale_embeddings(values, target_std), get_scale_factor(values, target_std)


def _align(
    states: Tensor, regions: Tensor, kept: Tensor, dropped: Tensor, text: _TextSide, knobs: VLConditioning
) -> tuple[Tensor, Tensor]:
    """The selected tokens at the text's length, and where something lies."""
    mode, values = knobs.vl_alignment, states[kept]
    if mode == "anchored":
        return align_anchored(states, regions, text.regions, knobs.vl_token_selection, dropped)
    if mode == "concat":
        values = align_sequence(values, text.appended)
    elif knobs.vl_blend_mode != "adain_per_dim":
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


def _match_loudness(values: Tensor, text: _TextSide, knobs: VLConditioning, one_to_one: bool) -> Tensor:
    """The step "token_rms". Without a text token of its own a token takes the median RMS of the text's."""
    if knobs.vl_normalization != "token_rms":
        return values
    if one_to_one:
        return match_token_rms(values, text.embeds)
    return rescale_tokens(values, get_token_rms(text.embeds[text.counted]).median().expand(len(values)))


@skip_finite_checks()
def _blend_unaligned(text: _TextSide, laid: Sequence[_LaidReference], knobs: VLConditioning) -> _BlendOutcome:
    """Blend by statistics of each whole reference; of several, the weighted mean of the blends."""
    met = [_match_loudness(one.values, text, knobs, one_to_one=False) for one in laid]
    embeds, alphas = text.embeds[text.counted], text.alphas[text.counted]
    blends = [blend_adain_per_dim(embeds, values, alphas) for values in met]
    blended = torch.stack([one.report.weight * x for one, x in zip(laid, blends, strict=True)]).sum(dim=0)
    return _BlendOutcome(text.embeds.index_put((text.counted,), blended), torch.cat(met), text.alphas * text.counted)


@skip_finite_checks()
def _blend_aligned(text: _TextSide, laid: Sequence[_LaidReference], knobs: VLConditioning) -> _BlendOutcome:
    """Blend token by token, or append."""
    values, covered = _merge_references(laid)
    values = _match_loudness(values, text, knobs, one_to_one=not text.appended)
    if text.appended:
        return _BlendOutcome(torch.cat([text.embeds, values]), values, torch.zeros_like(text.alphas))
    # Nothing acts where nothing lies, nor on a sink that is kept out.
    counted, alphas = text.counted, text.alphas * text.counted * covered
    mode = knobs.vl_blend_mode
    blended = TOKEN_BLENDS[mode](text.embeds[counted], values[counted], alphas[counted])
    effective = get_effective_alpha(text.embeds, values, alphas) if mode == "linear" else None
    return _BlendOutcome(text.embeds.index_put((counted,), blended), values[covered], alphas, effective)


@skip_finite_checks()
def _make_report(
    text: _TextSide, out: Tensor, laid: Sequence[_LaidReference], outcome: _BlendOutcome
) -> ConditioningReport:
    """What happened; `out` is what comes back, as float32."""
    length, met, effective, ordinary = len(text.embeds), outcome.met, outcome.effective_alpha, ~text.sinks
    counted = torch.cat([text.counted, text.counted.new_ones(len(out) - length)])
    return ConditioningReport(
        text_tokens=length,
        out_tokens=len(out),
        references=tuple(one.report for one in laid),
        text_std=get_overall_std(text.embeds[text.counted]),
        aligned_std=None if met is None or len(met) == 0 else get_overall_std(met),
        out_std=get_overall_std(out[counted]),
        text_sinks=tuple(text.sinks.nonzero().flatten().tolist()),
        effective_alpha=None if effective is None else effective.cpu(),
        influence=None if text.appended else get_influence(text.embeds[ordinary], out[:length][ordinary]),
    )
