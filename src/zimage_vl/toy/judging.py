"""The judge of the toy world: reads the five attributes back from a picture's pixels, by rule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .world import ATTRIBUTES, BACKGROUNDS, COLOURS, FILLS, PLACES, SHAPES, SIZE, Scene, draw_mask


BORDER = 2
# The colour is the median of so many pixels, those farthest from the background.
FARTHEST = 128
# Below this distance from the background (Euclidean, 0..255 RGB) nothing was painted.
DIFFERENT = 40.0
RADII, OFFSETS = (15.5, 16.5, 17.5), (-1.3, 0.0, 1.3)


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in a picture.

    Attributes:
        shape: The best of the four shapes; `""`, as with colour, fill and place, where nothing was found.
        colour: The nearest of the six colours.
        background: The nearest of the four backgrounds.
        fill: The best of the four fills.
        place: The best of the five places.
        correlation: Of the picture's coverage with the nearest drawing's, -1..1; 0 where nothing was found.
    """

    shape: str
    colour: str
    background: str
    fill: str
    place: str
    correlation: float

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Check attribute by attribute that the picture shows the scene."""
        return {name: getattr(self, name) == value for name, value in scene.values.items()}


def _nearest(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(names[name]))))


def _shifted(mask: np.ndarray, right: int, down: int) -> np.ndarray:
    out = np.zeros_like(mask)
    out[max(0, down) : SIZE + min(0, down), max(0, right) : SIZE + min(0, right)] = mask[
        max(0, -down) : SIZE + min(0, -down), max(0, -right) : SIZE + min(0, -right)
    ]
    return out


def _unit(masks: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1, so that products of two are correlations."""
    centred = masks - masks.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-6)


@lru_cache(maxsize=1)
def _drawings() -> tuple[list[tuple[str, str, str]], np.ndarray]:
    """(shape, fill, place) of every drawing that pictures are compared with, and their coverages as unit rows."""
    names: list[tuple[str, str, str]] = []
    masks: list[np.ndarray] = []
    for shape, fill, r, right, down in itertools.product(SHAPES, FILLS, RADII, OFFSETS, OFFSETS):
        mask = draw_mask(shape, fill, 32 + right, 32 + down, r)
        for place, (x, y) in PLACES.items():
            names.append((shape, fill, place))
            masks.append(_shifted(mask, x - 32, y - 32).ravel())
    return names, _unit(np.stack(masks).astype(np.float32))


def judge(image: Image.Image) -> Verdict:
    """Read a picture of the toy world.

    The background is the median of the border, the colour the median of the pixels farthest from it. Each pixel's
    coverage is its projection on the line from background to colour; shape, fill and place are those of the drawing
    (three radii, nine offsets each) whose coverage correlates best with it.

    Args:
        image: A 64 x 64 picture (any other size is resized to it).

    Example:
        >>> from zimage_vl.toy.world import draw_scene
        >>> scene = Scene("triangle", "blue", "gray", "striped", "top")
        >>> all(judge(draw_scene(scene)).matches(scene).values())
        True
    """
    rgb = image.convert("RGB")
    if rgb.size != (SIZE, SIZE):
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(rgb).astype(np.float32).reshape(-1, 3)
    border = np.ones((SIZE, SIZE), dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    outer = np.median(pixels[border.ravel()], axis=0)
    background = _nearest(outer, BACKGROUNDS)
    away = np.linalg.norm(pixels - outer, axis=-1)
    inner = np.median(pixels[np.argpartition(away, -FARTHEST)[-FARTHEST:]], axis=0)
    line = inner - outer
    if np.linalg.norm(line) < DIFFERENT:
        return Verdict("", "", background, "", "", 0.0)
    coverage = np.clip((pixels - outer) @ line / (line @ line), 0, 1)
    names, drawings = _drawings()
    scores = drawings @ _unit(coverage)
    best = int(scores.argmax())
    shape, fill, place = names[best]
    return Verdict(shape, _nearest(inner, COLOURS), background, fill, place, float(scores[best]))


def count_right(verdicts: list[Verdict], scenes: list[Scene]) -> dict[str, float]:
    """Get the share of pictures that show their scene's value, for each attribute."""
    right = [verdict.matches(scene) for verdict, scene in zip(verdicts, scenes, strict=True)]
    return {name: sum(row[name] for row in right) / len(right) for name in ATTRIBUTES}
