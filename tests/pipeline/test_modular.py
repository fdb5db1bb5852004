"""The block of Modular Diffusers: the pipeline's bits, its components and offload, and what it refuses."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding_samples import make_reference
from modular_samples import guide, insert_block, make_modular, needs_modular, run
from offload_table import Table
from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, call, make_picture, record_runs, same
from tiny_models import tiny_pipeline, white_box
from zimage_vl.pipeline import modular
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline


pytestmark = needs_modular

FOLDER = Path(__file__).parent.parent.parent / "pipelines" / "zimage_vl_modular"
PICTURE = make_picture(0)
TOY = {"height": 64, "width": 64}
PHOTO, OTHER_PHOTO = draw_scene(Scene("circle", "red", "white")), draw_scene(Scene("cross", "cyan", "gray"))
READY = make_reference(dims=32, layers=(-2,))


@pytest.fixture(scope="module")
def toy() -> Any:
    return load_toy_pipeline()


@pytest.fixture(scope="module")
def block_of_toy(toy: Any) -> Any:
    return make_modular(toy)


# ---- The pipeline's bits ----


CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "no reference": (PROMPT, {}),
    "a reference": (PROMPT, {"reference_image": PHOTO, "vl_alpha": 0.7}),
    "alpha 0": (PROMPT, {"reference_image": PHOTO, "vl_alpha": 0.0}),
    "the small reader": (PROMPT, {"reference_image": PHOTO, "vl_reader": "text_encoder"}),
    "statistics": (PROMPT, {"reference_image": PHOTO, "vl_normalization": "per_dim"}),
    "a mask": (PROMPT, {"reference_image": PHOTO, "reference_mask": white_box((64, 64), (0, 0, 32, 64))}),
    "muted": (PROMPT, {"reference_image": PHOTO, "vl_blend_mode": "style_delta"}),
    "two references": (PROMPT, {"reference_image": [[PHOTO, OTHER_PHOTO]], "reference_weights": [1, 3]}),
    "a batch": ([PROMPT, OTHER_PROMPT], {"reference_image": [PHOTO, None], "vl_alpha": {"prompt": 0.7}}),
    "a phrase": ([PROMPT], {"reference_image": PHOTO, "vl_alpha": {"circle": 0.7}}),
    "several pictures": (PROMPT, {"reference_image": PHOTO, "num_images_per_prompt": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_paints_the_bits_of_the_pipeline(name: str, toy: Any, block_of_toy: Any) -> None:
    prompt, inputs = CALLS[name]
    expected = call(toy, list(prompt) if isinstance(prompt, list) else prompt, **TOY, **inputs)
    state = run(block_of_toy, list(prompt) if isinstance(prompt, list) else prompt, **TOY, **inputs)
    same(state.get("images"), expected.images)
    reports = state.get("conditioning")
    assert (reports is None) == (expected.conditioning is None)
    for report, other in zip(reports or (), expected.conditioning or (), strict=True):
        assert report.influence == other.influence
    assert state.get("negative_prompt_embeds") is None


def test_ready_embeddings_of_a_reference_serve(toy: Any, block_of_toy: Any, tmp_path: Path) -> None:
    toy.encode_reference(PHOTO, PROMPT).save(tmp_path / "photo.safetensors")
    inputs = {"reference_embeds": tmp_path / "photo.safetensors", **TOY}
    same(run(block_of_toy, PROMPT, **inputs).get("images"), call(toy, PROMPT, **inputs).images)


@pytest.mark.parametrize("negative", [None, "a cross"])
def test_under_guidance_both_embeddings_are_the_pipelines(toy: Any, negative: str | None) -> None:
    inputs = {"negative_prompt": negative, "reference_image": PHOTO, "negative_reference_image": OTHER_PHOTO}
    # As ZImagePipeline reckons it; the guider's own formula calls the same guidance 4.0.
    pipe = guide(make_modular(toy), guidance_scale=3.0, use_original_formulation=True)
    state = run(pipe, PROMPT, **TOY, **inputs)
    ready = toy.encode_prompt_with_reference(PROMPT, **inputs)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        for mine, own in zip(state.get(name), ready[name], strict=True):
            assert torch.equal(mine, own)
    assert len(state.get("conditioning")) == len(state.get("negative_conditioning")) == 1
    # The pipeline runs both sides in one batch, the guider one after the other: equal up to rounding.
    expected = call(toy, PROMPT, **TOY, **inputs, guidance_scale=3.0).images
    np.testing.assert_allclose(state.get("images"), expected, atol=1e-4)


def test_image_to_image_paints_the_bits_of_diffusers_own(toy: Any, block_of_toy: Any) -> None:
    from diffusers import ZImageImg2ImgPipeline

    inputs = {"image": OTHER_PHOTO, "strength": 0.6, "num_inference_steps": 4}
    state = run(block_of_toy, PROMPT, **TOY, **inputs, reference_image=PHOTO)
    embeds = toy.encode_prompt_with_reference(PROMPT, PHOTO, do_classifier_free_guidance=False).prompt_embeds
    same(state.get("images"), call(toy.to_pipe(ZImageImg2ImgPipeline), None, prompt_embeds=embeds, **TOY, **inputs)[0])


def test_embeddings_from_elsewhere_are_blended_without_the_prompts_words() -> None:
    pipe = tiny_pipeline()
    embeds = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0]
    blocks = insert_block(modular.ZImageVLReferenceStep())
    blocks.sub_blocks.pop("text_encoder")
    made = blocks.init_pipeline()
    made.update_components(**pipe.components)
    inputs = {"prompt_embeds": embeds, "reference_image": PICTURE, "vl_text": "", **KNOBS}
    same(run(made, None, **inputs).get("images"), call(pipe, None, **inputs).images)
    with pytest.raises(ValueError, match="`vl_text` must say what stands beside"):
        run(made, None, **{**inputs, "vl_text": None})
    whole = insert_block(modular.ZImageVLReferenceStep()).init_pipeline()  # whose own step makes other embeddings
    whole.update_components(**pipe.components)
    with pytest.raises(ValueError, match=r'sub_blocks.pop\("text_encoder"\)'):
        run(whole, None, **inputs)


# ---- From its folder ----


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """diffusers' copies of code from folders, forgotten again."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def test_the_folder_loads_as_blocks_do_and_paints_the_same(modules: None, toy: Any, tmp_path: Path) -> None:
    from diffusers import ModularPipelineBlocks

    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(str(FOLDER))
    step = ModularPipelineBlocks.from_pretrained(str(FOLDER), trust_remote_code=True)
    assert type(step).__module__ == "diffusers_modules.local.block"
    made = make_modular(toy, step)
    inputs = {"reference_image": PHOTO, "vl_alpha": 0.7, **TOY}
    same(run(made, PROMPT, **inputs).get("images"), call(toy, PROMPT, **inputs).images)
    step.save_pretrained(tmp_path)
    config, written = (json.loads((at / "modular_config.json").read_text("utf-8")) for at in (FOLDER, tmp_path))
    assert config == {**written, "_diffusers_version": "0.42.1"}


def test_its_inputs_are_those_of_the_registry_and_its_help_says_them() -> None:
    from zimage_vl.blend.registry import KNOBS as REGISTRY

    step = modular.ZImageVLReferenceStep()
    defaults = {param.name: param.default for param in step.inputs}
    assert {name: knob.default for name, knob in REGISTRY.items()}.items() <= defaults.items()
    for knob in REGISTRY.values():
        assert knob.name in ("vl_start", "vl_end") or knob.help.split()[-1] in step.doc


# ---- Its components ----


def test_the_vl_parts_are_loaded_by_the_first_reference_that_is_read(vl_folder: str) -> None:
    whole = tiny_pipeline()
    pipe = make_modular(tiny_pipeline(with_vl=False, vl_model_id=vl_folder))
    pipe.load_components()
    for inputs in ({}, {"reference_image": PICTURE, "vl_alpha": 0.0}, {"reference_embeds": READY, **KNOBS}):
        run(pipe, PROMPT, **inputs)
        assert pipe.vl_encoder is pipe.vl_processor is pipe.vl_vision is None
    inputs = {"reference_image": PICTURE, **KNOBS}
    same(run(pipe, PROMPT, **inputs).get("images"), call(whole, PROMPT, **inputs).images)
    assert type(pipe.vl_encoder).__name__ == "Qwen3VLForConditionalGeneration"
    encoder = weakref.ref(pipe.vl_encoder)
    pipe.unload_components(["vl_encoder", "vl_processor"])
    assert encoder() is None, "the block holds what was unloaded"


def test_the_small_reader_loads_the_tower_alone(vl_folder: str) -> None:
    pipe = make_modular(tiny_pipeline(with_vl=False, vl_model_id=vl_folder))
    inputs = {"reference_image": PICTURE, "vl_reader": "text_encoder", **KNOBS}
    expected = call(tiny_pipeline(), PROMPT, **inputs).images
    same(run(pipe, PROMPT, **inputs).get("images"), expected)
    assert pipe.vl_encoder is None
    assert type(pipe.vl_vision).__name__ == "Qwen3VLVisionModel"


def test_what_was_read_is_kept_and_an_error_leaves_nothing_behind() -> None:
    tiny = tiny_pipeline()
    pipe = make_modular(tiny)
    inputs = {"reference_image": PICTURE, **KNOBS}
    with record_runs(tiny) as runs:
        run(pipe, PROMPT, **inputs)
        assert runs.count("vl_encoder") == 1
        run(pipe, PROMPT, **{**inputs, "vl_alpha": 0.2})
        assert runs.count("vl_encoder") == 1
        with pytest.raises(FileNotFoundError, match="no_such_file"):
            run(pipe, PROMPT, reference_image="no_such_file.png")
    step = pipe.blocks.sub_blocks["reference"]
    assert not [value for value in vars(step).values() if isinstance(value, torch.nn.Module)]
    text_encoder = weakref.ref(pipe.text_encoder)
    pipe.unload_components("text_encoder")
    del tiny
    assert text_encoder() is None


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Who is where under a ComponentsManager, in place of its hooks' look at devices."""
    from diffusers.modular_pipelines import components_manager
    from diffusers.modular_pipelines.components_manager import CustomOffloadHook

    table = Table()

    def init_hook(_: CustomOffloadHook, module: Any) -> Any:
        table.leave(module)
        return module

    def pre_forward(hook: CustomOffloadHook, module: Any, *args: Any, **kwargs: Any) -> Any:
        if id(module) not in table.resident:
            others = [other for other in hook.other_hooks or () if id(other.model) in table.resident]
            for other in hook.offload_strategy(hooks=others, model_id=hook.model_id, model=module, execution_device=0):
                other.offload()
            table.enter(module)
        return args, kwargs

    monkeypatch.setattr(CustomOffloadHook, "init_hook", init_hook)
    monkeypatch.setattr(CustomOffloadHook, "pre_forward", pre_forward)
    monkeypatch.setattr(components_manager, "TorchDeviceBackend", lambda _: table)
    monkeypatch.setattr(table, "mem_get_info", lambda: (0, 0), raising=False)
    return table


def one_at_a_time(hooks: Any, **_: Any) -> Any:
    return hooks


@pytest.mark.parametrize("reader", ["qwen3-vl", "text_encoder"])
def test_under_a_components_manager_one_model_is_on_the_device(
    table: Table, vl_folder: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import ComponentsManager

    manager = ComponentsManager()
    pipe = make_modular(tiny_pipeline(with_vl=False, vl_model_id=vl_folder), components_manager=manager)
    manager.enable_auto_cpu_offload(device="cpu", offload_strategy=one_at_a_time)
    name = "load_vl_vision" if reader == "text_encoder" else "load_vl_encoder"
    load = getattr(modular.ZImageVLPipeline, name)

    def watched(self: Any) -> None:
        assert table.resident == {}, "a model is loaded beside another one on the device"
        load(self)

    monkeypatch.setattr(modular.ZImageVLPipeline, name, watched)
    inputs = {"reference_image": PICTURE, "vl_reader": reader, **KNOBS}
    expected = call(tiny_pipeline(), PROMPT, **inputs).images
    for _ in range(2):
        same(run(pipe, PROMPT, **inputs).get("images"), expected)
        run(pipe, OTHER_PROMPT, **inputs)
        run(pipe, PROMPT)
    assert table.most == 1
    loaded = {"Qwen3VLForConditionalGeneration", "Qwen3VLVisionModel"} & set(table.visits)
    assert loaded == {"Qwen3VLVisionModel" if reader == "text_encoder" else "Qwen3VLForConditionalGeneration"}
    assert {hook.hook.offload_strategy for hook in manager.model_hooks} == {one_at_a_time}


# ---- What it refuses ----


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a late start": ({"vl_start": 0.5}, r"`vl_start` is refused in a block, got 0\.5: the denoising step takes one"),
    "an early end": ({"vl_end": 0.5}, "`vl_end` is refused in a block"),
    "a negative reference without guidance": ({"negative_reference_image": PICTURE}, "while the guider is off"),
    "an alpha out of range": ({"vl_alpha": 2.0}, "`vl_alpha`"),
    "no encoder to load": ({"reference_image": PICTURE}, "`vl_model_id` is None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(name: str) -> None:
    inputs, message = REFUSED[name]
    pipe = make_modular(tiny_pipeline(with_vl=False))
    with pytest.raises(ValueError, match=message):
        run(pipe, PROMPT, **inputs)


def test_embeddings_of_another_prompt_are_refused_before_anything_is_read(block_of_toy: Any) -> None:
    from diffusers.modular_pipelines import PipelineState

    step, state = modular.ZImageVLReferenceStep(), PipelineState()
    inputs = {"prompt": PROMPT, "prompt_embeds": [torch.zeros(3, 96)], "reference_image": PHOTO}
    for name, value in inputs.items():
        state.set(name, value)
    with pytest.raises(ValueError, match=r"`prompt_embeds` must be those of `prompt`, of \[\d+\] tokens, got \[3\]"):
        step(block_of_toy, state)
