"""Between the steps: the window in which a reference counts, and the caller's own callback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, differ, make_parent, make_picture, paint, paint_with, same
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.pipeline.steps import StepCallback


PICTURE = make_picture(0)
STEPS = 4
INSIDE, OUTSIDE = {"prompt_embeds": [torch.ones(2, 3)]}, {"prompt_embeds": [torch.zeros(2, 3)]}


@pytest.fixture(scope="module")
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline()


# ---- The callback alone ----


def make_step(window: list[bool], user: Any = None, inputs: tuple[str, ...] = ("latents",)) -> StepCallback:
    return StepCallback(window, INSIDE, OUTSIDE, user, inputs)


@pytest.mark.parametrize("window", [[True, False, True], [False, True, False], [False, False, True]])
def test_each_callback_sets_the_step_to_come(window: list[bool]) -> None:
    step = make_step(window)
    for number in range(3):
        given = step(None, number, 0, {"latents": torch.zeros(1)})["prompt_embeds"]
        assert given[0] is (INSIDE if window[min(number + 1, 2)] else OUTSIDE)["prompt_embeds"][0]
        given.clear()  # the lists given are not handed on
    assert len(INSIDE["prompt_embeds"]) == len(OUTSIDE["prompt_embeds"]) == 1


@pytest.mark.parametrize("window", [[], [True, True]])
def test_where_the_reference_always_counts_nothing_is_replaced(window: list[bool]) -> None:
    step = make_step(window)
    assert step(None, 0, 0, {"latents": torch.ones(1)}) == {}
    assert step.latents is not None
    assert step.tensor_inputs == ["latents"]


def test_the_users_callback_sees_what_it_asked_for_and_has_the_last_word() -> None:
    seen: list[Any] = []
    own = [torch.full((2, 3), 7.0)]

    def user(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((pipe, step, timestep, tensors))
        return {"prompt_embeds": own, "latents": "theirs"}

    step = make_step([True, False], user, ("prompt_embeds",))
    assert step.tensor_inputs == ["latents", "prompt_embeds"]
    outputs = step("pipe", 0, 11, {**INSIDE, "latents": "ours"})
    assert outputs == {"prompt_embeds": own, "latents": "theirs"}
    assert step.latents == "theirs"
    assert seen[0][:3] == ("pipe", 0, 11)
    assert list(seen[0][3]) == ["prompt_embeds"]
    assert seen[0][3]["prompt_embeds"][0] is OUTSIDE["prompt_embeds"][0]


# ---- Windows ----


def paint_by_hand(pipe: Any, inside: list[bool], prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray[Any, Any]:
    """diffusers' own pipeline, the embeddings swapped between the steps by the test itself."""
    guided = {"do_classifier_free_guidance": kwargs.get("guidance_scale", 0.0) > 0}
    ready = pipe.encode_prompt_with_reference(prompt, PICTURE, **guided, **KNOBS)
    text = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    repeats = kwargs.get("num_images_per_prompt", 1)
    each = {True: ready.prompt_embeds, False: text}
    repeated = {key: [e for e in value for _ in range(repeats)] for key, value in each.items()}

    def swap(_: Any, step: int, __: Any, ___: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": repeated[inside[min(step + 1, len(inside) - 1)]]}

    negatives = {"negative_prompt_embeds": ready.negative_prompt_embeds} if guided else {}
    given = {"prompt_embeds": list(each[inside[0]]), **negatives, "callback_on_step_end": swap}
    return paint(make_parent(pipe), None, num_inference_steps=len(inside), **given, **kwargs)


WINDOWS = [
    ({"vl_start": 0.5}, [False, False, True, True]),
    ({"vl_start": 0.25}, [False, True, True, True]),
    ({"vl_end": 0.5}, [True, True, False, False]),
    ({"vl_start": 0.2, "vl_end": 0.8}, [False, True, True, False]),
    ({"vl_start": 0.75}, [False, False, False, True]),
]


@pytest.mark.parametrize(("window", "inside"), WINDOWS)
def test_a_window_is_a_swap_of_embeddings_between_steps(
    pipe: ZImageVLPipeline, window: dict[str, float], inside: list[bool]
) -> None:
    images = paint_with(pipe, PICTURE, num_inference_steps=STEPS, **window)
    same(images, paint_by_hand(pipe, inside))
    assert differ(images, paint_with(pipe, PICTURE, num_inference_steps=STEPS))
    if inside != [False, False, False, True]:  # before diffusers 0.39 the last step does nothing
        assert differ(images, paint(pipe, num_inference_steps=STEPS))


@pytest.mark.parametrize("kwargs", [{"num_images_per_prompt": 2}, {"guidance_scale": 3.0}])
def test_windows_in_batches_and_under_guidance(pipe: ZImageVLPipeline, kwargs: dict[str, Any]) -> None:
    prompts = [PROMPT, OTHER_PROMPT]
    images = paint_with(pipe, PICTURE, prompts, num_inference_steps=STEPS, vl_start=0.25, vl_end=0.75, **kwargs)
    same(images, paint_by_hand(pipe, [False, True, True, False], prompts, **kwargs))


def test_windows_count_the_steps_of_given_sigmas(pipe: ZImageVLPipeline) -> None:
    sigmas = {"sigmas": [1.0, 0.7, 0.4, 0.2]}
    # Two steps are asked for, which the sigmas overrule.
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


def test_the_callers_callback_sees_every_step_and_all_it_asked_for(pipe: ZImageVLPipeline) -> None:
    seen: list[Any] = []

    def look(owner: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((owner, step, float(timestep), sorted(given)))
        return given

    asked = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    same(paint(pipe, **asked), paint(pipe))
    same(paint_with(pipe, PICTURE, **asked), paint_with(pipe, PICTURE))
    assert [entry[1] for entry in seen] == [0, 1, 0, 1]
    assert all(owner is pipe and names == ["latents", "prompt_embeds"] for owner, _, _, names in seen)


def test_a_callback_that_returns_what_it_was_given_keeps_the_window(pipe: ZImageVLPipeline) -> None:
    window = {"num_inference_steps": STEPS, "vl_start": 0.5}
    expected = paint_with(pipe, PICTURE, **window)
    seen: list[torch.Tensor] = []

    def back(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["prompt_embeds"][0])
        return given

    names = ["latents", "prompt_embeds"]
    images = paint_with(pipe, PICTURE, callback_on_step_end=back, callback_on_step_end_tensor_inputs=names, **window)
    same(images, expected)
    # It sees the embeddings of the step to come: text in step 1, the reference's from step 2.
    assert [torch.equal(seen[0], other) for other in seen] == [True, False, False, False]
    same(paint_with(pipe, PICTURE, callback_on_step_end=lambda *_: {}, **window), expected)


def test_what_a_callback_puts_in_place_counts(pipe: ZImageVLPipeline) -> None:
    other = pipe.encode_prompt(OTHER_PROMPT, do_classifier_free_guidance=False)[0]
    window = {"num_inference_steps": STEPS, "vl_start": 0.5}

    def replace(*_: Any) -> dict[str, Any]:
        return {"prompt_embeds": other}

    # From step 1 on it is the other prompt, whatever the window; step 0 is the text's.
    by_parent = paint(make_parent(pipe), num_inference_steps=STEPS, callback_on_step_end=replace)
    same(paint_with(pipe, PICTURE, callback_on_step_end=replace, **window), by_parent)

    def halve(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 0.5}

    by_parent = paint(make_parent(pipe), num_inference_steps=STEPS, callback_on_step_end=halve)
    same(paint(pipe, num_inference_steps=STEPS, callback_on_step_end=halve), by_parent)
    assert differ(paint_with(pipe, PICTURE, callback_on_step_end=halve, **window), paint_with(pipe, PICTURE, **window))


def test_a_callback_that_returns_nothing_is_told_so_and_one_may_interrupt(pipe: ZImageVLPipeline) -> None:
    for kwargs in ({}, {"reference_image": PICTURE, "vl_start": 0.5, **KNOBS}):
        with pytest.raises(TypeError, match=r"must return the dict of tensors it was given .* got NoneType"):
            paint(pipe, num_inference_steps=STEPS, callback_on_step_end=lambda *_: None, **kwargs)
    steps: list[int] = []

    def stop(owner: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        owner._interrupt = step == 1
        return given

    paint_with(pipe, PICTURE, num_inference_steps=STEPS, vl_start=0.5, callback_on_step_end=stop)
    assert steps == [0, 1]
