"""The toy world: pictures of one coloured shape, and the captions that say what is in them.

A scene is a shape, its colour and a background. It can be drawn, captioned in twelve full and ten partial forms, and
judged back from its pixels (see `judging`). The constants are fixed: the checkpoint is trained on them and other
measurements are made with them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image


SIZE = 64
"""Side of a picture in pixels."""

STEPS = 8
"""Denoising steps that its pictures are made with, at guidance scale 0."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (36, 176, 60),
    "blue": (40, 72, 230),
    "yellow": (246, 222, 40),
    "purple": (160, 48, 200),
    "cyan": (40, 206, 220),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "black": (16, 16, 16),
    "gray": (128, 128, 128),
    "brown": (122, 76, 36),
}

RADIUS = (16.0, 22.0)
CENTRE_OFFSET = 5.0
COLOUR_JITTER = 8
SUPERSAMPLING = 4

FULL_CAPTIONS: tuple[str, ...] = (
    "a {c} {s} on a {b} background",
    "{c} {s}, {b} background",
    "a {b} background with a {c} {s}",
    "there is a {c} {s} on a {b} background",
    "the {s} is {c} and the background is {b}",
    "an image of a {c} {s} on {b}",
    "{b} background, {c} {s}",
    "a picture of a {s} in {c} on a {b} background",
    "one {c} {s} in front of a {b} wall",
    "the background is {b} and the {s} is {c}",
    "a {s}, {c}, on {b}",
    "{c} {s} on {b}",
)

PARTIAL_CAPTIONS: tuple[str, ...] = (
    "a {c} {s}",
    "a {s} on a {b} background",
    "a {c} shape on a {b} background",
    "a {c} shape",
    "a {s}",
    "a {b} background",
    "a picture of a {s}",
    "{c}",
    "{s}",
    "an image on {b}",
)


@dataclass(frozen=True)
class Scene:
    """One picture's content: a shape, its colour and the background.

    Example:
        >>> Scene("circle", "red", "white").caption()
        'a red circle on a white background'
    """

    shape: str
    colour: str
    background: str

    def __post_init__(self) -> None:
        for value, known in ((self.shape, SHAPES), (self.colour, COLOURS), (self.background, BACKGROUNDS)):
            if value not in known:
                raise ValueError(f"The toy world knows {list(known)}, got {value!r}.")

    def caption(self, form: str = FULL_CAPTIONS[0]) -> str:
        """The scene in words; `form` has the fields `{s}` shape, `{c}` colour and `{b}` background."""
        return form.format(s=self.shape, c=self.colour, b=self.background)

    def disagrees_with(self, other: Scene) -> bool:
        """Whether the two scenes share neither shape nor colour nor background."""
        return self.shape != other.shape and self.colour != other.colour and self.background != other.background


ALL_SCENES: tuple[Scene, ...] = tuple(Scene(*parts) for parts in itertools.product(SHAPES, COLOURS, BACKGROUNDS))

HELD_OUT: tuple[Scene, ...] = tuple(random.Random(20251212).sample(ALL_SCENES, 10))
"""Ten of the 96 scenes that the transformer never saw in training."""


def _inside(shape: str, cx: float, cy: float, r: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - cx, y - cy
    if shape == "circle":
        return dx**2 + dy**2 <= r**2
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) <= 0.86 * r
    if shape == "triangle":
        # Apex (cx, cy - r), base corners (cx +- r, cy + 0.86 r): the half width grows from 0 to r on the way down.
        return (dy <= 0.86 * r) & (dy >= -r) & (abs(dx) <= (dy + r) / 1.86)
    arm = r / 3
    return (np.maximum(abs(dx), abs(dy)) <= r) & (np.minimum(abs(dx), abs(dy)) <= arm)


def draw_mask(shape: str, cx: float = 32.0, cy: float = 32.0, r: float = 19.0, size: int = SIZE) -> np.ndarray:
    """Coverage of a shape in a `size` x `size` picture: `(size, size)` float in 0..1, supersampled at the edges."""
    grid = (np.arange(size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x, y = np.meshgrid(grid, grid)
    inside = _inside(shape, cx, cy, r, x, y).astype(np.float32)
    return inside.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3))


def draw_scene(scene: Scene, seed: int = 0) -> Image.Image:
    """Draw a scene; place, size and exact colours follow from the seed.

    Args:
        scene: What to draw.
        seed: Seed of the centre (32 +- 5 px), the radius (16..22 px) and the colours (each channel +- 8).

    Returns:
        A 64 x 64 RGB picture.

    Example:
        >>> draw_scene(Scene("cross", "cyan", "black"), seed=3).size
        (64, 64)
    """
    rng = np.random.default_rng(seed)
    cx, cy = 32 + rng.uniform(-CENTRE_OFFSET, CENTRE_OFFSET, 2)
    mask = draw_mask(scene.shape, cx, cy, rng.uniform(*RADIUS))[..., None]
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, (2, 3))
    inner = np.array(COLOURS[scene.colour]) + jitter[0]
    outer = np.array(BACKGROUNDS[scene.background]) + jitter[1]
    pixels = mask * inner + (1 - mask) * outer
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def disagreeing_pairs(count: int, seed: int = 0, scenes: Sequence[Scene] = ALL_SCENES) -> list[tuple[Scene, Scene]]:
    """`count` pairs (prompt, reference) of scenes that share nothing, drawn with a seed."""
    rng = random.Random(seed)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < count:
        prompt, reference = rng.choice(scenes), rng.choice(scenes)
        if prompt.disagrees_with(reference):
            pairs.append((prompt, reference))
    return pairs
