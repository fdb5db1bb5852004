"""Iterative refinement: each round is the plain call with the picture of the round before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_models import noise, tiny_pipeline, white_box
from zimage_vl.workflows.rounds import refine_iteratively


PIPE = tiny_pipeline()
PROMPT = "a red circle"
CALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0, "vl_alpha": 0.7}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_each_round_is_the_call_with_the_picture_before() -> None:
    rounds = refine_iteratively(PIPE, PROMPT, noise((32, 32)), 3, generator=seeded(), **CALL)
    assert len(rounds) == 3
    reference = noise((32, 32))
    for output in rounds:
        expected = PIPE(PROMPT, reference_image=reference, generator=seeded(), **CALL)
        assert np.array_equal(pixels(output.images[0]), pixels(expected.images[0]))
        assert output.conditioning[0].influence == expected.conditioning[0].influence
        reference = expected.images[0]
    assert not np.array_equal(pixels(rounds[0].images[0]), pixels(rounds[1].images[0]))


def test_a_generator_ends_as_after_one_call() -> None:
    once, often = seeded(), seeded()
    PIPE(PROMPT, reference_image=noise((32, 32)), generator=once, **CALL)
    refine_iteratively(PIPE, PROMPT, noise((32, 32)), 3, generator=often, **CALL)
    assert torch.equal(once.get_state(), often.get_state())


def test_each_prompt_of_a_batch_gets_its_own_picture_back() -> None:
    prompts, references = [PROMPT, "a blue square"], [noise((32, 32), 1), noise((32, 32), 2)]
    together = refine_iteratively(PIPE, prompts, references, 2, generator=[seeded(1), seeded(2)], **CALL)
    for n, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        alone = refine_iteratively(PIPE, prompt, reference, 2, generator=seeded(n + 1), **CALL)
        for both, single in zip(together, alone, strict=True):
            difference = pixels(both.images[n]).astype(int) - pixels(single.images[0])
            assert np.abs(difference).max() <= 2  # padding a batch rounds differently
    assert not np.array_equal(pixels(together[1].images[0]), pixels(together[1].images[1]))


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_arrays_and_tensors_are_fed_back(output_type: str) -> None:
    rounds = refine_iteratively(
        PIPE, PROMPT, noise((32, 32)), 2, generator=seeded(), output_type=output_type, return_dict=False, **CALL
    )
    first = rounds[0][0]
    expected = PIPE(PROMPT, reference_image=first[0], generator=seeded(), output_type=output_type, **CALL)
    assert np.array_equal(np.asarray(rounds[1][0]), np.asarray(expected.images))


def test_what_speaks_of_the_given_picture_acts_in_the_first_round_alone() -> None:
    mask = white_box((32, 32), (0, 0, 16, 32))
    first, second = refine_iteratively(
        PIPE, PROMPT, noise((32, 32)), 2, generator=seeded(), reference_mask=mask, **CALL
    )
    masked = PIPE(PROMPT, reference_image=noise((32, 32)), reference_mask=mask, generator=seeded(), **CALL)
    assert np.array_equal(pixels(first.images[0]), pixels(masked.images[0]))
    plain = PIPE(PROMPT, reference_image=first.images[0], generator=seeded(), **CALL)
    assert np.array_equal(pixels(second.images[0]), pixels(plain.images[0]))
    several = [[noise((32, 32), 1), noise((32, 32), 2)]]
    rounds = refine_iteratively(PIPE, PROMPT, several, 2, reference_weights=[3, 1], **CALL)
    assert [len(output.conditioning[0].references) for output in rounds] == [2, 1]


def test_rounds_are_handed_over_as_they_come() -> None:
    seen: list[tuple[int, Any]] = []

    def stop(number: int, output: Any) -> None:
        seen.append((number, output))
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_iteratively(PIPE, PROMPT, noise((32, 32)), 9, on_round=stop, **CALL)
    assert [number for number, _ in seen] == [0, 1]


def test_the_callers_arguments_stay() -> None:
    references, generators = [noise((32, 32))], [seeded()]
    kwargs = {**CALL, "reference_mask": white_box((32, 32), (0, 0, 16, 32)), "generator": generators}
    before = dict(kwargs)
    refine_iteratively(PIPE, [PROMPT], references, 2, **kwargs)
    assert kwargs == before
    assert len(references) == len(generators) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"iterations": 0}, ValueError, "`iterations` must be an int of at least 1"),
        ({"iterations": -2}, ValueError, "`iterations` must be an int of at least 1"),
        ({"iterations": 1.5}, TypeError, "`iterations` must be an int"),
        ({"iterations": True}, TypeError, "`iterations` must be an int"),
        ({"reference_image": None}, ValueError, "needs a `reference_image`"),
        ({"reference_embeds": object()}, ValueError, "got `reference_embeds`"),
        ({"output_type": "latent"}, ValueError, "no picture that could be a reference"),
        ({"num_images_per_prompt": 2}, ValueError, "`num_images_per_prompt` must be 1, got 2"),
        ({"num_images_per_prompt": np.array([1, 1])}, ValueError, "`num_images_per_prompt` must be 1, got"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(changes: dict[str, Any], error: Any, message: str) -> None:
    ran: list[Any] = []
    handle = PIPE.text_encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    arguments = {"prompt": PROMPT, "reference_image": noise((32, 32)), "iterations": 2, **CALL, **changes}
    with pytest.raises(error, match=message):
        refine_iteratively(PIPE, **arguments)
    handle.remove()
    assert not ran
