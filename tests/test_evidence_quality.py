"""Stray pixels: none in what is drawn, as many as are put in."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zimage_vl.evidence.quality import get_stray_share
from zimage_vl.toy.world import ALL_SCENES, draw_scene


def test_a_drawn_scene_has_next_to_none() -> None:
    assert max(get_stray_share(draw_scene(scene, n)) for n, scene in enumerate(ALL_SCENES[::5])) < 0.01


def test_what_is_put_in_is_found() -> None:
    pixels = np.asarray(draw_scene(ALL_SCENES[0], 1)).copy()
    pixels[8:16, 8:40] = (255, 0, 255)  # 8 x 32 pixels of magenta
    assert get_stray_share(Image.fromarray(pixels)) == pytest.approx(8 * 32 / 64**2, abs=0.01)


def test_a_flat_picture_has_none_and_noise_has_many() -> None:
    assert get_stray_share(Image.new("RGB", (64, 64), (9, 9, 9))) == 0.0
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert get_stray_share(Image.fromarray(noise)) > 0.5
