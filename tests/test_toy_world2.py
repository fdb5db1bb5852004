"""World 2: fixed constants, pictures that show what their scenes say, captions, and a judge that reads them back."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from zimage_vl.toy.captions import (
    EVERYTHING,
    FORMS,
    PLACE_PHRASES,
    SUBSETS,
    caption,
    forms_for,
    long_caption,
    random_caption,
)
from zimage_vl.toy.judging2 import Verdict, count_right, judge
from zimage_vl.toy.world2 import (
    ALL_SCENES,
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    TRAINED,
    Scene,
    disagreeing_pairs,
    draw_mask,
    draw_scene,
)


def test_there_are_1920_scenes_and_30_are_held_out() -> None:
    assert len(set(ALL_SCENES)) == 4 * 6 * 4 * 4 * 5 == 1920
    assert len(set(HELD_OUT)) == 30
    assert set(TRAINED) == set(ALL_SCENES) - set(HELD_OUT)


def test_a_scene_is_plain_and_in_the_middle_unless_told() -> None:
    assert Scene("circle", "red", "white") == Scene("circle", "red", "white", "plain", "middle")
    with pytest.raises(ValueError, match="The toy world knows"):
        Scene("circle", "red", "white", "checked")


def test_pairs_share_nothing() -> None:
    pairs = disagreeing_pairs(100, seed=3)
    assert pairs == disagreeing_pairs(100, seed=3) != disagreeing_pairs(100, seed=4)
    for prompt, reference in pairs:
        assert all(prompt.values[name] != reference.values[name] for name in ATTRIBUTES)


@pytest.mark.parametrize("r", [15.0, 18.0])
def test_plain_shapes_have_the_area_of_their_geometry(r: float) -> None:
    arm = r / 2.4
    areas = {
        "circle": np.pi * r**2,
        "square": (2 * 0.86 * r) ** 2,
        "triangle": 2 * r * 1.86 * r / 2,
        "cross": 2 * (2 * r * 2 * arm) - (2 * arm) ** 2,
    }
    for shape, area in areas.items():
        assert draw_mask(shape, r=r).sum() == pytest.approx(area, rel=0.03)
        hollow = draw_mask(shape, "hollow", r=r).sum()
        assert hollow == pytest.approx(area * (1 - 0.58**2), rel=0.04)


def test_stripes_are_five_pixels_high_and_dots_stand_ten_apart() -> None:
    plain, striped, dotted = (draw_mask("square", fill, cx=32, cy=32, r=18) for fill in ("plain", "striped", "dotted"))
    # floor((y - cy + 400) / 5) is even for y - cy in 0..5, -10..-5, 10..15.
    assert (striped[32:37] == plain[32:37]).all()
    assert striped[37:42].sum() == 0
    assert (striped[22:27] == plain[22:27]).all()
    for dx, dy in ((0, 0), (10, 0), (-10, 10)):
        assert dotted[32 + dy - 1 : 32 + dy + 1, 32 + dx - 1 : 32 + dx + 1].sum() == 0
    assert dotted[37, 37] == 1


def test_the_centre_stays_within_two_pixels_of_its_place() -> None:
    grid = np.arange(64) + 0.5
    for number, place in enumerate(PLACES):
        for seed in range(8):
            scene = Scene("square", "red", "white", "plain", place)
            pixels = np.asarray(draw_scene(scene, seed=10 * number + seed)).astype(float)
            weight = np.abs(pixels - pixels[0, 0]).sum(axis=-1)
            centre = (weight.sum(axis=0) @ grid, weight.sum(axis=1) @ grid) / weight.sum()
            assert np.abs(centre - np.array(PLACES[place])).max() <= 2.1


def test_colours_stay_within_their_jitter() -> None:
    for seed, (colour, background) in enumerate(itertools.product(COLOURS, BACKGROUNDS)):
        pixels = np.asarray(draw_scene(Scene("circle", colour, background), seed)).astype(int)
        assert abs(pixels[0, 0] - BACKGROUNDS[background]).max() <= 8
        assert abs(pixels[32, 32] - COLOURS[colour]).max() <= 8


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


def test_every_drawn_scene_is_read_back() -> None:
    for number, scene in enumerate(ALL_SCENES):
        verdict = judge(draw_scene(scene, seed=number))
        assert all(verdict.matches(scene).values()), (scene, verdict)
        assert verdict.correlation > 0.8


def test_spoilt_drawings_are_read_back() -> None:
    rng, verdicts = np.random.default_rng(0), []
    for number, scene in enumerate(ALL_SCENES):
        picture = draw_scene(scene, seed=5000 + number).filter(ImageFilter.GaussianBlur(1.2))
        noisy = np.asarray(picture) + rng.normal(0, 8, (64, 64, 3))
        verdicts.append(judge(Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8))))
    right = count_right(verdicts, list(ALL_SCENES))
    assert right.pop("fill") >= 0.995
    assert set(right.values()) == {1.0}


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_an_empty_picture_has_a_background_alone(background: str) -> None:
    picture = Image.new("RGB", (64, 64), BACKGROUNDS[background])
    assert judge(picture) == Verdict("", "", background, "", "", 0.0)


def test_another_size_or_mode_is_read_too() -> None:
    scene = Scene("cross", "purple", "white", "striped", "right")
    picture = draw_scene(scene, seed=7)
    assert all(judge(picture.resize((256, 256))).matches(scene).values())
    assert all(judge(picture.convert("RGBA")).matches(scene).values())


def test_what_is_no_drawing_correlates_less() -> None:
    picture = draw_scene(Scene("circle", "red", "white"), seed=1)
    whole = judge(picture).correlation
    picture.paste((246, 246, 246), (0, 0, 32, 32))  # a quarter is gone
    assert judge(picture).correlation < whole - 0.05
