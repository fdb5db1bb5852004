"""Whatever fails in a call, and wherever: nothing stays behind, and the same call then gives the right bits."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from offload_table import install_table
from pipeline_samples import PROMPT, make_picture, paint
from tally import FACTOR, count, expect, is_ours
from tiny_models import tiny_pipeline
from zimage_vl.blend.mix import TOKEN_BLENDS
from zimage_vl.pipeline import text_statistics


ROW = "faults"
PICTURE, OTHER = make_picture(0), make_picture(1)
CALLS: dict[str, dict[str, Any]] = {
    "default": {},
    "guided": {"guidance_scale": 3.0, "negative_reference_image": OTHER},
    "muted": {"vl_blend_mode": "style_delta"},
    "small reader": {"vl_reader": "text_encoder", "vl_hidden_layer": -2},
    "statistics": {"vl_normalization": "per_dim", "vl_exclude_sinks": True},
    "window": {"vl_start": 0.5, "reference_mask": PICTURE.convert("L").point(lambda x: 255 * (x > 60))},
    "batch": {"prompt": [PROMPT, "a cross"], "reference_image": [[PICTURE, OTHER], [OTHER, PICTURE]]},
}
MODELS: dict[str, Callable[[Any], Any]] = {
    "text encoder": lambda pipe: pipe.text_encoder,
    "vision tower": lambda pipe: pipe.vl_encoder.model.visual,
    "merger": lambda pipe: pipe.vl_encoder.model.visual.merger,
    "reader": lambda pipe: pipe.vl_encoder.model.language_model.layers[2],
    "transformer": lambda pipe: pipe.transformer,
    "vae": lambda pipe: pipe.vae.decoder,
}
STAGES = ("tokenizer", *MODELS, "blend", "callback")
KINDS = ("none", "model", "leaf_level", "block_level")[: 4 if FACTOR > 1 else 3]


class Fault(Exception):
    """What no code of ours raises."""


# None: NaN instead of an error.
EFFECTS: tuple[Any, ...] = (Fault, None, KeyboardInterrupt, MemoryError)
CASES = [(stage, effect) for stage in STAGES for effect in EFFECTS if (stage, effect) != ("tokenizer", None)]


@contextmanager
def fault(pipe: Any, stage: str, effect: Any, after: int) -> Generator[tuple[list[str], dict[str, Any]]]:
    """Within it, a stage fails from its use number `after` on; yields its uses, and what the call needs for it."""
    uses: list[str] = []

    def strike(output: Any = None) -> Any:
        uses.append(stage)
        if len(uses) <= after:
            return output
        count(ROW, "faults injected", len(uses) == after + 1)
        if effect is not None:
            raise effect
        return tree_map(lambda x: x * float("nan") if torch.is_tensor(x) and x.is_floating_point() else x, output)

    with pytest.MonkeyPatch.context() as patch:
        if stage in MODELS:
            handle = MODELS[stage](pipe).register_forward_hook(lambda _, __, output: strike(output))
        elif stage == "tokenizer":
            template = type(pipe.tokenizer).apply_chat_template
            patch.setattr(type(pipe.tokenizer), "apply_chat_template", lambda *a, **k: strike() or template(*a, **k))
        elif stage == "blend":
            for mode, blend in list(TOKEN_BLENDS.items()):
                patch.setitem(TOKEN_BLENDS, mode, lambda *a, blend=blend: strike(blend(*a)))

        def callback(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> Any:
            return strike(dict(tensors))

        try:
            yield uses, {"callback_on_step_end": callback} if stage == "callback" else {}
        finally:
            if stage in MODELS:
                handle.remove()


def call(pipe: Any, name: str, **more: Any) -> np.ndarray[Any, Any]:
    arguments = {"reference_image": PICTURE, "vl_alpha": 0.6, "vl_hidden_layer": -4, **CALLS[name], **more}
    return paint(pipe, arguments.pop("prompt", PROMPT), **arguments)


@cache
def expected(name: str) -> np.ndarray[Any, Any]:
    return call(tiny_pipeline(), name)


def marks(pipe: Any) -> dict[str, Any]:
    """All that a call could leave on a pipeline: hooks, replaced methods, modes, where weights are, its own state."""
    found: dict[str, Any] = {"state": (pipe._state, dict(pipe.config), sorted(vars(pipe.tokenizer)))}
    for name, part in pipe.components.items():
        for path, module in part.named_modules() if isinstance(part, torch.nn.Module) else ():
            hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
            places = {weight.device.type for weight in module.parameters(recurse=False)}
            kept = (sorted(vars(module)), module.training, places, type(getattr(module, "_hf_hook", None)))
            found[f"{name}.{path}"] = (hooks, *kept)
    return found


def offload(pipe: Any, kind: str) -> Any:
    if kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif kind != "none":
        cpu, blocks = torch.device("cpu"), {"num_blocks_per_group": 1} if kind == "block_level" else {}
        try:
            pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
        except AttributeError:
            pytest.skip("diffusers 0.36 offloads groups only to an accelerator")
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_stage_leaves_nothing_behind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_statistics, "CALIBRATION_PROMPTS", ("a", "b"))
    table, pipe, names = install_table(monkeypatch), offload(tiny_pipeline(), kind), list(CALLS)
    for name in names:
        call(pipe, name)  # what is made at first use is made
    whole = marks(pipe)
    expect(ROW, pipe._state == "idle", f"the state is {pipe._state}")
    # In a short run each stage fails in one way per kind of offload, in one of the calls.
    short = [case for i, case in enumerate(CASES) if case[1] in (Fault, None) and (i + len(kind)) % 2]
    for i, (stage, effect) in enumerate(CASES if FACTOR > 1 else short):
        for name in names if FACTOR > 1 else [names[i % len(names)]]:
            for after in (0, 1) if FACTOR > 1 else (0,):
                what = f"{effect} in {stage} of {name}, offload {kind}, after {after}"
                fail(pipe, stage, effect, name, after, what)
                expect(ROW, not table.resident and table.most <= 1, f"{table.resident} after {what}", "hooks left")
                expect(ROW, marks(pipe) == whole, f"something is left after {what}", "hooks left")
                expect(ROW, np.array_equal(call(pipe, name), expected(name)), f"another picture after {what}")


def fail(pipe: Any, stage: str, effect: Any, name: str, after: int, what: str) -> None:
    """One call with a fault in it, which must come out as it is, or, if it is NaN, as an error that says so."""
    count(ROW)
    pipe.clear_reference_cache()
    pipe._statistics.clear()
    with fault(pipe, stage, effect, after) as (uses, more):
        try:
            painted = call(pipe, name, **more)
        except (Fault, KeyboardInterrupt, MemoryError) as error:
            expect(ROW, type(error) is effect, f"{error!r} for {what}")
        except ValueError as error:
            expect(ROW, effect is None and is_ours(error) and "NaN" in str(error), f"{error!r} for {what}")
        else:
            unseen = effect is None or len(uses) <= after  # NaN in what nobody reads, or no such use in this call
            expect(ROW, unseen and np.array_equal(painted, expected(name)), f"no error for {what}")
