"""Pipelines made from one another: the modules are shared as they are, the offload is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

from dtype_name import DTYPE
from offload_table import Table, hooks_of, install_table, run_where_resident
from pipeline_samples import KNOBS, PROMPT, SMALL, make_parent, make_picture, paint, paint_with, seeded
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
same = np.testing.assert_array_equal


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    return install_table(monkeypatch)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vl_parts() -> dict[str, Any]:
    return {"vl_encoder": tiny_vl_encoder(), "vl_processor": tiny_image_processor(), "vl_model_id": None}


def types_of(pipe: Any) -> dict[str, torch.dtype]:
    return {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def mixed_pipeline() -> Any:
    """Models of different types, as people have them."""
    pipe = tiny_pipeline().to(dtype=torch.bfloat16)
    pipe.vae.to(torch.float32)
    return pipe


# ---- To ours ----


@pytest.mark.parametrize("make", ["from_pipe", "components"])
def test_ours_over_a_plain_pipelines_modules(make: str) -> None:
    plain = make_parent(mixed_pipeline())
    before = types_of(plain)
    if make == "from_pipe":
        ours = quiet(ZImageVLPipeline.from_pipe(plain, **vl_parts()))
    else:
        ours = quiet(ZImageVLPipeline(**plain.components, **vl_parts()))
    assert all(getattr(ours, name) is part for name, part in plain.components.items())
    assert (
        types_of(plain)
        == before
        == {"vae": torch.float32, **dict.fromkeys(("text_encoder", "transformer"), torch.bfloat16)}
    )
    same(paint(ours), paint(plain))
    assert np.abs(paint_with(ours, PICTURE) - paint(plain)).max() > 1e-3
    same(paint(plain), paint(ours))


def test_what_the_source_was_made_with_is_taken_over() -> None:
    source = tiny_pipeline(with_vl=False, vl_model_id="someone/else")
    source.register_to_config(_name_or_path="Tongyi-MAI/Z-Image-Turbo")
    plain = source.to_pipe(ZImagePipeline)
    again = ZImageVLPipeline.from_pipe(plain)
    assert again.config.vl_model_id == ZImageVLPipeline.from_pipe(source).config.vl_model_id == "someone/else"
    assert plain.config["_name_or_path"] == again.config["_name_or_path"] == "Tongyi-MAI/Z-Image-Turbo"
    assert ZImageVLPipeline.from_pipe(source, vl_model_id=None).config.vl_model_id is None
    # None is a setting too, and not forgotten on the way: it is a promise that nothing is loaded.
    silent = ZImageVLPipeline.from_pipe(tiny_pipeline(with_vl=False).to_pipe(ZImagePipeline))
    assert silent.config.vl_model_id is None
    with pytest.raises(ValueError, match="`vl_model_id` is None, so none is loaded"):
        paint_with(silent, PICTURE)


def test_from_ours_the_vl_parts_come_along() -> None:
    source = tiny_pipeline()
    ours = quiet(ZImageVLPipeline.from_pipe(source))
    assert ours.components == source.components
    same(paint_with(ours, PICTURE), paint_with(source, PICTURE))
    mine = tiny_vl_encoder(seed=7)
    assert ZImageVLPipeline.from_pipe(source, vl_encoder=mine).vl_encoder is mine


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_a_dtype_that_is_asked_for_is_given_to_all(name: str) -> None:
    ours = ZImageVLPipeline.from_pipe(make_parent(mixed_pipeline()), **{name: torch.bfloat16}, **vl_parts())
    assert set(types_of(ours).values()) == {torch.bfloat16}


def test_what_does_not_fit_is_named() -> None:
    source = make_parent(tiny_pipeline())
    with pytest.raises(TypeError, match=r"Unexpected arguments \['vl_alpha'\]; ZImageVLPipeline takes"):
        ZImageVLPipeline.from_pipe(source, vl_alpha=0.3)
    with pytest.raises(ValueError, match=r"expected hidden size 32.*got 16"):
        ZImageVLPipeline.from_pipe(source, vl_encoder=tiny_vl_encoder(16))

    class WithControlNet(ZImagePipeline):
        def __init__(self, scheduler, vae, text_encoder, tokenizer, transformer, controlnet):
            super().__init__(scheduler, vae, text_encoder, tokenizer, transformer)
            self.register_modules(controlnet=controlnet)

    with pytest.raises(ValueError, match=r"ZImageVLPipeline has no \['controlnet'\], which WithControlNet needs"):
        tiny_pipeline().to_pipe(WithControlNet)


# ---- And back ----


@pytest.mark.parametrize("pipeline_class", [ZImagePipeline, ZImageImg2ImgPipeline])
def test_the_way_back_casts_nothing(pipeline_class: Any) -> None:
    ours = mixed_pipeline()
    before = types_of(ours)
    other = ours.to_pipe(pipeline_class)
    assert type(other) is pipeline_class
    assert all(getattr(ours, name) is part for name, part in other.components.items())
    assert types_of(ours) == before


def test_plain_and_image_to_image_paint_with_our_embeddings() -> None:
    ours = tiny_pipeline()
    ready = ours.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    plain, other = (quiet(ours.to_pipe(kind)) for kind in (ZImagePipeline, ZImageImg2ImgPipeline))
    same(paint(plain, None, prompt_embeds=ready.prompt_embeds), paint_with(ours, PICTURE))
    start = {"image": make_picture(3, (32, 32)), "strength": 1.0, "output_type": "np"}
    settings = {**SMALL, **start, "num_inference_steps": 4}
    with_reference = other(prompt_embeds=ready.prompt_embeds, generator=seeded(), **settings).images
    assert np.abs(with_reference - other(PROMPT, generator=seeded(), **settings).images).max() > 1e-4


def test_diffusers_own_way_back_casts_all_but_the_vl_parts_unless_told() -> None:
    # When this fails diffusers has mended it (issue 12754), and `to_pipe` and its advice can go.
    ours = tiny_pipeline().to(dtype=torch.bfloat16)
    told = ZImageImg2ImgPipeline.from_pipe(ours, **{DTYPE: torch.bfloat16})
    assert set(types_of(ours).values()) == set(types_of(told).values()) == {torch.bfloat16}
    ZImagePipeline.from_pipe(ours)
    assert types_of(ours) == {**dict.fromkeys(types_of(ours), torch.float32), "vl_encoder": torch.bfloat16}
    assert np.isfinite(paint_with(ours, PICTURE)).all()


# ---- Under model offload ----


def offloaded_plain() -> Any:
    plain = make_parent(tiny_pipeline(with_vl=False))
    plain.enable_model_cpu_offload(device="cpu")
    return plain


@pytest.fixture(scope="module")
def vl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vl")
    tiny_vl_encoder().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("make", ["from_pipe", "components"])
def test_ours_from_an_offloaded_pipeline_is_offloaded(table: Table, vl_folder: Path, make: str, lazy: bool) -> None:
    plain = offloaded_plain()
    parts = {"vl_model_id": str(vl_folder)} if lazy else vl_parts()
    if make == "from_pipe":
        ours = ZImageVLPipeline.from_pipe(plain, **parts)
    else:
        ours = ZImageVLPipeline(**plain.components, **parts)
    expected = paint_with(tiny_pipeline(), PICTURE)
    same(paint_with(quiet(ours), PICTURE), expected)
    with run_where_resident(ours, table):
        same(paint_with(ours, PICTURE), expected)
    assert hooks_of(ours)["vl_encoder"] is hooks_of(ours)["text_encoder"] is not type(None)
    assert table.most == 1
    assert table.resident == {}


def test_plain_and_ours_in_turn(table: Table) -> None:
    ours = tiny_pipeline()
    ours.enable_model_cpu_offload(device="cpu")
    plain = quiet(ours.to_pipe(ZImagePipeline))
    expected, text = paint_with(tiny_pipeline(), PICTURE), paint(make_parent(tiny_pipeline()))
    for _ in range(3):
        same(paint(plain), text)
        with run_where_resident(ours, table):
            same(paint_with(ours, PICTURE), expected)
        ready = ours.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
        ours.encode_reference(PICTURE, layers=(-2,))
        same(paint(plain), text)
        same(paint(plain, None, prompt_embeds=ready.prompt_embeds), expected)
        ours.text_statistics()
    assert table.most == 1


def test_a_plain_pipeline_without_offload_of_its_own(table: Table) -> None:
    ours = tiny_pipeline()
    ours.enable_model_cpu_offload(device="cpu")
    plain = quiet(ZImagePipeline(**ours.z_image_components))  # runs under our hooks, and leaves the VAE
    for _ in range(3):
        with run_where_resident(ours, table):
            paint_with(ours, PICTURE)
        with run_where_resident(ours, table):
            paint(plain)
    assert table.most == 1
    assert list(table.resident.values()) == [ours.vae]


def test_image_to_image_leaves_nothing_behind(table: Table) -> None:
    ours = tiny_pipeline()
    ours.enable_model_cpu_offload(device="cpu")
    other = quiet(ours.to_pipe(ZImageImg2ImgPipeline))
    ready = ours.encode_prompt_with_reference(PROMPT, PICTURE, do_classifier_free_guidance=False, **KNOBS)
    assert table.most == 1
    settings = {**SMALL, "num_inference_steps": 4}
    other(prompt_embeds=ready.prompt_embeds, image=make_picture(3, (32, 32)), strength=1.0, **settings)
    assert table.resident == {}
    table.most = 0  # diffusers' own image-to-image keeps the VAE beside the transformer
    same(paint_with(ours, PICTURE), paint_with(tiny_pipeline(), PICTURE))
    assert table.most == 1


def test_a_model_that_another_pipeline_left_is_sent_away_first(table: Table) -> None:
    ours = tiny_pipeline()
    ours.enable_model_cpu_offload(device="cpu")
    ours.vae._hf_hook.pre_forward(ours.vae)  # as a pipeline without offload of its own leaves the last that ran
    assert len(table.resident) == 1
    paint_with(ours, PICTURE)
    ours.transformer._hf_hook.pre_forward(ours.transformer)
    ours.encode_prompt(PROMPT)
    assert table.most == 1
