"""The second half of the experiments, and the list of all."""

from __future__ import annotations

from typing import Any

from .experiments import ALPHA, BASE, BASE_WORDS, CONTROLS, LAYERS, MATCHING, STYLE_WORDS, TEXT, TOKENS
from .settings import NEUTRALS, Experiment, Setting, recipe_row, row


_NORMALIZATION_CLAIMS = {
    "none": "(sizes as they are)",
    "global": "text tokens: recommended; image tokens: amplifies outliers catastrophically",
    "per_dim": "image tokens: required",
    "hybrid": "experimental",
    "token_rms": "(not in the guide)",
}

NORMALIZATION = Experiment(
    "normalization",
    "Normalization",
    "global suffices for text tokens, image tokens need per_dim, hybrid is experimental (section 5).",
    tuple(
        row(
            f"{mode}, layer {layer}, alpha {alpha:g}",
            claim,
            vl_alpha=alpha,
            vl_hidden_layer=layer,
            vl_normalization=mode,
        )
        for layer, alpha in ((-2, 0.3), (-2, 0.5), (-6, 0.5), (-2, 1.0))
        for mode, claim in _NORMALIZATION_CLAIMS.items()
    )
    + tuple(
        row(
            f"{mode}, image tokens, pool, alpha 0.5",
            claim,
            vl_alpha=0.5,
            vl_hidden_layer=-2,
            vl_normalization=mode,
            vl_token_selection="image",
            vl_alignment="pool",
        )
        for mode, claim in _NORMALIZATION_CLAIMS.items()
    ),
    "All tokens, anchored, linear, unless the row says otherwise; global and hybrid to the std of the prompt's text.",
)

_MASKING_CLAIMS = {
    "none": "baseline",
    "zero": "tests whether these dimensions cause artifacts",
    "clamp": "keeps some signal, limits extremes",
    "scale": "gradual reduction",
}

MASKING = Experiment(
    "masking",
    "Outlier masking",
    "At layer -2 dims 396 (617x) and 4 (42x) are outliers: mask them for image tokens, or better use layer -6, which "
    "has none above 10 (section 6).",
    tuple(
        row(
            f"{mode}, threshold {threshold:g}, {tokens} tokens, alpha {alpha:g}",
            claim,
            vl_alpha=alpha,
            vl_outlier_masking=mode,
            vl_outlier_threshold=threshold,
            vl_token_selection=tokens,
            vl_alignment="anchored" if tokens == "all" else "pool",
            **BASE,
        )
        for tokens, alpha, threshold in (
            ("all", 0.5, 10.0),
            ("image", 1.0, 10.0),
            ("image", 1.0, 1.5),
            ("all", 0.5, 1.5),
        )
        for mode, claim in _MASKING_CLAIMS.items()
        if mode != "none" or threshold == 10.0
    ),
    f"{BASE_WORDS}; image tokens pooled. The threshold 1.5 is far below the guide's 10: it makes the masks act.",
)

_DELTA = {"vl_blend_mode": "style_delta", "vl_normalization": "none", "vl_hidden_layer": -2}


def _blends() -> list[Setting]:
    made: list[Setting] = []
    for mode, claim in (
        ("linear", "the guide's blend"),
        ("slerp", "(not in the guide)"),
        ("adain", "keeps the content perfectly, no visible style"),
        ("adain_per_dim", "transfers colours, corrupts the subject"),
    ):
        made += [row(f"{mode}, alpha {a:g}", claim, vl_alpha=a, vl_blend_mode=mode, **BASE) for a in (0.3, 0.5, 1.0)]
    for neutral in NEUTRALS[1:]:
        claim = "failed: even at 0.3 it destroys the content"
        made += [
            row(f"style_delta, neutral {neutral}, alpha {a:g}", claim, vl_alpha=a, neutral=neutral, **_DELTA)
            for a in (0.3, 0.5, 1.0)
        ]
    return made


BLEND = Experiment(
    "blend",
    "Blend modes",
    "Style delta failed, AdaIN per token shows no style, AdaIN per dimension transfers colours and corrupts the "
    'subject: "visible style transfer requires accepting content corruption" (Blending Mode Variations).',
    tuple(_blends()),
    f"{BASE_WORDS.removesuffix(', linear')}, all tokens (style_delta: no normalization). The neutral picture is flat "
    "grey; the reference in black and white (desaturated), which everybody can make; its shape in the colours of a "
    "third scene; or the reference with the prompt's colour and background (the prompt's colours), its colour alone, "
    "its background alone or its shape in place of the own, so that the difference is just that.",
)

_VARIATION = "stays near the reference, with an accurate description beside it"
_PALETTE = "subtle influence of the colours"
_STYLE = "style of the reference, the prompt's content; artifacts"

RECIPE_SETTINGS = (
    recipe_row("style-transfer, the colours in words", "style-transfer", _STYLE, text=STYLE_WORDS),
    recipe_row("style-transfer, the prompt beside", "style-transfer", _STYLE),
    recipe_row("style-transfer, target std the text's", "style-transfer", _STYLE, vl_target_std=None),
    recipe_row("image-variation, matching description", "image-variation", _VARIATION, text=MATCHING),
    recipe_row("image-variation, the prompt beside", "image-variation", _VARIATION),
    recipe_row("composition", "composition", "layout of the reference, the prompt's content"),
    recipe_row("colour-palette, the colours in words", "colour-palette", _PALETTE, text=STYLE_WORDS),
    recipe_row("colour-palette, the prompt beside", "colour-palette", _PALETTE),
    recipe_row("guide", "guide", "the guide's defaults to the letter"),
    recipe_row(
        "guide, target std the text's", "guide", "(the same, the constant 70 measured instead)", vl_target_std=None
    ),
    recipe_row("calibrated", "calibrated", "(alpha means what it says)"),
    recipe_row("appearance", "appearance", "(colours and background of the reference, the prompt's content)"),
    recipe_row("structure", "structure", "(the reference's shape in the prompt's colours)"),
    recipe_row(
        "control: style-transfer, in words, noise",
        "style-transfer",
        "(the words alone)",
        text=STYLE_WORDS,
        reference="noise",
    ),
)

RECIPES_MEASURED = Experiment(
    "recipes",
    "Recipes",
    "The four of the guide (Use Case Recipes), its defaults, and three that came later.",
    RECIPE_SETTINGS,
    "The recipes as `--recipe` has them. The words beside the reference give its colours away, so that the control "
    "has the same words and noise for a picture.",
)

_PLACES: tuple[tuple[str, Any], ...] = (
    ("everywhere", 1.0),
    ("the template after the prompt", {"suffix": 1.0}),
    ("the template before the prompt", {"prefix": 1.0}),
    ("the prompt's own words", {"prompt": 1.0}),
    ("everywhere but the shape's word", {"default": 1.0, "{ps}": 0.0}),
)
# (text, all) tokens: shape, colour, background as prompt/reference, of the prototype.
_PROTOTYPE = {
    ("text", "everywhere"): ".40/.38, 0/1.0, .02/.98",
    ("all", "everywhere"): ".12/.68, .02/.98, 0/.97",
    ("text", "the template after the prompt"): "1.0/0, 0/1.0, .02/.98",
    ("all", "the template after the prompt"): ".95/.02, .08/.43, .15/.58",
    ("text", "the prompt's own words"): ".40/.45, .98/0, 1.0/0",
    ("all", "the prompt's own words"): ".05/.75, 1.0/0, .97/.02",
    ("text", "everywhere but the shape's word"): ".98/.02, 0/1.0, .02/.98",
    ("all", "everywhere but the shape's word"): ".52/.20, .03/.80, .03/.97",
}

POSITIONS = Experiment(
    "positions",
    "Alpha per token",
    '"Different alpha for different token positions" is an idea of the guide, untested. A prototype of the toy found '
    "that the template's tail carries appearance and the words structure: its figures stand in the second column, as "
    "prompt/reference for shape, colour, background.",
    tuple(
        row(
            f"{tokens}: {place}",
            _PROTOTYPE.get((tokens, place), "-"),
            vl_alpha=alpha,
            vl_token_selection=tokens,
            **BASE,
        )
        for tokens in ("text", "all")
        for place, alpha in _PLACES
    )
    + tuple(
        row(f"all: the template after the prompt, alpha {a:g}", vl_alpha={"suffix": a}, **BASE)
        for a in (0.3, 0.5, 0.7)
    )
    + (
        row("all: words at 1, the template after at 0.5", vl_alpha={"prompt": 1.0, "suffix": 0.5}, **BASE),
        row("all, pool: the template after the prompt", vl_alpha={"suffix": 1.0}, vl_alignment="pool", **BASE),
        row("all, pool: the prompt's own words", vl_alpha={"prompt": 1.0}, vl_alignment="pool", **BASE),
    ),
    f"{BASE_WORDS}; alpha 1 on the named tokens unless the row says otherwise, 0 elsewhere.",
)

REFERENCES_MEASURED = Experiment(
    "references",
    "Several references",
    '"Blend VL from multiple reference images": an idea of the guide, untested.',
    tuple(
        row(f"weights {first:g}:{second:g}, alpha {alpha:g}", vl_alpha=alpha, second=(first, second), **BASE)
        for alpha in (0.5, 1.0)
        for first, second in ((1.0, 1.0), (3.0, 1.0), (1.0, 3.0))
    ),
    f"{BASE_WORDS}, all tokens. The second reference is a third scene, which shares nothing with the other two.",
)

_MIXES: dict[str, dict[int, float]] = {
    "-1 and -2": {-1: 1, -2: 1},
    "-2 and -4": {-2: 1, -4: 1},
    "-2 and -6": {-2: 1, -6: 1},
    "-2, -4, -6 and -8": {-2: 1, -4: 1, -6: 1, -8: 1},
}

LAYER_MIXES = Experiment(
    "layer-mixes",
    "Layer mixes",
    '"Combine hidden states from multiple layers": an idea of the guide, untested.',
    tuple(
        row(f"{name}, alpha {alpha:g}", vl_alpha=alpha, vl_hidden_layer=mix, vl_normalization="token_rms")
        for alpha in (0.5, 1.0)
        for name, mix in _MIXES.items()
    ),
    "Equal weights; all tokens, anchored, token_rms, linear.",
)

MASKS_MEASURED = Experiment(
    "masks",
    "Masks on the reference",
    '"Mask certain VL tokens during attention": an idea of the guide, untested.',
    tuple(
        row(f"{name}, alpha {alpha:g}", vl_alpha=alpha, mask=mask, **BASE)
        for alpha in (0.5, 1.0)
        for name, mask in (("the whole reference", ""), ("its middle alone", "middle"), ("its border alone", "border"))
    ),
    f"{BASE_WORDS}, all tokens. The middle is the 2 x 2 of the 4 x 4 patches in which the shape lies, the border the "
    "other twelve.",
)

REFINEMENT = Experiment(
    "refinement",
    "Iterative refinement",
    '"Use output as new reference, iterate": an idea of the guide, untested.',
    tuple(row(f"alpha {alpha:g}", vl_alpha=alpha, rounds=3, **BASE) for alpha in (0.3, 0.5, 0.7)),
    f"{BASE_WORDS}, all tokens; three rounds from the same noise, each judged against the prompt and the first "
    "reference.",
)

ALIGNMENT = Experiment(
    "alignment",
    "Alignment",
    "The guide leaves open how 1041 tokens meet 11.",
    tuple(
        row(f"{mode}, alpha {alpha:g}", vl_alpha=alpha, vl_alignment=mode, **BASE)
        for alpha in (0.3, 0.5, 1.0)
        for mode in ("anchored", "pool", "interpolate", "truncate", "concat")
    ),
    "Layer -2, token_rms, linear, all tokens.",
)

STEPS_MEASURED = Experiment(
    "steps",
    "Start and end",
    "Not in the guide.",
    tuple(
        row(f"from {start:g} to {end:g} of the steps", vl_alpha=1.0, vl_start=start, vl_end=end, **BASE)
        for start, end in ((0.0, 0.25), (0.0, 0.5), (0.0, 0.75), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0))
    ),
    f"{BASE_WORDS}, all tokens, alpha 1 inside the window, the prompt alone outside; 8 steps.",
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        ALPHA,
        LAYERS,
        TOKENS,
        TEXT,
        NORMALIZATION,
        MASKING,
        BLEND,
        RECIPES_MEASURED,
        POSITIONS,
        REFERENCES_MEASURED,
        LAYER_MIXES,
        MASKS_MEASURED,
        REFINEMENT,
        ALIGNMENT,
        STEPS_MEASURED,
        CONTROLS,
    )
}
"""All experiments by their names on the command line, in the order of the page."""
