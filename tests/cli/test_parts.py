"""Parts of models from a folder: only what is needed, and the same as the whole pipeline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from test_patch_grid import noise

from tiny_models import tiny_components, tiny_image_processor, tiny_pipeline, tiny_vl_encoder
from zimage_vl.cli._parts import load_reference_reader, load_text_side
from zimage_vl.pipeline.text_statistics import fingerprint_text_encoder


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Z-Image in diffusers' layout."""
    folder = tmp_path_factory.mktemp("z_image")
    ZImagePipeline(**tiny_components()).save_pretrained(folder)
    for name in ("transformer", "vae"):  # whoever reads them fails
        for file in (folder / name).iterdir():
            file.unlink()
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL with its image processor."""
    folder = tmp_path_factory.mktemp("qwen")
    tiny_vl_encoder().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


def reader_of(model: object, vl_model: object = None) -> Any:
    name = None if vl_model is None else str(vl_model)
    return load_reference_reader(str(model), name, torch.float32, "cpu", None)


def read(reader: Any) -> Any:
    return reader.read(noise((64, 48)), "a red circle", (-2, -3), text_position="after", max_pixels=1024 * 1024)


def test_a_reader_needs_a_tokenizer_and_a_vl_model(z_image: Path, qwen: Path) -> None:
    embeds = read(reader_of(z_image, qwen))
    expected = tiny_pipeline().encode_reference(noise((64, 48)), "a red circle", (-2, -3))
    for layer in (-2, -3):
        assert torch.equal(embeds.hidden_states[layer], expected.hidden_states[layer])
    assert torch.equal(embeds.regions, expected.regions)
    assert embeds.provenance.model_id == str(qwen)


def test_a_reader_takes_the_vl_model_saved_with_the_pipeline(qwen: Path, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    reader = reader_of(tmp_path)
    assert reader.model_id == str(tmp_path)
    assert torch.equal(
        read(reader).hidden_states[-2],
        pipe.encode_reference(noise((64, 48)), "a red circle", (-2,)).hidden_states[-2],
    )
    assert reader_of(tmp_path, qwen).model_id == str(qwen)


def test_a_model_that_names_no_vl_model_is_refused(tmp_path: Path) -> None:
    tiny_pipeline(with_vl=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no VL model to read with: add --vl-model"):
        reader_of(tmp_path)


def test_a_vl_model_of_another_width_is_refused(z_image: Path, tmp_path: Path) -> None:
    tiny_vl_encoder(width=64).save_pretrained(tmp_path)
    tiny_image_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="64"):
        reader_of(z_image, tmp_path)


def test_layers_that_there_are_not_are_refused(z_image: Path, qwen: Path) -> None:
    with pytest.raises(ValueError, match="Layer -9 is out of range"):
        reader_of(z_image, qwen).check_layers((-2, -9))


def test_a_text_side_encodes_prompts_as_the_pipeline_does(z_image: Path) -> None:
    pipe = load_text_side(str(z_image), torch.float32, "cpu", None)
    whole = tiny_pipeline(with_vl=False)
    with torch.no_grad():
        embeds, expected = (
            p.encode_prompt("a red circle", do_classifier_free_guidance=False)[0][0] for p in (pipe, whole)
        )
    assert torch.equal(embeds, expected)
    assert fingerprint_text_encoder(pipe.text_encoder) == fingerprint_text_encoder(whole.text_encoder)
    assert pipe.transformer is None


def test_the_toy_comes_in_the_dtype_asked_for() -> None:
    pipe = load_text_side("toy", torch.bfloat16, "cpu", None)
    assert pipe.text_encoder.dtype == torch.bfloat16
    reader = load_reference_reader("toy", None, torch.bfloat16, "cpu", None)
    assert read(reader).hidden_states[-2].dtype == torch.bfloat16
    assert reader.model_id == "toy"


@pytest.mark.parametrize("load", [load_text_side, lambda *a: load_reference_reader(a[0], None, *a[1:])])
def test_a_folder_without_a_model_is_named(load: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"--model '.*' could not be loaded"):
        load(str(tmp_path), torch.float32, "cpu", None)
