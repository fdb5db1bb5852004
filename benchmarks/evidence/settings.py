"""The settings that are compared: a dict per row. Nothing is measured here.

A row is a group, a name, and whatever differs from the call's defaults, which stand in `BASE`, so that a default that
changes later changes no row. A knob that is None is left to the call. What is no knob:

    reference   "scene" (default), "none", "noise", "grey"; "two" scenes; "beside": two in one picture
    size        side at which references are read, in pixels (64)
    text        the text beside the picture names these attributes of the reference
    about       "reference": the prompt speaks of the reference's scene, else of one that shares nothing with it
    names       what the open prompts name; left out: the forms in `OPEN_FORMS` take turns
    way         "call" (default); "image", from a start picture (`start`, `strength`); "rounds", so many `rounds`
    own_layer   a layer of the toy; `vl_hidden_layer` counts in the guide's 36 layers and means the same depth
    mask        the left half of the picture is seen
    guidance    its scale (0); with `away` the picture is the negative prompt's
    neutral     a grey picture is what the style delta starts from; left out: the reference itself, muted
    panel, x    where the row stands in the group's plot
"""

from __future__ import annotations

from typing import Any

from zimage_vl.recipes import RECIPES


Row = dict[str, Any]

BASE: Row = {
    "vl_alpha": 0.3,
    "vl_hidden_layer": -6,
    "vl_token_selection": "all",
    "vl_normalization": "global",
    "vl_alignment": "interpolate",
}
KINDS = ("open", "naming")
# What people name.
OPEN_FORMS: tuple[tuple[str, ...], ...] = (
    ("shape",),
    ("colour", "shape"),
    ("fill", "shape"),
    ("fill", "colour", "shape"),
    ("shape", "place"),
    ("colour", "shape", "place"),
    ("shape", "background"),
)
ALPHAS = (0.15, 0.3, 0.5, 0.7, 1.0)
SAME_DOSE: Row = {"vl_alpha": 0.5, "vl_normalization": "token_rms"}

# Heading of each group's table, and the title of its plot where it has one: its finding, once there is one.
TITLES = {
    "controls": "Controls: a reference that shows nothing, and none",
    "dose": "Of a 64 px reference open prompts take what they leave open; prompts that name everything hardly do",
    "tokens": "Text tokens carry nothing of the picture, image tokens alone copy it, all together blend",
    "recipes": "Words beside the picture do most of the work of the guide's recipes",
    "sinks": "The sink, kept and left out, at two sizes of reference",
    "modes": "Blend modes",
    "masking": "Outlier masking, image tokens",
    "layers": "Layers, every token at the size of its text token",
    "places": "Where in the prompt the blend happens",
    "several": "Several references",
    "masks": "Masks: two scenes in one picture, the left one is the reference",
    "rounds": "Iterations: the picture that comes out is the next reference",
    "steps": "A part of the steps",
    "reading": "Treating, reading and describing the picture differently",
    "image-to-image": "Blend and image-to-image from the same picture follow it further than either alone",
    "away": "Away from a picture: it is blended into the negative prompt",
    "wishes": "Candidates for a wish: colours, layout, style, variation",
    "alignment": "A larger picture is felt at a smaller alpha; appended tokens keep more of the prompt",
}
PLOTTED = ("dose", "tokens", "recipes", "image-to-image", "alignment")


def make_rows() -> list[Row]:
    """All rows, in the order of the tables."""
    rows: list[Row] = []

    def add(group: str, name: str, **settings: Any) -> None:
        rows.append({"group": group, "name": name, **settings})

    add("controls", "no reference", reference="none")
    for alpha in (0.3, 0.5, 1.0):
        for shown in ("noise", "grey"):
            add("controls", f"{shown}, alpha {alpha}", reference=shown, vl_alpha=alpha)

    for mode, alphas in {
        "global": (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0),
        "token_rms": ALPHAS,
        "none": (0.3, 0.5),
        "per_dim": (0.15, 0.3, 0.5, 1.0),
        "hybrid": (0.3, 0.5),
    }.items():
        for alpha in alphas:
            panel = {"panel": mode, "x": alpha} if len(alphas) > 3 else {}
            add("dose", f"{mode} {alpha}", vl_normalization=mode, vl_alpha=alpha, **panel)

    for tokens in ("all", "text", "image"):
        for alpha in (0.15, 0.3, 0.5, 1.0):
            add("tokens", f"{tokens} {alpha}", vl_token_selection=tokens, vl_alpha=alpha, panel=tokens, x=alpha)
    add("tokens", "image 0.3, per_dim", vl_token_selection="image", vl_normalization="per_dim")

    style, composition = ("shape", "place"), ("fill", "colour", "shape")
    everything = ("fill", "colour", "shape", "place", "background")
    wishes: dict[str, Row] = {
        "style-transfer": {"names": style, "text": ("fill",)},
        "image-variation": {"names": ("shape",), "about": "reference", "text": everything},
        "composition": {"names": composition},
        "colour-palette": {"names": ("fill", "shape", "place"), "text": ("colour", "background")},
        "colours": {"names": ("fill", "shape", "place")},
        "layout": {"names": composition},
        "variation": {"names": ("shape",), "about": "reference"},
    }
    for name, recipe in RECIPES.items():
        wish = wishes.get(name, {"names": style})
        add("recipes", name, **wish, **dict(recipe))
        if "text" in wish:
            add("recipes", f"{name}, no words", **{**wish, "text": None}, **dict(recipe))

    for size in (64, 256):
        for mode in ("global", "per_dim"):
            for out in (False, True):
                name = f"{mode}, {'left out' if out else 'kept'}, {size} px"
                add("sinks", name, vl_normalization=mode, vl_exclude_sinks=out, size=size)

    for mode in ("linear", "slerp", "adain", "adain_per_dim", "style_delta", "style_delta from grey"):
        changes: Row = {"vl_blend_mode": mode.partition(" ")[0]}
        changes |= {"vl_alignment": None} if mode == "adain_per_dim" else {}
        changes |= {"vl_normalization": "none"} if mode.startswith("style_delta") else {}
        changes |= {"neutral": True} if mode == "style_delta from grey" else {}
        for alpha in (0.3, 0.5, 1.0) if mode.startswith("adain") else (0.3, 0.5):
            add("modes", f"{mode} {alpha}", vl_alpha=alpha, **changes)

    for masking in ("none", "zero", "clamp", "scale"):
        changes = {"vl_outlier_masking": masking, "vl_token_selection": "image", "vl_hidden_layer": -2}
        add("masking", masking, vl_alpha=0.5, **changes)

    for layer in range(-1, -13, -1):
        add("layers", f"layer {layer}", own_layer=layer, **SAME_DOSE)

    for place in ("prefix", "prompt", "suffix"):
        add("places", f"{place} alone at 1", vl_alpha={place: 1.0})
    add("places", "everywhere at 0.5", vl_alpha=0.5)
    add("places", "the shape's word at 0, else 0.5", vl_alpha={"<shape>": 0.0, "default": 0.5})

    add("several", "one", vl_alpha=0.5)
    add("several", "two, equal", vl_alpha=0.5, reference="two")
    add("several", "two, 3 to 1", vl_alpha=0.5, reference="two", reference_weights=[3.0, 1.0])

    add("masks", "all of it", vl_alpha=0.5, reference="beside")
    add("masks", "the left half alone", vl_alpha=0.5, reference="beside", mask=True)

    add("rounds", "one round", vl_alpha=0.3)
    for count in (2, 3):
        add("rounds", f"{count} rounds", vl_alpha=0.3, way="rounds", rounds=count)

    for first, last in ((0.0, 0.5), (0.5, 1.0)):
        add("steps", f"from {first} to {last}", vl_alpha=0.5, vl_start=first, vl_end=last)

    for treatment in ("palette", "blur", "greyscale"):
        add("reading", treatment, vl_alpha=0.5, vl_treatment=treatment)
    for alpha in (0.3, 0.5, 1.0):
        reader: Row = {"vl_reader": "text_encoder", "vl_hidden_layer": None}
        add("reading", f"read by the text encoder, {alpha}", vl_alpha=alpha, **reader)
    add("reading", "described first", vl_alpha=0.5, vl_describe=True)

    for alpha in (0.3, 0.5):
        add("image-to-image", f"blend {alpha} alone", vl_alpha=alpha)
    add("image-to-image", "image-to-image alone", reference="none", way="image", start="reference", strength=0.85)
    for alpha in (0.3, 0.5):
        for start in ("reference", "another"):
            name = f"blend {alpha} from the {'same' if start == 'reference' else 'another'} picture"
            name = name.replace("the another", "another")
            add("image-to-image", name, vl_alpha=alpha, way="image", start=start, strength=0.85)

    add("away", "guidance 2 alone", reference="none", guidance=2.0)
    for alpha in (0.3, 0.5):
        add("away", f"guidance 2, away from the picture, {alpha}", vl_alpha=alpha, guidance=2.0, away=True)

    candidates: dict[str, Row] = {
        "the template's beginning": {"vl_alpha": {"prefix": 1.0}},
        "the template's beginning, palette": {"vl_alpha": {"prefix": 1.0}, "vl_treatment": "palette"},
        "the prompt's words": {"vl_alpha": {"prompt": 1.0}},
        "the prompt's words at half": {"vl_alpha": {"prompt": 0.5}},
        "the prompt's words, greyscale": {"vl_alpha": {"prompt": 1.0}, "vl_treatment": "greyscale"},
        "the template's end": {"vl_alpha": {"suffix": 1.0}, "vl_treatment": "greyscale"},
        "the first half of the steps": {"vl_alpha": 0.5, "vl_end": 0.5},
        "the words in the first half": {"vl_alpha": {"prompt": 1.0}, "vl_end": 0.5},
        "blurred, the first half": {"vl_alpha": 0.7, "vl_treatment": "blur", "vl_end": 0.5},
        "per dimension, moments": {"vl_alpha": 1.0, "vl_blend_mode": "adain_per_dim", "vl_alignment": None},
    }
    for name, settings in candidates.items():
        add("wishes", name, **settings)

    for size in (64, 256):
        for mode in ("interpolate", "pool", "anchored"):
            for alpha in (0.15, 0.3, 0.5, 0.7, 1.0) if mode == "interpolate" else (0.3, 0.5, 1.0):
                plot = {"panel": f"{mode}, {size} px", "x": alpha}
                add("alignment", f"{mode} {alpha}, {size} px", vl_alignment=mode, vl_alpha=alpha, size=size, **plot)
        for count in (4, 16, 64):
            plot = {"panel": f"concat, {size} px", "x": count}
            changes = {"vl_alignment": "concat", "vl_concat_tokens": count, "size": size}
            add("alignment", f"concat {count} tokens, {size} px", **changes, **plot)
    return rows
