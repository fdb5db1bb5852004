"""Models by name: only what is needed, the same as the whole pipeline's, and failures in one line."""

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
from zimage_vl.cli._models import Model, choose_device
from zimage_vl.reference.readers import fingerprint_text_encoder
from zimage_vl.toy import Scene, draw_scene


PICTURE, LAYERS = draw_scene(Scene("circle", "red", "white")), (-2, -3)


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Z-Image in diffusers' layout; whoever reads its transformer or VAE fails."""
    folder = tmp_path_factory.mktemp("z_image")
    ZImagePipeline(**tiny_components()).save_pretrained(folder)
    for file in (file for name in ("transformer", "vae") for file in (folder / name).iterdir()):
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


def model_of(folder: object, vl_model: object = None) -> Model:
    return Model(str(folder), None if vl_model is None else str(vl_model), None, "cpu", "float32")


@pytest.mark.parametrize("vl_reader", ["qwen3-vl", "text_encoder"])
def test_a_reader_reads_as_the_pipeline_does(vl_reader: Any, z_image: Path, qwen: Path, whole: Path) -> None:
    expected = tiny_pipeline().encode_reference(PICTURE, "a red circle", LAYERS, vl_reader=vl_reader)
    for model, origin in ((model_of(z_image, qwen), qwen), (model_of(whole), whole), (model_of(whole, qwen), qwen)):
        reader = model.load_reader(vl_reader, LAYERS)
        embeds = reader.encode_reference(PICTURE, "a red circle", LAYERS, vl_reader=vl_reader)
        assert all(torch.equal(embeds.hidden_states[layer], expected.hidden_states[layer]) for layer in LAYERS)
        assert torch.equal(embeds.regions, expected.regions)
        assert str(embeds.provenance.model_id).startswith(str(origin))
        assert reader.transformer is reader.vae is None


def test_readers_that_do_not_serve_are_refused(z_image: Path, qwen: Path, tmp_path: Path) -> None:
    tiny_pipeline(with_vl=False).save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match="names no VL model to read with: add --vl-model"):
        model_of(tmp_path / "without").load_reader("qwen3-vl", (-2,))
    tiny_vl_encoder(width=64).save_pretrained(tmp_path / "wide")
    tiny_image_processor().save_pretrained(tmp_path / "wide")
    for path in (tmp_path / "wide").glob("*.safetensors"):
        path.unlink()  # the weights are not even looked at
    with pytest.raises(OSError, match=r"--vl-model .*wide.* could not be loaded: .*64"):
        model_of(z_image, tmp_path / "wide").load_reader("qwen3-vl", (-2,))
    with pytest.raises(ValueError, match="Layer -9 is out of range"):
        model_of(z_image, qwen).load_reader("qwen3-vl", (-9,))


def test_a_text_side_encodes_prompts_as_the_pipeline_does(z_image: Path) -> None:
    pipe, own = model_of(z_image).load_text_side(), tiny_pipeline(with_vl=False)
    with torch.no_grad():
        embeds, expected = (
            p.encode_prompt("a red circle", do_classifier_free_guidance=False)[0][0] for p in (pipe, own)
        )
    assert torch.equal(embeds, expected)
    assert fingerprint_text_encoder(pipe.text_encoder) == fingerprint_text_encoder(own.text_encoder)
    assert pipe.transformer is None


def test_the_vl_model_asked_for_takes_precedence(whole: Path, qwen: Path) -> None:
    pipe = model_of(whole, qwen).load()
    assert (pipe.vl_encoder, pipe.config["vl_model_id"]) == (None, str(qwen))
    assert model_of(whole).load().vl_encoder is not None


def test_the_toy_comes_in_the_dtype_asked_for() -> None:
    toy = Model("toy", None, None, "cpu", "bfloat16")
    assert toy.load_text_side().text_encoder.dtype == torch.bfloat16
    embeds = toy.load_reader("qwen3-vl", (-2,)).encode_reference(PICTURE, "", (-2,))
    assert (embeds.hidden_states[-2].dtype, embeds.provenance.model_id) == (torch.bfloat16, "toy")
    assert Model().defaults == (64, 8)
    assert (Model().dtype, Model().describe()["model"]) == ("float32", "toy")


# Each way to load, from a folder: what it reads, and a call that loads it.
LOADERS: dict[str, tuple[tuple[str, ...], Callable[[Model], Any]]] = {
    "all": (("text_encoder", "transformer", "vae", "vl_encoder"), Model.load),
    "text side": (("text_encoder",), Model.load_text_side),
    "reader": (("vl_encoder",), lambda model: model.load_reader("qwen3-vl", (-2,))),
    "stages": (
        ("text_encoder", "transformer", "vl_encoder"),
        lambda model: model.paint_in_stages("x", reference_image=PICTURE, height=32, width=32),
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
            load(model_of(broken))
        shutil.rmtree(broken)


def test_what_is_no_pipeline_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = (
        ("generate", "-p", "x", "-r", "gone.png", "-o", "x.png"),
        ("extract", "gone.png", "-o", "gone/out"),
        ("statistics",),
        ("evidence", "--pictures", "gone.png", "--prompts", "x"),
    )
    for text in (None, "[1]", "{", "[" * 100_000):
        if text is not None:
            (tmp_path / "model_index.json").write_text(text)
        for command in commands:
            done = call(capsys, *command, "--model", tmp_path)
            done.refused(f"--model '{tmp_path}' could not be loaded: ")
            assert len(done.err.splitlines()) == 2  # which model, and why not
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("[]")
    done = call(capsys, *commands[0], "--model", tmp_path)
    done.refused(f"--model '{tmp_path}' could not be loaded: vae/config.json holds no JSON object")


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_nothing_cached_is_a_sentence(
    offline: bool, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def no_network(*_: object, **__: object) -> Any:
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} does not answer"
    sentence = f"is not in the local cache and cannot be downloaded: {reason}. Connect, or pass the path of a folder"
    paint = ("generate", "-p", "x", "-o", tmp_path / "out.png")
    for command in (paint, (*paint, "--low-memory"), ("statistics",), ("extract", "x.png", "-o", tmp_path / "out")):
        done = call(capsys, *command, "--model", "someone/nothing", "--device", "cpu")
        done.refused(f"Error: --model 'someone/nothing' {sentence} with the model's files: --model FOLDER.")
    PICTURE.save(tmp_path / "x.png")
    done = call(
        capsys, *paint, "-r", tmp_path / "x.png", "--model", whole, "--vl-model", "someone/vl", "--device", "cpu"
    )
    done.refused(f"Error: --vl-model 'someone/vl' {sentence} with the model's files: --vl-model FOLDER.")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device(None) in ("cpu", "cuda", "mps")
    for device in (f"cuda:{torch.cuda.device_count()}", "gpu", "hpu"):
        with pytest.raises(ValueError, match=f"--device '{device}' cannot be used here: .+"):
            choose_device(device)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "turbo", "a/b/c", "a/\x1b", "a b/c"])
def test_what_is_no_model_is_refused_without_asking_a_hub(name: str, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"--model '.*' is neither a folder .*, nor 'toy'\."):
        Model(name)
    with pytest.raises(ValueError, match=r"--vl-model '.*' is neither a folder .* \(owner/name\)\."):
        Model(str(whole), name)
    with pytest.raises(ValueError, match="--vl-model does nothing with --model toy"):
        Model("toy", "a/b")
    with pytest.raises(ValueError, match="--revision does nothing with --model toy"):
        Model("toy", None, "main")
