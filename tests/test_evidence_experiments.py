"""The experiments cover the guide, and each of their settings is one that a call takes."""

from __future__ import annotations

import string

import pytest

from zimage_vl.evidence.experiments import ALPHA, TEXT
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.settings import FIELDS, Setting
from zimage_vl.knobs import VLConditioning
from zimage_vl.recipes import RECIPES


SETTINGS = [(name, setting) for name, experiment in EXPERIMENTS.items() for setting in experiment.settings]
# The guide's tables and lists of modes, by experiment: what the rows must hold.
GUIDE = {
    "alpha": [f"alpha {a}" for a in ("0", "0.15", "0.3", "0.4", "0.5", "0.6", "0.7", "0.85", "1")],
    "layers": [f"layer -{k}, alpha 1" for k in range(1, 9)],
    "tokens": [f"{tokens}, alpha 0.3" for tokens in ("all", "text", "image")],
    "text": [f"{text}, alpha 0.5" for text in ("no text", "matching description", "style description")],
    "normalization": [f"{mode}, layer -2, alpha 0.3" for mode in ("global", "per_dim", "hybrid", "none")],
    "masking": [f"{mode}, threshold 10, image tokens, alpha 1" for mode in ("none", "zero", "clamp", "scale")],
    "blend": [
        f"{mode}, alpha 0.3" for mode in ("linear", "adain", "adain_per_dim", "style_delta, neutral other colours")
    ],
    "positions": [
        f"{tokens}: {place}"
        for tokens in ("text", "all")
        for place in (
            "everywhere",
            "the template after the prompt",
            "the prompt's own words",
            "everywhere but the shape's word",
        )
    ],
    "references": ["weights 1:1, alpha 0.5"],
    "layer-mixes": ["-2 and -6, alpha 0.5"],
    "masks": ["its middle alone, alpha 0.5"],
    "refinement": ["alpha 0.5"],
    "controls": ["noise, all, alpha 1", "grey, all, alpha 1"],
}


@pytest.mark.parametrize("name", GUIDE)
def test_every_table_of_the_guide_is_there(name: str) -> None:
    labels = [setting.label for setting in EXPERIMENTS[name].settings]
    assert set(GUIDE[name]) <= set(labels)
    assert EXPERIMENTS[name].claim


def test_all_eight_recipes_are_measured_as_they_are_shipped() -> None:
    measured = [dict(setting.knobs) for setting in EXPERIMENTS["recipes"].settings]
    assert len(RECIPES) == 8
    for recipe in RECIPES.values():
        assert {name: value for name, value in recipe.items() if name != "vl_text"} in measured


def test_no_two_rows_of_a_table_have_a_name() -> None:
    for experiment in EXPERIMENTS.values():
        labels = [setting.label for setting in experiment.settings]
        assert len(set(labels)) == len(labels), experiment.name


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting_is_one_that_a_call_takes(name: str, setting: Setting) -> None:
    VLConditioning(
        **dict(setting.knobs),
        has_neutral_image=bool(setting.neutral),
        reference_weights=setting.second or None,
    )
    assert (setting.neutral != "") == (setting.knobs.get("vl_blend_mode") == "style_delta")
    alpha = setting.knobs.get("vl_alpha")
    words = [setting.text or "", *(alpha if isinstance(alpha, dict) else ())]
    used = {field for word in words for _, field, _, _ in string.Formatter().parse(word) if field}
    assert used <= set(FIELDS)


def test_the_experiments_of_the_two_files_are_all_in_the_list() -> None:
    assert EXPERIMENTS["alpha"] is ALPHA
    assert EXPERIMENTS["text"] is TEXT
    assert list(EXPERIMENTS) == [experiment.name for experiment in EXPERIMENTS.values()]
