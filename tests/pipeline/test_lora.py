"""A LoRA on the transformer together with a reference: both act, and neither leaves a trace."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageTransformer2DModel
from diffusers.utils import logging

from pipeline_samples import KNOBS, PROMPT, differ, make_parent, make_picture, paint, paint_with, quiet, same
from tiny_models import tiny_pipeline
from zimage_vl.pipeline import inputs
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


pytest.importorskip("peft")
PICTURE = make_picture(0)


def alike(one: Any, other: Any) -> None:
    np.testing.assert_allclose(one, other, atol=1e-5)


def lora_of(transformer: Any, seed: int = 5, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA on the attention, under the names that files for Z-Image have."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, part in transformer.named_modules():
        if isinstance(part, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            weights[f"transformer.{name}.lora_A.weight"] = 0.3 * torch.randn(
                rank, part.in_features, generator=generator
            )
            weights[f"transformer.{name}.lora_B.weight"] = 0.3 * torch.randn(
                part.out_features, rank, generator=generator
            )
    return weights


@pytest.fixture
def bare() -> Any:
    return tiny_pipeline()


@pytest.fixture
def pipe(bare: Any) -> Any:
    bare.load_lora_weights(lora_of(bare.transformer), adapter_name="style")
    return bare


def test_reference_and_lora_act_together(pipe: Any) -> None:
    plain = tiny_pipeline()
    both, reference, lora, neither = paint_with(pipe, PICTURE), paint_with(plain, PICTURE), paint(pipe), paint(plain)
    pictures = [both, reference, lora, neither]
    assert all(differ(one, other, 1e-2) for i, one in enumerate(pictures) for other in pictures[:i])
    # The reference works on the text alone: the embeddings are the same, and diffusers' own pipeline paints the rest.
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    same(ready.prompt_embeds[0], plain.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS).prompt_embeds[0])
    same(paint(make_parent(pipe), None, prompt_embeds=ready.prompt_embeds), both)
    same(paint_with(pipe, PICTURE, vl_alpha=0.0), lora)


def test_weight_disable_fuse_and_unload_leave_the_reference_alone(pipe: Any) -> None:
    with_lora, without = paint_with(pipe, PICTURE), paint_with(tiny_pipeline(), PICTURE)
    pipe.set_adapters("style", 0.5)
    half = paint_with(pipe, PICTURE)
    assert differ(half, with_lora)
    assert differ(half, without)
    for change, expected in (
        (lambda: pipe.set_adapters("style", 0.0), without),
        (lambda: pipe.set_adapters("style", 1.0), with_lora),
        (pipe.disable_lora, without),
        (pipe.enable_lora, with_lora),
        (pipe.fuse_lora, with_lora),
        (pipe.unfuse_lora, with_lora),
        (pipe.unload_lora_weights, without),
    ):
        change()
        alike(paint_with(pipe, PICTURE), expected)


def test_the_scale_of_a_call(pipe: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_warned", set())
    monkeypatch.setattr(logging.get_logger("zimage_vl"), "propagate", True)
    with_lora = paint_with(pipe, PICTURE)
    scaled = paint_with(pipe, PICTURE, joint_attention_kwargs={"scale": 0.5})
    warned = "`joint_attention_kwargs` {'scale': 0.5} have no effect" in caplog.text
    if "joint_attention_kwargs" in inspect.signature(pipe.transformer.forward).parameters:
        pipe.set_adapters("style", 0.5)
        same(scaled, paint_with(pipe, PICTURE))
        assert not warned
    else:
        same(scaled, with_lora)
        assert warned, "nothing says that the scale is dropped"
    same(paint_with(pipe, PICTURE, joint_attention_kwargs={}), paint_with(pipe, PICTURE))


def test_a_lora_under_model_offload(pipe: Any) -> None:
    expected = paint_with(pipe, PICTURE)
    pipe.enable_model_cpu_offload(device="cpu")
    same(paint_with(pipe, PICTURE), expected)
    same(paint_with(quiet(ZImageVLPipeline.from_pipe(pipe)), PICTURE), expected)


# ---- Saving ----


def test_saving_with_a_lora_attached_is_refused_before_anything_is_written(pipe: Any, tmp_path: Path) -> None:
    for attached in (lambda: None, pipe.fuse_lora):
        attached()
        with pytest.raises(ValueError, match=r"attached to transformer.*unload_lora_weights\(\).*fuse_lora\(\)"):
            pipe.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


def test_what_the_refusal_spares(pipe: Any, tmp_path: Path) -> None:
    # When this fails diffusers has mended it, and the refusal can go.
    make_parent(pipe).save_pretrained(tmp_path)
    try:
        loaded = ZImageTransformer2DModel.from_pretrained(tmp_path / "transformer", low_cpu_mem_usage=False)
    except Exception:
        return
    assert not torch.equal(
        loaded.layers[0].attention.to_q.weight, tiny_pipeline().transformer.layers[0].attention.to_q.weight
    )


def test_both_remedies_of_the_refusal_work(pipe: Any, tmp_path: Path) -> None:
    with_lora = paint_with(pipe, PICTURE)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "baked")
    alike(paint_with(load(tmp_path / "baked"), PICTURE), with_lora)
    again = tiny_pipeline()
    weights = lora_of(again.transformer)
    again.load_lora_weights(dict(weights), adapter_name="style")
    again.unload_lora_weights()
    again.save_pretrained(tmp_path / "clean")
    loaded = load(tmp_path / "clean")
    same(paint_with(loaded, PICTURE), paint_with(tiny_pipeline(), PICTURE))
    loaded.load_lora_weights(dict(weights), adapter_name="style")
    same(paint_with(loaded, PICTURE), with_lora)


def load(folder: Path) -> Any:
    return quiet(ZImageVLPipeline.from_pretrained(folder))
