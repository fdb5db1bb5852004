"""Parts of models from a folder: only what is needed, the same as the whole pipeline's, and failures in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from diffusers import ZImagePipeline
from huggingface_hub import constants

from cli_calls import call
from tiny_models import tiny_components, tiny_image_processor, tiny_pipeline, tiny_vl_encoder
from zimage_vl.cli._parts import load_reference_reader, load_text_side, paint_in_stages, read_index
from zimage_vl.cli._shared import load_pipeline
from zimage_vl.reference.readers import fingerprint_text_encoder
from zimage_vl.toy import Scene, draw_scene


PICTURE = draw_scene(Scene("circle", "red", "white"))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with its VL encoder, as one folder."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_pipeline().save_pretrained(folder)
    return folder


def reader_of(model: object, vl_model: object = None) -> Any:
    name = None if vl_model is None else str(vl_model)
    return load_reference_reader(str(model), name, torch.float32, "cpu", None)


def read(reader: Any) -> Any:
    return reader.read(PICTURE, "a red circle", (-2, -3), text_position="after", max_pixels=1024 * 1024)


def test_a_reader_needs_a_tokenizer_and_a_vl_model(z_image: Path, qwen: Path) -> None:
    embeds = read(reader_of(z_image, qwen))
    expected = tiny_pipeline().encode_reference(PICTURE, "a red circle", (-2, -3))
    for layer in (-2, -3):
        assert torch.equal(embeds.hidden_states[layer], expected.hidden_states[layer])
    assert torch.equal(embeds.regions, expected.regions)
    assert embeds.provenance.model_id == str(qwen)


def test_a_reader_takes_the_vl_model_saved_with_the_pipeline(whole: Path, qwen: Path) -> None:
    reader = reader_of(whole)
    assert reader.model_id == str(whole)
    assert reader.load() is reader.load()
    expected = tiny_pipeline().encode_reference(PICTURE, "a red circle", (-2,))
    assert torch.equal(read(reader).hidden_states[-2], expected.hidden_states[-2])
    assert reader_of(whole, qwen).model_id == str(qwen)


def test_vl_models_that_do_not_serve_are_refused(z_image: Path, tmp_path: Path) -> None:
    tiny_pipeline(with_vl=False).save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match="names no VL model to read with: add --vl-model"):
        reader_of(tmp_path / "without")
    tiny_vl_encoder(width=64).save_pretrained(tmp_path / "wide")
    tiny_image_processor().save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="64"):
        reader_of(z_image, tmp_path / "wide")


def test_a_text_side_encodes_prompts_as_the_pipeline_does(z_image: Path) -> None:
    pipe, own = load_text_side(str(z_image), torch.float32, "cpu", None), tiny_pipeline(with_vl=False)
    with torch.no_grad():
        embeds, expected = (
            p.encode_prompt("a red circle", do_classifier_free_guidance=False)[0][0] for p in (pipe, own)
        )
    assert torch.equal(embeds, expected)
    assert fingerprint_text_encoder(pipe.text_encoder) == fingerprint_text_encoder(own.text_encoder)
    assert pipe.transformer is None


def test_the_toy_comes_in_the_dtype_asked_for() -> None:
    assert load_text_side("toy", torch.bfloat16, "cpu", None).text_encoder.dtype == torch.bfloat16
    reader = load_reference_reader("toy", None, torch.bfloat16, "cpu", None)
    assert read(reader).hidden_states[-2].dtype == torch.bfloat16
    assert reader.model_id == "toy"


# Each way to load, from a folder: what it reads, and a call that loads it.
LOADERS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "all": (
        ("text_encoder", "transformer", "vae", "vl_encoder"),
        lambda folder: load_pipeline(folder, None, torch.float32, None),
    ),
    "text side": (("text_encoder",), lambda folder: load_text_side(folder, torch.float32, "cpu", None)),
    "reader": (("vl_encoder",), lambda folder: reader_of(folder).load()),
    "stages": (
        ("text_encoder", "transformer", "vl_encoder"),
        lambda folder: paint_in_stages(
            folder, None, None, torch.float32, "cpu", "x", reference_image=PICTURE, height=32, width=32
        ),
    ),
}


@pytest.mark.parametrize("way", LOADERS)
def test_damaged_folders_are_named_in_a_line(way: str, whole: Path, tmp_path: Path) -> None:
    parts, load = LOADERS[way]
    broken = tmp_path / "broken"
    for part in parts:
        shutil.copytree(whole, broken)
        (weights,) = (broken / part).glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        with pytest.raises(OSError, match=f"--model '{broken}' could not be loaded: .+"):
            load(str(broken))
        shutil.rmtree(broken)
    broken.mkdir()
    with pytest.raises(OSError, match=r"it has no model_index\.json"):
        load(str(broken))
    for text, reason in (("[1]", "no JSON object"), ("{", "is no JSON"), ("[" * 100_000, "is no JSON")):
        (broken / "model_index.json").write_text(text)
        with pytest.raises(OSError, match=f"could not be loaded: its model_index.json .*{reason}"):
            load(str(broken))


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_nothing_cached_is_a_sentence(
    offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def no_network(*_: object, **__: object) -> Any:
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} does not answer"
    sentence = (
        f"is not in the local cache and cannot be downloaded: {reason}. Connect, or pass the path of a folder with "
        "the model's files: --model FOLDER."
    )
    output = ("-o", tmp_path / "out.png")
    for command in (
        ("generate", "-p", "x", *output),
        ("generate", "-p", "x", *output, "--low-memory"),
        ("statistics",),
    ):
        done = call(capsys, *command, "--model", "someone/nothing", "--device", "cpu")
        done.refused(f"Error: --model 'someone/nothing' {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_vl_model_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"--vl-model 'someone/vl' is not in the local cache .* --vl-model FOLDER\."):
        reader_of(whole, "someone/vl")
    assert read_index(str(whole), None)["vl_encoder"][0] is not None
