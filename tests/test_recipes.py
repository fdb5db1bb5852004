"""The recipes: keyword arguments that a call takes, as the guide has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from conditioning_samples import TEXT, TEXT_REGIONS, condition
from embedding_samples import make_reference
from zimage_vl import recipes
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.blend.regions import Region
from zimage_vl.blend.registry import KNOBS
from zimage_vl.recipes import RECIPES


NAMES = sorted(RECIPES)
OF_READING = {"vl_text", "vl_treatment", "vl_describe"}


def conditioning(recipe: Mapping[str, Any]) -> VLConditioning:
    return VLConditioning(**{name: value for name, value in recipe.items() if name not in OF_READING})


def test_the_names_are_those_of_the_module() -> None:
    constants = {name.lower().replace("_", "-") for name in vars(recipes) if re.fullmatch("[A-Z][A-Z_]+", name)}
    assert constants - {"recipes", "wishes"} == set(NAMES)
    assert all(RECIPES[name] is getattr(recipes, name.upper().replace("-", "_")) for name in NAMES)


def test_the_guides_alphas_and_layer() -> None:
    alphas = {"style-transfer": 0.5, "image-variation": 0.5, "composition": 0.2, "colour-palette": 0.15, "guide": 0.3}
    assert {name: conditioning(RECIPES[name]).vl_alpha for name in alphas} == alphas
    assert {conditioning(RECIPES[name]).vl_hidden_layer for name in alphas} == {-6}
    assert {name: RECIPES[name]["vl_text"] for name in NAMES if "vl_text" in RECIPES[name]} == {"composition": ""}
    assert {conditioning(RECIPES[name]).vl_target_std for name in RECIPES if name != "guide"} == {None}


def test_the_guide_to_the_letter_and_its_authors_correction() -> None:
    made = conditioning(recipes.GUIDE)
    assert (made.vl_token_selection, made.vl_normalization, made.vl_target_std) == ("text", "global", 70.0)
    assert (made.vl_outlier_masking, made.vl_outlier_threshold, made.vl_alignment) == ("none", 10.0, "interpolate")
    assert conditioning(recipes.ALL_TOKENS) == VLConditioning(vl_alpha=0.4)


def test_what_calls_share_cannot_be_changed() -> None:
    for recipe in RECIPES.values():
        with pytest.raises(TypeError, match="does not support item assignment"):
            recipe["vl_alpha"] = 1.0  # pyright: ignore[reportIndexIssue]
        assert not any(hasattr(recipe, name) for name in ("update", "pop", "popitem", "setdefault", "clear"))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_valid_set_of_knobs_that_blends_and_is_like_no_other(name: str) -> None:
    recipe = RECIPES[name]
    assert set(recipe) <= set(KNOBS)
    assert conditioning(recipe).unused == ()
    assert [other for other in NAMES if RECIPES[other] == recipe] == [name]
    knobs = {knob: value for knob, value in recipe.items() if knob not in OF_READING}
    out, report = condition(make_reference(layers=(-2, -6)), **knobs)
    assert not torch.equal(out, TEXT)
    assert report.influence


@pytest.mark.parametrize(("name", "touched"), [("colours", Region.PREFIX), ("style", Region.WORDS)])
def test_colours_touch_the_beginning_and_style_the_words(name: str, touched: Region) -> None:
    out, _ = condition(make_reference(layers=(-2, -6)), **RECIPES[name])
    assert (out != TEXT).any(dim=1).tolist() == (touched == TEXT_REGIONS).tolist()


def test_calibrated_means_what_it_says() -> None:
    _, report = condition(**recipes.CALIBRATED)
    assert report.effective_alpha is not None
    torch.testing.assert_close(report.effective_alpha, torch.full((len(TEXT),), 0.3))
