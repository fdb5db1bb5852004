"""The judge of the toy world: reads shape, colour and background back from a picture's pixels, by rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, draw_mask


BORDER = 4
# A pixel whose colour is further than this from the background (Euclidean, 0..255 RGB) belongs to the shape.
DIFFERENT = 40.0
# The side of the square that a shape's mask is stretched to before it is compared with the templates.
NORMALISED = 32


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in a picture.

    Attributes:
        shape: The best of the four shapes.
        colour: The nearest of the six colours.
        background: The nearest of the four backgrounds.
        iou: Intersection over union of the shape's normalised mask with its template, 0..1; 0 where nothing was found.
    """

    shape: str
    colour: str
    background: str
    iou: float

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Attribute by attribute, whether the picture shows the scene."""
        return {
            "shape": self.shape == scene.shape,
            "colour": self.colour == scene.colour,
            "background": self.background == scene.background,
        }


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def _normalise(mask: np.ndarray) -> np.ndarray:
    """Crop a boolean mask to its bounding box (lines with at least two pixels) and stretch it to a fixed square."""
    rows, columns = np.flatnonzero(mask.sum(axis=1) >= 2), np.flatnonzero(mask.sum(axis=0) >= 2)
    if len(rows) == 0 or len(columns) == 0:
        return np.zeros((NORMALISED, NORMALISED), dtype=bool)
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    stretched = Image.fromarray(crop.astype(np.uint8) * 255).resize(
        (NORMALISED, NORMALISED), Image.Resampling.BILINEAR
    )
    return np.asarray(stretched) >= 128


@lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
    return {shape: _normalise(draw_mask(shape) >= 0.5) for shape in SHAPES}


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 0.0


def judge(image: Image.Image) -> Verdict:
    """Read a picture of the toy world.

    The background is the median of the border, the colour the median of those pixels of the middle that differ from
    it, the shape the template with the best intersection over union with the normalised mask of the pixels that are
    nearer to the colour than to the background.

    Args:
        image: A 64 x 64 picture (any other size is resized to it).

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene
        >>> judge(draw_scene(Scene("triangle", "blue", "gray"))).matches(Scene("triangle", "blue", "gray"))
        {'shape': True, 'colour': True, 'background': True}
    """
    rgb = image.convert("RGB")
    if rgb.size != (SIZE, SIZE):
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(rgb).astype(np.float32)
    border = np.ones((SIZE, SIZE), dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    outer = np.median(pixels[border], axis=0)
    middle = pixels[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4].reshape(-1, 3)
    different = middle[np.linalg.norm(middle - outer, axis=-1) > DIFFERENT]
    if len(different) == 0:
        return Verdict("", "", _nearest(outer, BACKGROUNDS), 0.0)
    inner = np.median(different, axis=0)
    mask = np.linalg.norm(pixels - inner, axis=-1) < np.linalg.norm(pixels - outer, axis=-1)
    normalised = _normalise(mask)
    scores = {shape: _iou(normalised, template) for shape, template in _templates().items()}
    best = max(scores, key=lambda shape: scores[shape])
    return Verdict(best, _nearest(inner, COLOURS), _nearest(outer, BACKGROUNDS), scores[best])
