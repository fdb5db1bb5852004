"""Image-to-image with a reference: diffusers' own pipeline fed by the reference's embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image
from test_residency import Table, offloaded, table  # noqa: F401 - a fixture

from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, make_picture, record_runs, seeded
from tiny_models import tiny_pipeline
from zimage_vl.workflows.image_to_image import fit_size, load_init_image, paint_from_image
from zimage_vl.workflows.rounds import refine_iteratively


START, PICTURE = make_picture(3, (32, 32)), make_picture(0)
SMALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "np"}
same = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


def paint(pipe: Any, prompt: Any = PROMPT, start: Any = START, strength: float = 0.6, **kwargs: Any) -> Any:
    return paint_from_image(pipe, prompt, start, strength, **{**SMALL, "generator": seeded(), **kwargs})


def paint_by_hand(pipe: Any, seed: int = 0, **kwargs: Any) -> Any:
    """The same with diffusers alone, as a script would."""
    guided = kwargs.pop("guided", False)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=guided, **KNOBS)
    other = ZImageImg2ImgPipeline(**pipe.z_image_components)
    other.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": ready.prompt_embeds, "negative_prompt_embeds": ready.negative_prompt_embeds or None}
    return other(image=START, strength=0.6, generator=seeded(seed), **{**SMALL, **kwargs}, **embeds).images


def test_it_is_diffusers_image_to_image_bit_for_bit(pipe: Any) -> None:
    output = paint(pipe, reference_image=PICTURE, **KNOBS)
    same(output.images, paint_by_hand(pipe))
    assert output.conditioning[0].influence > 0
    guided = paint(pipe, reference_image=PICTURE, guidance_scale=3.0, **KNOBS).images
    same(guided, paint_by_hand(pipe, guided=True, guidance_scale=3.0))
    assert np.abs(guided - output.images).max() > 1e-4


def test_reference_start_picture_and_strength_count(pipe: Any) -> None:
    pictures = [
        paint(pipe).images,
        paint(pipe, reference_image=PICTURE, **KNOBS).images,
        paint(pipe, start=make_picture(5, (32, 32))).images,
        paint(pipe, strength=0.3).images,
    ]
    for index, one in enumerate(pictures):
        assert all(np.abs(one - other).max() > 1e-4 for other in pictures[index + 1 :])
    assert paint(pipe).conditioning is None


def test_ready_embeddings_are_the_picture_they_are_of(pipe: Any) -> None:
    embeds = pipe.encode_reference(PICTURE, PROMPT, (-2,))
    same(paint(pipe, reference_embeds=embeds, **KNOBS).images, paint(pipe, reference_image=PICTURE, **KNOBS).images)


def test_each_of_several_is_what_it_is_alone(pipe: Any) -> None:
    starts, prompts = [START, make_picture(5, (32, 32))], [PROMPT, OTHER_PROMPT]
    generators = [seeded(seed) for seed in range(4)]
    kwargs: dict[str, Any] = {"reference_image": [PICTURE, make_picture(1)], **KNOBS}
    many = paint(pipe, prompts, starts, num_images_per_prompt=2, generator=generators, **kwargs)
    assert many.images.shape == (4, 32, 32, 3)
    assert len(many.conditioning) == 2
    kwargs["reference_image"] = make_picture(1)
    same(many.images[3:], paint(pipe, OTHER_PROMPT, starts[1], generator=seeded(3), **kwargs).images)
    pil = paint(pipe, prompts, output_type="pil").images
    assert [image.size for image in pil] == [(32, 32)] * 2
    assert paint(pipe, prompts, output_type="pt", return_dict=False)[0].shape == (2, 3, 32, 32)


def test_nothing_of_the_pipeline_changes(pipe: Any) -> None:
    scheduler, before = pipe.scheduler, dict(vars(pipe.scheduler))
    paint(pipe, reference_image=PICTURE, **KNOBS)
    assert pipe.scheduler is scheduler
    assert {name: value is before[name] for name, value in vars(scheduler).items()} == dict.fromkeys(before, True)


def test_each_round_paints_over_the_same_start_picture(pipe: Any) -> None:
    once = partial(paint_from_image, pipe, init_image=START, strength=0.6)
    kwargs: dict[str, Any] = {**SMALL, **KNOBS, "output_type": "pil"}
    rounds = refine_iteratively(once, PROMPT, PICTURE, 2, generator=seeded(), **kwargs)
    alone = once(PROMPT, reference_image=rounds[0].images[0], generator=seeded(), **kwargs)
    same(np.asarray(rounds[1].images[0]), np.asarray(alone.images[0]))
    assert np.asarray(rounds[0].images[0]).tolist() != np.asarray(rounds[1].images[0]).tolist()


def test_under_offload_it_is_the_same_and_nothing_stays(table: Table, pipe: Any) -> None:  # noqa: F811
    away = offloaded()
    same(paint(away, reference_image=PICTURE, **KNOBS).images, paint(pipe, reference_image=PICTURE, **KNOBS).images)
    assert table.resident == {}
    assert table.most <= 2  # the transformer, and the small VAE that has read the start picture
    with pytest.raises(RuntimeError, match="stop"):
        paint(away, callback_on_step_end=fail)
    assert table.resident == {}


def fail(*_: Any) -> Any:
    raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"strength": 0}, ValueError, "`strength` must be above 0"),
        ({"strength": 1.5}, ValueError, r"at most 1, got 1\.5"),
        ({"strength": float("nan")}, ValueError, "`strength`"),
        ({"vl_start": 0.5}, ValueError, "`vl_start` is refused here"),
        ({"latents": torch.zeros(1)}, TypeError, "latents"),
        ({"alpha": 0.5}, TypeError, "alpha"),
        ({"width": 30}, ValueError, "`width`.*divisible by 4"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"start": [START, START]}, ValueError, "2 pictures for 1 prompts"),
        ({"start": "no/such.png"}, ValueError, "no/such.png"),
        ({"generator": [seeded(), seeded()]}, ValueError, "1 pictures are asked for"),
        ({"vl_alpha": 2.0}, ValueError, "vl_alpha"),
    ],
)
def test_refused_before_any_model_runs(pipe: Any, kwargs: dict[str, Any], error: Any, match: str) -> None:
    with record_runs(pipe) as runs, pytest.raises((error, FileNotFoundError), match=match):
        paint(pipe, **kwargs)
    assert runs == []


def test_sizes() -> None:
    assert fit_size((1500, 1000), 16) == (1504, 992)
    assert fit_size((4000, 3000), 16, 1024 * 1024) == (1184, 880)
    assert fit_size((20, 10), 16, 64 * 64) == (96, 48)
    with pytest.raises(ValueError, match="200 times"):
        fit_size((2010, 10), 16)
    photo = Image.new("RGB", (100, 50))
    assert load_init_image(photo).size == (96, 48)
    assert load_init_image(photo, height=64).size == (128, 64)
    assert load_init_image(photo, 64, 64).size == (64, 64)
    with pytest.raises(ValueError, match="`width` must be a multiple of 16"):
        load_init_image(photo, width=50)


def test_what_stands_over_is_cut_off_and_nothing_is_stretched() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    assert load_init_image(wide, 32, 32).getcolors() == [(1024, (0, 0, 255))]
    assert np.array_equal(np.asarray(load_init_image(wide)), np.asarray(wide))
