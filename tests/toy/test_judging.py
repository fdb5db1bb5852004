"""The judge of the toy world reads back what was drawn, and nothing out of nothing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from zimage_vl.toy.judging import Verdict, count_right, judge
from zimage_vl.toy.world import ALL_SCENES, BACKGROUNDS, Scene, draw_scene


# Every seventh of the 1920: 7 divides none of the numbers of values, so all values come with all others.
SCENES = ALL_SCENES[::7]


def test_drawn_scenes_are_read_back() -> None:
    for number, scene in enumerate(SCENES):
        verdict = judge(draw_scene(scene, seed=number))
        assert all(verdict.matches(scene).values()), (scene, verdict)
        assert verdict.correlation > 0.8


def test_spoilt_drawings_are_read_back() -> None:
    rng, verdicts = np.random.default_rng(0), []
    for number, scene in enumerate(SCENES):
        picture = draw_scene(scene, seed=5000 + number).filter(ImageFilter.GaussianBlur(1.2))
        noisy = np.asarray(picture) + rng.normal(0, 8, (64, 64, 3))
        verdicts.append(judge(Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8))))
    right = count_right(verdicts, list(SCENES))
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
