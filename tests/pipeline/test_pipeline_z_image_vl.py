"""`ZImageVLPipeline` beside diffusers' own: the same bits without a reference; references, batches, outputs."""

from __future__ import annotations

import copy
import inspect
import threading
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from pipeline_samples import (
    KNOBS,
    OTHER_PROMPT,
    PROMPT,
    SMALL,
    call,
    make_parent,
    make_picture,
    paint,
    paint_with,
    record_runs,
    seeded,
)
from tiny_models import tiny_pipeline
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.pipeline.inputs import KNOB_NAMES
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE, OTHER_PICTURE = make_picture(0), make_picture(1)
same = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline()


def differ(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(a - b).max() > 1e-4)


# ---- The parent's bits ----

PARENT_CALLS: dict[str, dict[str, Any]] = {
    "turbo": {},
    "guided": {"guidance_scale": 4.0, "negative_prompt": "a green cross"},
    "guided without negatives": {"guidance_scale": 4.0, "cfg_normalization": True, "cfg_truncation": 0.5},
    "batch": {"prompt": [PROMPT, OTHER_PROMPT], "guidance_scale": 2.0, "negative_prompt": ["grey", "a cross"]},
    "two images": {"num_images_per_prompt": 2},
    "sigmas": {"sigmas": [1.0, 0.6, 0.2]},
    "short": {"prompt": "a red circle " * 9, "max_sequence_length": 16},
    "oblong": {"height": 24, "width": 40},
    "latent": {"output_type": "latent"},
}


@pytest.mark.parametrize("name", PARENT_CALLS)
def test_without_a_reference_and_at_alpha_0_it_is_the_parent_bit_for_bit(pipe: ZImageVLPipeline, name: str) -> None:
    kwargs = {"prompt": PROMPT, **PARENT_CALLS[name]}
    expected = paint(make_parent(pipe), **copy.deepcopy(kwargs))  # the parent writes into lists of prompts
    with record_runs(pipe) as runs:
        plain = call(pipe, **kwargs)
        inert = call(pipe, reference_image=PICTURE, vl_alpha=0.0, vl_hidden_layer=-2, **kwargs)
        places = paint(pipe, reference_image=PICTURE, vl_alpha={"prompt": 0, "default": 0.0}, **kwargs)
    assert "vl_encoder" not in runs
    for images in (plain.images, inert.images, places):
        same(np.asarray(images), np.asarray(expected))
    assert plain.conditioning is None
    assert all(report.influence == 0.0 for report in inert.conditioning)


def test_without_a_reference_a_missing_vl_encoder_is_never_sought() -> None:
    # A folder that does not exist: to load from it would raise.
    pipe = tiny_pipeline(with_vl=False, vl_model_id="/nonexistent/vl")
    expected = paint(make_parent(pipe))
    same(paint(pipe), expected)
    same(paint(pipe, reference_image=PICTURE, vl_alpha=0.0), expected)
    assert pipe.vl_encoder is None


def test_an_encoder_that_cannot_be_touched_is_not_touched() -> None:
    pipe = tiny_pipeline()
    expected = paint(make_parent(pipe))

    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            if name == "_reset_stateful_cache":  # diffusers asks every component for it after each call
                raise AttributeError(name)
            raise AssertionError(f"the VL encoder was asked for {name}")

    pipe.__dict__["vl_encoder"] = Untouchable()  # past diffusers' own look at what a component is
    same(paint(pipe), expected)
    same(paint(pipe, reference_image=PICTURE, vl_alpha=0.0), expected)
    with pytest.raises(AssertionError, match="was asked for"):
        paint_with(pipe, PICTURE)


# ---- The reference ----


def test_a_reference_steers_and_alpha_1_leaves_nothing_of_equal_words(pipe: ZImageVLPipeline) -> None:
    plain, steered = paint(pipe), paint_with(pipe, PICTURE)
    assert differ(plain, steered)
    assert differ(steered, paint_with(pipe, OTHER_PICTURE))
    same(steered, paint_with(pipe, PICTURE))
    # Pooled over the whole turn, with one text beside the picture: at alpha 1 the prompt's own states are gone.
    at_one = {"vl_alpha": 1.0, "vl_text": "a cross", "vl_alignment": "interpolate", "vl_target_std": 1.0}
    prompts = ("a red circle", "a blue circle")
    assert len({len(pipe.tokenize_prompt(prompt)) for prompt in prompts}) == 1
    same(*(paint_with(pipe, PICTURE, prompt, **at_one) for prompt in prompts))


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_a_reference_that_says_what_the_text_says_changes_nothing(pipe: ZImageVLPipeline, mode: str) -> None:
    from zimage_vl.reference.embeds import ReferenceEmbeds
    from zimage_vl.reference.turn import embeds_regions

    text = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0][0]
    regions = embeds_regions(pipe.tokenizer, len(text), pipe.tokenize_prompt(PROMPT))
    twin = ReferenceEmbeds({-2: text}, regions)
    knobs = {**KNOBS, "vl_blend_mode": mode, "vl_normalization": "none"}
    for alpha in (0.3, 1.0):
        images = paint(pipe, reference_embeds=twin, **{**knobs, "vl_alpha": alpha})
        np.testing.assert_allclose(images, paint(pipe), atol=2e-4)


def test_swapping_references_with_their_weights_changes_nothing(pipe: ZImageVLPipeline) -> None:
    one = paint_with(pipe, [[PICTURE, OTHER_PICTURE]], reference_weights=[3, 1])
    np.testing.assert_allclose(one, paint_with(pipe, [[OTHER_PICTURE, PICTURE]], reference_weights=[1, 3]), atol=2e-4)
    assert differ(one, paint_with(pipe, [[PICTURE, OTHER_PICTURE]], reference_weights=[1, 3]))
    same(paint_with(pipe, PICTURE), paint_with(pipe, [[PICTURE, OTHER_PICTURE]], reference_weights=[1, 0]))


def test_ready_embeddings_equal_the_picture(pipe: ZImageVLPipeline, tmp_path: Any) -> None:
    from zimage_vl.reference.embeds import ReferenceEmbeds

    expected = paint_with(pipe, PICTURE)
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-3, -2))
    embeds.save(tmp_path / "reference.safetensors")
    loaded = ReferenceEmbeds.load(tmp_path / "reference.safetensors")
    with record_runs(pipe) as runs:
        same(paint(pipe, reference_embeds=embeds, **KNOBS), expected)
        same(paint(pipe, reference_embeds=loaded, **KNOBS), expected)
    assert "vl_encoder" not in runs


def test_prompt_embeds_with_reference_embeds_equal_the_prompt(pipe: ZImageVLPipeline) -> None:
    expected = paint_with(pipe, PICTURE, guidance_scale=3.0)
    text, negative = pipe.encode_prompt(PROMPT)
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    ready = {"prompt_embeds": text, "negative_prompt_embeds": negative, "guidance_scale": 3.0, **KNOBS}
    with record_runs(pipe) as runs:
        same(paint(pipe, None, reference_embeds=embeds, **ready), expected)
    assert not {"text_encoder", "vl_encoder"} & set(runs)
    same(paint(pipe, None, reference_image=PICTURE, vl_text=PROMPT, **ready), expected)


def test_encode_prompt_with_reference_serves_the_plain_pipeline(pipe: ZImageVLPipeline) -> None:
    expected = call(pipe, reference_image=PICTURE, guidance_scale=3.0, **KNOBS)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS)
    images = paint(
        make_parent(pipe),
        None,
        prompt_embeds=ready.prompt_embeds,
        negative_prompt_embeds=ready.negative_prompt_embeds,
        guidance_scale=3.0,
    )
    same(images, expected.images)
    assert [r.to_dict() for r in ready.reports] == [r.to_dict() for r in expected.conditioning]
    assert pipe.encode_prompt_with_reference(PROMPT, do_classifier_free_guidance=False).reports == []


# ---- Batches ----


def singles(pipe: ZImageVLPipeline, pictures: list[Any], **kwargs: Any) -> np.ndarray[Any, Any]:
    prompts = [PROMPT, OTHER_PROMPT]
    each = [
        paint_with(pipe, picture, prompt, seed=seed, **kwargs)
        for seed, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
    ]
    return np.concatenate(each)


def test_a_batch_equals_its_singles(pipe: ZImageVLPipeline) -> None:
    prompts, generators = [PROMPT, OTHER_PROMPT], [seeded(0), seeded(1)]
    batch = call(pipe, prompts, reference_image=[PICTURE, OTHER_PICTURE], generator=generators, **KNOBS)
    np.testing.assert_allclose(batch.images, singles(pipe, [PICTURE, OTHER_PICTURE]), atol=2e-4)
    assert len(batch.conditioning) == 2
    for shared in (PICTURE, [PICTURE]):
        images = paint_with(pipe, shared, prompts, generator=[seeded(0), seeded(1)])
        np.testing.assert_allclose(images, singles(pipe, [PICTURE, PICTURE]), atol=2e-4)
    # One alpha a prompt: the second prompt keeps the parent's picture.
    images = paint_with(
        pipe, PICTURE, prompts, vl_alpha=[{"default": 0.6}, {"default": 0}], generator=[seeded(0), seeded(1)]
    )
    np.testing.assert_allclose(images[1:], paint(pipe, OTHER_PROMPT, seed=1), atol=2e-4)
    np.testing.assert_allclose(images[:1], singles(pipe, [PICTURE, PICTURE])[:1], atol=2e-4)


def test_several_images_a_prompt_and_generator_lists(pipe: ZImageVLPipeline) -> None:
    generators = [seeded(n) for n in range(4)]
    images = paint_with(
        pipe, [PICTURE, OTHER_PICTURE], [PROMPT, OTHER_PROMPT], num_images_per_prompt=2, generator=generators
    )
    assert len(images) == 4
    for n, (prompt, picture) in enumerate([(PROMPT, PICTURE)] * 2 + [(OTHER_PROMPT, OTHER_PICTURE)] * 2):
        np.testing.assert_allclose(images[n : n + 1], paint_with(pipe, picture, prompt, seed=n), atol=2e-4)


def test_the_negative_prompt_counts_beside_a_reference(pipe: ZImageVLPipeline) -> None:
    guided = {"guidance_scale": 4.0}
    one = paint_with(pipe, PICTURE, negative_prompt="a green cross", **guided)
    assert differ(one, paint_with(pipe, PICTURE, negative_prompt="white", **guided))
    same(paint_with(pipe, PICTURE, **guided), paint_with(pipe, PICTURE, negative_prompt="", **guided))


# ---- What goes in and comes out ----


def test_latents_in_and_out(pipe: ZImageVLPipeline) -> None:
    latents = torch.randn(1, 4, 16, 16, generator=seeded(0))
    before = latents.clone()
    same(paint_with(pipe, PICTURE, latents=latents), paint_with(pipe, PICTURE))
    assert torch.equal(latents, before)
    out = paint_with(pipe, PICTURE, output_type="latent")
    assert isinstance(out, torch.Tensor)
    assert out.shape == latents.shape


def test_output_types_and_dict_equals_tuple(pipe: ZImageVLPipeline) -> None:
    array = paint_with(pipe, PICTURE)
    with_dict = call(pipe, reference_image=PICTURE, output_type="pil", **KNOBS)
    as_tuple = call(pipe, reference_image=PICTURE, output_type="pil", return_dict=False, **KNOBS)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1
    assert as_tuple[0][0].tobytes() == with_dict.images[0].tobytes()
    assert with_dict[0] is with_dict.images
    np.testing.assert_allclose(np.asarray(with_dict.images[0]) / 255, array[0], atol=0.6 / 255)
    tensor = paint_with(pipe, PICTURE, output_type="pt")
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)


def test_the_callers_lists_stay_as_they_were(pipe: ZImageVLPipeline) -> None:
    prompts, negatives = [PROMPT, OTHER_PROMPT], ["white", "grey"]
    references, weights, layers = [[PICTURE, OTHER_PICTURE]] * 2, [1, 2], {-2: 1.0, -3: 2.0}
    given = {"negative_prompt": negatives, "guidance_scale": 3.0, "reference_weights": weights}
    paint(pipe, prompts, reference_image=references, vl_hidden_layer=layers, **given)
    pipe.encode_prompt(prompts, None, True, negatives)
    pipe.encode_prompt_with_reference(prompts, references, negative_prompt=negatives, vl_hidden_layer=layers)
    assert prompts == [PROMPT, OTHER_PROMPT]
    assert negatives == ["white", "grey"]
    assert references == [[PICTURE, OTHER_PICTURE]] * 2
    assert weights == [1, 2]
    assert layers == {-2: 1.0, -3: 2.0}
    embeds, negative = pipe.encode_prompt(PROMPT)
    kept = [embeds[0].clone(), negative[0].clone()]
    paint(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, guidance_scale=3.0)
    assert torch.equal(embeds[0], kept[0])
    assert torch.equal(negative[0], kept[1])


# ---- The signature ----


def test_the_parents_parameters_come_first_in_its_order_and_ours_are_knobs() -> None:
    ours = list(inspect.signature(ZImageVLPipeline.__call__).parameters.values())
    parents = list(inspect.signature(ZImagePipeline.__call__).parameters.values())
    first, added = ours[: len(parents)], ours[len(parents) :]
    assert [(p.name, p.default, p.kind) for p in first] == [(p.name, p.default, p.kind) for p in parents]
    assert {p.kind for p in added} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {spec.name: spec.default for spec in fields(VLConditioning)}
    knobs = {p.name: p.default for p in added if p.name in KNOB_NAMES}
    assert knobs == {name: defaults[name] for name in KNOB_NAMES}
    assert all(p.default is None for p in added if p.name not in KNOB_NAMES)


# ---- Threads ----


def test_two_threads_on_one_pipeline_give_the_right_pictures(pipe: ZImageVLPipeline) -> None:
    orders = [(PROMPT, PICTURE, 2), (OTHER_PROMPT, OTHER_PICTURE, 3)]
    expected = [paint_with(pipe, picture, prompt, num_inference_steps=n) for prompt, picture, n in orders]
    start, results = threading.Barrier(2), [[], []]
    threads_here = torch.get_num_threads()

    def work(index: int) -> None:
        torch.set_num_threads(threads_here)  # bits depend on their number
        prompt, picture, steps = orders[index]
        start.wait(30)
        for _ in range(3):
            results[index].append(paint_with(pipe, picture, prompt, num_inference_steps=steps))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for index in (0, 1):
        assert len(results[index]) == 3
        for images in results[index]:
            same(images, expected[index])


# ---- Sizes of a reference ----


@pytest.mark.parametrize(("size", "limit"), [((1, 1), 4096), ((1990, 10), 16384), ((4000, 3000), 16384)])
def test_small_long_and_large_references(pipe: ZImageVLPipeline, size: tuple[int, int], limit: int) -> None:
    embeds = pipe.encode_reference(make_picture(2, size), PROMPT, layers=(-2,), max_pixels=limit)
    rows, columns = embeds.provenance.image_grid
    assert embeds.num_image_tokens == rows * columns >= 1
    assert rows * columns * 256 <= limit or min(rows, columns) == 1
    assert np.isfinite(paint_with(pipe, make_picture(2, size), vl_max_pixels=limit)).all()


def test_the_default_call_wants_a_layer_that_there_is(pipe: ZImageVLPipeline) -> None:
    # -6 of the tiny encoder's 6 layers is block 1's input: every default, as SMALL only makes the picture small.
    assert differ(
        np.asarray(pipe(PROMPT, **SMALL, generator=seeded(), output_type="np").images), paint_with(pipe, PICTURE)
    )
