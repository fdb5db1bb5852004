"""What a reference costs the first time, and what of it is left when it comes again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from .accelerator import Accelerator
from .extraction import LAYER, PROMPT_TOKENS
from .page import Finding, show, show_seconds, table
from .random_models import make_picture, make_prompt
from .timing import Spread, interleave, ratio


REPEATED_GOAL = 1.05


@contextmanager
def count_readings(pipe: Any) -> Generator[list[int]]:
    """Within it, the list grows by one whenever the VL encoder's language model runs."""
    runs: list[int] = []
    handle = pipe.vl_encoder.model.language_model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()


def measure_calls(
    pipe: Any,
    plain: Any,
    prompt: str,
    picture: Any,
    call: dict[str, Any],
    rounds: int,
    accelerator: Accelerator,
) -> tuple[list[Finding], str]:
    """Whole calls in turns: diffusers' own, without a reference, a reference for the first time, again, and ready.

    Returns:
        Findings, and a table of the seconds.
    """
    pipe.clear_reference_cache()
    ready = pipe.encode_reference(picture, prompt, (LAYER,))
    with torch.no_grad():
        text = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0]

    def options(i: int) -> dict[str, Any]:
        return {**call, "guidance_scale": 0.0, "generator": torch.Generator().manual_seed(abs(i))}

    def first(i: int) -> Any:
        pipe.clear_reference_cache()
        return pipe(prompt, reference_image=picture, vl_hidden_layer=LAYER, **options(i))

    sides: dict[str, Callable[[int], Any]] = {
        "`ZImagePipeline`": lambda i: plain(prompt, **options(i)),
        "no reference": lambda i: pipe(prompt, **options(i)),
        "a reference, first": first,
        "the same again": lambda i: pipe(prompt, reference_image=picture, vl_hidden_layer=LAYER, **options(i)),
        "ready embeddings": lambda i: pipe(
            prompt_embeds=text, reference_embeds=ready, vl_hidden_layer=LAYER, **options(i)
        ),
    }
    times = interleave(sides, rounds, synchronize=accelerator.synchronize)
    base = "`ZImagePipeline`"
    with count_readings(pipe) as runs:
        sides["the same again"](0)
    findings = [Finding("readings in a repeated call", "0", str(len(runs)), not runs)]
    for name in list(sides)[1:]:
        found = ratio(times, name, base)
        goal = None if name == "a reference, first" else REPEATED_GOAL
        aim = "" if goal is None else f"<= {goal} (ours)"
        met = None if goal is None else found.median <= goal
        findings.append(Finding(f"{name} / {base}", aim, show(found), met))
    again = ratio(times, "the same again", "a reference, first")
    findings.append(Finding("the same again / a reference, first", "", show(again)))
    seconds = table(("call", "time"), [(name, show_seconds(Spread.of(values))) for name, values in times.items()])
    return findings, seconds


def measure_reading(pipe: Any, pixels: int, rounds: int, accelerator: Accelerator) -> tuple[list[Finding], str]:
    """`pipe.encode_reference` alone: the first time and again, with a prompt of its own in each round."""
    pipe.clear_reference_cache()
    picture = make_picture(pixels)

    def encode(i: int) -> Any:
        prompt = make_prompt(pipe.tokenizer, PROMPT_TOKENS, seed=1000 + i)
        return pipe.encode_reference(picture, prompt, layers=(LAYER,))

    times = interleave({"first": encode, "again": encode}, rounds, synchronize=accelerator.synchronize)
    with count_readings(pipe) as runs:
        encode(rounds - 1)
    findings = [
        Finding(f"{pixels} px, readings the second time", "0", str(len(runs)), not runs),
        Finding(f"{pixels} px, again / first", "", show(ratio(times, "again", "first"), 4)),
    ]
    return findings, f"{pixels} px: the first time {show_seconds(Spread.of(times['first']))}."
