"""What comes into a conditioning, read and checked: the text, alpha, the references' layers and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.embeds import ReferenceEmbeds
from .checks import check_alpha, check_embeddings
from .embedding_statistics import EmbeddingStatistics, find_sink_tokens
from .knobs import VLConditioning
from .knobs import resolve_alpha
from .regions import PromptToken, Region


@dataclass(frozen=True)
class TextSide:
    """The prompt, as every step needs it."""

    embeds: Tensor  # (tokens, dims) float32
    regions: Tensor  # (tokens,)
    sinks: Tensor  # (tokens,) bool
    counted: Tensor  # (tokens,) bool: what statistics and blend take, all tokens or all but sinks
    appended: int  # tokens that "concat" appends, otherwise 0
    statistics: EmbeddingStatistics | None


def read_text(
    text_embeds: Tensor,
    text_regions: Tensor,
    conditioning: VLConditioning,
    statistics: EmbeddingStatistics | None,
    max_tokens: int | None,
) -> TextSide:
    embeds = check_embeddings("text_embeds", text_embeds)
    length = embeds.shape[0]
    if text_regions.shape != (length,):
        raise ValueError(
            f"`text_regions` must hold one region for each of {length} text tokens, got {tuple(text_regions.shape)}."
        )
    appended = 0
    if conditioning.vl_alignment == "concat" and isinstance(conditioning.vl_alpha, float):
        appended = round(conditioning.vl_alpha * length)
    if max_tokens is not None and length + appended > max_tokens:
        raise ValueError(
            f"The transformer takes {max_tokens} tokens, got {length} of the text and {appended} appended by "
            "vl_alignment 'concat': shorten the prompt, lower vl_alpha or use another alignment."
        )
    sinks = find_sink_tokens(embeds)
    counted = ~sinks if conditioning.vl_exclude_sinks else torch.ones_like(sinks)
    return TextSide(embeds, text_regions.to(embeds.device), sinks, counted, appended, statistics)


def get_token_alphas(text: TextSide, conditioning: VLConditioning, alpha: Tensor | None) -> Tensor:
    """What alpha asks for, `(tokens,)`."""
    if alpha is None:
        tokens = [PromptToken(i, "", Region(int(region))) for i, region in enumerate(text.regions)]
        alpha = resolve_alpha(conditioning.vl_alpha, tokens, None)
    values = check_alpha("alpha", alpha)
    if not isinstance(values, tuple) or len(values) != text.embeds.shape[0]:
        raise ValueError(
            f"`alpha` must hold one number for each of {text.embeds.shape[0]} text tokens, got {tuple(alpha.shape)}."
        )
    alphas = text.embeds.new_tensor(values)
    if conditioning.vl_alignment == "concat" and not torch.allclose(alphas, alphas.new_tensor(conditioning.vl_alpha)):
        raise ValueError(
            f"vl_alignment 'concat' needs `alpha` to be vl_alpha, {conditioning.vl_alpha}, everywhere, got values "
            f"from {float(alphas.min())} to {float(alphas.max())}."
        )
    return alphas


def check_needs(conditioning: VLConditioning, text: TextSide, neutral: ReferenceEmbeds | None) -> None:
    """The inputs that some knobs need: statistics of the text encoder, a neutral reference."""
    if conditioning.needs_text_statistics:
        if text.statistics is None:
            raise ValueError(
                f"vl_normalization {conditioning.vl_normalization!r} with vl_outlier_masking "
                f"{conditioning.vl_outlier_masking!r} needs `text_statistics` of the text encoder, got None."
            )
        if text.statistics.exclude_sinks != conditioning.vl_exclude_sinks:
            raise ValueError(
                f"vl_exclude_sinks is {conditioning.vl_exclude_sinks}, but `text_statistics` were measured with "
                f"exclude_sinks={text.statistics.exclude_sinks}: measure them alike."
            )
    if (conditioning.vl_blend_mode == "style_delta") != (neutral is not None):
        got = "None" if neutral is None else "one"
        raise ValueError(
            f"vl_blend_mode 'style_delta' needs `neutral` and no other takes it: got {got} with "
            f"{conditioning.vl_blend_mode!r}."
        )


def get_reference_weights(references: Sequence[ReferenceEmbeds], conditioning: VLConditioning) -> list[float]:
    """The references' shares, which sum to 1."""
    if not references:
        raise ValueError("`references` must hold at least one reference where alpha is not 0, got none.")
    weights = conditioning.reference_weights or (1.0,) * len(references)
    if len(weights) != len(references):
        raise ValueError(
            f"`reference_weights` must hold one number for each of {len(references)} references, got {len(weights)}."
        )
    return [weight / sum(weights) for weight in weights]


def mix_layers(name: str, reference: ReferenceEmbeds, text: TextSide, conditioning: VLConditioning) -> Tensor:
    """The weighted mean of the layers asked for, `(tokens, dims)` float32 on the text's device."""
    layers: list[Tensor] = []
    for layer, weight in conditioning.layer_weights.items():
        try:
            held = reference.get_layer(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        states = check_embeddings(f"{name}, layer {layer}", held, text.embeds.shape[1])
        if reference.regions.shape != states.shape[:1]:
            raise ValueError(
                f"The regions of {name} must be one for each of {len(states)} tokens, got "
                f"{tuple(reference.regions.shape)}."
            )
        layers.append(weight * states.to(text.embeds.device))
    return torch.stack(layers).sum(dim=0)


def mix_neutral(
    neutral: ReferenceEmbeds, states: Tensor, regions: Tensor, text: TextSide, conditioning: VLConditioning
) -> Tensor:
    plain = mix_layers("the neutral reference", neutral, text, conditioning)
    if plain.shape != states.shape or bool((neutral.regions.to(regions.device) != regions).any()):
        raise ValueError(
            f"The neutral reference must have the same tokens as the reference, got {len(plain)} and {len(states)}: "
            "bring it to the reference's pixels and give both the same text."
        )
    return plain
