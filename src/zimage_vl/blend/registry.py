"""Every knob of the method in one registry: signature, help texts and tables have it from here. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args


Alignment = Literal["interpolate", "pool", "anchored", "truncate", "concat"]
BlendMode = Literal["linear", "slerp", "adain", "adain_per_dim", "style_delta"]
Normalization = Literal["global", "per_dim", "hybrid", "token_rms", "none"]
OutlierMasking = Literal["none", "zero", "clamp", "scale"]
TextPosition = Literal["after", "before"]
TokenSelection = Literal["all", "text", "image", "image_no_markers"]
VLReader = Literal["qwen3-vl", "text_encoder"]


@dataclass(frozen=True)
class Knob:
    """One keyword argument of the pipeline's call, as its signature, help texts and tables have it."""

    name: str
    default: object
    values: str  # what it takes, in short
    help: str  # what it does, in one line
    choices: tuple[str, ...] = ()  # all its values, where they are words


def _choose(name: str, choices: tuple[str, ...], default: str, help: str) -> Knob:
    return Knob(name, default, ", ".join(f'"{choice}"' for choice in choices), help, choices)


# In the order of the call's signature.
_ALL_KNOBS = (
    Knob("reference_image", None, "PIL, array, tensor, path, URL", "picture(s) to follow; a list is one per prompt"),
    Knob(
        "reference_embeds",
        None,
        "ReferenceEmbeds or their file",
        "pictures already read, instead of reference_image",
    ),
    Knob("reference_weights", None, "numbers >= 0", "how much each of several references counts; None: equally"),
    Knob("reference_mask", None, "greyscale picture(s)", "the part of the reference that is read: white counts"),
    Knob("negative_reference_image", None, "as reference_image", "picture(s) to keep away from, in guided calls"),
    Knob("negative_reference_embeds", None, "as reference_embeds", "the same, read before"),
    _choose("vl_reader", get_args(VLReader), "qwen3-vl", "reads the picture; text_encoder needs 0.8 GB, not 8.9"),
    Knob(
        "vl_treatment",
        "none",
        '"none", "palette", "blur", "greyscale", a function',
        "done to the picture before it is read: palette keeps its colours, greyscale its shapes",
        ("none", "palette", "blur", "greyscale"),
    ),
    Knob("vl_alpha", 0.3, "0..1; one per text token; {place: 0..1}", "0 is the text alone, 1 the reference alone"),
    Knob(
        "vl_hidden_layer",
        None,
        "int; list of ints; {layer: weight}",
        "layer of the reader, or a mean of several; None: -6, with the text encoder -2",
    ),
    Knob("vl_text", None, "text; one per prompt", 'words read beside the picture; None: the prompt, "": no words'),
    Knob("vl_describe", False, "bool", "the VL encoder writes the words beside the picture first"),
    _choose("vl_text_position", get_args(TextPosition), "after", "place of these words, seen from the picture"),
    _choose("vl_token_selection", get_args(TokenSelection), "all", "tokens of the reference that take part"),
    _choose("vl_normalization", get_args(Normalization), "global", "bring the reference to the size of the text"),
    Knob(
        "vl_target_std", None, "> 0, or None", 'std for "global" and "hybrid"; None: that of the prompt\'s embeddings'
    ),
    _choose(
        "vl_outlier_masking", get_args(OutlierMasking), "none", "quieten dimensions that spread unlike the text's"
    ),
    Knob("vl_outlier_threshold", 10.0, "> 1", "ratio to the text encoder's spread above which a dimension is masked"),
    Knob("vl_exclude_sinks", False, "bool", "keep attention sinks out of statistics, alignment and blend"),
    _choose("vl_alignment", get_args(Alignment), "interpolate", "bring the reference's tokens to the text's length"),
    Knob("vl_concat_tokens", None, "int >= 1, or None", 'tokens that "concat" appends; None: vl_alpha x text length'),
    _choose("vl_blend_mode", get_args(BlendMode), "linear", "mix the reference's tokens with the text's"),
    Knob(
        "neutral_image",
        None,
        "as one reference",
        'picture that "style_delta" subtracts; None: the reference, muted',
    ),
    Knob("vl_start", 0.0, "0..1, below vl_end", "fraction of the steps at which the reference begins to count"),
    Knob("vl_end", 1.0, "0..1, above vl_start", "fraction of the steps at which the reference stops counting"),
    Knob("vl_max_pixels", 1024 * 1024, "int >= 1", "largest area in pixels at which the reference is read"),
)
KNOBS: dict[str, Knob] = {knob.name: knob for knob in _ALL_KNOBS}
# Those that are fields of VLConditioning.
CONDITIONING_NAMES = tuple(
    name for name in KNOBS if name.startswith("vl_") and name not in ("vl_text", "vl_treatment", "vl_describe")
)
