"""Sweeps: each picture is the one of a single call, bit for bit, and what jobs share is done once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_calls import read_png
from sweep_samples import PROMPT, draw_references
from tally import load_toy_once
from zimage_vl.blend.report import make_jsonable
from zimage_vl.toy import Scene, draw_scene
from zimage_vl.workflows.manifest import MANIFEST, prepare_folder
from zimage_vl.workflows.sweep import count_operations, run_sweep
from zimage_vl.workflows.sweep_plan import SweepPlan


ORIGIN: dict[str, Any] = {"model": "toy", "device": "cpu", "dtype": "float32"}
PAINTING: dict[str, Any] = {"prompt": [PROMPT], "size": [(64, 64)], "steps": [1], "guidance": [0.0], "seed": [3]}


class Counted:
    """A pipeline that counts how often pictures are read and prompts encoded."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.read, self.encoded = pipe, list[str](), list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.pipe(*args, **kwargs)

    def encode_reference(self, picture: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        self.read.append(text)
        return self.pipe.encode_reference(picture, text, *args, **kwargs)

    def encode_prompt_with_reference(self, prompt: str, **kwargs: Any) -> Any:
        self.encoded.append(prompt)
        return self.pipe.encode_prompt_with_reference(prompt, **kwargs)


@pytest.fixture
def pipe() -> Any:
    return load_toy_once()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_references()
    Image.fromarray(np.repeat(np.uint8([[255], [0]]), 32, axis=0).repeat(64, axis=1)).save("mask.png")
    prepare_folder(tmp_path / "out")
    return tmp_path / "out"


def sweep(pipe: Any, folder: Path, axes: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return list(run_sweep(SweepPlan({**PAINTING, **axes}), folder, lambda: pipe, origin=ORIGIN, **more))


@pytest.mark.parametrize(
    "axes",
    [
        {"reference_image": ["a.png"], "vl_hidden_layer": [-2, {-6: 1, -4: 2}], "vl_alpha": [0.0, 0.5]},
        {"reference_image": ["a.png"], "vl_alpha": [{"circle": 1.0}, {"prompt": 0.5, "suffix": 0.2}]},
        {"reference_image": [["a.png", "b.png"]], "reference_weights": [[2, 1]], "reference_mask": ["mask.png"]},
        {"reference_image": ["a.png"], "vl_blend_mode": ["linear", "style_delta"], "vl_text": ["", "a square"]},
        {"reference_image": ["a.png"], "vl_blend_mode": ["style_delta"], "neutral_image": ["b.png"]},
        {"reference_image": ["a.png"], "vl_treatment": ["palette"], "vl_text_position": ["before"]},
        {"reference_image": ["a.png"], "vl_reader": ["text_encoder"], "vl_normalization": ["token_rms"]},
        {"reference_image": ["a.png"], "guidance": [3.0], "negative_prompt": [None, "blue"]},
        {"reference_image": ["a.png"], "guidance": [3.0], "negative_reference_image": ["b.png"]},
        {"reference_embeds": ["a.safetensors"], "vl_alpha": [0.5], "vl_alignment": ["pool", "anchored"]},
        {"guidance": [0.0, 3.0]},
    ],
    ids=lambda axes: " ".join(axes),
)
def test_each_picture_is_that_of_a_single_call(axes: dict[str, Any], folder: Path, pipe: Any) -> None:
    if "reference_embeds" in axes:
        pipe.encode_reference("a.png", PROMPT).save("a.safetensors")
    plan = SweepPlan({**PAINTING, **axes})
    rows = list(run_sweep(plan, folder, lambda: pipe, origin=ORIGIN))
    assert [row["status"] for row in rows] == ["done"] * len(plan), rows
    for number, row in enumerate(rows):
        job = plan[number]
        knobs = {name: value for name, value in job.items() if name not in PAINTING}
        if isinstance(knobs.get("reference_image"), list):
            knobs["reference_image"] = [knobs["reference_image"]]
        pipe.clear_reference_cache()
        expected = pipe(
            PROMPT,
            **knobs,
            height=64,
            width=64,
            num_inference_steps=1,
            guidance_scale=job["guidance"],
            generator=torch.Generator().manual_seed(3),
        )
        pixels, said = read_png(folder / row["file"])
        np.testing.assert_array_equal(pixels, np.asarray(expected.images[0]))
        report = expected.conditioning and [one.to_dict() for one in expected.conditioning]
        assert said["report"] == row["report"] == make_jsonable(report)
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]


def test_what_jobs_share_is_done_once(folder: Path, pipe: Any) -> None:
    counted = Counted(pipe)
    axes = {
        "prompt": [PROMPT, "a blue square"],
        "reference_image": ["a.png", "b.png"],
        "vl_hidden_layer": [-2, -6],
    }
    assert len(sweep(counted, folder, axes)) == 8
    assert counted.read == [PROMPT, "a blue square"] * 2
    assert counted.encoded == axes["prompt"]
    counted = Counted(pipe)
    axes["vl_text"] = [""]
    sweep(counted, folder, axes)
    assert (counted.read, counted.encoded) == (["", ""], axes["prompt"])


def test_only_what_is_missing_is_painted(folder: Path, pipe: Any) -> None:
    def statuses(axes: dict[str, Any], load: Any = lambda: pipe) -> list[str]:
        plan = SweepPlan({**PAINTING, "reference_image": ["a.png"], **axes})
        return [row["status"] for row in run_sweep(plan, folder, load, origin=ORIGIN)]

    alphas = {"vl_alpha": [0.3, 0.7]}
    assert statuses(alphas) == ["done", "done"]
    assert statuses(alphas, pytest.fail) == ["kept", "kept"]  # not even the models are loaded
    assert statuses({"vl_alpha": [0.5, 0.3]}) == ["done", "kept"]
    next((folder / "pictures").iterdir()).unlink()
    assert sorted(statuses({"vl_alpha": [0.3, 0.5, 0.7]})) == ["done", "kept", "kept"]
    draw_scene(Scene("circle", "red", "white")).save("a.png")  # another picture of the same name
    assert statuses(alphas, None) == ["planned", "planned"]
    assert statuses(alphas) == ["done", "done"]
    renamed = [*run_sweep(SweepPlan(PAINTING), folder, None, origin=ORIGIN, identity="another folder")]
    assert renamed[0]["status"] == "planned"


def test_a_bad_reference_is_a_line_and_a_bad_model_the_end(folder: Path, pipe: Any) -> None:
    Path("text.png").write_text("no picture")
    rows = sweep(pipe, folder, {"reference_image": ["text.png", "none.png", "a.png"]}, explain=lambda e: f"! {e}")
    assert [row["status"] for row in rows] == ["failed", "failed", "done"]
    assert rows[1]["error"] == "! `--reference` 'none.png' does not exist."
    assert (rows[1]["file"], rows[1]["references"][0]["sha256"]) == (None, None)
    assert [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()] == rows
    assert all(json.loads(line)["knobs"]["vl_treatment"] == "none" for line in (folder / MANIFEST).open())
    phrases = sweep(pipe, folder, {"reference_image": ["a.png"], "vl_alpha": [{"house": 1.0}]})
    assert "'house'" in phrases[0]["error"]

    def broken() -> Any:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        next(run_sweep(SweepPlan(PAINTING), folder, broken, origin=ORIGIN))
    with pytest.raises(ValueError, match="Layer -99 is out of range"):
        sweep(pipe, folder, {"reference_image": ["a.png"], "vl_hidden_layer": [-2, -99]})


def test_too_little_memory_is_a_line(folder: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def paint(*_: Any, **__: Any) -> Any:
        raise OutOfMemoryError("CUDA out of memory")

    counted = Counted(pipe)
    monkeypatch.setattr(Counted, "__call__", paint)
    assert sweep(counted, folder, {})[0]["error"] == "CUDA out of memory"
    monkeypatch.setattr(Counted, "__call__", lambda *_, **__: {}["a mistake of ours"])
    with pytest.raises(KeyError):
        sweep(counted, folder, {})


def test_operations_are_counted_by_hand() -> None:
    products, attention = 2 * 6.15e9 * 4224, 2 * 2 * 4224 * 4224 * 30 * 128 * 34  # 30 heads of 128
    assert count_operations(1024, 1024, 9) == pytest.approx(9 * (products + attention))
    assert count_operations(512, 1024, 4, guided=True) == 2 * count_operations(1024, 512, 4)
