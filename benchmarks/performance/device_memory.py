"""The most memory of an accelerator that calls take, without offload and with model offload."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from .accelerator import Accelerator
from .extraction import LAYER
from .page import Finding, table


OFFLOAD_GOAL = 1.02
OPEN = "open"


def show_bytes(count: int | None) -> str:
    return OPEN if count is None else f"{count / 2**30:.2f} GiB"


def count_bytes(model: torch.nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _call(pipe: Any, call: dict[str, Any], **kwargs: Any) -> Any:
    options = {**call, "guidance_scale": 0.0, "generator": torch.Generator().manual_seed(0)}
    return pipe(**kwargs, **options)


def measure_resident(
    pipe: Any, plain: Any, prompt: str, picture: Any, call: dict[str, Any], accelerator: Accelerator
) -> tuple[list[Finding], str]:
    """Everything on the accelerator; then the VL encoder is unloaded, for good.

    Nobody else may hold the VL encoder.
    """
    peaks: dict[str, int | None] = {}
    pipe.clear_reference_cache()
    peaks["a reference, all models resident"] = accelerator.peak_of(
        lambda: _call(pipe, call, prompt=prompt, reference_image=picture)
    )
    peaks["no reference, all models resident"] = accelerator.peak_of(lambda: _call(pipe, call, prompt=prompt))
    pipe.clear_reference_cache()
    size, encoder = count_bytes(pipe.vl_encoder), weakref.ref(pipe.vl_encoder)
    accelerator.free()
    before = accelerator.allocated()
    pipe.unload_vl_encoder()
    after = accelerator.allocated()
    peaks["no reference, VL encoder unloaded"] = accelerator.peak_of(lambda: _call(pipe, call, prompt=prompt))
    peaks["`ZImagePipeline`"] = accelerator.peak_of(lambda: _call(plain, call, prompt=prompt))
    findings = [
        Finding("`unload_vl_encoder()`: nothing holds the encoder", "yes", _word(encoder() is None), encoder() is None)
    ]
    back = None if before is None or after is None else before - after
    share = OPEN if back is None else f"{back / size:.4f} ({show_bytes(back)} of {show_bytes(size)})"
    findings.append(
        Finding("`unload_vl_encoder()`: part of its memory given back", ">= 0.99", share, back and back >= 0.99 * size)
    )
    rows = [(name, show_bytes(peak)) for name, peak in peaks.items()]
    return findings, table(("without offload", "peak"), rows)


def _word(truth: bool) -> str:
    return "yes" if truth else "no"


def _orders_of_use(
    pipe: Any, prompt: str, picture: Any, call: dict[str, Any], ready: Any, text: Any
) -> dict[str, Callable[[], Any]]:
    """What a user may do one after the other; each begins with all models away."""

    def plainly() -> Any:
        return _call(pipe, call, prompt=prompt)

    def with_picture() -> Any:
        return _call(pipe, call, prompt=prompt, reference_image=picture)

    def first() -> Any:
        pipe.clear_reference_cache()
        return with_picture()

    return {
        "no reference": plainly,
        "a reference, first": first,
        "the same again": with_picture,
        "ready reference": lambda: _call(pipe, call, prompt=prompt, reference_embeds=ready),
        "ready reference and text": lambda: _call(pipe, call, prompt_embeds=text, reference_embeds=ready),
        "a reference, none, a reference": lambda: (first(), plainly(), first()),
        "two references": lambda: _call(pipe, call, prompt=prompt, reference_image=[[picture, picture.rotate(90)]]),
        "reading alone, then a call": lambda: (
            pipe.clear_reference_cache(),
            pipe.encode_reference(picture, prompt, (LAYER,)),
            plainly(),
        ),
    }


def measure_offload(
    pipe: Any, plain: Any, prompt: str, picture: Any, call: dict[str, Any], accelerator: Accelerator
) -> tuple[list[Finding], str]:
    """Model offload, in every order of use, against diffusers' own pipeline over the same models.

    The pipelines share their models, so one is hooked after the other. Afterwards all models are on the CPU.
    """
    pipe.enable_model_cpu_offload(device=accelerator.device)
    ready = pipe.encode_reference(picture, prompt, (LAYER,))
    with torch.no_grad():
        text = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    peaks: dict[str, int | None] = {}
    for name, work in _orders_of_use(pipe, prompt, picture, call, ready, text).items():
        pipe.maybe_free_model_hooks()
        peaks[name] = accelerator.peak_of(work)
        print(f"{name}: {show_bytes(peaks[name])}", flush=True)
    pipe.remove_all_hooks()
    pipe.clear_reference_cache()
    ready = text = None  # they would count in the other's peak
    plain.enable_model_cpu_offload(device=accelerator.device)
    base = accelerator.peak_of(lambda: _call(plain, call, prompt=prompt))
    plain.remove_all_hooks()
    findings = [_against(name, peak, base) for name, peak in peaks.items()]
    return findings, f"With model offload, `ZImagePipeline` takes {show_bytes(base)} at the peak."


def _against(name: str, peak: int | None, base: int | None) -> Finding:
    what, goal = f"{name} / `ZImagePipeline`: peak", f"<= {OFFLOAD_GOAL}"
    if peak is None or base is None:
        return Finding(what, goal, OPEN)
    return Finding(what, goal, f"{peak / base:.3f} ({show_bytes(peak)})", peak <= OFFLOAD_GOAL * base)
