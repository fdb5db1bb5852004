"""The judge reads back what was drawn, and nothing out of nothing."""

from __future__ import annotations

import PIL.Image
import pytest

from zimage_vl.toy.judging import Verdict, judge
from zimage_vl.toy.world import ALL_SCENES, BACKGROUNDS, Scene, draw_scene


ALL_TRUE = {"shape": True, "colour": True, "background": True}


@pytest.mark.parametrize("seed", [0, 1])
def test_every_drawn_scene_is_read_back(seed: int) -> None:
    for number, scene in enumerate(ALL_SCENES):
        verdict = judge(draw_scene(scene, seed=1000 * seed + number))
        assert verdict.matches(scene) == ALL_TRUE, (scene, verdict)
        assert verdict.iou > 0.8


def test_another_size_or_mode_is_read_too() -> None:
    scene = Scene("cross", "purple", "white")
    picture = draw_scene(scene, seed=7)
    assert judge(picture.resize((256, 256))).matches(scene) == ALL_TRUE
    assert judge(picture.convert("RGBA")).matches(scene) == ALL_TRUE


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_an_empty_picture_has_a_background_alone(background: str) -> None:
    verdict = judge(PIL.Image.new("RGB", (64, 64), BACKGROUNDS[background]))
    assert verdict == Verdict("", "", background, 0.0)


def test_each_attribute_is_matched_by_itself() -> None:
    verdict = Verdict("circle", "red", "white", 0.9)
    assert verdict.matches(Scene("circle", "red", "white")) == ALL_TRUE
    assert verdict.matches(Scene("square", "red", "white")) == {**ALL_TRUE, "shape": False}
    assert verdict.matches(Scene("circle", "blue", "white")) == {**ALL_TRUE, "colour": False}
    assert verdict.matches(Scene("circle", "red", "black")) == {**ALL_TRUE, "background": False}


def test_a_shape_that_is_none_scores_less() -> None:
    picture = draw_scene(Scene("circle", "red", "white"), seed=1)
    whole = judge(picture).iou
    picture.paste((246, 246, 246), (0, 0, 32, 32))  # a quarter is gone
    assert judge(picture).iou < whole - 0.1
