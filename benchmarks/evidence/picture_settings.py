"""The settings that are compared on pictures: one group a table of the guide, layers by relative depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from zimage_vl import recipes
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.evidence.summaries import GUIDE_LAYERS, scale_layer


ReferenceShown = Literal["picture", "grey", "noise"]
# What is settled when a reference is encoded: the call's keyword, and what `encode_reference` calls it.
ENCODING_KEYWORDS = {"vl_text_position": "text_position", "vl_max_pixels": "max_pixels"}

# Every token the size of its text token: then layers and selections are compared at the same dose.
_SAME_DOSE: dict[str, Any] = {"vl_alpha": 0.5, "vl_normalization": "token_rms"}


@dataclass(frozen=True)
class Setting:
    """One way to condition, and the group that it is compared in.

    Attributes:
        group: The table it belongs to.
        name: Its row.
        knobs: Keyword arguments of the pipeline's call: the `vl_` ones and `vl_text`. With the blend "style_delta" a
            flat mid-grey picture is the neutral one.
        reference: What is shown as the reference: the "picture", or a control, flat mid-"grey" or "noise" of its size.

    Raises:
        TypeError: An unknown knob, or a value of the wrong type.
        ValueError: A value out of range, knobs that do not go together, or another `reference`. Both name the setting.
    """

    group: str
    name: str
    knobs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reference: ReferenceShown = "picture"

    def __post_init__(self) -> None:
        if self.reference not in get_args(ReferenceShown):
            raise ValueError(
                f"The setting {self.name!r} must show one of {list(get_args(ReferenceShown))}, got {self.reference!r}."
            )
        text = self.knobs.get("vl_text")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"`vl_text` of the setting {self.name!r} must be a string or None, got {text!r}.")
        try:
            self._make_conditioning()
        except (TypeError, ValueError) as error:
            raise type(error)(f"The setting {self.name!r} is refused: {error}") from error

    def _make_conditioning(self) -> VLConditioning:
        chosen = {name: value for name, value in self.knobs.items() if name != "vl_text"}
        return VLConditioning(**chosen, has_neutral_image=self.needs_neutral)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that it reads."""
        return self._make_conditioning().layers

    @property
    def needs_neutral(self) -> bool:
        """Whether a neutral picture has to be encoded too."""
        return self.knobs.get("vl_blend_mode") == "style_delta"

    @property
    def text(self) -> str | None:
        """What stands beside the picture; None is the prompt."""
        return self.knobs.get("vl_text")

    @property
    def encoding(self) -> dict[str, Any]:
        """Keyword arguments for `pipe.encode_reference`."""
        return {word: self.knobs[name] for name, word in ENCODING_KEYWORDS.items() if name in self.knobs}

    @property
    def calling(self) -> dict[str, Any]:
        """Keyword arguments for the call with ready embeddings."""
        settled = {"vl_text", *ENCODING_KEYWORDS}
        return {name: value for name, value in self.knobs.items() if name not in settled}

    @property
    def key(self) -> str:
        """Equal for settings that paint the same pictures."""
        return f"{self.reference} {sorted(self.knobs.items())!r}"


def make_settings(num_layers: int = GUIDE_LAYERS) -> list[Setting]:
    """The settings of the guide's tables, its layers at their relative depth of a model with `num_layers`.

    Args:
        num_layers: Layers of the VL encoder's language model.

    Returns:
        Some sixty settings in groups: alpha, layers, tokens, text beside the picture, places, normalization, outlier
        masking, alignment, blend, recipes, controls.

    Example:
        >>> settings = make_settings()
        >>> settings[1].group, settings[1].name, settings[1].knobs
        ('Alpha', 'alpha 0.3', {'vl_hidden_layer': -6, 'vl_alpha': 0.3})
    """
    deep: dict[str, Any] = {"vl_hidden_layer": scale_layer(-6, num_layers)}
    late: dict[str, Any] = {"vl_hidden_layer": scale_layer(-2, num_layers)}
    same = {**deep, **_SAME_DOSE}
    groups: dict[str, dict[str, dict[str, Any]]] = {
        "Alpha": {f"alpha {a}": {**deep, "vl_alpha": a} for a in (0.15, 0.3, 0.5, 0.7, 1.0)},
        "Alpha, every token the size of its text token": {
            f"alpha {a}": {**same, "vl_alpha": a} for a in (0.15, 0.3, 0.5, 0.7, 1.0)
        },
        "Layers": {
            f"layer {layer} of 36, here {scale_layer(layer, num_layers)}": {
                **_SAME_DOSE,
                "vl_hidden_layer": scale_layer(layer, num_layers),
            }
            for layer in (-1, -2, -4, -6, -8, -16, -24)
        }
        | {"half -6, half -8": {**_SAME_DOSE, "vl_hidden_layer": _mix(num_layers, -6, -8)}},
        "Tokens": {
            f"{tokens} tokens, alpha {a}": {**same, "vl_token_selection": tokens, "vl_alpha": a}
            for tokens in ("all", "text", "image", "image_no_markers")
            for a in (0.3, 0.7)
        },
        "Text beside the picture": {
            "the prompt": same,
            "the prompt, before the picture": {**same, "vl_text_position": "before"},
            "nothing": {**same, "vl_text": ""},
            "Describe this image.": {**same, "vl_text": "Describe this image."},
        },
        "Places": {
            f"{tokens} tokens, {place} alone at 1": {
                **same,
                "vl_token_selection": tokens,
                "vl_alpha": {place: 1.0},
            }
            for tokens in ("text", "all")
            for place in ("prefix", "prompt", "suffix")
        },
        "Normalization": {
            f"{mode}, sinks {'left out' if out else 'kept'}": {
                **deep,
                "vl_normalization": mode,
                "vl_exclude_sinks": out,
            }
            for mode in ("none", "global", "per_dim", "hybrid", "token_rms")
            for out in (False, True)
        }
        | {"global to 70": {**deep, "vl_target_std": 70.0}},
        "Outlier masking, image tokens": {
            f"{masking}, {normalization}": {
                **late,
                "vl_token_selection": "image",
                "vl_normalization": normalization,
                "vl_outlier_masking": masking,
            }
            for normalization in ("global", "per_dim")
            for masking in ("none", "zero", "clamp", "scale")
        },
        "Alignment": {
            mode: {**same, "vl_alignment": mode} for mode in ("anchored", "pool", "interpolate", "truncate", "concat")
        },
        "Blend": {mode: {**same, "vl_blend_mode": mode} for mode in ("linear", "slerp", "adain", "adain_per_dim")}
        | {"style_delta": {**same, "vl_blend_mode": "style_delta", "vl_normalization": "none"}},
        "Recipes": {name: _scale_recipe(recipe, num_layers) for name, recipe in recipes.RECIPES.items()},
    }
    settings = [Setting(group, name, knobs) for group, rows in groups.items() for name, knobs in rows.items()]
    controls: dict[str, dict[str, Any]] = {
        "alpha 0.3": {**deep, "vl_alpha": 0.3},
        "alpha 0.5, token_rms": same,
        "alpha 1": {**same, "vl_alpha": 1.0},
    }
    shown: tuple[ReferenceShown, ...] = get_args(ReferenceShown)
    settings += [
        Setting("Controls", f"{kind}, {name}", knobs, kind) for name, knobs in controls.items() for kind in shown
    ]
    return settings


def _mix(num_layers: int, *layers: int) -> dict[int, float]:
    """Equal shares of layers, which may be one and the same in a model with few."""
    scaled = {scale_layer(layer, num_layers) for layer in layers}
    return dict.fromkeys(sorted(scaled, reverse=True), 1.0)


def _scale_recipe(recipe: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """A recipe whose layer, or the default where it names none, is at the same relative depth."""
    return {**recipe, "vl_hidden_layer": scale_layer(recipe.get("vl_hidden_layer", -6), num_layers)}
