"""What diffusers tests of every pipeline (its PipelineTesterMixin), and what it has to save memory or time."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_dispatch import attention_backend

from pipeline_samples import (
    KNOBS,
    PROMPT,
    call,
    differ,
    in_dtype,
    make_parent,
    make_picture,
    paint,
    paint_with,
    quiet,
    same,
    save_vl_parts,
)
from tiny_models import tiny_components, tiny_pipeline, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE, OTHER = make_picture(0), make_picture(1)


def load(folder: Path, **kwargs: Any) -> ZImageVLPipeline:
    return quiet(ZImageVLPipeline.from_pretrained(folder, **kwargs))


# ---- Signatures ----


def parameters_of(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.default, p.kind) for p in inspect.signature(method).parameters.values()]


def test_signatures_are_the_parents_and_those_that_diffusers_reads() -> None:
    assert parameters_of(ZImageVLPipeline.encode_prompt) == parameters_of(ZImagePipeline.encode_prompt)
    ours, parents = parameters_of(ZImageVLPipeline.__call__), parameters_of(ZImagePipeline.__call__)
    assert ours[: len(parents)] == parents
    assert {kind for _, _, kind in ours[len(parents) : -1]} == {inspect.Parameter.KEYWORD_ONLY}
    # What PipelineTesterMixin asks of every call.
    names = {name for name, _, _ in ours}
    assert names >= {"prompt", "num_inference_steps", "generator", "latents", "output_type", "return_dict"}
    assert names >= {"num_images_per_prompt", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
    components, settings = ZImageVLPipeline._get_signature_keys(ZImageVLPipeline)
    assert set(components) == {*tiny_components(), "vl_encoder", "vl_processor", "vl_vision"}
    assert set(settings) == {"vl_model_id"}
    types = ZImageVLPipeline._get_signature_types()
    assert set(types) - {"self"} == {*components, "vl_model_id"}
    assert not [name for name, kinds in types.items() if inspect.Parameter.empty in kinds and name != "self"]


@pytest.mark.parametrize("guided", [False, True])
def test_encode_prompt_in_isolation_gives_the_same_picture(pipe: ZImageVLPipeline, guided: bool) -> None:
    # As diffusers does it: one pipeline of the text encoder alone, its arguments by name, and one without it.
    parts = {**dict.fromkeys(pipe.components), "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    encoding = ZImageVLPipeline(**parts, vl_model_id=None)
    given = {"prompt": PROMPT, "do_classifier_free_guidance": guided, "negative_prompt": "white" if guided else None}
    text, negative = encoding.encode_prompt(**given)
    painting = {**pipe.components, "text_encoder": None, "tokenizer": None}
    ready = {"prompt_embeds": text, **({"negative_prompt_embeds": negative} if guided else {})}
    kwargs = {"guidance_scale": 3.0 if guided else 0.0}
    expected = paint(pipe, negative_prompt=given["negative_prompt"], **kwargs)
    same(paint(quiet(ZImageVLPipeline(**painting)), None, **ready, **kwargs), expected)


# ---- Saving and loading ----


@pytest.fixture(scope="module")
def whole(pipe: ZImageVLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as plain Z-Image has it."""
    folder = tmp_path_factory.mktemp("plain")
    ZImagePipeline(**tiny_components()).save_pretrained(folder)
    return folder


def test_saved_and_loaded_it_paints_the_same_bits(pipe: ZImageVLPipeline, whole: Path, tmp_path: Path) -> None:
    loaded = load(whole)
    assert (type(loaded), loaded.config.vl_model_id) == (ZImageVLPipeline, None)
    same(paint_with(loaded, PICTURE), paint_with(pipe, PICTURE))
    same(paint(loaded), paint(pipe))
    names = json.loads((whole / "model_index.json").read_text(encoding="utf-8"))
    assert names["vl_encoder"][-1] == "Qwen3VLForConditionalGeneration"
    assert all((whole / name).is_dir() == (part is not None) for name, part in pipe.components.items())
    tiny_pipeline(with_vl=False, vl_model_id="somewhere/else").save_pretrained(tmp_path)
    without = load(tmp_path)
    assert without.vl_encoder is without.vl_processor is None
    assert without.config.vl_model_id == "somewhere/else"


def test_parts_that_are_passed_to_a_plain_and_to_a_whole_folder(
    plain: Path, whole: Path, pipe: ZImageVLPipeline
) -> None:
    nothing = load(plain, vl_model_id=None)
    same(paint(nothing), paint(pipe))
    with pytest.raises(ValueError, match="no VL encoder"):
        paint_with(nothing, PICTURE)
    both = load(plain, vl_encoder=pipe.vl_encoder, vl_processor=pipe.vl_processor)
    same(paint_with(both, PICTURE), paint_with(pipe, PICTURE))
    assert load(plain).config.vl_model_id == "Qwen/Qwen3-VL-4B-Instruct"
    # What is passed takes precedence over what was saved; by DiffusionPipeline too (test_loading.py).
    mine = tiny_vl_encoder(seed=7, tokenizer=pipe.tokenizer)
    loaded = load(whole, vl_encoder=mine)
    assert loaded.vl_encoder is mine
    assert differ(paint_with(loaded, PICTURE), paint_with(pipe, PICTURE))
    assert load(whole, vl_encoder=None, vl_processor=None).vl_encoder is None


def test_a_dtype_given_once_reaches_the_vl_parts(whole: Path, plain: Path, tmp_path: Path) -> None:
    half = load(whole, **in_dtype(torch.bfloat16))
    models = {name: part for name, part in half.components.items() if isinstance(part, torch.nn.Module)}
    assert {name: part.dtype for name, part in models.items()} == dict.fromkeys(models, torch.bfloat16)
    lazy = load(plain, **in_dtype(torch.bfloat16), vl_model_id=save_vl_parts(tmp_path))
    same(paint_with(lazy, PICTURE), paint_with(half, PICTURE))
    assert lazy.vl_encoder.dtype == torch.bfloat16


# ---- Types ----


def test_bfloat16_says_much_the_same_and_encoders_of_different_types_go_together() -> None:
    pipe = tiny_pipeline()
    full = call(pipe, reference_image=PICTURE, **KNOBS).conditioning[0]
    pipe.vl_encoder.to(torch.bfloat16)
    assert pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS).prompt_embeds[0].dtype == torch.float32
    pipe.to(dtype=torch.bfloat16)
    half = call(pipe, reference_image=PICTURE, **KNOBS)
    assert np.isfinite(half.images).all()
    assert half.conditioning[0].influence == pytest.approx(full.influence, rel=0.1)
    assert pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS).prompt_embeds[0].dtype == torch.bfloat16
    same(paint_with(pipe, PICTURE, vl_alpha=0.0), paint(make_parent(pipe)))


def test_the_progress_bar_is_the_parents(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline()
    for shown in (True, False):
        pipe.set_progress_bar_config(disable=not shown)
        paint_with(pipe, PICTURE)
        assert ("2/2" in capsys.readouterr().err) == shown


# ---- Savings. The reference acts on the text embeddings alone: under each of these the pipeline paints, bit for bit,
# what diffusers' own paints under it from the same embeddings, and the reference still changes the picture. ----

FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.bfloat16}


@pytest.fixture
def clean_state() -> Generator[None]:
    """A backend that a model is given becomes everybody's default, and compiled code stays for the process."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    active = registry._active_backend
    yield
    registry._active_backend = active
    torch.compiler.reset()


def tile_the_vae(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8  # small enough for these pictures


def compile_module(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def cast_transformer(pipe: Any) -> None:
    pipe.to(dtype=torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(**FP8)


def cast_vl_layers(pipe: Any) -> None:
    pipe.to(dtype=torch.bfloat16)
    apply_layerwise_casting(pipe.vl_encoder.model.language_model.layers, **FP8)


SAVINGS: dict[str, Callable[[Any], Any]] = {
    "VAE tiling": tile_the_vae,
    "VAE slicing": lambda pipe: pipe.vae.enable_slicing(),
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(),
    "attention backend": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
    "torch.compile(transformer)": compile_module,
    "compile_repeated_blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    "fp8 transformer": cast_transformer,
    "fp8 VL layers": cast_vl_layers,
}
CHANGED = {"VAE tiling", "fp8 transformer", "fp8 VL layers"}


@pytest.mark.usefixtures("clean_state")
@pytest.mark.parametrize("name", SAVINGS)
def test_the_reference_acts_under_every_saving(name: str) -> None:
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    SAVINGS[name](pipe)
    image = paint_with(pipe, PICTURE)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    parent = quiet(pipe.to_pipe(ZImagePipeline))
    same(paint(parent, None, prompt_embeds=ready.prompt_embeds), image)
    assert differ(image, paint_with(pipe, OTHER), 1e-2), "the reference changes nothing"
    same(paint_with(pipe, PICTURE, vl_alpha=0.0), paint(parent))
    if name not in CHANGED:
        np.testing.assert_allclose(image, paint_with(plain, PICTURE), atol=1e-4)


@pytest.mark.usefixtures("clean_state")
def test_compiled_it_is_handed_on_saved_and_not_compiled_again_for_a_reference(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    compile_module(pipe)
    paint(pipe)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    paint_with(pipe, PICTURE)
    paint_with(pipe, PICTURE, vl_alpha=1.0, vl_start=0.5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0
    again = quiet(ZImageVLPipeline.from_pipe(pipe))
    assert again.transformer is pipe.transformer
    again.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(paint_with(again, PICTURE), expected, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    same(paint_with(load(tmp_path), PICTURE), expected)
    with attention_backend("_native_math"):
        np.testing.assert_allclose(paint_with(tiny_pipeline(), PICTURE), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("clean_state")
@pytest.mark.skipif(shutil.which("c++") is None, reason="the default compiler writes C++ for the CPU")
def test_the_default_compiler() -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    pipe.transformer.layers[0].feed_forward.compile()  # a part of one block: all of them take a minute
    np.testing.assert_allclose(paint_with(pipe, PICTURE), expected, atol=1e-4)
