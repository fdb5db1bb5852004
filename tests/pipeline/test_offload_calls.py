"""Sequential and group offload, with a reference: nothing but the place of the weights changes.

Both want an accelerator. Here the CPU stands in for it: sequential offload still keeps the weights on the meta device
and brings each module's in only while it runs, so that a module whose hook did not fire would fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from PIL import Image

from pipeline_samples import KNOBS, PROMPT, make_parent, make_picture, paint, paint_with
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
MASK = Image.new("L", (48, 32), 255)
MASK.paste(0, (0, 0, 16, 32))
same = np.testing.assert_array_equal

USES: dict[str, dict[str, Any]] = {
    "early exit": {},
    "several layers": {"vl_hidden_layer": {-2: 1.0, -4: 1.0}},
    "all layers": {"vl_hidden_layer": -1},
    "mask": {"reference_mask": MASK},
    "statistics": {"vl_normalization": "per_dim"},
    "no VL": {"vl_alpha": 0.0},
    "guidance": {"guidance_scale": 3.0},
}


@pytest.fixture(autouse=True)
def cpu_as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    real = accelerate.cpu_offload

    def cpu_offload(model: Any, execution_device: Any = None, **kwargs: Any) -> Any:
        # diffusers adds a number to the device, and "cpu:0" is to torch another device than "cpu".
        return real(model, torch.device(torch.device(execution_device).type), **kwargs)

    monkeypatch.setattr(accelerate, "cpu_offload", cpu_offload)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    pipe = tiny_pipeline()
    return {name: paint_with(pipe, PICTURE, **kwargs) for name, kwargs in USES.items()}


@pytest.fixture(scope="module")
def vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    tiny_vl_encoder().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


def places(pipe: Any) -> set[str]:
    """Where the weights of the pipeline's models are."""
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {weight.device.type for model in models for weight in model.parameters()}


# ---- Sequential ----


def sequential(**kwargs: Any) -> Any:
    pipe = tiny_pipeline(**kwargs)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert places(pipe) == {"meta"}
    return pipe


def test_sequential_offload_paints_the_same_and_keeps_no_weights(expected: dict[str, Any]) -> None:
    pipe = sequential()
    for name, kwargs in USES.items():
        same(paint_with(pipe, PICTURE, **kwargs), expected[name])
        assert places(pipe) == {"meta"}


def test_early_exit_brings_no_block_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, brought = sequential(), set()
    layers = pipe.vl_encoder.model.language_model.layers
    real = accelerate.hooks.AlignDevicesHook.pre_forward

    def note(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        brought.update(i for i, layer in enumerate(layers) for part in layer.modules() if part is module)
        return real(hook, module, *args, **kwargs)

    monkeypatch.setattr(accelerate.hooks.AlignDevicesHook, "pre_forward", note)
    pipe.encode_reference(PICTURE, PROMPT, layers=(-4, -3))
    assert len(layers) == 6
    assert brought == {0, 1, 2, 3}


def test_a_vl_encoder_that_comes_later_is_offloaded_alike(vl_folder: Path, expected: dict[str, Any]) -> None:
    pipe = sequential(with_vl=False, vl_model_id=str(vl_folder))
    for _ in range(2):
        same(paint_with(pipe, PICTURE), expected["early exit"])
        assert places(pipe) == {"meta"}
        pipe.unload_vl_encoder()


@pytest.mark.parametrize("make", ["from_pipe", "components"])
def test_ours_over_a_sequentially_offloaded_pipeline(make: str, expected: dict[str, Any]) -> None:
    plain = make_parent(sequential(with_vl=False))
    parts = {"vl_encoder": tiny_vl_encoder(), "vl_processor": tiny_image_processor(), "vl_model_id": None}
    if make == "from_pipe":
        ours = ZImageVLPipeline.from_pipe(plain, **parts)
        assert places(ours) == {"meta"}
    else:
        ours = ZImageVLPipeline(**plain.components, **parts)
    ours.set_progress_bar_config(disable=True)
    same(paint_with(ours, PICTURE), expected["early exit"])
    assert places(ours) == {"meta"}
    same(paint(ours.to_pipe(ZImagePipeline)), paint(tiny_pipeline()))


def test_an_error_leaves_no_weights_behind() -> None:
    pipe = sequential()

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    handle = pipe.vl_encoder.model.language_model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        paint_with(pipe, PICTURE)
    handle.remove()
    same(paint_with(pipe, PICTURE), paint_with(tiny_pipeline(), PICTURE))


# ---- In groups ----


def in_groups(pipe: Any, level: str) -> Any:
    cpu = torch.device("cpu")
    settings = {"num_blocks_per_group": 1} if level == "block_level" else {}
    try:
        pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=level, **settings)
    except AttributeError:
        pytest.skip("diffusers 0.36 offloads groups only to an accelerator, and has no such method")
    return pipe


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload_paints_the_same(level: str, expected: dict[str, Any]) -> None:
    pipe = in_groups(tiny_pipeline(), level)
    for name, kwargs in USES.items():
        same(paint_with(pipe, PICTURE, **kwargs), expected[name])


def test_a_vl_encoder_joins_the_groups(vl_folder: Path, expected: dict[str, Any]) -> None:
    lazy = in_groups(tiny_pipeline(with_vl=False, vl_model_id=str(vl_folder)), "block_level")
    parts = {"vl_encoder": tiny_vl_encoder(), "vl_processor": tiny_image_processor()}
    over = ZImageVLPipeline(**in_groups(make_parent(tiny_pipeline(with_vl=False)), "leaf_level").components, **parts)
    for pipe in (lazy, over):
        pipe.set_progress_bar_config(disable=True)
        same(paint_with(pipe, PICTURE), expected["early exit"])
        assert hasattr(pipe.vl_encoder.model.language_model.layers[0].self_attn.q_proj, "_diffusers_hook")
        same(paint_with(pipe, PICTURE), expected["early exit"])


def test_embeddings_for_another_pipeline_are_the_same(expected: dict[str, Any]) -> None:
    pipe = sequential()
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    same(paint(pipe.to_pipe(ZImagePipeline), None, prompt_embeds=ready.prompt_embeds), expected["early exit"])
