"""The contact sheet: prompt, reference, and a picture for each strength of the reference, block beside block."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont


_BACKGROUND, _INK, _FAINT = (250, 250, 248), (28, 28, 30), (110, 110, 116)
_LINE = (206, 206, 204)
_MARGIN, _GAP, _BLOCK_GAP = 28, 8, 40
# Large beside the pictures: a wide sheet is mostly looked at made smaller.
_TITLE_SIZE, _HEADING_SIZE, _TEXT_SIZE = 34, 27, 23
_LEADING = 1.25


@dataclass(frozen=True)
class SheetRow:
    """One pair of prompt and reference.

    Attributes:
        prompt: Stands in words at the left.
        reference: The picture that was followed; None for none.
        blocks: For each block of columns, a picture a column.
    """

    prompt: str
    reference: Image.Image | None
    blocks: Sequence[Sequence[Image.Image]]


def contact_sheet(
    rows: Sequence[SheetRow],
    column_titles: Sequence[str],
    headings: Sequence[str] = ("",),
    *,
    title: str = "",
    footnote: str = "",
    cell: int = 128,
) -> Image.Image:
    """A labelled sheet of pictures on a light ground.

    Args:
        rows: At least one; each with as many blocks as headings and as many pictures per block as titles.
        column_titles: Stand over the pictures of every block.
        headings: One a block, over its titles; `""` for none.
        title: A line over everything; `""` for none.
        footnote: Lines under everything; `""` for none.
        cell: Side of the square that each picture is fitted into, in pixels, at least 16. Small pictures are enlarged
            by whole numbers, pixel by pixel, so that nothing is shown that was not painted.

    Returns:
        An RGB picture.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene
        >>> picture = draw_scene(Scene("circle", "red", "white"))
        >>> sheet = contact_sheet([SheetRow("a cross", picture, [[picture, picture]])], ["alpha 0", "alpha 1"])
        >>> sheet.mode, sheet.width > 3 * 128
        ('RGB', True)
    """
    parts = (bool(title), any(headings), any(row.reference is not None for row in rows))
    layout = _Layout(len(rows), len(column_titles), len(headings), cell, *parts)
    width, height = layout.size
    notes = wrap_text(footnote, width - 2 * _MARGIN, 4, _TEXT_SIZE)
    sheet = Image.new("RGB", (width, height + len(notes) * _line_height(_TEXT_SIZE)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        _write(draw, title, (_MARGIN, _MARGIN), layout.size[0] - 2 * _MARGIN, 1, _TITLE_SIZE, _INK)
    _write_headings(draw, layout, column_titles, headings)
    for number, row in enumerate(rows):
        top = layout.row_top(number)
        _write_centred_label(draw, row.prompt, top, layout)
        if row.reference is not None:
            _paste(sheet, row.reference, (layout.reference_left, top), cell)
        for block, pictures in enumerate(row.blocks):
            for column, picture in enumerate(pictures):
                _paste(sheet, picture, (layout.column_left(block, column), top), cell)
    _write(draw, footnote, (_MARGIN, height - _MARGIN + 2 * _GAP), width - 2 * _MARGIN, 4, _TEXT_SIZE, _FAINT)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Where everything stands, in pixels from the upper left corner."""

    num_rows: int
    num_columns: int
    num_blocks: int
    cell: int
    has_title: bool
    has_headings: bool
    has_references: bool

    @property
    def label_width(self) -> int:
        return max(210, self.cell)

    @property
    def reference_left(self) -> int:
        return _MARGIN + self.label_width + 2 * _GAP

    @property
    def block_width(self) -> int:
        return self.num_columns * (self.cell + _GAP) - _GAP

    def column_left(self, block: int, column: int) -> int:
        start = self.reference_left + (self.cell + _BLOCK_GAP if self.has_references else 0)
        return start + block * (self.block_width + _BLOCK_GAP) + column * (self.cell + _GAP)

    @property
    def headings_top(self) -> int:
        return _MARGIN + (_line_height(_TITLE_SIZE) + 2 * _GAP if self.has_title else 0)

    @property
    def titles_top(self) -> int:
        # A heading may need two lines over a narrow block.
        return self.headings_top + (2 * _line_height(_HEADING_SIZE) + _GAP if self.has_headings else 0)

    def row_top(self, row: int) -> int:
        return self.titles_top + _line_height(_TEXT_SIZE) + _GAP + row * (self.cell + _GAP)

    @property
    def size(self) -> tuple[int, int]:
        right = self.column_left(self.num_blocks - 1, self.num_columns - 1) + self.cell
        return right + _MARGIN, self.row_top(self.num_rows) - _GAP + _MARGIN


def _line_height(size: int) -> int:
    return round(size * _LEADING)


def _write_headings(
    draw: ImageDraw.ImageDraw, layout: _Layout, column_titles: Sequence[str], headings: Sequence[str]
) -> None:
    top = layout.titles_top
    _write(draw, "prompt", (_MARGIN, top), layout.label_width, 1, _TEXT_SIZE, _FAINT)
    if layout.has_references:
        _write(draw, "reference", (layout.reference_left, top), layout.cell, 1, _TEXT_SIZE, _FAINT)
    for block, heading in enumerate(headings):
        left = layout.column_left(block, 0)
        if heading:
            count = len(wrap_text(heading, layout.block_width, 2, _HEADING_SIZE))
            above = layout.headings_top + (2 - count) * _line_height(_HEADING_SIZE)
            _write(draw, heading, (left, above), layout.block_width, 2, _HEADING_SIZE, _INK)
            line = top - _GAP // 2
            draw.line((left, line, left + layout.block_width, line), fill=_LINE, width=2)
        for column, text in enumerate(column_titles):
            _write(draw, text, (layout.column_left(block, column), top), layout.cell, 1, _TEXT_SIZE, _FAINT)


def _write_centred_label(draw: ImageDraw.ImageDraw, text: str, top: int, layout: _Layout) -> None:
    most = max(1, layout.cell // _line_height(_TEXT_SIZE))
    lines = wrap_text(text, layout.label_width, most, _TEXT_SIZE)
    start = top + (layout.cell - len(lines) * _line_height(_TEXT_SIZE)) // 2
    _write(draw, text, (_MARGIN, start), layout.label_width, most, _TEXT_SIZE, _INK)


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[int, int],
    width: int,
    most_lines: int,
    size: int,
    colour: tuple[int, int, int],
) -> None:
    for number, line in enumerate(wrap_text(text, width, most_lines, size)):
        draw.text((corner[0], corner[1] + number * _line_height(size)), line, fill=colour, font=_font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own scalable font: the same on every machine


def wrap_text(text: str, width: int, most_lines: int, size: int) -> list[str]:
    """The text in lines that are no wider than `width` pixels at this font size; what is left over ends in "...".

    Example:
        >>> wrap_text("a red circle on a white background", 160, 5, 20)
        ['a red circle on a', 'white', 'background']
    """
    font = _font(size)
    lines: list[str] = []
    words = " ".join(text.split())[: width * most_lines].split()  # no more fits, at a pixel per letter
    while words:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
    if len(lines) > most_lines:
        lines = [*lines[: most_lines - 1], lines[most_lines - 1] + " ..."]
    return [_shorten(line, width, font) for line in lines]


def _shorten(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    kept = line.removesuffix(" ...")

    def measure(end: int) -> float:
        return font.getlength(kept[:end].rstrip() + "...")

    return kept[: bisect_right(range(1, len(kept) + 1), width, key=measure)].rstrip() + "..."


def _paste(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], cell: int) -> None:
    """The picture in the middle of its cell: enlarged by a whole number, or made smaller, its shape kept."""
    larger = max(picture.size)
    if larger <= cell:
        factor = cell // larger
        fitted = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        sides = [max(1, round(side * cell / larger)) for side in picture.size]
        fitted = picture.convert("RGB").resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    left, top = (corner[0] + (cell - fitted.width) // 2, corner[1] + (cell - fitted.height) // 2)
    sheet.paste(fitted.convert("RGB"), (left, top))
    # A hairline around it: a white background would otherwise run into the sheet.
    box = (left - 1, top - 1, left + fitted.width, top + fitted.height)
    ImageDraw.Draw(sheet).rectangle(box, outline=_LINE)
