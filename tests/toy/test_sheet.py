"""The contact sheet: every picture in its place, unchanged but for its size, and labels that fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import PIL.Image
import pytest

from zimage_vl.toy.sheet import SheetRow, contact_sheet, wrap_text


Colour = tuple[int, int, int]
TITLES = ["alpha 0", "alpha 1"]


def plain(colour: Colour, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size, colour)


def colours_of(row: int, blocks: int = 2) -> tuple[Colour, list[list[Colour]]]:
    """A colour of its own for the reference and each picture of a row."""
    return (200, 10, 20 * row), [
        [(10, 60 + 60 * block + 25 * column, 20 * row) for column in (0, 1)] for block in range(blocks)
    ]


def make_row(number: int, prompt: str = "a red circle on a white background") -> SheetRow:
    reference, blocks = colours_of(number)
    return SheetRow(prompt, plain(reference), [[plain(colour) for colour in block] for block in blocks])


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
    tops, lefts = [], []
    for number in (0, 1):
        reference, blocks = colours_of(number)
        boxes = [box_of(sheet, colour) for colour in (reference, *blocks[0], *blocks[1])]
        assert all((right - left, bottom - top) == (64, 64) for left, top, right, bottom in boxes)
        assert len({top for _, top, _, _ in boxes}) == 1
        assert all(one[2] < next_one[0] for one, next_one in pairwise(boxes))
        tops.append(boxes[0][1])
        lefts.append([box[0] for box in boxes])
    assert lefts[0] == lefts[1]
    assert tops[0] + 64 < tops[1]


def test_the_ground_is_light_and_bears_labels(sheet: PIL.Image.Image) -> None:
    assert min(sheet.getpixel((0, 0))) > 240
    reference, blocks = colours_of(0)
    first, last = box_of(sheet, reference), box_of(sheet, blocks[1][1])
    areas: Sequence[tuple[int, int, int, int]] = [
        (0, first[1], first[0] - 2, first[3]),  # the prompt beside its row
        (first[0], 0, first[2], first[1] - 2),  # "reference" over it
        (last[0], 0, last[2], last[1] - 2),  # the last column's title
    ]
    for area in areas:
        assert min(sheet.crop(area).convert("L").getextrema()) < 130, area


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    picture = plain((255, 0, 0), (2, 2))
    picture.putpixel((1, 0), (0, 0, 255))
    sheet = contact_sheet([SheetRow("", picture, [[plain((9, 99, 9))]])], ["alpha 0"], cell=128)
    left, top, right, bottom = box_of(sheet, (0, 0, 255))
    assert (right - left, bottom - top) == (64, 64)
    assert sheet.getpixel((left - 1, top)) == (255, 0, 0)


def test_large_pictures_are_fitted_with_their_shape() -> None:
    sheet = contact_sheet(
        [SheetRow("", plain((255, 0, 0), (400, 200)), [[plain((9, 99, 9), (1, 3))]])], ["one"], cell=100
    )
    left, top, right, bottom = box_of(sheet, (255, 0, 0))
    assert (right - left, bottom - top) == (100, 50)
    left, top, right, bottom = box_of(sheet, (9, 99, 9))
    assert (right - left, bottom - top) == (33, 99)


def test_the_pictures_given_are_as_before() -> None:
    row = make_row(0)
    before = row.reference.tobytes(), row.blocks[0][0].tobytes()
    contact_sheet([row], TITLES, ["a", "b"])
    assert (row.reference.tobytes(), row.blocks[0][0].tobytes()) == before


def test_each_label_is_on_the_sheet() -> None:
    labelled = {"title": "t", "footnote": "f"}
    bare = contact_sheet([make_row(0)], TITLES, ["", ""])
    for options in ({"title": labelled["title"]}, {"footnote": labelled["footnote"]}):
        assert contact_sheet([make_row(0)], TITLES, ["", ""], **options).height > bare.height
    headed = contact_sheet([make_row(0)], TITLES, ["settings", ""])
    assert headed.height > bare.height
    assert contact_sheet([make_row(0, "other words")], TITLES, ["", ""]).tobytes() != bare.tobytes()
    assert contact_sheet([make_row(0)], ["alpha 0", "alpha 2"], ["", ""]).tobytes() != bare.tobytes()


def test_lines_keep_all_words_and_the_width() -> None:
    from PIL import ImageFont

    text = "an image of a purple triangle on a brown background"
    lines = wrap_text(text, 150, 10, 20)
    assert " ".join(lines) == text
    assert all(ImageFont.load_default(20).getlength(line) <= 150 for line in lines)


@pytest.mark.parametrize("text", ["word " * 50, "w" * 200, "w" * 200 + " and more"])
def test_what_does_not_fit_is_marked(text: str) -> None:
    from PIL import ImageFont

    lines = wrap_text(text, 150, 2, 20)
    assert len(lines) <= 2
    assert any(line.endswith("...") for line in lines)
    assert all(ImageFont.load_default(20).getlength(line) <= 150 for line in lines)


def test_no_text_is_no_line() -> None:
    assert wrap_text("", 100, 2, 20) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([], TITLES, ["a", "b"]), "`rows` is empty"),
        (([make_row(0)], [], ["a", "b"]), "`column_titles` is empty"),
        (([make_row(0)], TITLES, []), "`headings` is empty"),
        (([make_row(0)], TITLES, ["a"]), r"Row 0 .* blocks of \[2, 2\] pictures, expected 1 blocks of 2"),
        (([make_row(0)], ["one"], ["a", "b"]), "expected 2 blocks of 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(arguments: tuple[object, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        contact_sheet(*arguments)


def test_a_cell_too_small_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match="`cell` must be at least 16 pixels, got 0"):
        contact_sheet([make_row(0)], TITLES, ["a", "b"], cell=0)
