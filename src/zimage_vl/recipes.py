"""Settings for a purpose, as keyword arguments of a call: `pipe(prompt, reference_image=image, **STYLE_TRANSFER)`.

The first five are those of the Qwen3-VL conditioning guide, the sixth is its author's later correction, the rest are
ideas that came after it. What a recipe leaves out stays at the call's default. None has been measured on real weights;
figures on the toy world come from `benchmarks/evidence` and stand in docs/evidence.md.

They are read-only, since every call shares them; unpack one to change a setting of it.

Example:
    >>> {**STYLE_TRANSFER, "vl_alpha": 0.7}["vl_alpha"], STYLE_TRANSFER["vl_alpha"]
    (0.7, 0.5)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _recipe(**settings: Any) -> Mapping[str, Any]:
    return MappingProxyType(settings)


# The guide's recipe 1, "expect artifacts". It names the style in words beside the picture: add vl_text, such as "flat
# colors, simple shapes, cartoon style". Its target std of 70 is Qwen3's constant and left out, as in recipe 3.
STYLE_TRANSFER: Mapping[str, Any] = _recipe(
    vl_alpha=0.5, vl_hidden_layer=-6, vl_token_selection="text", vl_normalization="global"
)

# The guide's recipe 2: stay close to the reference. Add vl_text with a detailed description of it, and use the same
# description with small changes as the prompt.
IMAGE_VARIATION: Mapping[str, Any] = _recipe(vl_alpha=0.5)

# The guide's recipe 3, "experimental": the picture's layout, the prompt's content. The picture is read without words;
# with `reference_embeds` that was settled when they were encoded, so encode with text="" and drop vl_text.
COMPOSITION: Mapping[str, Any] = _recipe(
    vl_alpha=0.2, vl_hidden_layer=-6, vl_text="", vl_token_selection="image", vl_normalization="per_dim"
)

# The guide's recipe 4: a hint of the picture's colours. Add vl_text with words about them, such as "vibrant sunset
# colors, orange and purple palette".
COLOUR_PALETTE: Mapping[str, Any] = _recipe(vl_alpha=0.15)

# The guide's defaults to the letter, with its author's alignment. He found an hour later that text tokens alone leave
# the picture next to unchanged at this alpha. The target std of 70 is that of Qwen3-4B.
GUIDE: Mapping[str, Any] = _recipe(
    vl_alpha=0.3,
    vl_hidden_layer=-6,
    vl_token_selection="text",
    vl_normalization="global",
    vl_target_std=70.0,
    vl_outlier_masking="none",
    vl_outlier_threshold=10.0,
    vl_alignment="interpolate",
)

# What the guide's author corrected it to: all tokens, scaled to the text. He describes alpha .3 as slight and .5 as
# strong style; this lies between. `zimage_vl.paint_like` paints so over the same picture.
ALL_TOKENS: Mapping[str, Any] = _recipe(
    vl_alpha=0.4, vl_hidden_layer=-6, vl_token_selection="all", vl_normalization="global", vl_alignment="interpolate"
)

# Alpha means what it says: every reference token gets the size of the text token that it is blended with, sinks stay
# out, and all tokens are read evenly. With the default, a nominal .3 acts as about .6 to .7 on the real models
# (computed from published figures), since only the ratio of token sizes counts there.
CALIBRATED: Mapping[str, Any] = _recipe(
    vl_alpha=0.3, vl_normalization="token_rms", vl_exclude_sinks=True, vl_alignment="pool"
)

# The four wishes of the command line's --take. What they take and leave was found by trying settings on the toy.

# The colours, by the template's beginning alone; the prompt's own words stay as they are.
COLOURS: Mapping[str, Any] = _recipe(vl_alpha={"prefix": 1.0})

# Where things stand, and little else, from a picture without colours. Weak.
LAYOUT: Mapping[str, Any] = _recipe(vl_alpha={"prompt": 1.0}, vl_treatment="greyscale")

# The manner in which things are drawn, by the prompt's words alone. The colours come along.
STYLE: Mapping[str, Any] = _recipe(vl_alpha={"prompt": 1.0})

# The same again: the VL encoder describes the picture first. The prompt should say what the picture shows.
VARIATION: Mapping[str, Any] = _recipe(vl_alpha=0.5, vl_describe=True)

WISHES = ("colours", "layout", "style", "variation")

# By the names of the command line.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "colours": COLOURS,
        "layout": LAYOUT,
        "style": STYLE,
        "variation": VARIATION,
        "style-transfer": STYLE_TRANSFER,
        "image-variation": IMAGE_VARIATION,
        "composition": COMPOSITION,
        "colour-palette": COLOUR_PALETTE,
        "guide": GUIDE,
        "all-tokens": ALL_TOKENS,
        "calibrated": CALIBRATED,
    }
)
