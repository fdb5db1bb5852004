"""The picture's size on the patch grid, and what a mask hides."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zimage_vl.reference.patch_grid import fill_hidden, grid_size, resize_to_grid, visible_tokens


MEGAPIXEL = 1024 * 1024


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def white_box(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("multiple", [16, 32])
@pytest.mark.parametrize("max_pixels", [32 * 32, 64 * 64, 1000 * 100, MEGAPIXEL])
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (1990, 10), (10, 1990), (4000, 3000), (200, 1), (640, 480)])
def test_sides_are_multiples_within_the_bound(size: tuple[int, int], max_pixels: int, multiple: int):
    width, height = grid_size(size, multiple, max_pixels)
    assert width % multiple == height % multiple == 0
    assert min(width, height) >= multiple
    assert width * height <= max_pixels


@pytest.mark.parametrize("size", [(4000, 3000), (640, 480), (1023, 1025), (3000, 500)])
def test_aspect_is_kept_to_a_token(size: tuple[int, int]):
    width, height = grid_size(size, 32, MEGAPIXEL)
    scale = (width * height / (size[0] * size[1])) ** 0.5
    assert abs(width - size[0] * scale) < 32
    assert abs(height - size[1] * scale) < 32
    # The bound is used, but for a row and a column at most.
    assert (width + 32) * (height + 32) > min(MEGAPIXEL, size[0] * size[1])


def test_size_on_the_grid_stays():
    image = noise((96, 64))
    assert resize_to_grid(image, 32, MEGAPIXEL) is image
    assert resize_to_grid(noise((97, 60)), 32, MEGAPIXEL).size == (96, 64)


def test_resampling_is_bicubic():
    image = noise((100, 50))
    expected = image.resize((96, 64), Image.Resampling.BICUBIC)
    assert resize_to_grid(image, 32, MEGAPIXEL).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(4000, 10), (10, 4000), (201, 1)])
def test_over_two_hundred_to_one_is_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"at most 200 times the shorter, got {size[0]}x{size[1]}"):
        grid_size(size, 32, MEGAPIXEL)


def test_no_room_for_one_token_is_refused():
    with pytest.raises(ValueError, match="room for one image token of 32x32 = 1024 pixels, got 1023"):
        grid_size((64, 64), 32, 1023)


def test_patches_white_by_half_are_left():
    mask = white_box((64, 32), (0, 0, 24, 32))  # the second patch of a row is white by exactly half
    assert visible_tokens(mask, 4, 2).tolist() == [True, True, False, False] * 2
    assert visible_tokens(white_box((64, 32), (0, 0, 23, 32)), 4, 2).tolist() == [True, False, False, False] * 2
    assert visible_tokens(white_box((64, 32), (32, 16, 64, 32)), 4, 2).tolist() == [False] * 6 + [True] * 2


def test_mask_of_any_size_and_of_one_bit():
    large = white_box((640, 320), (0, 0, 320, 320))
    small = white_box((2, 1), (0, 0, 1, 1))
    for mask in (large, small, large.convert("1")):
        assert visible_tokens(mask, 4, 2).tolist() == [True, True, False, False] * 2


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="hides the whole picture"):
        visible_tokens(Image.new("L", (8, 8)), 2, 2)
    with pytest.raises(ValueError, match="greyscale"):
        visible_tokens(Image.new("RGB", (8, 8)), 2, 2)
    with pytest.raises(TypeError, match="ndarray"):
        visible_tokens(np.zeros((8, 8)), 2, 2)  # type: ignore[arg-type]


def test_white_mask_fills_nothing():
    image = noise((64, 32))
    assert fill_hidden(image, Image.new("L", (7, 5), 255), 4, 2) is image


@pytest.mark.parametrize("size", [(64, 32), (61, 35), (200, 90)])
def test_hidden_pixels_are_gone_before_the_resize(size: tuple[int, int]):
    mask = white_box((100, 100), (0, 20, 57, 100))
    hidden = np.array(mask.resize(size, Image.Resampling.BOX)) < 128
    first, second = np.array(noise(size, 0)), np.array(noise(size, 1))
    second[~hidden] = first[~hidden]
    assert (first != second).any()
    filled = [fill_hidden(Image.fromarray(pixels), mask, 4, 2) for pixels in (first, second)]
    resized = [resize_to_grid(image, 16, 64 * 32) for image in filled]
    assert resized[0].tobytes() == resized[1].tobytes()
    plain = [resize_to_grid(Image.fromarray(pixels), 16, 64 * 32) for pixels in (first, second)]
    assert plain[0].tobytes() != plain[1].tobytes()


def test_removed_patches_are_filled_and_the_rest_is_kept():
    # White by a third of a patch only: the patch is removed, and its white pixels with it.
    image, mask = noise((64, 32)), white_box((64, 32), (0, 0, 21, 32))
    filled, pixels = np.array(fill_hidden(image, mask, 4, 2)), np.array(image)
    assert (filled[:, :16] == pixels[:, :16]).all()
    mean = np.rint(pixels[:, :16].reshape(-1, 3).mean(axis=0))
    assert (filled[:, 16:] == mean).all()
    assert np.array(noise((64, 32))).tobytes() == np.array(image).tobytes()  # the caller's picture is as before
