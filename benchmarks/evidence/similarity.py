"""How alike two pictures are, without CLIP: in colour, in structure, and to the pipeline's own VL encoder.

All three are 1 for a picture with itself and symmetric. Colour does not know where a colour is, structure does not
know which colour anything has; the third is what the encoder that conditions the picture makes of it, and so is no
independent witness of it: it says whether what was read is there, in that encoder's own terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zimage_vl.blend.regions import Region
from zimage_vl.evidence.summaries import scale_layer
from zimage_vl.reference.embeds import ReferenceEmbeds


Picture = Image.Image | NDArray[np.uint8]
Floats = NDArray[np.float64]
MEASURES = ("colour", "structure", "semantics")

# sRGB to XYZ (IEC 61966-2-1), and the white point D65 that its rows sum to.
_XYZ_OF_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ_OF_RGB.sum(axis=1)
_DIRECTIONS = 64
_QUANTILES = 256
_MOST_PIXELS = 256
_BLACK_TO_WHITE = 100.0  # in CIELAB

_SIDE, _CELL, _BINS, _BLOCK = 64, 8, 9, 2
# What a block is divided by has a floor, this part of the mean block's length: flat parts then stay faint.
_FLOOR = 0.1


def read_pixels(picture: Picture) -> NDArray[np.uint8]:
    """A picture as `(height, width, 3)` uint8.

    Args:
        picture: A PIL image of any mode, or an array `(height, width, 3)` or, grey, `(height, width)` of uint8.

    Raises:
        TypeError: Neither, or an array that is not uint8.
        ValueError: An array of another shape, or without pixels.

    Example:
        >>> read_pixels(Image.new("L", (4, 2), 7)).shape
        (2, 4, 3)
    """
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    given: Any = picture
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8:
        got = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
        raise TypeError(f"`picture` must be a PIL image or an array of uint8, got {got}.")
    pixels: NDArray[np.uint8] = np.repeat(given[..., None], 3, axis=2) if given.ndim == 2 else given
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"`picture` must be (height, width, 3) or (height, width), got {given.shape}.")
    return pixels


def convert_to_lab(pixels: NDArray[np.uint8]) -> Floats:
    """sRGB to CIELAB (CIE 15, white D65): L 0..100, a towards red, b towards yellow.

    Args:
        pixels: `(..., 3)` uint8.

    Returns:
        `(..., 3)` float64.

    Example:
        >>> convert_to_lab(np.array([255, 0, 0], dtype=np.uint8)).round(1).tolist()
        [53.2, 80.1, 67.2]
    """
    rgb = pixels.astype(np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_OF_RGB.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _make_directions(count: int) -> Floats:
    """Directions spread evenly over the half sphere by the golden angle, `(count, 3)`."""
    n = np.arange(count) + 0.5
    z, angle = n / count, n * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def describe_colours(picture: Picture) -> Floats:
    """The quantiles of a picture's colours in CIELAB, projected on directions spread evenly.

    Args:
        picture: A picture of any size; of more than 256 pixels a side, its averages over the pixels of that grid.

    Returns:
        `(256 quantiles, 64 directions)`.

    Raises:
        TypeError: As `read_pixels`.
        ValueError: As `read_pixels`.
    """
    image = Image.fromarray(read_pixels(picture))
    size = min(image.width, _MOST_PIXELS), min(image.height, _MOST_PIXELS)
    pixels = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BOX))
    colours = convert_to_lab(pixels).reshape(-1, 3)
    levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    projections = np.sort(colours @ _make_directions(_DIRECTIONS).T, axis=0)
    return projections[np.floor(levels * len(colours)).astype(int)]


def compare_colours(first: Floats, second: Floats) -> float:
    """The distance of two pictures by their `describe_colours`; see `get_colour_distance`."""
    return 2 * float(np.abs(first - second).mean())


def get_colour_distance(first: Picture, second: Picture) -> float:
    """How far the colours of one picture have to move to become those of another, in units of CIELAB.

    The sliced Wasserstein distance (Rabin et al. 2011; of order 1) between the two clouds of colours: each is
    projected on 64 directions, the quantiles of the projections are compared, and the mean difference is doubled,
    since a shift by d moves a projection by d / 2 on average. So a change of all colours by d has the distance d.
    Where a colour is does not count, nor the size of the picture.

    Args:
        first: A picture.
        second: Another, of any size.

    Returns:
        0 for the same colours; about 2 is just visible, 100 is black against white.

    Raises:
        TypeError: As `read_pixels`.
        ValueError: As `read_pixels`.

    Example:
        >>> black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
        >>> get_colour_distance(black, black), round(get_colour_distance(black, white))
        (0.0, 100)
    """
    return compare_colours(describe_colours(first), describe_colours(second))


def get_colour_similarity(first: Picture, second: Picture) -> float:
    """`1 - distance / 100`, not below 0: the distance of `get_colour_distance` as a part of that of black and white.

    Example:
        >>> get_colour_similarity(Image.new("RGB", (8, 8)), Image.new("RGB", (4, 4)))
        1.0
    """
    return _score_colours(describe_colours(first), describe_colours(second))


def _score_colours(first: Floats, second: Floats) -> float:
    return max(0.0, 1 - compare_colours(first, second) / _BLACK_TO_WHITE)


def describe_structure(picture: Picture) -> Floats:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of a picture's lightness.

    The lightness L of CIELAB on a grid of 64 x 64, its gradients by central differences, their orientation without
    sign in 9 bins (a gradient is shared between the two nearest) over cells of 8 x 8, weighted by length; every block
    of 2 x 2 cells is divided by its own length, which has a floor relative to the picture's, so that flat parts stay
    faint. A change of the lightness by a factor (also a negative one) and an offset leaves it as it is.

    Args:
        picture: A picture of any size; it is stretched to the grid.

    Returns:
        `(1764,)`: 7 x 7 blocks of 4 cells of 9 bins; zeros for a flat picture.

    Raises:
        TypeError: As `read_pixels`.
        ValueError: As `read_pixels`.
    """
    lightness = Image.fromarray(convert_to_lab(read_pixels(picture))[..., 0].astype(np.float32))
    grid = np.asarray(lightness.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    padded = np.pad(grid, 1, mode="edge")
    dy, dx = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2, (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    length = np.hypot(dx, dy)
    length = np.where(length > 1e-3, length, 0.0)  # of 100: below is the rounding of the resampling
    place = np.mod(np.arctan2(dy, dx), np.pi) / np.pi * _BINS
    lower = np.floor(place).astype(int)
    share = place - lower
    cells = np.zeros((_SIDE // _CELL, _SIDE // _CELL, _BINS))
    rows, columns = (index // _CELL for index in np.indices(grid.shape))
    np.add.at(cells, (rows, columns, lower % _BINS), length * (1 - share))
    np.add.at(cells, (rows, columns, (lower + 1) % _BINS), length * share)
    windows = np.lib.stride_tricks.sliding_window_view(cells, (_BLOCK, _BLOCK), axis=(0, 1))
    blocks = windows.reshape(*windows.shape[:2], -1)
    norms = np.linalg.norm(blocks, axis=-1, keepdims=True)
    if not norms.any():
        return np.zeros(blocks.size)
    return (blocks / np.sqrt(norms**2 + (_FLOOR * norms.mean()) ** 2)).ravel()


def get_structure_similarity(first: Picture, second: Picture) -> float:
    """The correlation of two pictures' `describe_structure`: where edges lie and how they run.

    Of the cosine the means are taken out, so that pictures with nothing in common are near 0, as noise is to anything.

    Args:
        first: A picture.
        second: Another, of any size.

    Returns:
        -1..1; 1 for the same picture, also in other brightness. Flat against flat is 1, flat against anything 0.

    Raises:
        TypeError: As `read_pixels`.
        ValueError: As `read_pixels`.

    Example:
        >>> ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
        >>> round(get_structure_similarity(ramp, ramp), 6), get_structure_similarity(ramp, np.zeros_like(ramp))
        (1.0, 0.0)
    """
    return _correlate(describe_structure(first), describe_structure(second))


def _correlate(first: Floats, second: Floats) -> float:
    return get_cosine(first - first.mean(), second - second.mean())


def get_cosine(first: Floats, second: Floats) -> float:
    """The cosine of two vectors; of two vectors of zeros 1, of one 0.

    Example:
        >>> get_cosine(np.array([1.0, 1.0]), np.array([1.0, 0.0])).__round__(4), get_cosine(np.zeros(2), np.zeros(2))
        (0.7071, 1.0)
    """
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if 0 in norms:
        return float(norms[0] == norms[1])
    return float(np.clip(first @ second / (norms[0] * norms[1]), -1.0, 1.0))


def pool_image_tokens(embeds: ReferenceEmbeds, layer: int) -> Floats:
    """The mean state of a picture's image tokens, `(dims,)`."""
    states = embeds.get_layer(layer)[embeds.regions == Region.IMAGE]
    return states.to(device="cpu", dtype=torch.float64).mean(dim=0).numpy()


def count_layers(pipe: Any) -> int:
    """Layers of a pipeline's VL encoder, which is loaded where it is missing."""
    if pipe.vl_encoder is None:
        pipe.load_vl_encoder()
    encoder: Any = pipe.components["vl_encoder"]
    return encoder.config.text_config.num_hidden_layers


class PictureReader:
    """Reads pictures with a pipeline's VL encoder: what they show, as it understands it.

    A picture, brought to one size, goes through `pipe.encode_reference(picture, "")`; its feature is the mean state of
    the image tokens at a deep layer, less that of flat mid-grey of the same size. What every picture has in common,
    above all a few huge dimensions that would make all cosines nearly 1, drops out with it.

    Args:
        pipe: A `ZImageVLPipeline` whose VL encoder is there or can be loaded.
        size: Side in pixels that pictures are read at.
        layer: Index into the hidden states; None is the layer at the relative depth of the guide's -6 of 36.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> reader = PictureReader(load_toy_pipeline(), size=64)
        >>> circle = reader.read(draw_scene(Scene("circle", "red", "white")))
        >>> circle.shape, round(get_cosine(circle, circle), 6)
        ((96,), 1.0)
    """

    def __init__(self, pipe: Any, size: int = 512, layer: int | None = None) -> None:
        self.pipe, self.size = pipe, size
        self.layer = scale_layer(-6, count_layers(pipe)) if layer is None else layer
        self._origin = self._pool(Image.new("RGB", (size, size), (128, 128, 128)))

    def _pool(self, picture: Image.Image) -> Floats:
        return pool_image_tokens(self.pipe.encode_reference(picture, "", (self.layer,)), self.layer)

    def read(self, picture: Picture) -> Floats:
        """The feature of one picture, `(dims,)`; compare two by `get_cosine`."""
        image = Image.fromarray(read_pixels(picture))
        return self._pool(image.resize((self.size, self.size), Image.Resampling.BICUBIC)) - self._origin


def get_semantic_similarity(reader: PictureReader, first: Picture, second: Picture) -> float:
    """The cosine of two pictures' features: do they show the same, to the pipeline's own VL encoder?

    Returns:
        -1..1; 1 for the same picture. Flat mid-grey shows nothing: 0 with anything else.
    """
    return get_cosine(reader.read(first), reader.read(second))


@dataclass(frozen=True, eq=False)
class PictureFeatures:
    """What is compared of a picture: measured once, compared often.

    Attributes:
        colours: From `describe_colours`.
        structure: From `describe_structure`.
        semantics: From `PictureReader.read`.
    """

    colours: Floats
    structure: Floats
    semantics: Floats

    def compare(self, other: PictureFeatures) -> dict[str, float]:
        """The three similarities to another picture, by `MEASURES`."""
        values = (
            _score_colours(self.colours, other.colours),
            _correlate(self.structure, other.structure),
            get_cosine(self.semantics, other.semantics),
        )
        return dict(zip(MEASURES, values, strict=True))


def describe_picture(reader: PictureReader, picture: Picture) -> PictureFeatures:
    """All features of a picture."""
    return PictureFeatures(describe_colours(picture), describe_structure(picture), reader.read(picture))
