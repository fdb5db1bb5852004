"""Image-to-image with a reference: diffusers' own pipeline fed by the reference's embeddings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from PIL import Image

from offload_table import install_table
from pipeline_samples import (
    KNOBS,
    OTHER_PROMPT,
    PROMPT,
    differ,
    make_parent,
    make_picture,
    quiet,
    record_runs,
    same,
    save_vl_parts,
    seeded,
)
from tiny_models import tiny_pipeline
from zimage_vl.workflows.image_to_image import fit_size, load_init_image, paint_from_image, paint_like
from zimage_vl.workflows.rounds import refine_iteratively


START, PICTURE = make_picture(3, (32, 32)), make_picture(0)
SMALL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


def paint(pipe: Any, prompt: Any = PROMPT, start: Any = START, strength: float = 0.6, **kwargs: Any) -> Any:
    return paint_from_image(pipe, prompt, start, strength, **{**SMALL, "generator": seeded(), **kwargs})


def paint_by_hand(pipe: Any, seed: int = 0, **kwargs: Any) -> Any:
    """The same with diffusers alone, as a script would."""
    guided = kwargs.pop("guided", False)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=guided, **KNOBS)
    other = quiet(ZImageImg2ImgPipeline(**pipe.z_image_components))
    embeds = {"prompt_embeds": ready.prompt_embeds, "negative_prompt_embeds": ready.negative_prompt_embeds or None}
    return other(image=START, strength=0.6, generator=seeded(seed), **{**SMALL, **kwargs}, **embeds).images


def test_it_is_diffusers_image_to_image_bit_for_bit(pipe: Any) -> None:
    output = paint(pipe, reference_image=PICTURE, **KNOBS)
    same(output.images, paint_by_hand(pipe))
    assert output.conditioning[0].influence > 0
    guided = paint(pipe, reference_image=PICTURE, guidance_scale=3.0, **KNOBS).images
    same(guided, paint_by_hand(pipe, guided=True, guidance_scale=3.0))
    assert differ(guided, output.images)
    away = paint(pipe, negative_reference_image=PICTURE, guidance_scale=3.0, **KNOBS)
    assert differ(away.images, guided)
    assert (away.conditioning, len(away.negative_conditioning)) == (None, 1)


def test_reference_start_picture_and_strength_count(pipe: Any) -> None:
    pictures = [
        paint(pipe).images,
        paint(pipe, reference_image=PICTURE, **KNOBS).images,
        paint(pipe, start=make_picture(5, (32, 32))).images,
        paint(pipe, strength=0.3).images,
    ]
    for index, one in enumerate(pictures):
        assert all(differ(one, other) for other in pictures[index + 1 :])
    assert paint(pipe).conditioning is None


def test_the_same_picture_two_ways_is_the_two_explicit_steps(pipe: Any, tmp_path: Path) -> None:
    def like(picture: Any, prompt: Any = PROMPT, **kwargs: Any) -> Any:
        return paint_like(
            pipe,
            prompt,
            picture,
            vl_hidden_layer=-2,
            **{**SMALL, "num_inference_steps": 7, "generator": seeded(), **kwargs},
        )

    ready = pipe.encode_prompt_with_reference(
        PROMPT, START, do_classifier_free_guidance=False, vl_alpha=0.4, vl_hidden_layer=-2
    )
    seven = {**SMALL, "num_inference_steps": 7}
    other = quiet(pipe.to_pipe(ZImageImg2ImgPipeline))
    by_hand = other(prompt_embeds=ready.prompt_embeds, image=START, strength=0.85, generator=seeded(), **seven).images
    START.save(tmp_path / "start.png")
    for picture in (START, [START], tmp_path / "start.png"):
        same(like(picture).images, by_hand)
    explicit = {"reference_image": START, "vl_alpha": 0.7, "vl_hidden_layer": -2}
    same(
        like(START, strength=0.5, vl_alpha=0.7).images,
        paint(pipe, strength=0.5, num_inference_steps=7, **explicit).images,
    )
    two, generators = [START, make_picture(5, (32, 32))], [seeded(0), seeded(1)]
    same(like(two, [PROMPT, OTHER_PROMPT], generator=generators).images[:1], by_hand)
    with pytest.raises(TypeError, match="takes no `reference_image`: `picture` is"):
        like(START, reference_image=PICTURE)
    with pytest.raises(ValueError, match="`picture` has 2 entries for 1 prompts"):
        like(two)


def test_ready_embeddings_are_the_picture_they_are_of(pipe: Any, tmp_path: Path) -> None:
    embeds, expected = pipe.encode_reference(PICTURE, PROMPT, (-2,)), paint(pipe, reference_image=PICTURE, **KNOBS)
    embeds.save(tmp_path / "a.safetensors")
    for given in (embeds, tmp_path / "a.safetensors"):
        same(paint(pipe, reference_embeds=given, **KNOBS).images, expected.images)


def test_a_plain_pipeline_of_an_existing_script_serves(pipe: Any, tmp_path: Path) -> None:
    plain = make_parent(pipe)
    same(paint(plain).images, paint(pipe).images)
    embeds = pipe.encode_reference(PICTURE, PROMPT, (-2,))
    expected = paint(pipe, reference_image=PICTURE, **KNOBS).images
    same(paint(plain, reference_embeds=embeds, **KNOBS).images, expected)
    plain.register_to_config(_vl_model_id=save_vl_parts(tmp_path))
    same(paint(plain, reference_image=PICTURE, **KNOBS).images, expected)
    assert type(plain) is ZImagePipeline
    assert set(plain.components) == set(pipe.z_image_components)


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


def test_under_offload_it_is_the_same_and_nothing_stays(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    table, away = install_table(monkeypatch), tiny_pipeline()
    away.enable_model_cpu_offload(device="cpu")
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
        ({"strength": 1e-300}, ValueError, "is none of them: use at least"),
        ({"strength": np.float32(2)}, ValueError, "at most 1, got 2.0"),
        ({"strength": 0.6, "sigmas": [1.0, 0.5]}, ValueError, "`strength` 0.6 of 2 steps is all of them"),
        ({"vl_start": 0.5}, TypeError, "takes no `vl_start`"),
        ({"latents": torch.zeros(1)}, TypeError, "takes no `latents`"),
        ({"prompt_embeds": []}, TypeError, "takes no `prompt_embeds`"),
        ({"alpha": 0.5}, TypeError, "no argument `alpha` here: use vl_alpha"),
        ({"text_tokens_only": True}, TypeError, "vl_token_selection"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale"),
        ({"output_type": "png"}, ValueError, "output_type"),
        ({"callback_on_step_end": 7}, TypeError, "callback_on_step_end"),
        ({"max_sequence_length": 0}, ValueError, "max_sequence_length"),
        ({"width": 30}, ValueError, "`width`.*divisible by 4"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"start": [START, START]}, ValueError, "2 entries for 1 prompts"),
        ({"start": "no/such.png"}, ValueError, "no/such.png"),
        ({"generator": [seeded(), seeded()]}, ValueError, "1 pictures are asked for"),
        ({"vl_alpha": 2.0}, ValueError, "vl_alpha"),
    ],
)
def test_refused_before_any_model_runs(pipe: Any, kwargs: dict[str, Any], error: Any, match: str) -> None:
    with record_runs(pipe) as runs, pytest.raises((error, FileNotFoundError), match=match):
        paint(pipe, **kwargs)
    assert runs == []


@pytest.mark.parametrize("weight", ["transformer.layers.0.attention.to_q.weight", "vae.decoder.conv_out.bias"])
@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_what_is_painted_is_checked_for_nan(weight: str, output_type: str) -> None:
    pipe = tiny_pipeline()
    model, _, name = weight.partition(".")
    with torch.no_grad():
        getattr(pipe, model).get_parameter(name).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity in the pictures that were painted"):
        paint(pipe, output_type=output_type)


def test_sizes() -> None:
    assert fit_size((1500, 1000), 16) == (1504, 992)
    assert fit_size((4000, 3000), 16, 1024 * 1024) == (1184, 880)
    assert fit_size((20, 10), 16, 64 * 64) == (96, 48)
    with pytest.raises(ValueError, match="sides over 200:1 are not read"):
        load_init_image(Image.new("RGB", (2010, 10)))
    photo = Image.new("RGB", (100, 50))
    assert load_init_image(photo).size == (96, 48)
    assert load_init_image(photo, height=64).size == (128, 64)
    assert load_init_image(photo, 64, 64).size == (64, 64)
    with pytest.raises(ValueError, match="`width` must be a multiple of 16"):
        load_init_image(photo, width=50)


def test_the_overflow_is_cropped_and_nothing_is_stretched() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    assert load_init_image(wide, 32, 32).getcolors() == [(1024, (0, 0, 255))]
    assert np.array_equal(np.asarray(load_init_image(wide)), np.asarray(wide))
