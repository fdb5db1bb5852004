"""Pairs of prompt and reference that disagree in everything, painted with any setting and judged."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from PIL import Image

from zimage_vl.blend.report import ConditioningReport
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.toy.judging import judge
from zimage_vl.toy.measuring import ATTRIBUTES, reference_picture
from zimage_vl.toy.world import ALL_SCENES, SIZE, STEPS, Scene, disagreeing_pairs, draw_scene

from .outcomes import EXCLUDED, NEITHER, PROMPT, REFERENCE, SECOND, Outcome
from .quality import get_stray_share
from .settings import Setting


LAYERS = (-8, -7, -6, -5, -4, -3, -2, -1)
_BATCH = 20
_PATCH = 16  # pixels a side of what becomes one image token


class EvidenceBench:
    """Encodes a reference once for each way it is read, and paints every pair with a setting.

    Args:
        pipe: A toy pipeline.
        pairs: How many pairs.
        seed: Of the pairs and of their pictures; picture n starts from noise of seed + n.
    """

    def __init__(self, pipe: Any, pairs: int, seed: int) -> None:
        self.pipe, self.seed = pipe, seed
        self.pairs = disagreeing_pairs(pairs, seed)
        self.seconds = draw_second_scenes(self.pairs, seed)
        self.prompts = [prompt.caption() for prompt, _ in self.pairs]
        self._read: dict[tuple[Any, ...], ReferenceEmbeds] = {}

    def measure(self, setting: Setting, on_batch: Callable[[int], object] = lambda _: None) -> list[Outcome]:
        """What the setting gives, one outcome a round.

        Args:
            setting: One row of an experiment.
            on_batch: Called with the number of pictures after each batch.
        """
        rounds: list[list[dict[str, Any]]] = [[] for _ in range(setting.rounds)]
        for start in range(0, len(self.pairs), _BATCH):
            rows = range(start, min(start + _BATCH, len(self.pairs)))
            pictures: dict[int, Image.Image] = {}
            for number, judged in enumerate(rounds):
                images, reports = self._paint(setting, rows, pictures)
                judged += [
                    self._judge(setting, n, *both)
                    for n, both in zip(rows, zip(images, reports, strict=True), strict=True)
                ]
                pictures = dict(zip(rows, images, strict=True))
                on_batch(len(rows) if number == 0 else 0)
        return [Outcome.from_pictures(judged) for judged in rounds]

    def _paint(
        self, setting: Setting, rows: range, pictures: Mapping[int, Image.Image]
    ) -> tuple[list[Image.Image], list[ConditioningReport]]:
        knobs = dict(setting.knobs)
        alpha = knobs.pop("vl_alpha", 0.3)
        alphas = [self._fill(alpha, n) for n in rows]
        extra: dict[str, Any] = {}
        if setting.second:
            extra["reference_weights"] = list(setting.second)
        if setting.neutral:
            extra["neutral_image"] = [self._encode(setting, n, setting.neutral) for n in rows]
        output = self.pipe(
            [self.prompts[n] for n in rows],
            reference_embeds=[self._references(setting, n, pictures.get(n)) for n in rows],
            vl_alpha=alphas if isinstance(alpha, Mapping) else alpha,
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(self.seed + n) for n in rows],
            **knobs,
            **extra,
        )
        return list(output.images), list(output.conditioning)

    def _references(self, setting: Setting, n: int, picture: Image.Image | None) -> Any:
        if picture is not None:  # a later round: the picture that came out
            return self.pipe.encode_reference(picture, self.prompts[n], LAYERS)
        first = self._encode(setting, n, setting.reference)
        return [first, self._encode(setting, n, "second")] if setting.second else first

    def _encode(self, setting: Setting, n: int, kind: str) -> ReferenceEmbeds:
        """A reference as the VL encoder reads it, all layers from one pass; read once."""
        text = self.prompts[n] if setting.text is None else str(self._fill(setting.text, n))
        key = (n, kind, text, setting.text_position, setting.mask)
        if key not in self._read:
            self._read[key] = self.pipe.encode_reference(
                self._draw(n, kind), text, LAYERS, text_position=setting.text_position, mask=_draw_mask(setting.mask)
            )
        return self._read[key]

    def _draw(self, n: int, kind: str) -> Image.Image:
        prompt, reference = self.pairs[n]
        seed = 10_000_019 * (self.seed + 1) + n
        if kind == "second":
            return draw_scene(self.seconds[n], seed)
        if kind in ("prompt's colours", "other colours"):
            other = prompt if kind == "prompt's colours" else self.seconds[n]
            return draw_scene(replace(reference, colour=other.colour, background=other.background), seed)
        if kind.startswith("prompt's "):
            name = kind.removeprefix("prompt's ")
            return draw_scene(replace(reference, **{name: getattr(prompt, name)}), seed)
        if kind == "desaturated":
            return draw_scene(reference, seed).convert("L").convert("RGB")
        return reference_picture(kind, reference, seed)

    def _fill(self, value: Any, n: int) -> Any:
        """A caption or the places of an alpha, with the pair's words in the place of their fields."""
        (prompt, reference), names = self.pairs[n], ("shape", "colour", "background")
        words = {f"p{name[0]}": getattr(prompt, name) for name in names}
        words |= {f"r{name[0]}": getattr(reference, name) for name in names}
        if isinstance(value, Mapping):
            return {place.format(**words): a for place, a in cast("Mapping[str, float]", value).items()}
        return value.format(**words) if isinstance(value, str) else value

    def _judge(self, setting: Setting, n: int, image: Image.Image, report: ConditioningReport) -> dict[str, Any]:
        verdict, (prompt, reference) = judge(image), self.pairs[n]
        scenes = {PROMPT: prompt, REFERENCE: reference, **({SECOND: self.seconds[n]} if setting.second else {})}
        matched = {letter: verdict.matches(scene) for letter, scene in scenes.items()}
        judged: dict[str, Any] = {
            name: next((letter for letter, match in matched.items() if match[name]), NEITHER) for name in ATTRIBUTES
        }
        if setting.reference == "grey" and reference.background == "gray":
            judged["background"] = EXCLUDED  # a grey picture does have a background: gray
        acted = None if report.effective_alpha is None else report.effective_alpha[report.effective_alpha > 0]
        return {
            **judged,
            "iou": verdict.iou,
            "stray": get_stray_share(image),
            "effective_alpha": None if acted is None else float(acted.median()) if len(acted) else 0.0,
            "influence": report.influence if math.isfinite(report.influence) else 0.0,
            "masked_dimensions": len(report.masked_dimensions),
        }


def draw_second_scenes(pairs: Sequence[tuple[Scene, Scene]], seed: int) -> list[Scene]:
    """For each pair a third scene that shares nothing with either.

    Example:
        >>> pair = (Scene("circle", "red", "white"), Scene("square", "blue", "black"))
        >>> draw_second_scenes([pair], 0)[0].disagrees_with(pair[0])
        True
    """
    rng = random.Random(f"second {seed}")
    return [rng.choice([s for s in ALL_SCENES if all(s.disagrees_with(other) for other in pair)]) for pair in pairs]


def _draw_mask(kind: str) -> Image.Image | None:
    """White counts: the middle 2 x 2 of the 4 x 4 patches, or the twelve around them."""
    if not kind:
        return None
    mask = Image.new("L", (SIZE, SIZE), 0 if kind == "middle" else 255)
    mask.paste(255 if kind == "middle" else 0, (_PATCH, _PATCH, SIZE - _PATCH, SIZE - _PATCH))
    return mask
