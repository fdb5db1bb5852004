"""Quantised models, with a reference, on the CPU: torchao and bitsandbytes in 8 bits.

How much they change is measured on the toy by benchmarks/quantised.py; here, that they go through everything.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3VLForConditionalGeneration

from pages import ROOT, desk, run_page  # noqa: F401 - desk is a fixture
from pipeline_samples import (
    PROMPT,
    differ,
    in_dtype,
    make_picture,
    paint,
    paint_with,
    quiet,
    same,
    save_vl_parts,
)
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.readers import check_vl_encoder


OLD_DIFFUSERS = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 38)
PICTURE = make_picture(0)


@pytest.fixture(autouse=True)
def quiet_libraries() -> Generator[None]:
    logging.disable(logging.WARNING)  # bitsandbytes logs a line for every product
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_pipeline().save_pretrained(folder)
    return folder


def load(folder: Path, **kwargs: Any) -> Any:
    return quiet(ZImageVLPipeline.from_pretrained(folder, **in_dtype(torch.float32), **kwargs))


def torchao_configs() -> tuple[Any, Any]:
    """8-bit weights for diffusers and for transformers."""
    pytest.importorskip("torchao")
    from diffusers import TorchAoConfig as TransformerConfig
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig as EncoderConfig

    if "not" in (unusable := _try(lambda: TransformerConfig(Int8WeightOnlyConfig()))):
        pytest.skip(unusable)
    return TransformerConfig(Int8WeightOnlyConfig()), EncoderConfig(Int8WeightOnlyConfig())


def load_torchao(folder: Path) -> Any:
    """VL encoder and transformer with 8-bit weights."""
    for_transformer, for_encoder = torchao_configs()
    encoder = Qwen3VLForConditionalGeneration.from_pretrained(
        folder / "vl_encoder", quantization_config=for_encoder, dtype=torch.float32
    )
    transformer = ZImageTransformer2DModel.from_pretrained(
        folder / "transformer", quantization_config=for_transformer, **in_dtype(torch.float32)
    )
    return load(folder, vl_encoder=encoder, transformer=transformer)


def load_bitsandbytes(folder: Path) -> Any:
    """VL encoder with 8-bit products; diffusers' transformer wants a GPU for that."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    encoder = Qwen3VLForConditionalGeneration.from_pretrained(
        folder / "vl_encoder",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.float32,
        device_map="cpu",
    )
    return load(folder, vl_encoder=encoder)


def _try(make: Any) -> str:
    try:
        make()
    except Exception as error:
        return f"not with this diffusers: {error}"
    return ""


LOADERS = {"torchao": load_torchao, "bitsandbytes": load_bitsandbytes}


@pytest.fixture(scope="module", params=LOADERS)
def pipe(request: pytest.FixtureRequest, folder: Path) -> Any:
    return LOADERS[request.param](folder)


@pytest.fixture(scope="module")
def painted(pipe: Any) -> Any:
    return paint_with(pipe, PICTURE)


def linear_class(pipe: Any) -> tuple[type, type]:
    layer = pipe.vl_encoder.model.language_model.layers[0].self_attn.q_proj
    return type(layer), type(layer.weight)


def test_it_is_quantised_and_says_much_the_same(pipe: Any, painted: Any, folder: Path) -> None:
    plain = load(folder)
    assert linear_class(pipe) != linear_class(plain)
    states, exact = (
        p.encode_reference(PICTURE, PROMPT, layers=(-2,)).hidden_states[-2].float() for p in (pipe, plain)
    )
    error = float((states - exact).norm() / exact.norm())
    assert 1e-4 < error < 0.1
    assert differ(painted, paint(pipe), 1e-2)
    same(painted, paint_with(pipe, PICTURE))


def test_our_checks_take_it_and_early_exit_is_exact(pipe: Any) -> None:
    check_vl_encoder(pipe.vl_encoder, 32)
    with pytest.raises(ValueError, match=r"32.*64|64.*32"):
        check_vl_encoder(pipe.vl_encoder, 64)
    assert pipe.vl_encoder.dtype == pipe.text_encoder.dtype == torch.float32
    together = pipe.encode_reference(PICTURE, PROMPT, layers=(-1, -2, -4))  # one pass through all blocks
    for layer in (-2, -4):
        alone = pipe.encode_reference(PICTURE, PROMPT, layers=(layer,))
        same(alone.hidden_states[layer], together.hidden_states[layer])


def test_saved_and_loaded_it_is_the_same(pipe: Any, painted: Any, tmp_path: Path) -> None:
    try:
        pipe.save_pretrained(tmp_path)
    except RuntimeError as error:
        if OLD_DIFFUSERS and "invalid python storage" in str(error):
            pytest.skip("diffusers 0.36 saves torchao's tensors as pickles only")
        raise
    again = load(tmp_path)
    assert linear_class(again) == linear_class(pipe)
    same(paint_with(again, PICTURE), painted)


def test_from_pipe_and_back_and_joining_later(pipe: Any, painted: Any, folder: Path) -> None:
    parts = {"vl_encoder": pipe.vl_encoder, "vl_processor": pipe.vl_processor}
    plain = pipe.to_pipe(ZImagePipeline)
    later = load(folder, **dict.fromkeys(parts), transformer=pipe.transformer)
    later.register_modules(**parts)
    for made in (ZImageVLPipeline.from_pipe(plain, **parts), ZImageVLPipeline(**plain.components, **parts), later):
        same(paint_with(quiet(made), PICTURE), painted)
    later.unload_vl_encoder()
    assert later.vl_encoder is None


def test_under_model_offload(pipe: Any, painted: Any) -> None:
    # Last: bitsandbytes' models keep their hooks.
    pipe.enable_model_cpu_offload(device="cpu")
    same(paint_with(pipe, PICTURE), painted)
    pipe.remove_all_hooks()
    pipe._all_hooks = []
    same(paint_with(pipe, PICTURE), painted)


def test_a_quantised_text_encoder(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, Qwen3Model

    text_encoder = Qwen3Model.from_pretrained(
        folder / "text_encoder",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.float32,
        device_map="cpu",
    )
    pipe = load(folder, text_encoder=text_encoder, vl_encoder=None, vl_processor=None)
    pipe.load_vl_encoder(save_vl_parts(folder / "vl"))
    assert pipe.vl_encoder.dtype == torch.float32, "not of the type that the text encoder computes in"
    assert differ(paint_with(pipe, PICTURE), paint(pipe), 1e-2)
    assert pipe.text_statistics().std.isfinite().all()


def test_the_page_on_memory_runs_with_a_quantised_transformer(desk: Path) -> None:  # noqa: F811 - the fixture
    torchao_configs()
    run_page(ROOT / "docs" / "memory.md")
