"""`zimage-vl generate` in rounds, over a start picture, with statistics from a file: on the toy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_calls import call
from zimage_vl.cli._painting import StartPicture, choose_size, describe_start
from zimage_vl.pipeline.text_statistics import TextStatistics
from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
from zimage_vl.workflows.image_to_image import paint_from_image


PROMPT = "a red circle on a white background"
REFERENCE, START = draw_scene(Scene("square", "blue", "black")), draw_scene(Scene("circle", "green", "gray"))
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 0.0, "height": 64, "width": 64}
same = np.testing.assert_array_equal


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    REFERENCE.save(tmp_path / "reference.png")
    START.save(tmp_path / "start.png")
    return tmp_path


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generate(capsys: Any, folder: Path, *options: object, reference: bool = True) -> Any:
    given = ["-r", folder / "reference.png"] if reference else []
    fixed = ["-p", PROMPT, "-o", folder / "out.png", "--seed", 5, "--steps", 3]
    return call(capsys, "generate", *fixed, *given, *options)


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")), json.loads(image.info["parameters"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_round_is_kept_and_feeds_the_next(capsys: Any, folder: Path, pipe: Any) -> None:
    done = generate(capsys, folder, "--iterations", 2, "--alpha", 0.5, "--num-images", 2, "--reference-weights", 1)
    assert done.code == 0, done.err
    paths = [folder / f"out-{image}-round{number}.png" for image in (0, 1) for number in (1, 2)]
    assert done.out.split() == [str(path) for path in paths]
    assert not (folder / "out.png").exists()
    for seed, (first, second) in {5: paths[:2], 6: paths[2:]}.items():
        expected: Any = REFERENCE
        for number, path in enumerate((first, second), start=1):
            expected = pipe(PROMPT, reference_image=expected, vl_alpha=0.5, generator=seeded(seed), **SETTINGS)
            pixels, said = read(path)
            same(pixels, np.asarray(expected.images[0]))
            assert (said["seed"], said["round"], said["iterations"]) == (seed, number, 2)
            assert said["report"][0]["influence"] == expected.conditioning[0].influence
            expected = expected.images[0]
        assert read(first)[1]["references"][0]["name"] == "reference.png"
        assert read(first)[1]["knobs"]["reference_weights"] == [1.0]
        said = read(second)[1]
        assert said["references"] == [{"option": "--iterations", "name": first.name, "sha256": sha256(first)}]
        assert said["knobs"]["reference_weights"] is None


def test_rounds_as_json(capsys: Any, folder: Path) -> None:
    done = generate(capsys, folder, "--iterations", 2, "--format", "json")
    said = json.loads(done.out)
    assert said["outputs"] == [entry["output"] for entry in said["rounds"]]
    assert [entry["round"] for entry in said["rounds"]] == [1, 2]
    assert said["rounds"][0]["report"] != said["rounds"][1]["report"]
    assert "report" not in said


def test_a_start_picture_is_painted_over(capsys: Any, folder: Path, pipe: Any) -> None:
    options = ["--init-image", folder / "start.png", "--strength", 0.5, "--recipe", "calibrated", "--alpha", 0.5]
    done = generate(capsys, folder, *options)
    assert done.code == 0, done.err
    knobs = {"vl_alpha": 0.5, "vl_normalization": "token_rms", "vl_exclude_sinks": True, "vl_alignment": "pool"}
    expected = paint_from_image(
        pipe, PROMPT, START, 0.5, reference_image=REFERENCE, generator=seeded(5), **SETTINGS, **knobs
    )
    pixels, said = read(folder / "out.png")
    same(pixels, np.asarray(expected.images[0]))
    assert said["init_image"] == {
        "option": "--init-image",
        "name": "start.png",
        "sha256": sha256(folder / "start.png"),
        "strength": 0.5,
        "steps_run": 2,
    }
    assert said["report"][0]["influence"] > 0


def test_a_start_picture_with_embeddings_with_rounds_and_alone(capsys: Any, folder: Path, pipe: Any) -> None:
    start = ["--init-image", folder / "start.png"]
    assert generate(capsys, folder, *start, "--num-images", 2).code == 0
    pictures = [read(folder / f"out-{index}.png")[0] for index in (0, 1)]
    pipe.encode_reference(REFERENCE, PROMPT).save(folder / "embeds.safetensors")
    assert generate(capsys, folder, *start, "--embeds", folder / "embeds.safetensors", reference=False).code == 0
    same(read(folder / "out.png")[0], pictures[0])
    assert generate(capsys, folder, *start, "--iterations", 2).code == 0
    same(read(folder / "out-round1.png")[0], pictures[0])
    assert (read(folder / "out-round2.png")[0] != pictures[0]).any()
    assert generate(capsys, folder, *start, "--seed", 6).code == 0
    same(read(folder / "out.png")[0], pictures[1])
    assert generate(capsys, folder, *start, reference=False).code == 0
    assert (read(folder / "out.png")[0] != pictures[0]).any()
    assert read(folder / "out.png")[1]["report"] is None


def test_embeddings_cannot_be_refined(capsys: Any, folder: Path, pipe: Any) -> None:
    pipe.encode_reference(REFERENCE, PROMPT).save(folder / "embeds.safetensors")
    done = generate(capsys, folder, "--embeds", folder / "embeds.safetensors", "--iterations", 2, reference=False)
    assert (done.code, done.out) == (2, "")
    assert "--iterations above 1 cannot be had with --embeds" in done.err
    assert generate(capsys, folder, "--embeds", folder / "embeds.safetensors", reference=False).code == 0


def test_statistics_from_a_file(capsys: Any, folder: Path) -> None:
    file = folder / "toy.safetensors"
    assert call(capsys, "statistics", "-o", file).code == 0
    options = ["--normalization", "per_dim", "--alpha", 0.5]
    assert generate(capsys, folder, *options).code == 0
    measured = read(folder / "out.png")
    assert measured[1]["statistics"] is None
    assert generate(capsys, folder, *options, "--statistics", file).code == 0
    given = read(folder / "out.png")
    same(given[0], measured[0])
    assert given[1]["statistics"] == {"name": "toy.safetensors", "sha256": sha256(file)}
    useless = generate(capsys, folder, "--statistics", file)
    assert (useless.code, "--statistics would do nothing" in useless.err) == (2, True)
    other = generate(capsys, folder, *options, "--statistics", file, "--exclude-sinks")
    assert (other.code, "measured with --include-sinks" in other.err) == (2, True)


def test_statistics_of_another_model_are_refused(capsys: Any, folder: Path) -> None:
    from tiny_models import tiny_pipeline

    TextStatistics.measure(tiny_pipeline(with_vl=False), "tiny").save(folder / "tiny.safetensors")
    done = generate(capsys, folder, "--normalization", "per_dim", "--statistics", folder / "tiny.safetensors")
    assert (done.code, "of 'tiny', which is 32 wide" in done.err) == (2, True)


def test_the_size_follows_the_start_picture(capsys: pytest.CaptureFixture[str]) -> None:
    wide = StartPicture(Image.new("RGB", (400, 200)), 0.6, {})
    nothing: dict[str, Any] = {"size": None, "width": None, "height": None}
    assert choose_size(nothing, 1024, None) == (1024, 1024)
    assert choose_size(nothing, 1024, wide) == (1456, 720)
    assert choose_size({**nothing, "width": 512}, 1024, wide) == (512, 256)
    assert choose_size({**nothing, "height": 512}, 1024, wide) == (1024, 512)
    assert choose_size({**nothing, "size": "64x64"}, 1024, wide) == (64, 64)
    assert choose_size({**nothing, "width": 32, "height": 64}, 1024, wide) == (32, 64)
    with pytest.raises(ValueError, match="multiples of 16"):
        choose_size({**nothing, "width": 50}, 1024, wide)
    assert describe_start(None, 9) is None
    assert describe_start(wide, 9) == {"strength": 0.6, "steps_run": 6}
    assert capsys.readouterr().err == ""
    assert describe_start(StartPicture(wide.image, 0.95, {}), 9) == {"strength": 0.95, "steps_run": 9}
    assert "nothing of the start picture is left" in capsys.readouterr().err
