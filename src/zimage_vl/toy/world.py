"""The toy world: pictures of one coloured shape with a fill and a place, on a background.

A scene is a shape, its colour, the background, the fill and the place. It can be drawn, put into words and judged back
from its pixels (see `judging`). The constants are fixed: the checkpoint is trained on them and other measurements are
made with them.
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

FILLS: tuple[str, ...] = ("plain", "striped", "dotted", "hollow")

PLACES: dict[str, tuple[int, int]] = {
    "left": (20, 32),
    "middle": (32, 32),
    "right": (44, 32),
    "top": (32, 20),
    "bottom": (32, 44),
}

PLACE_PHRASES = {
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}

RADIUS = (15.0, 18.0)
CENTRE_OFFSET = 2.0
COLOUR_JITTER = 8
SUPERSAMPLING = 4

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "fill": FILLS,
    "place": tuple(PLACES),
}
"""What a scene is made of, and the values of each attribute."""


@dataclass(frozen=True)
class Scene:
    """One picture's content.

    Example:
        >>> Scene("circle", "red", "white", "striped", "left").values["fill"]
        'striped'
    """

    shape: str
    colour: str
    background: str
    fill: str = "plain"
    place: str = "middle"

    def __post_init__(self) -> None:
        for name, known in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"The toy world knows {list(known)}, got {value!r}.")

    @property
    def values(self) -> dict[str, str]:
        """The scene's value of each attribute."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def caption(self, *names: str) -> str:
        """Put these attributes into words; without names, all of them.

        Example:
            >>> Scene("circle", "red", "white", "striped", "left").caption()
            'a striped red circle on the left on a white background'
            >>> Scene("circle", "red", "white", "striped", "left").caption("fill")
            'a striped shape'
        """
        said = {name: value for name, value in self.values.items() if not names or name in names}
        words = ["a", said.get("fill"), said.get("colour"), said.get("shape", "shape")]
        words.append(PLACE_PHRASES.get(said.get("place", "")))
        words.append(f"on a {said['background']} background" if "background" in said else None)
        return " ".join(word for word in words if word)

    def disagrees_with(self, other: Scene) -> bool:
        """Check that the two scenes share no attribute."""
        return all(self.values[name] != other.values[name] for name in ATTRIBUTES)


ALL_SCENES: tuple[Scene, ...] = tuple(Scene(*parts) for parts in itertools.product(*ATTRIBUTES.values()))

HELD_OUT: tuple[Scene, ...] = tuple(random.Random(20261124).sample(ALL_SCENES, 30))
"""Thirty of the 1,920 scenes that no part of the training saw."""

TRAINED: tuple[Scene, ...] = tuple(scene for scene in ALL_SCENES if scene not in set(HELD_OUT))


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    if shape == "circle":
        return dx**2 + dy**2 <= r**2
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) <= 0.86 * r
    if shape == "triangle":
        # Apex (0, -r), base corners (+-r, 0.86 r): the half width grows from 0 to r on the way down.
        return (dy <= 0.86 * r) & (dy >= -r) & (abs(dx) <= (dy + r) / 1.86)
    return (np.maximum(abs(dx), abs(dy)) <= r) & (np.minimum(abs(dx), abs(dy)) <= r / 2.4)


def _filled(shape: str, fill: str, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    inside = _inside(shape, dx, dy, r)
    if fill == "striped":
        return inside & (np.floor((dy + 400) / 5) % 2 == 0)
    if fill == "dotted":
        return inside & ((dx - 10 * np.round(dx / 10)) ** 2 + (dy - 10 * np.round(dy / 10)) ** 2 > 3.1**2)
    if fill == "hollow":
        down = 0.12 * r if shape == "triangle" else 0.0
        return inside & ~_inside(shape, dx, dy - down, 0.58 * r)
    return inside


def draw_mask(shape: str, fill: str = "plain", cx: float = 32.0, cy: float = 32.0, r: float = 16.5) -> np.ndarray:
    """Get the coverage of a shape in the picture: (64, 64) float32 in 0..1, supersampled at the edges."""
    grid = (np.arange(SIZE * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING
    inside = _filled(shape, fill, (grid - cx)[None, :], (grid - cy)[:, None], r).astype(np.float32)
    return inside.reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING).mean(axis=(1, 3))


def draw_scene(scene: Scene, seed: int = 0) -> Image.Image:
    """Draw a scene; centre, size and exact colours follow from the seed.

    Args:
        scene: What to draw.
        seed: Seed of the centre (the place's point +- 2 px), the radius (15..18 px) and the colours (each channel
            +- 8).

    Returns:
        A 64 x 64 RGB picture.

    Example:
        >>> draw_scene(Scene("cross", "cyan", "black", "hollow", "top"), seed=3).size
        (64, 64)
    """
    rng = np.random.default_rng(seed)
    cx, cy = np.array(PLACES[scene.place]) + rng.uniform(-CENTRE_OFFSET, CENTRE_OFFSET, 2)
    mask = draw_mask(scene.shape, scene.fill, float(cx), float(cy), float(rng.uniform(*RADIUS)))[..., None]
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, (2, 3))
    inner = np.array(COLOURS[scene.colour]) + jitter[0]
    outer = np.array(BACKGROUNDS[scene.background]) + jitter[1]
    pixels = mask * inner + (1 - mask) * outer
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def disagreeing_pairs(count: int, seed: int = 0, scenes: Sequence[Scene] = ALL_SCENES) -> list[tuple[Scene, Scene]]:
    """Draw `count` pairs (prompt, reference) of scenes that share nothing, with a seed."""
    rng = random.Random(seed)
    pairs: list[tuple[Scene, Scene]] = []
    while len(pairs) < count:
        prompt, reference = rng.choice(scenes), rng.choice(scenes)
        if prompt.disagrees_with(reference):
            pairs.append((prompt, reference))
    return pairs
