"""The packed checkpoint: whole, small, unchanged, and a pipeline of the real classes."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Model, Qwen3VLForConditionalGeneration

from zimage_vl.toy import Scene, draw_scene, judge, load_toy_pipeline
from zimage_vl.toy.loading import CHECKPOINT


MANIFEST = json.loads((CHECKPOINT / "manifest.json").read_text())


@pytest.fixture(scope="module")
def pipe():
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_files_are_those_of_the_manifest_which_tells_how_it_was_trained_and_small():
    files = {p.relative_to(CHECKPOINT).as_posix(): p for p in CHECKPOINT.rglob("*") if p.is_file()}
    del files["manifest.json"]
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert digests == MANIFEST["sha256"]
    assert sum(path.stat().st_size for path in files.values()) <= 14 * 2**20
    assert {"seed", "command", "versions", "stages"} <= set(MANIFEST)
    assert set(MANIFEST["stages"]) == {"tokenizer", "vae", "text_encoder", "vl_encoder", "transformer"}


def test_it_is_made_of_the_real_classes_and_no_weight_is_random(pipe):
    again, classes = load_toy_pipeline(), {"vae": AutoencoderKL, "transformer": ZImageTransformer2DModel}
    classes |= {"text_encoder": Qwen3Model, "vl_encoder": Qwen3VLForConditionalGeneration}
    for name, kind in classes.items():
        model, other = getattr(pipe, name), getattr(again, name).state_dict()
        assert type(model) is kind
        assert not model.training
        assert all(torch.equal(weight, other[key]) for key, weight in model.state_dict().items()), name
    assert pipe.config.vl_model_id is None


def test_it_paints_what_the_prompt_says(pipe):
    scenes = [Scene("circle", "red", "white"), Scene("cross", "cyan", "black"), Scene("square", "yellow", "gray")]
    images = pipe(
        [scene.caption() for scene in scenes],
        height=64,
        width=64,
        num_inference_steps=8,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    ).images
    right = [judge(image).matches(scene) for image, scene in zip(images, scenes, strict=True)]
    assert sum(sum(matches.values()) for matches in right) >= 8  # of nine attributes


def test_the_vl_encoder_reads_a_large_photo_within_the_toy_s_own_bound(pipe):
    large = draw_scene(Scene("circle", "red", "white")).resize((640, 480))
    assert pipe.encode_reference(large, "").num_image_tokens <= 256


def test_a_missing_checkpoint_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("zimage_vl.toy.loading.CHECKPOINT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train_toy\.py"):
        load_toy_pipeline()
