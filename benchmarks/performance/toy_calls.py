"""Whole calls on the toy world: what the pipeline costs unused, in a sweep and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline

from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline

from .page import Finding, Section, findings_table, show, show_seconds, table
from .timing import Spread, interleave, ratio


PROMPT = "a blue square on a black background"
PROMPTS = [f"a {colour} {shape}" for colour, shape in product(("blue", "red", "green", "yellow"), ("square", "cross"))]
PHOTO = Scene("circle", "red", "white")
NOISE = 0.1  # quartiles further apart than this would take anything for 1.00
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
    goal = "1.00 within the noise below" if noise.upper - noise.lower <= NOISE else "1.00; too noisy to tell"
    findings = []
    for side, name in names.items():
        found = ratio(times, side, "plain")
        off = found.median - 1.0
        met = noise.lower - noise.median <= off <= noise.upper - noise.median if goal.endswith("below") else None
        findings.append(Finding(f"{name} / `ZImagePipeline`: time", goal, show(found), met))
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


# ---- Batches ----


def measure_batches(rounds: int, steps: int, sizes: Sequence[int] = (1, 2, 4, 8)) -> Section:
    """As many pictures from one call as from single ones, each with the same reference."""
    pipe, _ = load_pipelines()
    photo, call = draw_scene(PHOTO), {**CALL, "num_inference_steps": steps}

    def batched(size: int) -> Callable[[int], Any]:
        return lambda _: pipe(PROMPTS[:size], reference_image=photo, generator=_generators(size), **call)

    def single(size: int) -> Callable[[int], Any]:
        def run(_: int) -> None:
            for prompt, generator in zip(PROMPTS, _generators(size), strict=False):
                pipe(prompt, reference_image=photo, generator=generator, **call)

        return run

    rows = []
    for size in sizes:
        times = interleave({"single": single(size), "batched": batched(size)}, rounds)
        speeds = {name: Spread.of([size / seconds for seconds in values]) for name, values in times.items()}
        gain = ratio(times, "single", "batched")
        rows.append((size, show(speeds["single"], 2), show(speeds["batched"], 2), show(gain, 2)))
    head = ("pictures", "a second, single calls", "a second, one call", "one call is faster by")
    intro = (
        f"Toy world, {steps} steps, {rounds} rounds, the same reference for all; there is no goal: what a batch gains "
        "depends on how much of the device one picture fills."
    )
    return Section("Pictures a second", [intro, table(head, rows)])


def _generators(count: int) -> list[torch.Generator]:
    return [seeded(seed) for seed in range(count)]
