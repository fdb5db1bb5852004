"""Between the steps: the window in which a reference counts, and the caller's own callback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline_samples import (
    KNOBS,
    OTHER_PROMPT,
    PROMPT,
    call,
    differ,
    make_parent,
    make_picture,
    paint,
    paint_with,
    same,
)
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
STEPS = 4
LATE: dict[str, Any] = {"num_inference_steps": STEPS, "vl_start": 0.5}


# ---- Windows ----


def paint_by_hand(
    pipe: Any, inside: list[bool], prompt: Any = PROMPT, other: Any = None, **kwargs: Any
) -> np.ndarray[Any, Any]:
    """diffusers' own pipeline, the embeddings swapped between the steps by the test itself, for `other` at some."""
    guided = {"do_classifier_free_guidance": kwargs.get("guidance_scale", 0.0) > 0}
    ready = pipe.encode_prompt_with_reference(prompt, PICTURE, **guided, **KNOBS)
    text = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    repeats = kwargs.get("num_images_per_prompt", 1)
    each = {True: ready.prompt_embeds, False: text}
    repeated = {key: [e for e in value for _ in range(repeats)] for key, value in each.items()}

    def swap(_: Any, step: int, __: Any, ___: dict[str, Any]) -> dict[str, Any]:
        following = min(step + 1, len(inside) - 1)
        return {"prompt_embeds": (other or {}).get(following, repeated[inside[following]])}

    negatives = {"negative_prompt_embeds": ready.negative_prompt_embeds} if guided else {}
    given = {"prompt_embeds": list(each[inside[0]]), **negatives, "callback_on_step_end": swap}
    return paint(make_parent(pipe), None, num_inference_steps=len(inside), **given, **kwargs)


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ({"vl_start": 0.25}, [False, True, True, True]),
        ({"vl_end": 0.5}, [True, True, False, False]),
        ({"vl_start": 0.2, "vl_end": 0.8}, [False, True, True, False]),
        ({"vl_start": 0.75}, [False, False, False, True]),
    ],
)
def test_a_window_is_a_swap_of_embeddings_between_steps(
    pipe: ZImageVLPipeline, window: dict[str, float], inside: list[bool]
) -> None:
    output = call(pipe, reference_image=PICTURE, num_inference_steps=STEPS, **window, **KNOBS)
    same(output.images, paint_by_hand(pipe, inside))
    assert output.conditioning[0].active_steps == (inside.index(True), inside.index(True) + sum(inside))
    assert differ(output.images, paint_with(pipe, PICTURE, num_inference_steps=STEPS))
    if inside != [False, False, False, True]:  # before diffusers 0.39 the last step does nothing
        assert differ(output.images, paint(pipe, num_inference_steps=STEPS))


def test_windows_in_batches_under_guidance_and_of_given_sigmas(pipe: ZImageVLPipeline) -> None:
    prompts, window = [PROMPT, OTHER_PROMPT], {"num_inference_steps": STEPS, "vl_start": 0.25, "vl_end": 0.75}
    for kwargs in ({"num_images_per_prompt": 2}, {"guidance_scale": 3.0}):
        images = paint_with(pipe, PICTURE, prompts, **window, **kwargs)
        same(images, paint_by_hand(pipe, [False, True, True, False], prompts, **kwargs))
    # Two steps are asked for, which the sigmas overrule.
    sigmas = {"sigmas": [1.0, 0.7, 0.4, 0.2]}
    same(paint_with(pipe, PICTURE, vl_start=0.5, **sigmas), paint_by_hand(pipe, [False, False, True, True], **sigmas))


def test_step_0_outside_the_window_is_the_texts_alone(pipe: ZImageVLPipeline) -> None:
    def after_first_step(**kwargs: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def look(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
            seen.append(given["latents"].clone())
            return {}

        paint(pipe, num_inference_steps=STEPS, callback_on_step_end=look, **kwargs)
        return seen[0]

    steered = {"reference_image": PICTURE, **KNOBS}
    late, early = after_first_step(vl_start=0.25, **steered), after_first_step(vl_end=0.25, **steered)
    assert torch.equal(late, after_first_step())
    assert torch.equal(early, after_first_step(**steered))
    assert not torch.equal(early, late)


# ---- The caller's own callback ----


def test_it_sees_every_step_and_all_it_asked_for_and_keeps_the_window(pipe: ZImageVLPipeline) -> None:
    expected, seen = paint_with(pipe, PICTURE, **LATE), list[Any]()

    def back(owner: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((owner is pipe, step, float(timestep) >= 0, sorted(given), given["prompt_embeds"][0]))
        return given

    names = ["latents", "prompt_embeds"]
    asked = {"callback_on_step_end": back, "callback_on_step_end_tensor_inputs": names}
    same(paint_with(pipe, PICTURE, **asked, **LATE), expected)
    assert [one[:4] for one in seen] == [(True, step, True, names) for step in range(STEPS)]
    # The embeddings of the step to come: text in step 1, the reference's from step 2.
    assert [torch.equal(seen[0][4], one[4]) for one in seen] == [True, False, False, False]
    same(paint_with(pipe, PICTURE, callback_on_step_end=lambda *_: {}, **LATE), expected)
    same(paint(pipe, **asked), paint(pipe))


def test_what_a_callback_puts_in_place_counts(pipe: ZImageVLPipeline) -> None:
    other, steps = (
        pipe.encode_prompt(OTHER_PROMPT, do_classifier_free_guidance=False)[0],
        {"num_inference_steps": STEPS},
    )

    def swap(*_: Any) -> dict[str, Any]:
        return {"prompt_embeds": other}

    # From step 1 on it is the other prompt, whatever the window; step 0 is the text's.
    by_parent = paint(make_parent(pipe), callback_on_step_end=swap, **steps)
    same(paint_with(pipe, PICTURE, callback_on_step_end=swap, **LATE), by_parent)

    def swap_once(_: Any, step: int, *__: Any) -> dict[str, Any]:
        return {"prompt_embeds": other} if step == 1 else {}

    # Until the window ends, in diffusers as here.
    by_hand = paint_by_hand(pipe, [True, True, True, False], other={2: other})
    ending = {"vl_end": 0.75, "callback_on_step_end": swap_once, **steps}
    same(paint_with(pipe, PICTURE, **ending), by_hand)

    def halve(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 0.5}

    by_parent = paint(make_parent(pipe), callback_on_step_end=halve, **steps)
    same(paint(pipe, callback_on_step_end=halve, **steps), by_parent)
    assert differ(paint_with(pipe, PICTURE, callback_on_step_end=halve, **LATE), paint_with(pipe, PICTURE, **LATE))


def test_a_callback_that_returns_nothing_is_told_so_and_one_may_interrupt(pipe: ZImageVLPipeline) -> None:
    for kwargs in ({}, {"reference_image": PICTURE, **KNOBS, **LATE}):
        with pytest.raises(TypeError, match=r"must return the dict of tensors it was given .* got NoneType"):
            paint(pipe, callback_on_step_end=lambda *_: None, **kwargs)
        for wrong in ({"latents": None}, {"latents": torch.zeros(1)}, {"prompt_embeds": None}):
            with pytest.raises(TypeError, match=f"must return '{next(iter(wrong))}' of the kind it was given"):
                paint(pipe, callback_on_step_end=lambda *_, wrong=wrong: wrong, **kwargs)
    steps: list[int] = []

    def stop(owner: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        owner._interrupt = step == 1
        return given

    paint_with(pipe, PICTURE, callback_on_step_end=stop, **LATE)
    assert steps == [0, 1]
