"""Whole calls on the toy world: the cost of the pipeline unused and in a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline

from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline

from .page import Finding, Section, findings_table, show, show_seconds
from .timing import Spread, interleave, ratio


PROMPT = "a blue square on a black background"
PHOTO = Scene("circle", "red", "white")
UNUSED_GOAL = 1.03
CALL: dict[str, Any] = {"height": 64, "width": 64, "guidance_scale": 0.0, "output_type": "np"}


def load_pipelines() -> tuple[Any, ZImagePipeline]:
    """The toy's pipeline, and diffusers' own over the same components."""
    pipe: Any = load_toy_pipeline()
    plain = ZImagePipeline(**pipe.z_image_components)
    for each in (pipe, plain):
        each.set_progress_bar_config(disable=True)
    return pipe, plain


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(abs(seed))


class _BitCount:
    """How many rounds gave each side the first side's bits."""

    def __init__(self, base: str):
        self.base, self.rounds = base, 0
        self.same: dict[str, int] = {}

    def __call__(self, results: dict[str, np.ndarray]) -> None:
        self.rounds += 1
        for name, images in results.items():
            same = np.array_equal(images, results[self.base])
            self.same[name] = self.same.get(name, 0) + same

    def say(self, name: str) -> str:
        return f"{self.same[name]} of {self.rounds}"


# ---- Unused ----


def measure_unused(rounds: int, steps: int) -> Section:
    """diffusers' pipeline, ours without a reference, ours at alpha 0, and diffusers' again, which shows the noise."""
    pipe, plain = load_pipelines()
    photo, call = draw_scene(PHOTO), {**CALL, "num_inference_steps": steps}
    sides: dict[str, Callable[[int], Any]] = {
        "plain": lambda i: plain(PROMPT, generator=seeded(i), **call).images,
        "ours": lambda i: pipe(PROMPT, generator=seeded(i), **call).images,
        "alpha 0": lambda i: pipe(PROMPT, generator=seeded(i), reference_image=photo, vl_alpha=0.0, **call).images,
        "plain again": lambda i: plain(PROMPT, generator=seeded(i), **call).images,
    }
    bits = _BitCount("plain")
    times = interleave(sides, rounds, warmups=min(3, rounds), check=bits)
    names = {"ours": "ours without a reference", "alpha 0": "ours with a reference at alpha 0"}
    noise = ratio(times, "plain again", "plain")
    findings = []
    for side, name in names.items():
        found = ratio(times, side, "plain")
        goal = f"<= {UNUSED_GOAL}"
        findings.append(Finding(f"{name} / `ZImagePipeline`: time", goal, show(found), found.median <= UNUSED_GOAL))
        same = bits.same[side] == bits.rounds
        findings.append(Finding(f"{name}: same bits", "all", bits.say(side), same))
    findings.append(Finding("`ZImagePipeline` again / `ZImagePipeline`: the noise", "", show(noise)))
    intro = (
        f"Toy world, {steps} steps, {rounds} rounds; a plain call takes {show_seconds(Spread.of(times['plain']))}. On "
        "the real models the same fixed cost stands beside seconds, not milliseconds."
    )
    return Section("Unused: against diffusers' own pipeline", [intro, findings_table(findings)])


# ---- A sweep ----


def measure_sweep(
    steps: int,
    alphas: Sequence[float] = (0.15, 0.3, 0.5, 0.7, 1.0),
    layers: Sequence[int] = (-6, -4, -3, -2),
    seeds: int = 4,
) -> Section:
    """Every combination once: over ready embeddings, as a plain call, and with the picture handed over each time."""
    pipe, plain = load_pipelines()
    photo, call = draw_scene(PHOTO), {**CALL, "num_inference_steps": steps}
    settings = list(product(alphas, layers, range(seeds)))
    ready: dict[str, Any] = {}

    @torch.no_grad()
    def prepare(_: int) -> None:
        pipe.clear_reference_cache()
        ready["reference"] = pipe.encode_reference(photo, PROMPT, tuple(layers))
        ready["text"] = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0]

    def knobs(i: int) -> dict[str, Any]:
        alpha, layer, seed = settings[i]
        return {"vl_alpha": alpha, "vl_hidden_layer": layer, "generator": seeded(seed), **call}

    once = Spread.of(interleave({"once": prepare}, 3)["once"]).median
    pipe.clear_reference_cache()
    sides: dict[str, Callable[[int], Any]] = {
        "plain": lambda i: plain(PROMPT, generator=seeded(settings[i][2]), **call).images,
        "ready": lambda i: pipe(prompt_embeds=ready["text"], reference_embeds=ready["reference"], **knobs(i)).images,
        "picture": lambda i: pipe(PROMPT, reference_image=photo, **knobs(i)).images,
    }
    bits = _BitCount("picture")
    times = interleave(sides, len(settings), check=bits)
    whole = {name: sum(values) for name, values in times.items()}
    total = (whole["ready"] + once) / whole["plain"]
    findings = [
        Finding("ready embeddings / `ZImagePipeline`, a call", "", show(ratio(times, "ready", "plain"))),
        Finding(
            "ready embeddings / `ZImagePipeline`, the whole loop with its one pass of each encoder",
            "<= 1.05 (ours)",
            f"{total:.3f}",
            total <= 1.05,
        ),
        Finding(
            "picture handed over each time / `ZImagePipeline`, a call", "", show(ratio(times, "picture", "plain"))
        ),
        Finding(
            "ready embeddings and pictures: same bits", "all", bits.say("ready"), bits.same["ready"] == bits.rounds
        ),
    ]
    intro = (
        f"Toy world, {steps} steps: {len(alphas)} alphas x {len(layers)} layers x {seeds} seeds = {len(settings)} "
        f"calls. All layers come from one pass of the VL encoder, the text from one of the text encoder, together "
        f"{1000 * once:.0f} ms; the loop takes {whole['ready']:.1f} s over ready embeddings, {whole['plain']:.1f} s "
        f"as plain calls, {whole['picture']:.1f} s with the picture handed over each time."
    )
    return Section("A sweep over ready embeddings", [intro, findings_table(findings)])
