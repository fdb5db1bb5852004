"""How much of a picture comes from the prompt and how much from the reference, counted over many pairs of the toy
world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from zimage_vl.reference.embeds import ReferenceEmbeds

from .judging import judge
from .world import BACKGROUNDS, COLOURS, SHAPES, SIZE, STEPS, Scene, disagreeing_pairs, draw_scene


ATTRIBUTES = ("shape", "colour", "background")
# What is left to be right by chance once the prompt's own value is excluded.
CHANCE = {"shape": 1 / (len(SHAPES) - 1), "colour": 1 / (len(COLOURS) - 1), "background": 1 / (len(BACKGROUNDS) - 1)}
BATCH = 25


@dataclass(frozen=True)
class Matches:
    """Shares of pictures that show the prompt's, and the reference's, value of each attribute; `count` pictures."""

    prompt: dict[str, float]
    reference: dict[str, float]
    count: int


def reference_picture(kind: str, scene: Scene, seed: int) -> Image.Image:
    """The reference of a pair: the scene itself, or a control that shows nothing: flat "grey" or "noise"."""
    if kind == "scene":
        return draw_scene(scene, seed)
    if kind == "grey":
        return Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    if kind == "noise":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    raise ValueError(f'`kind` must be "scene", "grey" or "noise", got {kind!r}.')


class PairBench:
    """Pairs of prompt and reference that disagree in everything, encoded once and painted with any settings.

    Args:
        pipe: A toy pipeline.
        pairs: How many pairs.
        seed: Seed of the pairs and of their pictures; picture n starts from noise of seed + n.
        layers: The layers that settings will ask for.
        kind: What the references show: "scene", or one of the controls "grey" and "noise".
    """

    def __init__(
        self, pipe: Any, pairs: int, seed: int = 0, layers: Sequence[int] = (-2,), kind: str = "scene"
    ) -> None:
        self.pipe, self.seed = pipe, seed
        self.pairs = disagreeing_pairs(pairs, seed)
        self.prompts = [prompt.caption() for prompt, _ in self.pairs]
        self.embeds: list[ReferenceEmbeds] = [
            pipe.encode_reference(reference_picture(kind, reference, 10_000_019 * (seed + 1) + n), text, layers)
            for n, (text, (_, reference)) in enumerate(zip(self.prompts, self.pairs, strict=True))
        ]

    def paint(self, **knobs: Any) -> Iterator[Image.Image]:
        """One picture a pair, with these keyword arguments of the pipeline."""
        for start in range(0, len(self.pairs), BATCH):
            rows = range(start, min(start + BATCH, len(self.pairs)))
            yield from self.pipe(
                [self.prompts[n] for n in rows],
                reference_embeds=[self.embeds[n] for n in rows],
                height=SIZE,
                width=SIZE,
                num_inference_steps=STEPS,
                guidance_scale=0.0,
                generator=[torch.Generator().manual_seed(self.seed + n) for n in rows],
                **knobs,
            ).images

    def measure(self, keep: Callable[[Scene], bool] = lambda _: True, **knobs: Any) -> Matches:
        """Match of prompt and reference over the pairs whose reference `keep` accepts."""
        judged = [
            [verdict.matches(scene) for scene in pair]
            for image, pair in zip(self.paint(**knobs), self.pairs, strict=True)
            if keep(pair[1])
            for verdict in (judge(image),)
        ]
        shares = [
            {name: sum(pair[side][name] for pair in judged) / len(judged) for name in ATTRIBUTES} for side in (0, 1)
        ]
        return Matches(shares[0], shares[1], len(judged))


def chance_bound(attribute: str, count: int) -> float:
    """The largest share that chance explains: 1/k and three standard errors, k the values the prompt leaves."""
    chance = CHANCE[attribute]
    return chance + 3 * (chance * (1 - chance) / count) ** 0.5
