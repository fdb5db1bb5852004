"""What a reference costs the first time, and what of it is left when it comes again."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

from .accelerator import Accelerator
from .arithmetic import prefix_limit
from .extraction import LAYER, PROMPT_TOKENS, prepare_obvious
from .page import Finding, show, show_seconds, table
from .random_models import make_picture, make_prompt
from .timing import Spread, interleave, ratio


# Of a full pass, for a new prompt of 24 tokens: a trial before it was built found .14.
PREFIX_GOAL = 0.15
REPEATED_GOAL = 1.05
PREFIX_BYTES = 2**30


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
    """`pipe.encode_reference` alone: the first time, again, and with a new prompt where the prefix is known.

    Two pipelines share the models, one with the prefix cache and one without. Each round has a prompt of its own.

    Returns:
        Findings, and a sentence about what a prefix takes and how far its states are off.
    """
    whole, knowing = _share(pipe), _share(pipe)
    knowing.enable_prefix_cache(max_bytes=PREFIX_BYTES)
    picture = make_picture(pixels)
    encode = {"layers": (LAYER,)}

    def prompt(i: int) -> str:
        return make_prompt(pipe.tokenizer, PROMPT_TOKENS, seed=1000 + i)

    sides: dict[str, Callable[[int], Any]] = {
        "first": lambda i: whole.encode_reference(picture, prompt(i), **encode),
        "again": lambda i: whole.encode_reference(picture, prompt(i), **encode),
        "new prompt": lambda i: knowing.encode_reference(picture, prompt(i), **encode),
    }
    before = accelerator.allocated()
    knowing.encode_reference(picture, prompt(-100), **encode)
    after = accelerator.allocated()
    errors: list[float] = []

    def compare(results: dict[str, Any]) -> None:
        exact, near = (results[name].hidden_states[LAYER].float() for name in ("first", "new prompt"))
        errors.append(float((near - exact).norm() / exact.norm()))

    times = interleave(sides, rounds, synchronize=accelerator.synchronize, check=compare)
    with count_readings(pipe) as runs:
        whole.encode_reference(picture, prompt(rounds - 1), **encode)
    prepared = prepare_obvious(pipe, picture, prompt(0))
    ids = prepared["input_ids"][0].tolist()
    new = len(ids) - 1 - ids.index(pipe.tokenizer.convert_tokens_to_ids("<|vision_end|>"))
    least = prefix_limit(pipe.vl_encoder.config, prepared["pixel_values"].shape[0], len(ids), new, LAYER)
    found = ratio(times, "new prompt", "first")
    # A small picture leaves the text too large a part of the whole for any cache.
    within_reach = least <= PREFIX_GOAL
    findings = [
        Finding(f"{pixels} px, readings the second time", "0", str(len(runs)), not runs),
        Finding(f"{pixels} px, again / first", "", show(ratio(times, "again", "first"), 4)),
        Finding(
            f"{pixels} px, new prompt of {PROMPT_TOKENS} tokens with the prefix cache / first",
            f"<= {PREFIX_GOAL} (arithmetic {least:.3f})" if within_reach else f"- (arithmetic {least:.3f})",
            show(found),
            found.median <= PREFIX_GOAL if within_reach else None,
        ),
    ]
    first, fresh = (show_seconds(Spread.of(times[name])) for name in ("first", "new prompt"))
    off = (
        f"are off by {max(errors):.1e} (relative, the worst round)"
        if any(errors)
        else "are the same bits at this size"
    )
    sentence = (
        f"{pixels} px: {len(ids)} tokens, {new} of them after the picture; first {first}, new prompt {fresh}. States "
        f"with the prefix cache {off}."
    )
    if before is not None and after is not None:
        sentence += f" The prefix takes {(after - before) / 2**20:.0f} MiB of the accelerator."
    return findings, sentence


def _share(pipe: Any) -> Any:
    shared = ZImageVLPipeline(**pipe.components, vl_model_id=None)
    shared.set_progress_bar_config(disable=True)
    return shared
