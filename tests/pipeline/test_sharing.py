"""Pipelines made from one another share the modules as they are; saved folders carry their own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImageImg2ImgPipeline, ZImagePipeline
from transformers import Qwen3VLProcessor

from pipeline_samples import (
    differ,
    in_dtype,
    make_parent,
    make_picture,
    paint,
    paint_with,
    quiet,
    same,
    vl_parts,
)
from tiny_models import tiny_image_processor, tiny_pipeline, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.pipeline import sharing
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.pipeline.sharing import make_self_describing, read_single_file


PICTURE = make_picture(0)


def types_of(pipe: Any) -> dict[str, torch.dtype]:
    return {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def mixed_pipeline() -> Any:
    """Models of different types, as people have them."""
    pipe = tiny_pipeline().to(dtype=torch.bfloat16)
    pipe.vae.to(torch.float32)
    return pipe


def shared(made: Any, source: Any) -> bool:
    """All but the scheduler, of which each pipeline has its own."""
    return all(getattr(made, name) is part for name, part in source.components.items() if name != "scheduler")


# ---- To ours ----


@pytest.mark.parametrize("make", ["from_pipe", "components"])
def test_ours_over_a_plain_pipelines_modules(make: str) -> None:
    plain = make_parent(mixed_pipeline())
    before = types_of(plain)
    if make == "from_pipe":
        ours = quiet(ZImageVLPipeline.from_pipe(plain, **vl_parts()))
    else:
        ours = quiet(ZImageVLPipeline(**plain.components, **vl_parts()))
    assert shared(ours, plain)
    assert ours.scheduler is not plain.scheduler
    assert types_of(plain) == before
    assert before == {"vae": torch.float32, "text_encoder": torch.bfloat16, "transformer": torch.bfloat16}
    same(paint(ours), paint(plain))
    assert differ(paint_with(ours, PICTURE), paint(plain), 1e-3)
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
    with pytest.raises(ValueError, match="`vl_model_id` is None, so none is loaded"):
        paint_with(silent, PICTURE)


def test_from_ours_the_vl_parts_come_along_and_the_way_back_casts_nothing() -> None:
    source = mixed_pipeline()
    before, ours = types_of(source), quiet(ZImageVLPipeline.from_pipe(source))
    assert shared(ours, source)
    same(paint_with(ours, PICTURE), paint_with(source, PICTURE))
    mine = tiny_vl_encoder(seed=7)
    assert ZImageVLPipeline.from_pipe(source, vl_encoder=mine).vl_encoder is mine
    for kind in (ZImagePipeline, ZImageImg2ImgPipeline):
        other = source.to_pipe(kind)
        assert type(other) is kind
        assert shared(source, other)
    assert types_of(source) == before


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_a_dtype_that_is_asked_for_is_given_to_all(name: str) -> None:
    ours = ZImageVLPipeline.from_pipe(make_parent(mixed_pipeline()), **{name: torch.bfloat16}, **vl_parts())
    assert set(types_of(ours).values()) == {torch.bfloat16}


def test_what_does_not_fit_is_named() -> None:
    source = make_parent(tiny_pipeline())
    with pytest.raises(TypeError, match="ZImageVLPipeline.* unexpected keyword argument 'vl_alpha'"):
        ZImageVLPipeline.from_pipe(source, vl_alpha=0.3)
    with pytest.raises(ValueError, match=r"16.*32|32.*16"):
        ZImageVLPipeline.from_pipe(source, vl_encoder=tiny_vl_encoder(16))

    class WithControlNet(ZImagePipeline):
        def __init__(self, scheduler, vae, text_encoder, tokenizer, transformer, controlnet):
            super().__init__(scheduler, vae, text_encoder, tokenizer, transformer)
            self.register_modules(controlnet=controlnet)

    with pytest.raises(TypeError, match="WithControlNet.* missing .*'controlnet'"):
        tiny_pipeline().to_pipe(WithControlNet)


def test_diffusers_own_way_back_casts_all_but_the_vl_parts_unless_told() -> None:
    # When this fails diffusers has mended it (issue 12754), and `to_pipe` and its advice can go.
    ours = tiny_pipeline().to(dtype=torch.bfloat16)
    told = ZImageImg2ImgPipeline.from_pipe(ours, **in_dtype(torch.bfloat16))
    assert set(types_of(ours).values()) == set(types_of(told).values()) == {torch.bfloat16}
    ZImagePipeline.from_pipe(ours)
    assert types_of(ours) == {**dict.fromkeys(types_of(ours), torch.float32), "vl_encoder": torch.bfloat16}
    assert np.isfinite(paint_with(ours, PICTURE)).all()


# ---- A full processor ----


def full_processor() -> Any:
    """An instance of the real class with its parts by hand: to be built it needs torchvision, which is not here."""
    processor = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
    processor.image_processor = tiny_image_processor()
    processor.tokenizer, processor.video_processor = tiny_tokenizer(), None
    # Qwen3-VL's own template writes lists of content, with the picture's tokens in them; ours is not built with it.
    processor.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    return processor


def test_a_full_processor_gives_the_bits_of_its_image_processor_and_is_saved_as_it(tmp_path: Path) -> None:
    pipe, expected = tiny_pipeline(vl_processor=full_processor()), paint_with(tiny_pipeline(), PICTURE)
    same(paint_with(pipe, PICTURE), expected)
    pipe.vl_processor.tokenizer = None  # it is not asked: the pipeline's own serves
    pipe.clear_reference_cache()
    same(paint_with(pipe, PICTURE), expected)
    processor, config = pipe.vl_processor, dict(pipe.config)
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.vl_processor is processor
    assert {name: pipe.config[name] for name in config} == config  # diffusers adds its version
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text(encoding="utf-8"))
    assert index["vl_processor"] == ["transformers", type(processor.image_processor).__name__]
    same(paint_with(quiet(ZImageVLPipeline.from_pretrained(tmp_path / "saved")), PICTURE), expected)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r".*"):
        pipe.save_pretrained(tmp_path / "file" / "folder")
    assert pipe.vl_processor is processor


# ---- A saved folder's own code ----


def index(folder: Path) -> dict[str, object]:
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_pipeline().save_config(tmp_path)  # as save_pretrained calls it, before push_to_hub uploads
    return tmp_path


def test_the_folder_gets_the_code_and_names_it_and_twice_is_once(folder: Path) -> None:
    assert index(folder)["_class_name"] == ["pipeline", "ZImageVLPipeline"]
    assert (folder / "pipeline.py").read_text(encoding="utf-8") == read_single_file(ZImageVLPipeline)
    once = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(once) == ["model_index.json", "pipeline.py"]
    make_self_describing(str(folder), ZImageVLPipeline)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == once


@pytest.mark.parametrize("case", ["a replaced file", "a missing file"])
def test_what_could_not_load_by_itself_is_refused_and_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    before, error, match = index(folder), ValueError, "no longer the file this pipeline was loaded from"
    (folder / "pipeline.py").unlink()
    if case == "a replaced file":
        monkeypatch.setattr(sharing, "SINGLE_FILE_DIGEST", "0" * 64)  # as in a single file of other sources
    else:
        monkeypatch.setattr(sharing, "SINGLE_FILES", (folder / "gone.txt",))
        error, match = FileNotFoundError, "Install the package again"
    with pytest.raises(error, match=match):
        make_self_describing(folder, ZImageVLPipeline)
    assert index(folder) == before
    assert [path.name for path in folder.iterdir()] == ["model_index.json"]


def test_a_derived_class_is_refused_before_gigabytes_are_written(tmp_path: Path) -> None:
    class Mine(ZImageVLPipeline):
        pass

    with pytest.raises(ValueError, match=r"Mine is not defined in .*ZImageVLPipeline\(\*\*pipe\.components\)"):
        Mine(**tiny_pipeline().components).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
