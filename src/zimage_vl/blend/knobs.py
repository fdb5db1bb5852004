"""Every knob of the method in one frozen dataclass, validated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from .checks import check_choice, check_number
from .outliers import OutlierMasking
from .places import VLAlpha, check_vl_alpha
from .regions import TextPosition, TokenSelection


Normalization = Literal["global", "per_dim", "hybrid", "token_rms", "none"]
Alignment = Literal["anchored", "pool", "interpolate", "truncate", "concat"]
BlendMode = Literal["linear", "slerp", "adain", "adain_per_dim", "style_delta"]

_KNOB_CHOICES: dict[str, tuple[str, ...]] = {
    "vl_text_position": get_args(TextPosition),
    "vl_token_selection": get_args(TokenSelection),
    "vl_normalization": get_args(Normalization),
    "vl_outlier_masking": get_args(OutlierMasking),
    "vl_alignment": get_args(Alignment),
    "vl_blend_mode": get_args(BlendMode),
}


@dataclass(frozen=True)
class VLConditioning:
    """How a reference conditions one prompt. The fields carry the names of the pipeline's keyword arguments.

    All knobs, and how they go together, are checked on construction; lists and dicts are copied.

    Attributes:
        vl_alpha: 0..1, a number; one a text token; or `{place: 0..1}` (see `resolve_alpha`). 0 is the text alone, 1
            the reference alone.
        vl_hidden_layer: Index into the VL model's hidden states, or `{layer: weight}` with weights >= 0.
        vl_text_position: Where the text stands in the user turn, seen from the picture: "after" or "before".
        vl_token_selection: "all", "text", "image" or "image_no_markers".
        vl_normalization: "global", "per_dim", "hybrid", "token_rms" or "none".
        vl_target_std: > 0, for "global" and "hybrid"; None is the std of this prompt's text embeddings.
        vl_outlier_masking: "none", "zero", "clamp" or "scale", on the image tokens.
        vl_outlier_threshold: > 1.
        vl_exclude_sinks: Leave attention sinks out of statistics, alignment and blend.
        vl_alignment: "anchored", "pool", "interpolate", "truncate" or "concat".
        vl_blend_mode: "linear", "slerp", "adain", "adain_per_dim" or "style_delta".
        vl_start: Fraction of the steps at which the reference begins to count, 0 <= vl_start < vl_end.
        vl_end: Fraction at which it ceases to, <= 1.
        vl_max_pixels: The largest area the reference is read at, in pixels.
        reference_weights: Numbers >= 0, one a reference; None weighs them equally.
        has_neutral_image: Whether a neutral picture was given, which "style_delta" needs.

    Raises:
        TypeError: A value of the wrong type; a bool or a string is not a number.
        ValueError: A value out of its range or choices, or values that do not go together.

    Example:
        >>> VLConditioning(vl_hidden_layer={-6: 1, -8: 3}).layer_weights
        {-6: 0.25, -8: 0.75}
    """

    vl_alpha: VLAlpha = 0.3
    vl_hidden_layer: int | Mapping[int, float] = -6
    vl_text_position: TextPosition = "after"
    vl_token_selection: TokenSelection = "all"
    vl_normalization: Normalization = "global"
    vl_target_std: float | None = None
    vl_outlier_masking: OutlierMasking = "none"
    vl_outlier_threshold: float = 10.0
    vl_exclude_sinks: bool = False
    vl_alignment: Alignment = "anchored"
    vl_blend_mode: BlendMode = "linear"
    vl_start: float = 0.0
    vl_end: float = 1.0
    vl_max_pixels: int = 1024 * 1024
    reference_weights: Sequence[float] | None = None
    has_neutral_image: bool = False

    def __post_init__(self) -> None:
        for name, choices in _KNOB_CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        # Frozen towards the user; here the plain values take the place of lists and dicts that the user may change.
        object.__setattr__(self, "vl_alpha", check_vl_alpha(self.vl_alpha))
        object.__setattr__(self, "vl_hidden_layer", _check_hidden_layer(self.vl_hidden_layer))
        object.__setattr__(self, "reference_weights", _check_reference_weights(self.reference_weights))
        _check_scalar_knobs(self)
        _check_knobs_together(self)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers asked for, in the order given."""
        return tuple(self.layer_weights)

    @property
    def layer_weights(self) -> dict[int, float]:
        """`{layer: weight}`, the weights summing to 1."""
        if isinstance(self.vl_hidden_layer, int):
            return {self.vl_hidden_layer: 1.0}
        total = sum(self.vl_hidden_layer.values())
        return {layer: weight / total for layer, weight in self.vl_hidden_layer.items()}

    @property
    def needs_text_statistics(self) -> bool:
        """Whether statistics of the text encoder are needed."""
        return self.vl_normalization in ("per_dim", "hybrid") or self.vl_outlier_masking != "none"

    @property
    def is_inert(self) -> bool:
        """Whether alpha is 0 at all places, so that the reference need not even be read."""
        if isinstance(self.vl_alpha, Mapping):
            return not any(self.vl_alpha.values())
        return not any(self.vl_alpha if isinstance(self.vl_alpha, Sequence) else (self.vl_alpha,))

    def window(self, num_inference_steps: int) -> list[bool]:
        """In which steps the reference counts: step i of N iff `i/N >= vl_start` and `(i+1)/N <= vl_end`.

        ControlNet's rule in diffusers.

        Args:
            num_inference_steps: N, at least 1.

        Returns:
            One bool a step.

        Raises:
            ValueError: No step is inside.

        Example:
            >>> VLConditioning(vl_start=0.5).window(4)
            [False, False, True, True]
        """
        steps = _check_positive_int("num_inference_steps", num_inference_steps)
        inside = [i / steps >= self.vl_start and (i + 1) / steps <= self.vl_end for i in range(steps)]
        if not any(inside):
            raise ValueError(
                f"`vl_start` {self.vl_start} to `vl_end` {self.vl_end} contains none of {steps} steps, each "
                f"1/{steps} long: widen it or take more steps."
            )
        return inside


def _check_positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int of at least 1, got {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"`{name}` must be an int of at least 1, got {value}.")
    return value


def _check_hidden_layer(value: object) -> int | dict[int, float]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`vl_hidden_layer` must be an int or {{layer: weight}}, got {value!r} of type {type(value).__name__}."
        )
    weights: dict[int, float] = {}
    given = cast("Mapping[object, object]", value)
    for layer, weight in given.items():
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise TypeError(f"`vl_hidden_layer` must name its layers by ints, got {layer!r} in {given!r}.")
        weights[layer] = _check_weight(f"vl_hidden_layer[{layer}]", weight)
    if sum(weights.values()) <= 0:
        raise ValueError(f"`vl_hidden_layer` needs weights with a sum above 0, got {given!r}.")
    return weights


def _check_weight(name: str, value: object) -> float:
    return check_number(name, value, "a number of at least 0", lambda x: 0 <= x < float("inf"))


def _check_reference_weights(value: object) -> tuple[float, ...] | None:
    if value is None:
        return None
    tolist: Any = getattr(value, "tolist", None)
    values: Any = tolist() if callable(tolist) else value
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"`reference_weights` must be a list of numbers, one a reference, got {value!r}.")
    weights = tuple(
        _check_weight(f"reference_weights[{i}]", weight) for i, weight in enumerate(cast("Sequence[object]", values))
    )
    if sum(weights) <= 0:
        raise ValueError(f"`reference_weights` must have a sum above 0, got {value!r}.")
    return weights


def _check_scalar_knobs(knobs: VLConditioning) -> None:
    if knobs.vl_target_std is not None:
        expected = "a number above 0, or None for the std of the prompt's text embeddings"
        check_number("vl_target_std", knobs.vl_target_std, expected, lambda x: 0 < x < float("inf"))
    check_number(
        "vl_outlier_threshold", knobs.vl_outlier_threshold, "a number above 1", lambda x: 1 < x < float("inf")
    )
    _check_positive_int("vl_max_pixels", knobs.vl_max_pixels)
    for name in ("vl_exclude_sinks", "has_neutral_image"):
        value: object = getattr(knobs, name)
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False, got {value!r} of type {type(value).__name__}.")
    start = check_number("vl_start", knobs.vl_start, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
    end = check_number("vl_end", knobs.vl_end, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
    if start >= end:
        raise ValueError(f"`vl_start` must be below `vl_end`, got {knobs.vl_start} and {knobs.vl_end}.")


def _check_knobs_together(knobs: VLConditioning) -> None:
    if knobs.vl_outlier_masking != "none" and knobs.vl_token_selection == "text":
        raise ValueError(
            f"`vl_outlier_masking` {knobs.vl_outlier_masking!r} works on image tokens, which `vl_token_selection` "
            "'text' leaves out: it would do nothing. Use 'none', or select 'all', 'image' or 'image_no_markers'."
        )
    if knobs.vl_blend_mode == "adain_per_dim" and knobs.vl_alignment != "anchored":
        raise ValueError(
            f"`vl_blend_mode` 'adain_per_dim' needs no alignment, got `vl_alignment` {knobs.vl_alignment!r}, which "
            "would do nothing: leave it at its default 'anchored'."
        )
    if knobs.vl_alignment == "concat" and knobs.vl_blend_mode != "linear":
        raise ValueError(f"`vl_alignment` 'concat' needs `vl_blend_mode` 'linear', got {knobs.vl_blend_mode!r}.")
    if knobs.vl_alignment == "concat" and not isinstance(knobs.vl_alpha, float):
        raise ValueError(f"`vl_alignment` 'concat' needs one number as `vl_alpha`, got {knobs.vl_alpha!r}.")
    if knobs.vl_blend_mode == "style_delta" and not knobs.has_neutral_image:
        raise ValueError("`vl_blend_mode` 'style_delta' needs a `neutral_image`, got None.")
    if knobs.vl_blend_mode == "style_delta" and knobs.vl_normalization != "none":
        raise ValueError(
            "`vl_blend_mode` 'style_delta' scales by itself and needs `vl_normalization` 'none', got "
            f"{knobs.vl_normalization!r}."
        )
    if knobs.has_neutral_image and knobs.vl_blend_mode != "style_delta":
        raise ValueError(
            "`neutral_image` is for `vl_blend_mode` 'style_delta' alone and would do nothing, got "
            f"{knobs.vl_blend_mode!r}."
        )
