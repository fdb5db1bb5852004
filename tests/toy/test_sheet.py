"""The contact sheet: every picture in its place, unchanged but for its size, and labels that fit."""

from __future__ import annotations

from itertools import pairwise

import PIL.Image
import pytest
from PIL import ImageFont

from zimage_vl.toy.sheet import SheetRow, contact_sheet, wrap_text


Colour = tuple[int, int, int]
TITLES = ["alpha 0", "alpha 1"]


def plain(colour: Colour, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


def colours_of(row: int) -> list[Colour]:
    """A colour of its own for the reference and each picture of a row."""
    return [(200, 10, 20 * row), *((10, 60 + 25 * column, 20 * row) for column in range(4))]


def make_row(number: int = 0, prompt: str = "a red circle on a white background") -> SheetRow:
    reference, *pictures = (plain(colour) for colour in colours_of(number))
    return SheetRow(prompt, reference, [pictures[:2], pictures[2:]])


def box_of(sheet: PIL.Image.Image, colour: Colour) -> tuple[int, int, int, int]:
    """The box that holds all pixels of a colour; every pixel in it has that colour."""
    width, height = sheet.size
    pixels = sheet.load()
    found = [(x, y) for y in range(height) for x in range(width) if pixels[x, y] == colour]
    assert found, colour
    (left, right), (top, bottom) = ((min(axis), max(axis) + 1) for axis in zip(*found, strict=True))
    assert len(found) == (right - left) * (bottom - top)
    return left, top, right, bottom


@pytest.fixture(scope="module")
def sheet() -> PIL.Image.Image:
    return contact_sheet([make_row(0), make_row(1)], TITLES, ["first", "second"], title="title", cell=64)


def test_every_picture_has_its_place(sheet: PIL.Image.Image) -> None:
    rows = [[box_of(sheet, colour) for colour in colours_of(number)] for number in (0, 1)]
    for boxes in rows:
        assert all((right - left, bottom - top) == (64, 64) for left, top, right, bottom in boxes)
        assert len({top for _, top, _, _ in boxes}) == 1
        assert all(one[2] < next_one[0] for one, next_one in pairwise(boxes))
    assert [box[0] for box in rows[0]] == [box[0] for box in rows[1]]
    assert rows[0][0][3] < rows[1][0][1]


def test_the_ground_is_light_and_bears_every_label(sheet: PIL.Image.Image) -> None:
    assert min(sheet.getpixel((0, 0))) > 240
    first, last = box_of(sheet, colours_of(0)[0]), box_of(sheet, colours_of(0)[-1])
    for area in (
        (0, first[1], first[0] - 2, first[3]),  # the prompt beside its row
        (first[0], 0, first[2], first[1] - 2),  # "reference" over it
        (last[0], 0, last[2], last[1] - 2),  # the last column's title
    ):
        assert min(sheet.crop(area).convert("L").getextrema()) < 130, area
    bare = contact_sheet([make_row()], TITLES, ["", ""])
    for headings, labels in ((["", ""], {"title": "t"}), (["", ""], {"footnote": "f"}), (["settings", ""], {})):
        assert contact_sheet([make_row()], TITLES, headings, **labels).height > bare.height
    assert contact_sheet([make_row(0, "other words")], TITLES, ["", ""]).tobytes() != bare.tobytes()
    assert contact_sheet([make_row()], ["alpha 0", "alpha 2"], ["", ""]).tobytes() != bare.tobytes()


def test_small_pictures_are_enlarged_pixel_by_pixel_and_large_ones_fitted_with_their_shape() -> None:
    picture = plain((255, 0, 0), (2, 2))
    picture.putpixel((1, 0), (0, 0, 255))
    sheet = contact_sheet([SheetRow("", picture, [[plain((9, 99, 9), (400, 200))]])], ["alpha 0"], cell=128)
    left, top, right, bottom = box_of(sheet, (0, 0, 255))
    assert (right - left, bottom - top) == (64, 64)
    assert sheet.getpixel((left - 1, top)) == (255, 0, 0)
    left, top, right, bottom = box_of(sheet, (9, 99, 9))
    assert (right - left, bottom - top) == (128, 64)


@pytest.mark.parametrize(
    "text", ["", "an image of a purple triangle", "word " * 50, "w" * 200, "w" * 99 + " more", "w" * 10**7]
)
def test_lines_keep_the_width_and_all_words_or_are_marked(text: str) -> None:
    lines = wrap_text(text, 150, 2, 20)
    assert len(lines) <= 2
    assert " ".join(lines) == text or any(line.endswith("...") for line in lines)
    assert all(ImageFont.load_default(20).getlength(line) <= 150 for line in lines)
