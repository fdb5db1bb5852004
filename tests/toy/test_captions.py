"""The training's sentences name what they should and nothing else."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from toy_training.captions import (
    EVERYTHING,
    FORMS,
    SUBSETS,
    caption,
    forms_for,
    long_caption,
    random_caption,
)
from zimage_vl.toy.world import PLACE_PHRASES, Scene


def test_the_captions_that_others_ask_with_come_out_of_the_first_form() -> None:
    scene = Scene("cross", "blue", "gray", "hollow", "top")
    assert caption(scene) == "a hollow blue cross at the top on a gray background"
    parts = {
        ("shape",): "a cross",
        ("colour", "shape"): "a blue cross",
        ("fill", "shape"): "a hollow cross",
        ("fill", "colour", "shape"): "a hollow blue cross",
        ("shape", "place"): "a cross at the top",
        ("colour", "shape", "place"): "a blue cross at the top",
        ("shape", "background"): "a cross on a gray background",
        ("fill",): "a hollow shape",
    }
    for named, text in parts.items():
        assert caption(scene, named) == text
    assert set(PLACE_PHRASES.values()) == {
        "on the left",
        "on the right",
        "at the top",
        "at the bottom",
        "in the middle",
    }
    forms = {caption(Scene("circle", "red", "white", "striped", "left"), EVERYTHING, form) for form in FORMS}
    assert "a striped red circle on the left of a white background" in forms
    assert caption(Scene("square", "yellow", "gray", "dotted", "right"), EVERYTHING, FORMS[4]) == (
        "yellow dotted square, right, on gray"
    )


@pytest.mark.parametrize("named", [*SUBSETS, EVERYTHING])
def test_every_choice_of_attributes_has_forms_that_name_them_and_no_other(named: frozenset[str]) -> None:
    scene = Scene("triangle", "cyan", "brown", "dotted", "bottom")
    texts = {caption(scene, named, form) for form in forms_for(named)}
    assert len(texts) >= (10 if named == EVERYTHING else 2)
    for text in texts:
        words = text.replace(",", "").split()
        assert {name for name, value in scene.values.items() if value in words} == set(named), text


def test_long_captions_name_what_they_should() -> None:
    scene, rng = Scene("triangle", "cyan", "brown", "dotted", "bottom"), random.Random(1)
    text = long_caption(scene, {"colour", "fill"}, 60, rng)
    assert len(text.split()) >= 60
    assert {"cyan", "dotted"} <= set(text.replace(",", "").split())
    assert not {"triangle", "brown", "bottom"} & set(text.replace(",", "").split())
    assert random_caption(scene, {"shape"}, rng).split()[-1].strip(",") in {"triangle"}
