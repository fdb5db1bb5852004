"""Between the steps, the reference comes and goes, and the caller's own callback has the last word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_models import tiny_pipeline
from zimage_vl.pipeline.steps import make_window_callback


INSIDE, OUTSIDE = [torch.ones(2, 3)], [torch.zeros(2, 3)]
CALL = {"height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 0.0}


@pytest.mark.parametrize("window", [[True, False, True], [False, True, False], [False, False, True]])
def test_each_callback_sets_the_step_to_come(window: list[bool]) -> None:
    callback = make_window_callback(window, INSIDE, OUTSIDE, None)
    for step in range(2):
        given = callback(None, step, 0, {})["prompt_embeds"]
        assert given[0] is (INSIDE if window[step + 1] else OUTSIDE)[0]
    assert callback(None, 2, 0, {})["prompt_embeds"][0] is (INSIDE if window[2] else OUTSIDE)[0]


def test_the_lists_given_are_not_handed_on() -> None:
    outputs = make_window_callback([True, True], INSIDE, OUTSIDE, None)(None, 0, 0, {})
    outputs["prompt_embeds"].clear()
    assert len(INSIDE) == 1


def test_the_users_callback_sees_the_embeddings_to_come_and_can_replace_them() -> None:
    seen: list[Any] = []
    own = [torch.full((2, 3), 7.0)]

    def user(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe, step, timestep, tensors["prompt_embeds"][0]))
        return {"prompt_embeds": own, "latents": "theirs"}

    callback = make_window_callback([True, False], INSIDE, OUTSIDE, user)
    outputs = callback("pipe", 0, 11, {"prompt_embeds": INSIDE, "latents": "ours"})
    assert seen == [("pipe", 0, 11, OUTSIDE[0])]
    assert outputs == {"prompt_embeds": own, "latents": "theirs"}


def test_tensors_that_were_not_asked_for_are_not_shown() -> None:
    def user(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert set(tensors) == {"latents"}
        return {}

    outputs = make_window_callback([True, False], INSIDE, OUTSIDE, user)(None, 0, 0, {"latents": 1})
    assert outputs["prompt_embeds"][0] is OUTSIDE[0]


def test_a_callback_that_returns_nothing_is_refused() -> None:
    callback = make_window_callback([True, False], INSIDE, OUTSIDE, lambda *_: None)
    with pytest.raises(TypeError, match=r"must return the dict of tensors it was given .* got NoneType"):
        callback(None, 0, 0, {})


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_the_transformer_gets_the_reference_inside_the_window_alone(start: float, end: float) -> None:
    pipe = tiny_pipeline()
    embeds = pipe.encode_reference(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), "a red circle")
    ready = pipe.encode_prompt_with_reference(
        "a red circle", reference_embeds=embeds, vl_alpha=1.0, do_classifier_free_guidance=False
    )
    used: list[bool] = []

    def record(module: Any, args: tuple[Any, ...]) -> None:
        used.append(torch.equal(args[2][0], ready.prompt_embeds[0]))

    with pipe.transformer.register_forward_pre_hook(record):
        pipe("a red circle", reference_embeds=embeds, vl_alpha=1.0, vl_start=start, vl_end=end, **CALL)
    assert used == [i / 4 >= start and (i + 1) / 4 <= end for i in range(4)]
