"""Settings for a purpose, as keyword arguments of a call: `pipe(prompt, reference_image=image, **STYLE_TRANSFER)`.

The first four and `GUIDE` are those of the Qwen3-VL conditioning guide, as its code has them; what it leaves open
stays at the pipeline's defaults. Its alignment of the sequences is not known, so that they are not the guide's
pictures. The other three are ideas that came after the guide. What each does on the packed toy world is printed by
`zimage-vl evidence --only recipes` (docs/evidence.md): there CALIBRATED blends what it asks for, and APPEARANCE and
STRUCTURE do not do what they are named for. None of them has been measured on real weights yet.

They are read-only dicts, since every call shares them. To change one setting:
`pipe(prompt, reference_image=image, **{**STYLE_TRANSFER, "vl_alpha": 0.7})`.

Example:
    >>> {**STYLE_TRANSFER, "vl_alpha": 0.7}["vl_alpha"], STYLE_TRANSFER["vl_alpha"]
    (0.7, 0.5)
"""

from __future__ import annotations

from typing import Any, NoReturn


class _Recipe(dict[str, Any]):
    """A dict that refuses changes; copies of it, deep or shallow or pickled, are plain dicts."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            'A recipe is shared by all calls and cannot be changed. Take a copy: {**STYLE_TRANSFER, "vl_alpha": 0.7}, '
            "or copy.deepcopy(APPEARANCE) to change what is nested in it."
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)

    def copy(self) -> dict[str, Any]:
        return dict(self)


# Recipe 1, "expect artifacts". The guide puts the style into words beside the reference: add vl_text, such as "flat
# colors, simple shapes, cartoon style".
STYLE_TRANSFER: dict[str, Any] = _Recipe(
    vl_alpha=0.5,
    vl_hidden_layer=-6,
    vl_token_selection="text",
    vl_normalization="global",
    vl_target_std=70.0,
)

# Recipe 2. The guide's prompt is "same description with minor variations": add vl_text with a detailed description of
# the reference. Of the knobs it names alpha alone.
IMAGE_VARIATION: dict[str, Any] = _Recipe(vl_alpha=0.5)

# Recipe 3, "experimental": the guide's text=None is no text here. Its target_std=70.0 has no part in "per_dim" and is
# left out. The text is settled when a reference is encoded: with `reference_embeds`, encode with text="" and drop
# vl_text.
COMPOSITION: dict[str, Any] = _Recipe(
    vl_alpha=0.2,
    vl_hidden_layer=-6,
    vl_text="",
    vl_token_selection="image",
    vl_normalization="per_dim",
)

# Recipe 4. Add vl_text with words about the colours, such as "vibrant sunset colors, orange and purple palette". Of
# the knobs the guide names alpha alone.
COLOUR_PALETTE: dict[str, Any] = _Recipe(vl_alpha=0.15)

# The guide's defaults to the letter. Its author found an hour later that text tokens alone leave the picture next to
# unchanged at this alpha, which is why the pipeline's own default is all tokens.
GUIDE: dict[str, Any] = _Recipe(
    vl_alpha=0.3,
    vl_hidden_layer=-6,
    vl_token_selection="text",
    vl_normalization="global",
    vl_target_std=70.0,
    vl_outlier_masking="none",
    vl_outlier_threshold=10.0,
)

# Alpha means what it says. In Z-Image only the ratio of token sizes counts, and the scaling by a std that one
# attention sink makes up turns a nominal .3 into about .6 to .7 (computed from the guide's figures): here every token
# gets the size of the text token that it is blended with, sinks stay out of it, and all tokens of the reference are
# read evenly. On the toy it blends .30, and at that dose the prompt leads in everything.
CALIBRATED: dict[str, Any] = _Recipe(
    vl_alpha=0.3,
    vl_normalization="token_rms",
    vl_exclude_sinks=True,
    vl_alignment="pool",
)

# Colours and background of the reference, the prompt's content. The idea: the template's tail sums
# up the appearance. On the packed toy it does not separate: its language model carries everything about a picture in
# that tail, and the reference's shape comes with its colours. Open on real weights.
APPEARANCE: dict[str, Any] = _Recipe(
    vl_alpha=_Recipe(prefix=0.0, prompt=0.0, suffix=1.0),
    vl_hidden_layer=-2,
    vl_token_selection="text",
    vl_normalization="token_rms",
)

# The reference's shape in the prompt's colours. The idea: the prompt's words carry the structure. On the packed toy
# the words carry next to nothing, and the prompt keeps its shape too. Open on real weights.
STRUCTURE: dict[str, Any] = _Recipe(
    vl_alpha=_Recipe(prefix=0.0, prompt=1.0, suffix=0.0),
    vl_hidden_layer=-2,
    vl_token_selection="all",
    vl_normalization="token_rms",
)

# By their names on the command line.
RECIPES: dict[str, dict[str, Any]] = _Recipe(
    {
        "style-transfer": STYLE_TRANSFER,
        "image-variation": IMAGE_VARIATION,
        "composition": COMPOSITION,
        "colour-palette": COLOUR_PALETTE,
        "guide": GUIDE,
        "calibrated": CALIBRATED,
        "appearance": APPEARANCE,
        "structure": STRUCTURE,
    }
)
