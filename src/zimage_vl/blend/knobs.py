"""The knobs of one prompt, checked alone and against each other, and alpha by place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_alpha, check_choice, check_count, check_flag, check_fraction, check_number, to_plain
from .regions import PromptToken, Region
from .registry import (
    CONDITIONING_NAMES,
    KNOBS,
    Alignment,
    BlendMode,
    Normalization,
    OutlierMasking,
    TextPosition,
    TokenSelection,
    VLReader,
)


VLAlpha = float | Sequence[float] | Tensor | Mapping[str, float]
HiddenLayer = int | Sequence[int] | Mapping[int, float]
#: The layer that is read unless another is asked for.
DEFAULT_LAYERS: dict[str, int] = {"qwen3-vl": -6, "text_encoder": -2}

_PLACE_REGIONS = {"prefix": Region.PREFIX, "prompt": Region.WORDS, "suffix": Region.SUFFIX}
PLACES = [*_PLACE_REGIONS, "default"]
_ALPHA_FORMS = (
    "a number from 0 to 1, a list with one per text token, or a dict such as {'default': 0.3, 'red car': 0.6}"
)
_LAYER_FORMS = "an int such as -6, a list of ints such as [-6, -8], or {layer: weight} such as {-6: 3, -8: 1}"
_NUMBER_RANGES: dict[str, Callable[[float], bool]] = {
    "vl_target_std": lambda x: 0 < x < float("inf"),
    "vl_outlier_threshold": lambda x: 1 < x < float("inf"),
    "vl_start": lambda x: 0 <= x <= 1,
    "vl_end": lambda x: 0 <= x <= 1,
}


@dataclass(frozen=True)
class VLConditioning:
    """How a reference conditions one prompt: the knobs of `CONDITIONING_NAMES`, under the names of the call.

    All values, and how they go together, are checked on construction: a TypeError for a value of the wrong type (a
    bool is no number), a ValueError for one out of its range or choices, or that does not go with another. Lists and
    dicts are copied. "style_delta" scales by itself and turns the default normalization into "none".

    Example:
        >>> VLConditioning(vl_hidden_layer={-6: 1, -8: 3}).layer_weights
        {-6: 0.25, -8: 0.75}
    """

    vl_reader: VLReader = "qwen3-vl"
    vl_alpha: VLAlpha = 0.3
    vl_hidden_layer: HiddenLayer | None = None  # None: -6, with the reader "text_encoder" -2
    vl_text_position: TextPosition = "after"
    vl_token_selection: TokenSelection = "all"
    vl_normalization: Normalization = "global"
    vl_target_std: float | None = None
    vl_outlier_masking: OutlierMasking = "none"
    vl_outlier_threshold: float = 10.0
    vl_exclude_sinks: bool = False
    vl_alignment: Alignment = "interpolate"
    vl_concat_tokens: int | None = None
    vl_blend_mode: BlendMode = "linear"
    vl_start: float = 0.0
    vl_end: float = 1.0
    vl_max_pixels: int = 1024 * 1024
    reference_weights: Sequence[float] | None = None  # numbers >= 0, one per reference; None weighs them equally
    has_neutral_image: bool = False  # for "style_delta", which otherwise subtracts the muted reference

    def __post_init__(self) -> None:
        for name in CONDITIONING_NAMES:
            self._set(name, to_plain(getattr(self, name)))  # numpy has numbers of its own
            _check_plain_knob(name, getattr(self, name))
        check_flag("has_neutral_image", self.has_neutral_image)
        layer = DEFAULT_LAYERS[self.vl_reader] if self.vl_hidden_layer is None else self.vl_hidden_layer
        # Plain values take the place of lists, dicts and tensors that the user may change.
        self._set("vl_alpha", _check_vl_alpha(self.vl_alpha))
        self._set("vl_hidden_layer", _check_hidden_layer(layer))
        self._set("reference_weights", _check_reference_weights(self.reference_weights))
        if self.vl_blend_mode == "style_delta" and self.vl_normalization == KNOBS["vl_normalization"].default:
            self._set("vl_normalization", "none")
        for conflict in _find_conflicts(self):
            raise ValueError(conflict)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # frozen towards the user

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers asked for, in the order given."""
        return tuple(self.layer_weights)

    @property
    def layer_weights(self) -> dict[int, float]:
        """`{layer: weight}`, the weights summing to 1."""
        asked = _check_hidden_layer(self.vl_hidden_layer)
        weights = {asked: 1.0} if isinstance(asked, int) else asked
        return dict(zip(weights, share_weights(list(weights.values())), strict=True))

    @property
    def needs_muted(self) -> bool:
        """Each reference has to be read muted too: "style_delta" without a neutral picture."""
        return self.vl_blend_mode == "style_delta" and not self.has_neutral_image

    @property
    def needs_text_statistics(self) -> bool:
        """Statistics of the text encoder are needed."""
        return self.vl_normalization in ("per_dim", "hybrid") or self.vl_outlier_masking != "none"

    @property
    def is_inert(self) -> bool:
        """Alpha is 0 at all places, so that the reference need not even be read."""
        alpha = self.vl_alpha
        values = alpha.values() if isinstance(alpha, Mapping) else alpha if isinstance(alpha, tuple) else [alpha]
        return not any(values)

    @property
    def unused(self) -> tuple[str, ...]:
        """One sentence per knob that is set and does nothing beside the others."""
        return tuple(_find_unused(self))

    def count_appended(self, length: int) -> int:
        """Get how many tokens "concat" appends to a text of `length` tokens; 0 with another alignment or alpha 0."""
        if self.vl_alignment != "concat" or not isinstance(self.vl_alpha, float) or not self.vl_alpha:
            return 0
        return self.vl_concat_tokens or max(1, round(self.vl_alpha * length))

    def window(self, num_inference_steps: int) -> list[bool]:
        """Get the steps in which the reference counts: step i of N iff `i/N >= vl_start` and `(i+1)/N <= vl_end`.

        ControlNet's rule in diffusers. No step inside is a ValueError.

        Example:
            >>> VLConditioning(vl_start=0.5).window(4)
            [False, False, True, True]
        """
        steps = check_count("num_inference_steps", num_inference_steps)
        inside = [i / steps >= self.vl_start and (i + 1) / steps <= self.vl_end for i in range(steps)]
        if not any(inside):
            window = f"`vl_start` {self.vl_start} to `vl_end` {self.vl_end}"
            raise ValueError(
                f"{window} contains none of {steps} steps, each 1/{steps} long: widen it or take more steps."
            )
        return inside


def share_weights(weights: Sequence[float]) -> list[float]:
    """Get the shares of weights >= 0, which sum to 1; scaled by the largest first, so that 1e308 cannot overflow."""
    scaled = [weight / max(weights) for weight in weights]
    return [weight / sum(scaled) for weight in scaled]


def _check_plain_knob(name: str, value: object) -> None:
    knob = KNOBS[name]
    if knob.choices:
        check_choice(name, value, knob.choices)
    elif isinstance(knob.default, bool):
        check_flag(name, value)
    elif name in _NUMBER_RANGES and (value is not None or knob.default is not None):
        check_number(name, value, knob.values, _NUMBER_RANGES[name])
    elif name == "vl_max_pixels" or (name == "vl_concat_tokens" and value is not None):
        check_count(name, value)


def _check_weights(name: str, weights: Iterable[tuple[object, object]]) -> list[float]:
    values = [check_number(f"{name}[{key}]", x, "finite, >= 0", lambda n: 0 <= n < float("inf")) for key, x in weights]
    if not any(values):
        raise ValueError(f"`{name}` must have a weight above 0, got {values}.")
    return values


def _check_hidden_layer(value: object) -> int | dict[int, float]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    layers: list[object] = list(value) if isinstance(value, (Mapping, Sequence)) else [None]
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise TypeError(f"`vl_hidden_layer` must be {_LAYER_FORMS}, got {value!r}.")
    weights: dict[int, object] = dict(value if isinstance(value, Mapping) else dict.fromkeys(layers, 1.0))
    if not weights or len(weights) < len(layers):
        raise ValueError(f"`vl_hidden_layer` must name at least one layer, and each once, got {value!r}.")
    return dict(zip(weights, _check_weights("vl_hidden_layer", weights.items()), strict=True))


def _check_reference_weights(value: object) -> tuple[float, ...] | None:
    values = to_plain(value)
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"`reference_weights` must be numbers, one per reference, such as [2, 1], got {value!r}.")
    return tuple(_check_weights("reference_weights", enumerate(values)))


def _find_conflicts(knobs: VLConditioning) -> Iterator[str]:
    mode, alignment, masking, alpha = knobs.vl_blend_mode, knobs.vl_alignment, knobs.vl_outlier_masking, knobs.vl_alpha
    if knobs.vl_start >= knobs.vl_end:
        yield f"`vl_start` must be below `vl_end`, got {knobs.vl_start} and {knobs.vl_end}."
    if masking != "none" and knobs.vl_token_selection == "text":
        yield (
            f"`vl_outlier_masking` {masking!r} works on image tokens, which `vl_token_selection` 'text' leaves out: "
            "it would do nothing. Use 'none', or select 'all', 'image' or 'image_no_markers'."
        )
    if mode == "adain_per_dim" and alignment != KNOBS["vl_alignment"].default:
        yield f"`vl_blend_mode` {mode!r} needs no alignment: leave `vl_alignment` at its default, got {alignment!r}."
    if alignment == "concat" and not (mode == "linear" and isinstance(alpha, float)):
        needs = "`vl_blend_mode` 'linear' and one number as `vl_alpha`, such as 0.3"
        yield f"`vl_alignment` 'concat' needs {needs}, got {mode!r} and {alpha!r}."
    if alignment != "concat" and knobs.vl_concat_tokens is not None:
        yield f"`vl_concat_tokens` is for `vl_alignment` 'concat' alone, got {alignment!r}."
    if mode == "style_delta" and knobs.vl_normalization != "none":
        yield f"`vl_blend_mode` {mode!r} scales by itself: omit `vl_normalization`, got {knobs.vl_normalization!r}."
    if mode != "style_delta" and knobs.has_neutral_image:
        yield f"`neutral_image` is for `vl_blend_mode` 'style_delta' alone and would do nothing, got {mode!r}."


def _find_unused(knobs: VLConditioning) -> Iterator[str]:
    std, masking, normalization = knobs.vl_target_std, knobs.vl_outlier_masking, knobs.vl_normalization
    if std is not None and knobs.vl_blend_mode == "style_delta":
        yield f"`vl_target_std` {std} does nothing with vl_blend_mode 'style_delta', which scales by itself."
    elif std is not None and normalization not in ("global", "hybrid"):
        yield f"`vl_target_std` {std} does nothing with vl_normalization {normalization!r}, unlike 'global'."
    if masking == "none" and knobs.vl_outlier_threshold != KNOBS["vl_outlier_threshold"].default:
        yield f"`vl_outlier_threshold` {knobs.vl_outlier_threshold} does nothing with vl_outlier_masking 'none'."
    if masking in ("clamp", "scale") and normalization == "per_dim":
        yield (
            f"`vl_outlier_masking` {masking!r} does next to nothing with vl_normalization 'per_dim', which gives each "
            "dimension the text encoder's spread anyway; 'zero' does act."
        )
    if knobs.vl_concat_tokens is not None and knobs.vl_alpha not in (0.0, KNOBS["vl_alpha"].default):
        yield f"`vl_alpha` {knobs.vl_alpha} does nothing beside vl_concat_tokens {knobs.vl_concat_tokens}."


def _check_vl_alpha(vl_alpha: object) -> float | tuple[float, ...] | dict[str, float]:
    if not isinstance(vl_alpha, Mapping):
        return check_alpha("vl_alpha", vl_alpha, _ALPHA_FORMS)
    for place in vl_alpha or [""]:
        if not isinstance(place, str):
            raise TypeError(f"`vl_alpha` must name its places by strings, got {place!r}. It must be {_ALPHA_FORMS}.")
        if not place.strip():
            raise ValueError(f"`vl_alpha` must name places or words of the prompt, got {vl_alpha!r}.")
    return {place: check_fraction(f"vl_alpha[{place!r}]", value) for place, value in vl_alpha.items()}


def split_per_prompt(vl_alpha: object, batch_size: int) -> list[object]:
    """Get each prompt's alpha, its values unchecked.

    A list is one per prompt if any of its entries is itself a list, dict or tensor (ValueError if not as long as the
    batch), or if it has as many numbers as there are several prompts. Anything else serves all prompts.

    Example:
        >>> split_per_prompt([0.3, 0.7], 2), split_per_prompt([0.3, 0.7], 1), split_per_prompt(0.3, 2)
        ([0.3, 0.7], [[0.3, 0.7]], [0.3, 0.3])
    """
    entries = [to_plain(x) for x in vl_alpha] if isinstance(vl_alpha, (list, tuple)) else to_plain(vl_alpha)
    if not isinstance(entries, list):
        return [vl_alpha] * batch_size
    nested = any(isinstance(entry, (Mapping, list, tuple)) for entry in entries)
    if nested and len(entries) != batch_size:
        raise ValueError(
            f"`vl_alpha` is a list of {len(entries)}, one per prompt, but there are {batch_size} prompts. One for all "
            f"must be {_ALPHA_FORMS}."
        )
    return entries if nested or len(entries) == batch_size > 1 else [vl_alpha] * batch_size


def resolve_alpha(vl_alpha: VLAlpha, tokens: Sequence[PromptToken], prompt: str | None) -> Tensor:
    """Get one alpha per text token, `(tokens,)` float32.

    A phrase takes precedence over "prompt", and that over "default" (0 if missing); "prefix" and "suffix" are the
    template around the prompt. A phrase is sought case-sensitively, everywhere in the prompt (None where only its
    embeddings are known), inside longer words too, and every token that shares a character with it counts. A
    ValueError: not as many numbers as tokens; a phrase that is not in the prompt or was cut off with its end; two
    phrases that give one token different values.

    Example:
        >>> words = [PromptToken(0, "red", Region.WORDS, 0, 3), PromptToken(1, " car", Region.WORDS, 3, 7)]
        >>> resolve_alpha({"default": 0.5, "car": 0.0}, words, "red car").tolist()
        [0.5, 0.0]
    """
    values = _check_vl_alpha(vl_alpha)
    if isinstance(values, tuple):
        if len(values) != len(tokens):
            raise ValueError(
                f"`vl_alpha` must hold one number for each of the prompt's {len(tokens)} tokens (template included), "
                f"got {len(values)}. It must be {_ALPHA_FORMS}; for several prompts, a list with one such per prompt."
            )
        return torch.tensor(values)
    if not isinstance(values, dict):
        return torch.full((len(tokens),), values)
    alphas = torch.full((len(tokens),), values.get("default", 0.0))
    for place, region in _PLACE_REGIONS.items():
        if place in values:
            alphas[[i for i, token in enumerate(tokens) if token.region == region]] = values[place]
    owners: dict[int, str] = {}
    for phrase in (place for place in values if place not in PLACES):
        for i in _find_phrase_tokens(phrase, tokens, prompt):
            other = owners.setdefault(i, phrase)
            if values[other] != values[phrase]:
                where = f"{other!r} with {values[other]} and in {phrase!r} with {values[phrase]}"
                raise ValueError(f"`vl_alpha` contradicts itself: the token {tokens[i].text!r} lies in {where}.")
            alphas[i] = values[phrase]
    return alphas


def _find_phrase_tokens(phrase: str, tokens: Sequence[PromptToken], prompt: str | None) -> list[int]:
    if prompt is None:
        known = f"use the places {PLACES}, or give one number per token"
        raise ValueError(f"`vl_alpha` names the phrase {phrase!r}, but the prompt's text is not known: {known}.")
    starts = [i for i in range(len(prompt)) if prompt.startswith(phrase, i)]
    if not starts:
        raise ValueError(
            f"`vl_alpha` names the phrase {phrase!r}, which the prompt {prompt!r} does not contain (case counts); "
            f"places that need no phrase are {PLACES}."
        )
    words = [token for token in tokens if token.region == Region.WORDS]
    found = [t.index for t in words if any(t.start < at + len(phrase) and at < t.end for at in starts)]
    if not found:
        raise ValueError(f"`vl_alpha` names the phrase {phrase!r}, which was cut off with the end of a long prompt.")
    return found
