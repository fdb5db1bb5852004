"""What is measured on a Z-Image with pictures of the user's own: the guide's settings by their own numbers."""

from __future__ import annotations

import json
from typing import Any

from zimage_vl.recipes import RECIPES

from .tables import Table


_BASE = {"vl_normalization": "token_rms"}

# (setting, what the guide claims of it, knobs)
_ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("alpha 0", "pure text (baseline)", {"vl_alpha": 0.0}),
    ("alpha 0.15", "subtle style hints", {"vl_alpha": 0.15}),
    ("alpha 0.3", "recommended default", {"vl_alpha": 0.3}),
    ("alpha 0.5", "strong style transfer", {"vl_alpha": 0.5}),
    ("alpha 0.7", "preserves the reference's composition", {"vl_alpha": 0.7}),
    ("alpha 1", "pure VL (experimental)", {"vl_alpha": 1.0}),
    ("token_rms, alpha 0.3", "(alpha means what it says)", {"vl_alpha": 0.3, **_BASE}),
    ("token_rms, alpha 0.5", "(alpha means what it says)", {"vl_alpha": 0.5, **_BASE}),
    ("layer -1", "heavy artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -1, **_BASE}),
    ("layer -2", "heavy artifacts; the 617x outlier", {"vl_alpha": 0.5, "vl_hidden_layer": -2, **_BASE}),
    ("layer -4", "moderate artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -4, **_BASE}),
    ("layer -6", "least artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -6, **_BASE}),
    ("layer -8", "moderate artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -8, **_BASE}),
    ("layer -16", "moderate to heavy artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -16, **_BASE}),
    ("layer -24", "severe artifacts", {"vl_alpha": 0.5, "vl_hidden_layer": -24, **_BASE}),
    ("text tokens", "fewest artifacts (the author later: inert)", {"vl_alpha": 0.5, "vl_token_selection": "text"}),
    ("image tokens", "more severe artifacts", {"vl_alpha": 0.5, "vl_token_selection": "image"}),
    (
        "image tokens, per_dim",
        "required for image tokens",
        {"vl_alpha": 0.5, "vl_token_selection": "image", "vl_normalization": "per_dim"},
    ),
    ("per_dim", "for image tokens", {"vl_alpha": 0.3, "vl_normalization": "per_dim"}),
    ("hybrid", "experimental", {"vl_alpha": 0.3, "vl_normalization": "hybrid"}),
    ("global, sinks excluded", "(not in the guide)", {"vl_alpha": 0.3, "vl_exclude_sinks": True}),
    (
        "layer -2, zero",
        "tests whether outliers cause artifacts",
        {"vl_alpha": 0.3, "vl_hidden_layer": -2, "vl_outlier_masking": "zero"},
    ),
    ("slerp", "(not in the guide)", {"vl_alpha": 0.5, "vl_blend_mode": "slerp", **_BASE}),
    ("adain", "keeps the content, no visible style", {"vl_alpha": 0.3, "vl_blend_mode": "adain"}),
    ("adain_per_dim", "transfers colours, corrupts the subject", {"vl_alpha": 0.3, "vl_blend_mode": "adain_per_dim"}),
    ("template after the prompt alone", "(idea: appearance)", {"vl_alpha": {"suffix": 1.0}, **_BASE}),
    ("the prompt's words alone", "(idea: structure)", {"vl_alpha": {"prompt": 1.0}, **_BASE}),
    ("first half of the steps", "(not in the guide)", {"vl_alpha": 1.0, "vl_end": 0.5, **_BASE}),
    ("second half of the steps", "(not in the guide)", {"vl_alpha": 1.0, "vl_start": 0.5, **_BASE}),
)
_RECIPE_CLAIMS = {
    "style-transfer": "style of the reference, the prompt's content; artifacts",
    "image-variation": "stays near the reference",
    "composition": "layout of the reference, the prompt's content",
    "colour-palette": "subtle influence of the colours",
    "guide": "the guide's defaults to the letter",
}


def _list_settings() -> tuple[tuple[str, str, dict[str, Any]], ...]:
    recipes = (
        (f"recipe {name}", _RECIPE_CLAIMS.get(name, "(not in the guide)"), json.loads(json.dumps(recipe)))
        for name, recipe in RECIPES.items()
    )
    return (*_ROWS, *recipes)


MODEL_SETTINGS: dict[str, dict[str, Any]] = {name: knobs for name, _, knobs in _list_settings()}
"""`{setting: the pipeline's keyword arguments}`."""


def tabulate_claims() -> Table:
    """What the guide claims of each of them."""
    rows = tuple((name, claim) for name, claim, _ in _list_settings())
    return Table("The guide's claims", ("setting", "the guide says"), rows)
