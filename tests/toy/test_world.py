"""The toy world's fixed constants, and pictures that show what their scenes say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from zimage_vl.toy.world import (
    ALL_SCENES,
    BACKGROUNDS,
    COLOURS,
    FULL_CAPTIONS,
    HELD_OUT,
    PARTIAL_CAPTIONS,
    SHAPES,
    SIZE,
    Scene,
    disagreeing_pairs,
    draw_mask,
    draw_scene,
)


def test_the_constants() -> None:
    assert SIZE == 64
    assert SHAPES == ("circle", "square", "triangle", "cross")
    assert COLOURS == {
        "red": (222, 36, 36),
        "green": (36, 176, 60),
        "blue": (40, 72, 230),
        "yellow": (246, 222, 40),
        "purple": (160, 48, 200),
        "cyan": (40, 206, 220),
    }
    assert BACKGROUNDS == {
        "white": (246, 246, 246),
        "black": (16, 16, 16),
        "gray": (128, 128, 128),
        "brown": (122, 76, 36),
    }


def test_the_captions() -> None:
    assert (len(FULL_CAPTIONS), len(PARTIAL_CAPTIONS)) == (12, 10)
    assert len({*FULL_CAPTIONS, *PARTIAL_CAPTIONS}) == 22
    assert FULL_CAPTIONS[0] == "a {c} {s} on a {b} background"
    for form in FULL_CAPTIONS:
        caption = Scene("cross", "cyan", "brown").caption(form)
        assert all(word in caption for word in ("cross", "cyan", "brown"))
        assert "{" not in caption
    for form in PARTIAL_CAPTIONS:
        assert 1 <= sum(field in form for field in ("{s}", "{c}", "{b}")) <= 2


def test_ten_of_the_96_scenes_are_held_out() -> None:
    assert set(ALL_SCENES) == {Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, BACKGROUNDS)}
    assert len(ALL_SCENES) == 96
    assert len(HELD_OUT) == len(set(HELD_OUT)) == 10
    assert set(HELD_OUT) < set(ALL_SCENES)


@pytest.mark.parametrize("parts", [("star", "red", "white"), ("cross", "white", "white"), ("cross", "red", "red")])
def test_what_the_world_does_not_know_is_refused(parts: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="The toy world knows"):
        Scene(*parts)


def test_pairs_share_nothing() -> None:
    pairs = disagreeing_pairs(200, seed=3)
    assert len(pairs) == 200
    for prompt, reference in pairs:
        assert prompt.shape != reference.shape
        assert prompt.colour != reference.colour
        assert prompt.background != reference.background


def test_pairs_follow_from_the_seed_and_stay_among_the_scenes() -> None:
    assert disagreeing_pairs(20, seed=1) == disagreeing_pairs(20, seed=1) != disagreeing_pairs(20, seed=2)
    assert disagreeing_pairs(5, seed=1) == disagreeing_pairs(20, seed=1)[:5]
    scenes = (Scene("circle", "red", "white"), Scene("cross", "blue", "black"))
    assert {scene for pair in disagreeing_pairs(20, scenes=scenes) for scene in pair} == set(scenes)


def test_a_picture_follows_from_scene_and_seed() -> None:
    scene = Scene("triangle", "green", "gray")
    first, again, other = (np.asarray(draw_scene(scene, seed)) for seed in (4, 4, 5))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    assert (first != other).any()


def test_colours_stay_within_their_jitter() -> None:
    for seed, scene in enumerate(ALL_SCENES):
        pixels = np.asarray(draw_scene(scene, seed)).astype(int)
        assert abs(pixels[0, 0] - BACKGROUNDS[scene.background]).max() <= 8
        if scene.shape != "triangle":  # a triangle's centre of the picture lies within it too, but near its edge
            assert abs(pixels[32, 32] - COLOURS[scene.colour]).max() <= 8


@pytest.mark.parametrize("r", [16.0, 22.0])
def test_shapes_have_the_area_of_their_geometry(r: float) -> None:
    areas = {
        "circle": np.pi * r**2,
        "square": (2 * 0.86 * r) ** 2,
        "triangle": 2 * r * 1.86 * r / 2,  # base 2 r, height 1.86 r
        "cross": 2 * (2 * r * 2 * r / 3) - (2 * r / 3) ** 2,  # arms a third as wide as they are long
    }
    for shape, area in areas.items():
        mask = draw_mask(shape, r=r)
        assert mask.min() == 0.0
        assert mask.max() == 1.0
        assert mask.sum() == pytest.approx(area, rel=0.03)
