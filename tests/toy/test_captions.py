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


@pytest.mark.parametrize(
    "text",
    [
        "a hollow blue cross at the top on a gray background",
        "a cross",
        "a blue cross",
        "a hollow cross",
        "a hollow blue cross",
        "a cross at the top",
        "a blue cross at the top",
        "a cross on a gray background",
        "a hollow shape",
    ],
)
def test_the_captions_that_others_ask_with_come_out_of_the_first_form(text: str) -> None:
    scene = Scene("cross", "blue", "gray", "hollow", "top")
    assert caption(scene, {name for name, value in scene.values.items() if value in text.split()}) == text


def test_other_forms_say_the_same_and_places_have_their_phrases() -> None:
    phrases = {"on the left", "on the right", "at the top", "at the bottom", "in the middle"}
    assert set(PLACE_PHRASES.values()) == phrases
    forms = {caption(Scene("circle", "red", "white", "striped", "left"), EVERYTHING, form) for form in FORMS}
    assert "a striped red circle on the left of a white background" in forms
    assert "red striped circle, left, on white" in forms


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
