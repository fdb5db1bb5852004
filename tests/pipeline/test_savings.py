"""What diffusers has to save memory or time, with a reference.

The reference acts on the text embeddings alone. So under each of these the pipeline must paint, bit for bit, what
diffusers' own pipeline paints under it from the same embeddings, and the reference must still change the picture.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.hooks import apply_layerwise_casting
from diffusers.models.attention_dispatch import attention_backend

from pipeline_samples import KNOBS, PROMPT, make_picture, paint, paint_with
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE, OTHER = make_picture(0), make_picture(1)
FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.bfloat16}
same = np.testing.assert_array_equal


@pytest.fixture(autouse=True)
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
    "attention backend native": lambda pipe: pipe.transformer.set_attention_backend("native"),
    "attention backend math": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
    "torch.compile(transformer)": compile_module,
    "compile_repeated_blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    "fp8 transformer": cast_transformer,
    "fp8 VL layers": cast_vl_layers,
}
EXACT = {"VAE slicing", "attention slicing", "attention backend native"}
CHANGED = {"VAE tiling", "fp8 transformer", "fp8 VL layers"}


@pytest.mark.parametrize("name", SAVINGS)
def test_the_reference_acts_as_without_it(name: str) -> None:
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    SAVINGS[name](pipe)
    image = paint_with(pipe, PICTURE)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    parent = pipe.to_pipe(ZImagePipeline)
    parent.set_progress_bar_config(disable=True)
    same(paint(parent, None, prompt_embeds=ready.prompt_embeds), image)
    assert np.abs(image - paint_with(pipe, OTHER)).max() > 1e-2, "the reference changes nothing"
    same(paint_with(pipe, PICTURE, vl_alpha=0.0), paint(parent))
    expected = paint_with(plain, PICTURE)
    if name in EXACT:
        same(image, expected)
    elif name not in CHANGED:
        np.testing.assert_allclose(image, expected, atol=1e-4)


def test_a_backend_for_a_while() -> None:
    pipe = tiny_pipeline()
    with attention_backend("_native_math"):
        inside = paint_with(pipe, PICTURE)
    np.testing.assert_allclose(inside, paint_with(pipe, PICTURE), atol=1e-4)


def test_fp8_is_a_small_change_of_what_the_vl_encoder_says() -> None:
    half, eighth = tiny_pipeline().to(dtype=torch.bfloat16), tiny_pipeline()
    cast_vl_layers(eighth)
    one, other = (p.encode_reference(PICTURE, PROMPT, layers=(-2,)).hidden_states[-2] for p in (half, eighth))
    assert one.dtype == other.dtype == torch.bfloat16
    error = float((one.float() - other.float()).norm() / one.float().norm())
    assert 1e-3 < error < 0.2


def test_a_compiled_transformer_is_handed_on_and_saved(tmp_path: Any) -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    compile_module(pipe)
    again = ZImageVLPipeline.from_pipe(pipe)
    assert again.transformer is pipe.transformer
    again.enable_model_cpu_offload(device="cpu")
    again.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(paint_with(again, PICTURE), expected, atol=1e-4)
    pipe.save_pretrained(tmp_path)
    loaded = ZImageVLPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    same(paint_with(loaded, PICTURE), expected)


def test_a_reference_costs_a_compiled_transformer_no_recompilation() -> None:
    # The embeddings with a reference are as long as without; only another length of prompt is new to it.
    pipe = tiny_pipeline()
    pipe.transformer.compile(backend="eager")
    paint(pipe)
    counters = torch._dynamo.utils.counters
    before = counters["stats"]["unique_graphs"]
    paint_with(pipe, PICTURE)
    paint_with(pipe, PICTURE, vl_alpha=1.0, vl_start=0.5)
    assert counters["stats"]["unique_graphs"] == before > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="the default compiler writes C++ for the CPU")
def test_the_default_compiler() -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    pipe.transformer.layers[0].compile()  # one block: all of them take a minute
    np.testing.assert_allclose(paint_with(pipe, PICTURE), expected, atol=1e-4)


def test_slices_of_a_batch() -> None:
    pipe = tiny_pipeline()
    pictures, prompts = [PICTURE, OTHER], [PROMPT, PROMPT]
    expected = paint_with(pipe, pictures, prompts)
    pipe.vae.enable_slicing()
    np.testing.assert_allclose(paint_with(pipe, pictures, prompts), expected, atol=1e-5)
