"""`ZImageVLPipeline` beside diffusers' own: the same bits without a reference; references, batches, what is kept."""

from __future__ import annotations

import copy
import operator
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
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
    quiet,
    record_runs,
    same,
    save_vl_parts,
    seeded,
)
from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import PromptConditioning, ZImageVLPipeline, ZImageVLPipelineOutput
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.reference.turn import embeds_regions, read_text_turn


PICTURE, OTHER_PICTURE = make_picture(0), make_picture(1)
PROMPTS, PICTURES = [PROMPT, OTHER_PROMPT], [PICTURE, OTHER_PICTURE]


# ---- The parent's bits ----

PARENT_CALLS: dict[str, dict[str, Any]] = {
    "turbo": {},
    "guided": {"guidance_scale": 4.0, "negative_prompt": "a green cross"},
    "guided without negatives": {"guidance_scale": 4.0, "cfg_normalization": True, "cfg_truncation": 0.5},
    "guidance of 1": {"guidance_scale": 1.0},
    "batch": {"prompt": PROMPTS, "guidance_scale": 2.0, "negative_prompt": ["grey", "a cross"]},
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


def test_a_call_without_a_reference_costs_next_to_nothing_more(pipe: ZImageVLPipeline) -> None:
    # Python's own calls, which no load on the machine changes; benchmarks/bench.py measures time.
    def count(run: Callable[[], Any]) -> int:
        calls = [0]
        run()
        sys.setprofile(lambda _, event, __: operator.setitem(calls, 0, calls[0] + (event == "call")))
        try:
            run()
        finally:
            sys.setprofile(None)
        return calls[0]

    bare = quiet(ZImageVLPipeline(**pipe.z_image_components))  # diffusers walks through every module there is
    parent = make_parent(pipe)
    parents = count(lambda: paint(parent))
    assert count(lambda: paint(bare)) < parents + 500
    assert count(lambda: paint_with(bare, PICTURE, vl_alpha=0.0)) < parents + 1500


# ---- The reference ----


def test_a_reference_steers_and_alpha_1_leaves_nothing_of_equal_words(pipe: ZImageVLPipeline) -> None:
    plain, steered = paint(pipe), paint_with(pipe, PICTURE)
    assert differ(plain, steered)
    assert differ(steered, paint_with(pipe, OTHER_PICTURE))
    same(steered, paint_with(pipe, PICTURE))
    # With one text beside the picture: at alpha 1 the prompt's own states are gone.
    at_one = {"vl_alpha": 1.0, "vl_text": "a cross", "vl_target_std": 1.0}
    same(*(paint_with(pipe, PICTURE, prompt, **at_one) for prompt in ("a red circle", "a blue circle")))


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_a_reference_that_says_what_the_text_says_changes_nothing(pipe: ZImageVLPipeline, mode: str) -> None:
    text = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0][0]
    twin = ReferenceEmbeds(
        {-2: text}, embeds_regions(pipe.tokenizer, len(text), read_text_turn(pipe.tokenizer, PROMPT))
    )
    knobs = {**KNOBS, "vl_blend_mode": mode, "vl_normalization": "none"}
    for alpha in (0.3, 1.0):
        images = paint(pipe, reference_embeds=twin, **{**knobs, "vl_alpha": alpha})
        np.testing.assert_allclose(images, paint(pipe), atol=2e-4)


def test_several_references_their_weights_and_their_order(pipe: ZImageVLPipeline) -> None:
    both = [PICTURES]
    equal, one = paint_with(pipe, both), paint_with(pipe, both, reference_weights=[3, 1])
    assert differ(equal, paint_with(pipe, PICTURE))
    assert differ(equal, one)
    same(equal, paint_with(pipe, both, reference_weights=[2, 2]))
    same(equal, paint_with(pipe, both, reference_weights=[1e308, 1e308]))
    np.testing.assert_allclose(one, paint_with(pipe, [PICTURES[::-1]], reference_weights=[1, 3]), atol=2e-4)
    same(paint_with(pipe, PICTURE), paint_with(pipe, both, reference_weights=[1, 0]))
    by_layers = paint_with(pipe, PICTURE, vl_hidden_layer=[-2, -4])
    for weights in ({-2: 1e308, -4: 1e308}, {-2: 1, -4: 1}):
        same(by_layers, paint_with(pipe, PICTURE, vl_hidden_layer=weights))


def test_ready_embeddings_and_their_files_equal_the_picture(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    expected = paint_with(pipe, PICTURE)
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-3, -2))
    embeds.save(tmp_path / "reference.safetensors")
    file = tmp_path / "reference.safetensors"
    with record_runs(pipe) as runs:
        for given in (embeds, file, str(file), [file], [[str(file)]], pipe.load_reference(file)):
            same(paint(pipe, reference_embeds=given, **KNOBS), expected)
    assert "vl_encoder" not in runs
    with pytest.raises(ValueError, match="32 wide, the text embeddings 16"):
        tiny_pipeline(text_width=16).load_reference(file)


def test_what_is_encoded_belongs_to_the_caller(pipe: ZImageVLPipeline) -> None:
    expected = paint_with(pipe, PICTURE)
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    embeds.hidden_states[-2].zero_()
    same(paint_with(pipe, PICTURE), expected)


def test_two_stages_equal_the_one_call(pipe: ZImageVLPipeline) -> None:
    expected = call(pipe, reference_image=PICTURE, guidance_scale=3.0, **KNOBS)
    text, negative = pipe.encode_prompt(PROMPT)
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
    given = {"prompt_embeds": text, "negative_prompt_embeds": negative, "guidance_scale": 3.0, **KNOBS}
    with record_runs(pipe) as runs:
        same(paint(pipe, None, reference_embeds=embeds, **given), expected.images)
    assert not {"text_encoder", "vl_encoder"} & set(runs)
    same(paint(pipe, None, reference_image=PICTURE, vl_text=PROMPT, **given), expected.images)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS)
    both = {"prompt_embeds": ready.prompt_embeds, "negative_prompt_embeds": ready.negative_prompt_embeds}
    for other in (pipe, make_parent(pipe)):
        same(paint(other, None, guidance_scale=3.0, **both), expected.images)
    called = {**expected.conditioning[0].to_dict(), "active_steps": None}  # who takes the embeddings decides them
    assert [r.to_dict() for r in ready.reports] == [called]
    assert pipe.encode_prompt_with_reference(PROMPT, do_classifier_free_guidance=False).reports == []


def test_prompt_embeds_know_the_places_of_their_template(pipe: ZImageVLPipeline) -> None:
    text = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0]
    given = {"prompt_embeds": text, "reference_image": PICTURE, "vl_text": PROMPT, "vl_hidden_layer": -2}
    for alpha in ({"prompt": 0.6}, {"suffix": 0.4, "default": 0.1}, [0.5] * len(text[0])):
        same(paint(pipe, None, **given, vl_alpha=alpha), paint_with(pipe, PICTURE, vl_alpha=alpha))


# ---- The small reader, treatments, descriptions, negative references ----


def test_the_small_reader_is_the_vision_tower_and_the_text_encoder(pipe: ZImageVLPipeline, vl_folder: str) -> None:
    small: dict[str, Any] = {"vl_reader": "text_encoder"}
    with record_runs(pipe) as runs:
        expected = paint_with(pipe, PICTURE, **small)
    assert runs.count("text_encoder") == 2
    assert "vl_encoder" not in runs
    assert differ(expected, paint_with(pipe, PICTURE))
    assert differ(expected, paint_with(pipe, OTHER_PICTURE, **small))
    embeds = pipe.encode_reference(PICTURE, PROMPT, layers=(-2,), **small)
    same(paint(pipe, reference_embeds=embeds, **small, **KNOBS), expected)
    with pytest.raises(ValueError, match="text_encoder"):
        paint(pipe, reference_embeds=embeds, **KNOBS)
    tower = {"vl_vision": pipe.vl_encoder.model.visual, "vl_processor": pipe.vl_processor}
    same(paint_with(tiny_pipeline(with_vl=False, **tower), PICTURE, **small), expected)
    lazy = tiny_pipeline(with_vl=False, vl_model_id=vl_folder)
    same(paint_with(lazy, PICTURE, **small), expected)
    assert lazy.vl_encoder is None
    assert lazy.vl_vision is not None
    lazy.unload_vl_encoder()
    assert lazy.vl_vision is None


def test_a_treated_picture_is_the_picture_that_was_treated(pipe: ZImageVLPipeline) -> None:
    def grey(picture: Any) -> Any:
        return picture.convert("L").convert("RGB")

    same(paint_with(pipe, PICTURE, vl_treatment=grey), paint_with(pipe, grey(PICTURE)))
    same(paint_with(pipe, PICTURE, vl_treatment="greyscale"), paint_with(pipe, grey(PICTURE)))
    with pytest.raises(ValueError, match="vl_treatment"):
        paint_with(pipe, PICTURE, vl_treatment="sepia")


def test_a_description_takes_the_place_of_the_text(pipe: ZImageVLPipeline) -> None:
    described = pipe.encode_reference(PICTURE, layers=(-2,), describe=True)
    assert described.provenance.text
    expected = paint_with(pipe, PICTURE, vl_describe=True)
    same(paint(pipe, reference_embeds=described, **KNOBS), expected)
    same(paint_with(pipe, PICTURE, vl_text=described.provenance.text), expected)
    with pytest.raises(ValueError, match="vl_text"):
        paint_with(pipe, PICTURE, vl_describe=True, vl_text="a circle")


def test_a_negative_reference_is_blended_into_the_negative_prompt(pipe: ZImageVLPipeline) -> None:
    guided = {"guidance_scale": 3.0, **KNOBS}
    output = call(pipe, negative_reference_image=OTHER_PICTURE, **guided)
    assert differ(output.images, paint(pipe, guidance_scale=3.0))
    assert differ(output.images, paint(pipe, negative_reference_image=PICTURE, **guided))
    ready = pipe.encode_prompt_with_reference(PROMPT, negative_reference_image=OTHER_PICTURE, **KNOBS)
    given = {"prompt_embeds": ready.prompt_embeds, "negative_prompt_embeds": ready.negative_prompt_embeds}
    same(paint(make_parent(pipe), None, guidance_scale=3.0, **given), output.images)
    assert (len(ready.reports), len(ready.negative_reports)) == (0, 1)
    embeds = pipe.encode_reference(OTHER_PICTURE, "", layers=(-2,))
    same(paint(pipe, negative_reference_embeds=embeds, **guided), output.images)
    inert = paint(pipe, negative_reference_image=OTHER_PICTURE, **{**guided, "vl_alpha": 0.0})
    same(inert, paint(make_parent(pipe), guidance_scale=3.0))
    with pytest.raises(ValueError, match="negative prompt"):
        paint_with(pipe, PICTURE, negative_reference_image=OTHER_PICTURE)


# ---- Batches ----


def singles(pipe: ZImageVLPipeline, pictures: list[Any], **kwargs: Any) -> np.ndarray[Any, Any]:
    each = [
        paint_with(pipe, picture, prompt, seed=seed, **kwargs) if picture else paint(pipe, prompt, seed=seed)
        for seed, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True))
    ]
    return np.concatenate(each)


def test_a_batch_equals_its_singles(pipe: ZImageVLPipeline) -> None:
    def batch(given: Any, **kwargs: Any) -> Any:
        knobs = {**KNOBS, **kwargs}
        return call(pipe, PROMPTS, reference_image=given, generator=[seeded(0), seeded(1)], **knobs)

    output = batch(PICTURES)
    assert len(output.conditioning) == 2
    np.testing.assert_allclose(output.images, singles(pipe, PICTURES), atol=2e-4)
    for shared in (PICTURE, [PICTURE]):
        np.testing.assert_allclose(batch(shared).images, singles(pipe, [PICTURE] * 2), atol=2e-4)
    pixels = np.stack([np.asarray(picture) for picture in PICTURES])  # (prompts, height, width, 3)
    for pictures in (pixels, torch.from_numpy(pixels).movedim(-1, 1)):
        same(batch(pictures).images, output.images)
    # A prompt without a picture is the text's alone.
    without = batch([None, PICTURE])
    np.testing.assert_allclose(without.images, singles(pipe, [None, PICTURE]), atol=2e-4)
    assert [len(report.references) for report in without.conditioning] == [0, 1]
    # One alpha per prompt, as a number or in any other form.
    for alpha in ([0.0, 0.6], [{"default": 0}, {"default": 0.6}]):
        images = batch([PICTURE, PICTURE], vl_alpha=alpha).images
        np.testing.assert_allclose(images, singles(pipe, [None, PICTURE]), atol=2e-4)


def test_several_images_per_prompt_and_generator_lists(pipe: ZImageVLPipeline) -> None:
    generators = [seeded(n) for n in range(4)]
    images = paint_with(pipe, PICTURES, PROMPTS, num_images_per_prompt=2, generator=generators)
    assert len(images) == 4
    for n, (prompt, picture) in enumerate([(PROMPT, PICTURE)] * 2 + [(OTHER_PROMPT, OTHER_PICTURE)] * 2):
        np.testing.assert_allclose(images[n : n + 1], paint_with(pipe, picture, prompt, seed=n), atol=2e-4)


# ---- What goes in and comes out ----


def test_latents_output_types_and_dict_or_tuple(pipe: ZImageVLPipeline) -> None:
    array, latents = paint_with(pipe, PICTURE), torch.randn(1, 4, 16, 16, generator=seeded(0))
    before = latents.clone()
    same(paint_with(pipe, PICTURE, latents=latents), array)
    assert torch.equal(latents, before)
    assert paint_with(pipe, PICTURE, output_type="latent").shape == latents.shape
    same(paint_with(pipe, PICTURE, output_type="pt").permute(0, 2, 3, 1).numpy(), array)
    with_dict = call(pipe, reference_image=PICTURE, output_type="pil", **KNOBS)
    (images,) = call(pipe, reference_image=PICTURE, output_type="pil", return_dict=False, **KNOBS)
    assert images[0].tobytes() == with_dict.images[0].tobytes()
    assert with_dict[0] is with_dict["images"] is with_dict.images
    assert ZImageVLPipelineOutput(["picture"]).to_tuple() == (["picture"],)
    assert list(PromptConditioning([], [], []))[:3] == ["prompt_embeds", "negative_prompt_embeds", "reports"]
    # As the parent makes a PIL image of an array.
    assert (np.asarray(images[0]) == (array[0] * 255).round()).all()
    parents = paint(make_parent(pipe), output_type="pil")[0]
    assert paint(pipe, output_type="pil")[0].tobytes() == parents.tobytes()


def test_the_callers_lists_stay_as_they_were(pipe: ZImageVLPipeline) -> None:
    arguments: dict[str, Any] = {
        "prompt": list(PROMPTS),
        "negative_prompt": ["white", "grey"],
        "reference_image": [list(PICTURES)] * 2,
        "reference_weights": [1, 2],
        "vl_hidden_layer": {-2: 1.0, -3: 2.0},
        "vl_alpha": [{"default": 0.5}, {"red": 0.5}],
    }
    before = copy.deepcopy(arguments)
    with pytest.raises(ValueError, match="red"):
        paint(pipe, guidance_scale=3.0, **arguments)
    arguments["vl_alpha"][1] = before["vl_alpha"][1] = {"blue": 0.5}
    paint(pipe, guidance_scale=3.0, **arguments)
    pipe.encode_prompt(arguments["prompt"], None, True, arguments["negative_prompt"])
    pipe.encode_prompt_with_reference(**arguments)
    assert arguments == before
    text, negative = pipe.encode_prompt(PROMPT)
    kept = [text[0].clone(), negative[0].clone()]
    paint(pipe, None, prompt_embeds=text, negative_prompt_embeds=negative, guidance_scale=3.0)
    assert torch.equal(text[0], kept[0])
    assert torch.equal(negative[0], kept[1])


def test_the_recipes_are_part_of_the_class(pipe: ZImageVLPipeline) -> None:
    for name, recipe in ZImageVLPipeline.recipes.items():
        knobs = {**recipe, "vl_hidden_layer": -2}
        neutral = {"neutral_image": OTHER_PICTURE} if recipe.get("vl_blend_mode") == "style_delta" else {}
        assert differ(paint(pipe, reference_image=PICTURE, **neutral, **knobs), paint(pipe)), name


# ---- The last readings ----

READ_ANEW: dict[str, dict[str, Any]] = {
    "another picture": {"reference_image": OTHER_PICTURE},
    "another prompt": {"prompt": OTHER_PROMPT},
    "another layer": {"vl_hidden_layer": -3},
    "another place of the text": {"vl_text_position": "before"},
    "fewer pixels": {"vl_max_pixels": 256},
    "a mask": {"reference_mask": make_picture(3).convert("L")},
}


def test_what_is_read_again_and_what_is_not() -> None:
    pipe, fresh = tiny_pipeline(), tiny_pipeline()
    paint_with(pipe, PICTURE)
    with record_runs(pipe) as runs:
        same(paint_with(pipe, PICTURE.copy(), vl_alpha=0.2), paint_with(fresh, PICTURE, vl_alpha=0.2))
        same(paint_with(pipe, PICTURE, vl_blend_mode="slerp"), paint_with(fresh, PICTURE, vl_blend_mode="slerp"))
        pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))
        assert "vl_encoder" not in runs
        for number, changes in enumerate(READ_ANEW.values(), 1):
            paint(pipe, **{"reference_image": PICTURE, **KNOBS, **changes})
            assert runs.count("vl_encoder") == number
        pipe.clear_reference_cache()
        paint_with(pipe, PICTURE)
        pipe.vl_encoder.to(torch.bfloat16)
        paint_with(pipe, PICTURE)
        assert runs.count("vl_encoder") == number + 2
    pipe.register_modules(vl_encoder=tiny_vl_encoder(seed=7, tokenizer=pipe.tokenizer))
    with record_runs(pipe) as runs:
        paint_with(pipe, PICTURE)
    assert "vl_encoder" in runs


def test_only_the_last_readings_are_kept_and_they_go_with_the_encoder() -> None:
    pipe = tiny_pipeline()
    for seed in range(10):
        pipe.encode_reference(make_picture(seed), layers=(-2,))
    with record_runs(pipe) as runs:
        for seed in range(9, 1, -1):
            pipe.encode_reference(make_picture(seed), layers=(-2,))
        assert runs == []
        pipe.encode_reference(make_picture(0), layers=(-2,))
        assert runs == ["vl_encoder"]
    encoder = weakref.ref(pipe.vl_encoder)
    pipe.unload_vl_encoder()
    assert encoder() is None
    assert not pipe._readings


# ---- Loading the VL encoder ----


def test_the_first_call_that_needs_it_loads_the_encoder(vl_folder: str, pipe: ZImageVLPipeline) -> None:
    lazy = tiny_pipeline(with_vl=False, vl_model_id=vl_folder)
    paint(lazy)
    paint_with(lazy, PICTURE, vl_alpha=0.0)
    assert lazy.vl_encoder is None
    same(paint_with(lazy, PICTURE), paint_with(pipe, PICTURE))
    encoder = lazy.vl_encoder
    assert encoder.dtype == lazy.text_encoder.dtype
    paint_with(lazy, OTHER_PICTURE)
    assert lazy.vl_encoder is encoder
    assert lazy.encode_reference(PICTURE, layers=(-2,)).provenance.model_id == vl_folder
    weight = weakref.ref(encoder.model.language_model.embed_tokens.weight)
    encoder = weakref.ref(encoder)
    lazy.unload_vl_encoder()
    assert lazy.vl_encoder is lazy.vl_processor is encoder() is weight() is None


def test_loading_by_hand(vl_folder: str) -> None:
    pipe = tiny_pipeline(with_vl=False)
    with pytest.raises(ValueError, match="`vl_model_id` is None, so none is loaded"):
        pipe.load_vl_encoder()
    pipe.load_vl_encoder(vl_folder, dtype=torch.bfloat16)
    assert pipe.vl_encoder.dtype == torch.bfloat16
    assert pipe.config.vl_model_id == vl_folder
    pipe.load_vl_encoder()  # what the pipeline names, though an encoder is there
    assert pipe.vl_encoder.dtype == torch.float32
    # The revision is that of the last time, also in a pipeline made of this one, until another is asked for.
    pipe.load_vl_encoder(vl_folder, "v1")
    for owner in (pipe, ZImageVLPipeline.from_pipe(pipe)):
        owner.unload_vl_encoder()
        assert owner.encode_reference(PICTURE, layers=(-2,)).provenance.revision == "v1"
    pipe.load_vl_encoder(vl_folder)
    assert pipe.find_reader().revision is None
    with pytest.raises(OSError, match=r"nowhere.*folder"):
        paint_with(tiny_pipeline(with_vl=False, vl_model_id=f"{vl_folder}/nowhere"), PICTURE)


def test_an_encoder_that_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    lazy = tiny_pipeline(with_vl=False, vl_model_id=save_vl_parts(tmp_path, width=16))
    for use in (lambda: paint_with(lazy, PICTURE), lazy.load_vl_encoder):
        with pytest.raises(ValueError, match=r"16.*32|32.*16"):
            use()
    assert lazy.vl_encoder is None
    with pytest.raises(ValueError, match=r"16.*32|32.*16"):
        tiny_pipeline(vl_encoder=tiny_vl_encoder(16))
    for other in (tiny_text_encoder(), tiny_vl_encoder().model):
        with pytest.raises(TypeError, match="Qwen3VLForConditionalGeneration"):
            tiny_pipeline(vl_encoder=other)


# ---- Threads and callbacks ----


def in_threads(*jobs: Callable[[], Any], times: int) -> list[list[Any]]:
    """What each job gives, all run at once."""
    start, results = threading.Barrier(len(jobs)), [[] for _ in jobs]
    threads_here = torch.get_num_threads()

    def work(job: Callable[[], Any], gives: list[Any]) -> None:
        torch.set_num_threads(threads_here)  # bits depend on their number
        start.wait(30)
        gives.extend(job() for _ in range(times))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(jobs, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


@pytest.mark.parametrize("shared", ["one pipeline", "one pipeline's modules"])
def test_two_threads_give_the_right_pictures(pipe: ZImageVLPipeline, shared: str) -> None:
    other = pipe if shared == "one pipeline" else ZImageVLPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    jobs = [
        lambda: paint_with(pipe, PICTURE, num_inference_steps=2, guidance_scale=3.0),
        lambda: paint_with(other, OTHER_PICTURE, OTHER_PROMPT, num_inference_steps=3),
    ]
    expected = [job() for job in jobs]
    for results, right in zip(in_threads(*jobs, times=24), expected, strict=True):
        assert len(results) == 24
        for images in results:
            same(images, right)


def test_each_pipeline_has_its_own_scheduler(pipe: ZImageVLPipeline) -> None:
    others = [ZImageVLPipeline(**pipe.components), ZImageVLPipeline.from_pipe(pipe), pipe.to_pipe(ZImageVLPipeline)]
    schedulers = [one.scheduler for one in (pipe, *others)]
    assert len({id(one) for one in schedulers}) == 4
    assert all(dict(one.config) == dict(pipe.scheduler.config) for one in schedulers)


def test_a_call_from_its_own_callback_is_refused_and_the_next_one_works(pipe: ZImageVLPipeline) -> None:
    expected = paint_with(pipe, PICTURE)
    uses: list[Callable[[], Any]] = [
        lambda: paint(pipe),
        lambda: pipe.encode_reference(OTHER_PICTURE, layers=(-2,)),
        lambda: pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"cannot be called from its own callback.*\*\*pipe.components"):
            paint_with(pipe, PICTURE, callback_on_step_end=lambda *_, use=use: use())
        same(paint_with(pipe, PICTURE), expected)
    other = ZImageVLPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)

    def look(*_: Any) -> dict[str, Any]:
        seen.append(paint(other))
        return {}

    seen: list[Any] = []
    same(paint_with(pipe, PICTURE, callback_on_step_end=look), expected)
    same(seen[0], paint(pipe))


def test_no_weights_no_hooks_and_no_settings_change_in_a_call() -> None:
    pipe = tiny_pipeline()
    paint(make_parent(pipe))  # transformers 5 puts hooks of its own on a text encoder's layers when it first runs
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}

    def snapshot() -> dict[str, Any]:
        return {
            "config": dict(pipe.config),
            "parts": {name: id(part) for name, part in pipe.components.items()},
            "modules": {
                name: [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in part.modules()]
                for name, part in models.items()
            },
            "template": pipe.tokenizer.chat_template,
            "sums": {
                n: sum(float(p.detach().double().sum()) for p in part.parameters()) for n, part in models.items()
            },
        }

    before = snapshot()
    paint_with(pipe, PICTURE, vl_start=0.5, vl_normalization="per_dim")
    assert snapshot() == before

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint_with(pipe, PICTURE, callback_on_step_end=fail)
    places = [models["text_encoder"], models["transformer"], pipe.vl_encoder.model.language_model.layers[1]]
    for place in places:
        handle = place.register_forward_hook(fail)
        pipe.clear_reference_cache()  # or the picture is not read again
        with pytest.raises(KeyboardInterrupt):
            paint_with(pipe, PICTURE)
        handle.remove()
    assert snapshot() == before


def test_a_pipeline_that_lacks_a_part_says_which() -> None:
    for name in ("scheduler", "transformer", "vae", "tokenizer", "text_encoder"):
        pipe = tiny_pipeline()
        pipe.register_modules(**{name: None})
        with pytest.raises(ValueError, match=f"The pipeline has no {name}: "):
            paint(pipe)
