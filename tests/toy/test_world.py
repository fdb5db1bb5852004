"""The toy world: its fixed constants, and pictures that show what their scenes say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from zimage_vl.toy.world import (
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
    for top, kept in ((22, 1), (27, 0), (32, 1), (37, 0)):  # floor((y - cy + 400) / 5) is even or odd
        assert (striped[top : top + 5] == kept * plain[top : top + 5]).all()
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
