"""A reference picture on the encoder's patch grid: its size in pixels, and which image tokens a mask leaves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


_GRID_ASPECT_RATIO = 200  # the bound of Qwen2-VL's own image processor
_HALF_WHITE = 127.5  # of 255: below it a pixel or a patch of the mask is hidden


def grid_size(size: tuple[int, int], multiple: int, max_pixels: int) -> tuple[int, int]:
    """Width and height on the grid: the aspect kept, sides the nearest multiples (at least one), within `max_pixels`.

    Args:
        size: Width and height of the picture, in pixels.
        multiple: Pixels along a side of one image token (patch size x merge size; 32 in Qwen3-VL).
        max_pixels: Bound on width x height, at least multiple x multiple. Where it bites, sides are rounded down.

    Raises:
        ValueError: A side is more than 200 times the other, or `max_pixels` has no room for one token.

    Example:
        >>> grid_size((640, 360), 32, 1024 * 1024)
        (640, 352)
        >>> grid_size((1990, 10), 32, 1024 * 1024)
        (1984, 32)
    """
    width, height = size
    if min(size) < 1 or max(size) > _GRID_ASPECT_RATIO * min(size):
        raise ValueError(
            f"A reference picture's longer side may be at most {_GRID_ASPECT_RATIO} times the shorter, got "
            f"{width}x{height} pixels. Crop it."
        )
    if max_pixels < multiple * multiple:
        raise ValueError(
            f"`max_pixels` must leave room for one image token of {multiple}x{multiple} = {multiple * multiple} "
            f"pixels, got {max_pixels}."
        )
    columns, rows = (max(1, round(side / multiple)) for side in size)
    most = max_pixels // (multiple * multiple)
    if columns * rows > most:
        shrink = math.sqrt(max_pixels / (width * height)) / multiple
        columns, rows = max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink))
        # A thin picture keeps its one row or column and gives up length instead.
        columns = min(columns, max(1, most // rows))
        rows = min(rows, most // columns)
    return columns * multiple, rows * multiple


def resize_to_grid(image: Image.Image, multiple: int, max_pixels: int) -> Image.Image:
    """The picture at the size of `grid_size`, resampled bicubically; the same picture where it has that size already.

    Doing it here, not in the image processor, gives the same grid in every version of transformers.

    Args:
        image: A PIL RGB image.
        multiple: Pixels along a side of one image token.
        max_pixels: Bound on width x height.

    Raises:
        ValueError: As `grid_size`.

    Example:
        >>> resize_to_grid(Image.new("RGB", (100, 50)), 16, 64 * 64).size
        (80, 32)
    """
    size = grid_size(image.size, multiple, max_pixels)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def visible_tokens(mask: Image.Image, columns: int, rows: int) -> Tensor:
    """Which image tokens a mask leaves: those whose patch is white by half or more.

    Args:
        mask: Greyscale PIL image (mode "L" or "1") of any size, laid over the whole picture; white counts.
        columns: Image tokens in a row of the grid.
        rows: Rows of image tokens.

    Returns:
        `(rows * columns,)` bool tensor in the order of the tokens, row by row.

    Raises:
        TypeError: `mask` is not a PIL image.
        ValueError: It is not greyscale, or it leaves no token.

    Example:
        >>> mask = Image.new("L", (64, 32))
        >>> mask.paste(255, (0, 0, 32, 32))
        >>> visible_tokens(mask, 4, 2).tolist()
        [True, True, False, False, True, True, False, False]
    """
    visible = torch.tensor(_coverage(mask, (columns, rows)) >= _HALF_WHITE).flatten()
    if not bool(visible.any()):
        raise ValueError(
            f"The reference mask hides the whole picture: none of its {columns} x {rows} patches is white by half. "
            "White marks what counts; is the mask inverted?"
        )
    return visible


def fill_hidden(image: Image.Image, mask: Image.Image, columns: int, rows: int) -> Image.Image:
    """The picture with every pixel that a mask hides in the mean colour of the others.

    Resampling mixes neighbours; a hidden pixel that is gone before it cannot reach a patch that counts. Hidden are
    the pixels where the mask is nearer to black, and those that lie within removed patches as a whole.

    Args:
        image: A PIL RGB image, at its own size.
        mask: As for `visible_tokens`.
        columns: Image tokens in a row of the grid.
        rows: Rows of image tokens.

    Returns:
        A new RGB image; `image` itself where nothing is hidden.

    Raises:
        TypeError: As `visible_tokens`.
        ValueError: As `visible_tokens`.
    """
    removed = ~visible_tokens(mask, columns, rows).reshape(rows, columns).numpy()
    hidden = _coverage(mask, image.size) < _HALF_WHITE
    width, height = image.size
    for row, column in np.argwhere(removed):
        # Pixels that lie across the edge to another patch stay: they belong to that one too.
        top, bottom = math.ceil(row * height / rows), math.floor((row + 1) * height / rows)
        left, right = math.ceil(column * width / columns), math.floor((column + 1) * width / columns)
        hidden[top:bottom, left:right] = True
    if not hidden.any():
        return image
    pixels: Any = np.array(image)
    pixels[hidden] = np.rint(pixels[~hidden].mean(axis=0))
    return Image.fromarray(pixels)


def _coverage(mask: Image.Image, size: tuple[int, int]) -> Any:
    """The mask's mean whiteness (0..255) over each cell of a grid of that many columns and rows, as floats."""
    if not isinstance(mask, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`mask` must be a greyscale PIL image, got {type(mask).__name__}.")
    if mask.mode not in ("L", "1"):
        raise ValueError(f'`mask` must be greyscale (mode "L" or "1"), got mode {mask.mode!r}. Use mask.convert("L").')
    # In floats: eight bits would round 127.4 up to 127.5's side.
    return np.array(mask.convert("L").convert("F").resize(size, Image.Resampling.BOX))
