"""Output files that are never half-written, and models that are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import PIL.Image
import pytest
import torch

from zimage_vl.cli._shared import (
    check_model_name,
    check_output_path,
    choose_device,
    get_package_versions,
    numbered_paths,
    write_png,
)


def test_a_png_carries_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    parameters = {"prompt": "ein rotes Haus am Fluß 家", "seed": 2**40, "alpha": [0.5, None]}
    write_png(PIL.Image.new("RGB", (8, 8), "red"), path, parameters)
    with PIL.Image.open(path) as image:
        assert json.loads(image.info["parameters"]) == parameters
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


class _BreaksHalfWay(PIL.Image.Image):
    """An image whose saving fails after some bytes, as on a full disk."""

    def save(self, fp: object, *arguments: object, **options: object) -> None:
        fp.write(b"half a picture")
        raise OSError(28, os.strerror(28))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match=os.strerror(28)):
        write_png(_BreaksHalfWay(), path, {})
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_output_paths_are_checked(tmp_path: Path) -> None:
    check_output_path(tmp_path / "a.PNG")
    for path, reason in (
        (tmp_path / "a.jpg", "must end in .png"),
        (tmp_path / "a", "must end in .png"),
        (tmp_path / "missing" / "a.png", "does not exist"),
    ):
        with pytest.raises(ValueError, match=reason):
            check_output_path(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a directory"):
        check_output_path(tmp_path / "folder.png")


def test_several_results_are_numbered() -> None:
    assert numbered_paths(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert numbered_paths(Path("a/b.png"), 3) == [Path("a/b-0.png"), Path("a/b-1.png"), Path("a/b-2.png")]


def test_versions_of_what_is_missing_are_none() -> None:
    assert get_package_versions(["torch", "no-such-package"]) == {"torch": torch.__version__, "no-such-package": None}


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device(None) in ("cpu", "cuda", "mps")
    for device in (f"cuda:{torch.cuda.device_count()}", "gpu"):
        with pytest.raises(ValueError, match=f"--device '{device}' cannot be used here: .+"):
            choose_device(device)


def test_what_may_be_a_model(tmp_path: Path) -> None:
    for model in ("toy", str(tmp_path), "Tongyi-MAI/Z-Image-Turbo"):
        check_model_name(model)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "turbo", "a/b/c"])
def test_what_is_no_model_is_refused_without_asking_a_hub(model: str) -> None:
    with pytest.raises(ValueError, match=rf"--model '{model}' is neither a folder"):
        check_model_name(model)
