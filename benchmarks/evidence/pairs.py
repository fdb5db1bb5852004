"""Pairs of the toy world, painted as a row of the settings asks, and judged."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

import zimage_vl
from zimage_vl.toy import ATTRIBUTES, SIZE, STEPS, disagreeing_pairs, draw_scene, judge

from .settings import BASE, OPEN_FORMS, Row


BATCH = 32
GUIDE_LAYERS = 36
CALL = {"height": SIZE, "width": SIZE, "num_inference_steps": STEPS, "guidance_scale": 0.0}
NO_KNOBS = {"group", "name", "panel", "x", "reference", "size", "text", "names", "way", "start", "strength", "rounds"}
NO_KNOBS |= {"own_layer", "mask", "about", "neutral", "guidance", "away"}


class NotHereError(Exception):
    """The row asks for a knob that this version of the pipeline does not have."""


def scale_layer(layer: int, num_layers: int) -> int:
    """Get the layer at the relative depth that `layer` has among the guide's 36; -1, after the last norm, stays -1.

    Example:
        >>> scale_layer(-6, 36), scale_layer(-6, 8), scale_layer(-1, 8)
        (-6, -2, -1)
    """
    if layer == -1:
        return -1
    number = round((layer % (GUIDE_LAYERS + 1)) * num_layers / GUIDE_LAYERS)
    return min(number, num_layers - 1) - num_layers - 1


class Pairs:
    """Pairs of a prompt's scene and a reference's that share nothing, the same for every row.

    Picture n starts from noise of seed + n in every row, so that rows are compared pair by pair.

    Args:
        pipe: A toy pipeline.
        count: How many pairs.
        seed: Of pairs, drawings and noise.
    """

    def __init__(self, pipe: Any, count: int, seed: int) -> None:
        self.pipe, self.seed = pipe, seed
        self.scenes = disagreeing_pairs(count, seed)
        strangers = iter(pair for pair in disagreeing_pairs(100 * count, seed + 1))
        # For each pair a third scene that shares nothing with either.
        self.others = [
            next(scene for scene, _ in strangers if scene.disagrees_with(prompt) and scene.disagrees_with(reference))
            for prompt, reference in self.scenes
        ]
        self.num_layers = int(pipe.text_encoder.config.num_hidden_layers)
        self.call_names = set(inspect.signature(type(pipe).__call__).parameters)

    def get_named(self, index: int, row: Row, kind: str) -> dict[str, str]:
        """Get the values that the prompt of a pair names: of its own scene, or of the reference's."""
        names = tuple(ATTRIBUTES) if kind == "naming" else row.get("names") or OPEN_FORMS[index % len(OPEN_FORMS)]
        values = self.scenes[index][row.get("about") == "reference"].values
        return {name: values[name] for name in names}

    def get_prompt(self, index: int, row: Row, kind: str) -> str:
        """Put into words what the prompt of a pair names."""
        return self.scenes[index][row.get("about") == "reference"].caption(*self.get_named(index, row, kind))

    def get_knobs(self, row: Row) -> dict[str, Any]:
        """The call's keyword arguments of a row, `BASE` and the layer of this toy included.

        Raises:
            NotHereError: A knob that is not there.
        """
        knobs = {**BASE, **{name: value for name, value in row.items() if name not in NO_KNOBS}}
        knobs = {name: value for name, value in knobs.items() if value is not None}
        if isinstance(knobs.get("vl_hidden_layer"), int):
            knobs["vl_hidden_layer"] = scale_layer(knobs["vl_hidden_layer"], self.num_layers)
        if "own_layer" in row:
            knobs["vl_hidden_layer"] = row["own_layer"]
        missing = sorted(set(knobs) - self.call_names)
        if missing:
            raise NotHereError(f"the pipeline has no {' and no '.join(missing)}")
        if row.get("reference") == "none":
            return {}
        return knobs

    def draw_reference(self, index: int, row: Row) -> Any:
        """Draw the reference of a pair."""
        shown, size = row.get("reference", "scene"), row.get("size", SIZE)
        seed = 10_000_019 * (self.seed + 1) + index
        first, second = draw_scene(self.scenes[index][1], seed), draw_scene(self.others[index], seed + 1)
        if shown == "noise":
            first = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
        if shown == "grey":
            first = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
        if shown == "beside":
            both = Image.new("RGB", (2 * SIZE, SIZE))
            both.paste(first, (0, 0))
            both.paste(second, (SIZE, 0))
            return both
        first, second = (image.resize((size, size), Image.Resampling.LANCZOS) for image in (first, second))
        return [first, second] if shown == "two" else first

    def paint(self, row: Row, kind: str, indices: Sequence[int] | None = None) -> Iterator[tuple[Any, Any]]:
        """A picture and its report (None without a reference) for each pair, or for those asked for."""
        chosen = list(range(len(self.scenes)) if indices is None else indices)
        for start in range(0, len(chosen), BATCH):
            output = self._paint_batch(row, kind, chosen[start : start + BATCH])
            yield from zip(output.images, output.conditioning or [None] * len(output.images), strict=True)

    def _paint_batch(self, row: Row, kind: str, batch: list[int]) -> Any:
        knobs, named = self.get_knobs(row), [self.get_named(n, row, kind) for n in batch]
        prompts = [self.get_prompt(n, row, kind) for n in batch]
        call: dict[str, Any] = {**CALL, "generator": [torch.Generator().manual_seed(self.seed + n) for n in batch]}
        call["guidance_scale"] = row.get("guidance", 0.0)
        if knobs:
            call |= {**knobs, "reference_image": [self.draw_reference(n, row) for n in batch]}
            if row.get("text"):
                call["vl_text"] = [self.scenes[n][1].caption(*row["text"]) for n in batch]
            if row.get("neutral"):
                call["neutral_image"] = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
            if row.get("mask"):
                left = Image.new("L", (2 * SIZE, SIZE), 0)
                left.paste(255, (0, 0, SIZE, SIZE))
                call["reference_mask"] = [left] * len(batch)
            if isinstance(knobs["vl_alpha"], dict):
                call["vl_alpha"] = [fill_places(knobs["vl_alpha"], values) for values in named]
        if row.get("away"):
            call["negative_reference_image"] = call.pop("reference_image")
        if row.get("way") == "rounds":
            pictures = call.pop("reference_image")
            return zimage_vl.refine_iteratively(self.pipe, prompts, pictures, row["rounds"], **call)[-1]
        if row.get("way") == "image":
            seeds = [10_000_019 * (self.seed + 1) + n for n in batch]
            scenes = [self.scenes[n][1] if row["start"] == "reference" else self.others[n] for n in batch]
            starts = [draw_scene(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)]
            return zimage_vl.paint_from_image(self.pipe, prompts, starts, row["strength"], **call)
        return self.pipe(prompts, **call)

    def measure(self, row: Row, kind: str) -> dict[str, Any]:
        """Paint and judge all pairs.

        Returns:
            "seen": a word per pair with a letter per attribute: what the picture shows is the prompt's (p), the
            reference's (r), the other scene's (s) or something else (-); a capital (or =) where the prompt names the
            attribute. "form": mean and standard error of the fit with the nearest drawing. And, where there is a
            reference, means of "effective_alpha" (its median over the tokens it acts on), "influence" and
            "reference_tokens".
        """
        words: list[str] = []
        forms: list[float] = []
        reports: list[Any] = []
        for index, (image, report) in enumerate(self.paint(row, kind)):
            verdict, named = judge(image), self.get_named(index, row, kind)
            words.append(self._spell(index, verdict, named))
            forms.append(verdict.correlation)
            reports += [report] if report is not None else []
        result = {"seen": " ".join(words), "form": [fmean(forms), float(np.std(forms, ddof=1)) / len(forms) ** 0.5]}
        alphas = [x for report in reports for x in [get_typical_alpha(report)] if x is not None]
        influences = [report.influence for report in reports if report.influence is not None]
        result |= {"effective_alpha": fmean(alphas)} if alphas else {}
        result |= {"influence": fmean(influences)} if influences else {}
        result |= {"reference_tokens": fmean(report.reference_tokens for report in reports)} if reports else {}
        return result

    def _spell(self, index: int, verdict: Any, named: dict[str, str]) -> str:
        prompt, reference = self.scenes[index]
        word = ""
        for name in ATTRIBUTES:
            sides = {getattr(scene, name): letter for scene, letter in ((prompt, "p"), (self.others[index], "s"))}
            sides[getattr(reference, name)] = "r"
            if name in named:
                sides[named[name]] = "p"
            letter = sides.get(getattr(verdict, name), "-")
            word += letter.upper().replace("-", "=") if name in named else letter
        return word


def fill_places(alpha: dict[str, float], named: dict[str, str]) -> dict[str, float]:
    """Put the prompt's words for "<shape>" and the like; a place that the prompt does not name is left out.

    Example:
        >>> fill_places({"<shape>": 0.0, "<fill>": 1.0, "default": 0.5}, {"shape": "circle"})
        {'circle': 0.0, 'default': 0.5}
    """
    filled = {named.get(place[1:-1], "") if place.startswith("<") else place: value for place, value in alpha.items()}
    return {place: value for place, value in filled.items() if place}


def get_typical_alpha(report: Any) -> float | None:
    """Get the median effective alpha of the tokens that the reference acts on, sinks left out."""
    if report.effective_alpha is None:
        return None
    acted = [float(a) for n, a in enumerate(report.effective_alpha) if a > 0 and n not in report.text_sinks]
    return float(np.median(acted)) if acted else 0.0
