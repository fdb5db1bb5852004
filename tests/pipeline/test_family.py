"""What diffusers tests of every pipeline (its PipelineTesterMixin), for `ZImageVLPipeline`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

from dtype_name import DTYPE
from pipeline_samples import KNOBS, PROMPT, SMALL, call, make_parent, make_picture, paint, paint_with, seeded
from tiny_models import tiny_components, tiny_pipeline, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
same = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline()


def load(folder: Path, **kwargs: Any) -> ZImageVLPipeline:
    pipe = ZImageVLPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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


def test_saved_and_loaded_it_paints_the_same_bits(pipe: ZImageVLPipeline, whole: Path) -> None:
    loaded = load(whole)
    assert type(loaded) is ZImageVLPipeline
    assert loaded.config.vl_model_id is None
    same(paint_with(loaded, PICTURE), paint_with(pipe, PICTURE))
    same(paint(loaded), paint(pipe))


def test_without_the_vl_parts_they_stay_away(tmp_path: Path, pipe: ZImageVLPipeline) -> None:
    tiny_pipeline(with_vl=False, vl_model_id="somewhere/else").save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.vl_encoder is None
    assert loaded.vl_processor is None
    assert loaded.config.vl_model_id == "somewhere/else"
    same(paint(loaded), paint(pipe))


def test_a_plain_folder_with_nothing_or_both_vl_parts_passed(plain: Path, pipe: ZImageVLPipeline) -> None:
    nothing = load(plain, vl_model_id=None)
    same(paint(nothing), paint(pipe))
    with pytest.raises(ValueError, match="no VL encoder"):
        paint_with(nothing, PICTURE)
    both = load(plain, vl_encoder=pipe.vl_encoder, vl_processor=pipe.vl_processor)
    assert both.vl_encoder is pipe.vl_encoder
    same(paint_with(both, PICTURE), paint_with(pipe, PICTURE))
    assert ZImageVLPipeline.from_pretrained(plain).config.vl_model_id == "Qwen/Qwen3-VL-4B-Instruct"


def test_a_passed_component_goes_before_the_saved_one(whole: Path, pipe: ZImageVLPipeline) -> None:
    mine = tiny_vl_encoder(seed=7, tokenizer=pipe.tokenizer)
    loaded = load(whole, vl_encoder=mine)
    assert loaded.vl_encoder is mine
    other = paint_with(loaded, PICTURE)
    assert np.abs(other - paint_with(pipe, PICTURE)).max() > 1e-4
    same(other, paint_with(tiny_pipeline(vl_encoder=mine), PICTURE))
    assert load(whole, vl_encoder=None).vl_encoder is None


def test_a_dtype_given_once_reaches_the_vl_parts(whole: Path, plain: Path, tmp_path: Path) -> None:
    half = load(whole, **{DTYPE: torch.bfloat16})
    models = {name: part for name, part in half.components.items() if isinstance(part, torch.nn.Module)}
    assert {name: part.dtype for name, part in models.items()} == dict.fromkeys(models, torch.bfloat16)
    for name in ("vl_encoder", "vl_processor"):
        getattr(half, name).save_pretrained(tmp_path)
    lazy = load(plain, **{DTYPE: torch.bfloat16}, vl_model_id=str(tmp_path))
    same(paint_with(lazy, PICTURE), paint_with(half, PICTURE))
    assert lazy.vl_encoder.dtype == torch.bfloat16
    lazy.load_vl_encoder(dtype=torch.float32)
    assert lazy.vl_encoder.dtype == torch.float32


def test_the_saved_index_names_every_part(whole: Path) -> None:
    index = json.loads((whole / "model_index.json").read_text(encoding="utf-8"))
    assert index["vl_encoder"][-1] == "Qwen3VLForConditionalGeneration"
    for name in ("scheduler", "vae", "text_encoder", "tokenizer", "transformer", "vl_encoder", "vl_processor"):
        assert (whole / name).is_dir()


def test_the_vl_parts_load_when_the_first_call_needs_them(pipe: ZImageVLPipeline, plain: Path, tmp_path: Path) -> None:
    pipe.vl_encoder.save_pretrained(tmp_path)
    pipe.vl_processor.save_pretrained(tmp_path)
    lazy = load(plain, vl_model_id=str(tmp_path))
    assert lazy.vl_encoder is None
    same(paint_with(lazy, PICTURE), paint_with(pipe, PICTURE))
    encoder = lazy.vl_encoder
    assert encoder is not None
    paint_with(lazy, PICTURE)
    assert lazy.vl_encoder is encoder
    assert encoder.dtype == lazy.text_encoder.dtype
    lazy.unload_vl_encoder()
    assert lazy.vl_encoder is None
    missing = load(plain, vl_model_id=str(tmp_path / "missing"))
    with pytest.raises(OSError, match=r"missing.*folder"):
        paint_with(missing, PICTURE)


def test_a_vl_encoder_of_another_width_is_not_kept(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    tiny_vl_encoder(16).save_pretrained(tmp_path)
    pipe.vl_processor.save_pretrained(tmp_path)
    lazy = tiny_pipeline(with_vl=False, vl_model_id=str(tmp_path))
    with pytest.raises(ValueError, match=r"expected hidden size 32.*got 16"):
        paint_with(lazy, PICTURE)
    assert lazy.vl_encoder is None


# ---- Other pipelines over the same modules ----


def test_the_parents_components_go_in_and_come_out(pipe: ZImageVLPipeline) -> None:
    parts = pipe.z_image_components
    assert set(parts) == {"scheduler", "vae", "text_encoder", "tokenizer", "transformer"}
    parent = ZImagePipeline(**parts)
    again = ZImageVLPipeline(**parent.components, vl_encoder=pipe.vl_encoder, vl_processor=pipe.vl_processor)
    again.set_progress_bar_config(disable=True)
    same(paint_with(again, PICTURE), paint_with(pipe, PICTURE))


def test_from_pipe_shares_the_modules() -> None:
    source = make_parent(tiny_pipeline())
    pipe = ZImageVLPipeline.from_pipe(source, vl_model_id=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer is source.transformer
    assert pipe.vl_encoder is None
    same(paint(pipe), paint(source))


def test_from_pipe_keeps_the_types_of_the_weights() -> None:
    source = make_parent(tiny_pipeline())
    source.text_encoder.to(torch.bfloat16)
    pipe = ZImageVLPipeline.from_pipe(source, vl_model_id=None)
    assert source.text_encoder.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.transformer.dtype == torch.float32


def test_the_embeddings_serve_image_to_image(pipe: ZImageVLPipeline) -> None:
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    other = ZImageImg2ImgPipeline(**pipe.z_image_components)
    other.set_progress_bar_config(disable=True)
    text = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0]
    images = [
        other(
            prompt_embeds=embeds,
            image=make_picture(3, (32, 32)),
            strength=0.9,
            generator=seeded(),
            output_type="np",
            **{**SMALL, "num_inference_steps": 4},
        ).images
        for embeds in (ready.prompt_embeds, text)
    ]
    assert np.abs(images[0] - images[1]).max() > 1e-4


# ---- In isolation ----


@pytest.mark.parametrize("guided", [False, True])
def test_encode_prompt_in_isolation_gives_the_same_picture(pipe: ZImageVLPipeline, guided: bool) -> None:
    kwargs = {"guidance_scale": 3.0 if guided else 0.0}
    encode = {"negative_prompt": "white"} if guided else {}
    text, negative = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=guided, **encode)
    # As diffusers tests it: a pipeline without the encoders takes the embeddings.
    parts = {**pipe.z_image_components, "text_encoder": pipe.text_encoder}
    bare = ZImageVLPipeline(**parts, vl_model_id=None)
    bare.set_progress_bar_config(disable=True)
    ready = {"prompt_embeds": text, **({"negative_prompt_embeds": negative} if guided else {})}
    same(paint(bare, None, **ready, **kwargs), paint(pipe, **encode, **kwargs))


def test_no_weights_no_hooks_and_no_settings_change_in_a_call() -> None:
    pipe = tiny_pipeline()
    paint(make_parent(pipe))  # transformers 5 puts hooks of its own on a text encoder's layers when it first runs
    models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}

    def snapshot() -> dict[str, Any]:
        return {
            "config": dict(pipe.config),
            "parts": {name: id(part) for name, part in pipe.components.items()},
            "training": {name: [m.training for m in part.modules()] for name, part in models.items()},
            "hooks": {
                name: [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in part.modules()]
                for name, part in models.items()
            },
            "layers": len(pipe.vl_encoder.model.language_model.layers),
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
    for name in ("text_encoder", "transformer"):
        handle = models[name].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            paint_with(pipe, PICTURE)
        handle.remove()
    handle = pipe.vl_encoder.model.language_model.layers[1].register_forward_hook(fail)
    pipe.clear_reference_cache()  # or the picture is not read again
    with pytest.raises(KeyboardInterrupt):
        paint_with(pipe, PICTURE)
    handle.remove()
    assert snapshot() == before


# ---- Types and savings ----


def test_bfloat16_runs_and_says_much_the_same() -> None:
    pipe = tiny_pipeline()
    full = call(pipe, reference_image=PICTURE, **KNOBS)
    pipe.to(dtype=torch.bfloat16)
    half = call(pipe, reference_image=PICTURE, **KNOBS)
    assert np.isfinite(half.images).all()
    assert half.conditioning[0].influence == pytest.approx(full.conditioning[0].influence, rel=0.1)
    ready = pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS)
    assert ready.prompt_embeds[0].dtype == torch.bfloat16
    np.testing.assert_array_equal(call(pipe, reference_image=PICTURE, vl_alpha=0.0).images, paint(make_parent(pipe)))


def test_encoders_of_different_types_go_together() -> None:
    pipe = tiny_pipeline()
    pipe.vl_encoder.to(torch.bfloat16)
    output = call(pipe, reference_image=PICTURE, **KNOBS)
    assert np.isfinite(output.images).all()
    assert pipe.encode_prompt_with_reference(PROMPT, PICTURE, **KNOBS).prompt_embeds[0].dtype == torch.float32


@pytest.mark.parametrize("saving", ["enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling"])
def test_what_saves_memory_paints_much_the_same(saving: str) -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    switch = getattr(pipe, saving, None) or getattr(pipe.vae, saving.replace("vae_", ""), None)
    if switch is None:
        pytest.skip(f"this diffusers has no {saving}")
    switch()
    np.testing.assert_allclose(paint_with(pipe, PICTURE), expected, atol=1e-3)


def test_the_progress_bar_is_the_parents(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=False)
    paint_with(pipe, PICTURE)
    assert "2/2" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    paint_with(pipe, PICTURE)
    assert capsys.readouterr().err == ""


def test_a_large_reference_at_the_default_bound(pipe: ZImageVLPipeline) -> None:
    # 12 megapixels come down to one: 4096 image tokens of 16 x 16 pixels here, 1024 of 32 x 32 in the real model.
    embeds = pipe.encode_reference(make_picture(2, (4000, 3000)), PROMPT, layers=(-6,))
    rows, columns = embeds.provenance.image_grid
    assert 0.9 * 4096 <= rows * columns <= 4096
    assert columns / rows == pytest.approx(4 / 3, rel=0.02)
