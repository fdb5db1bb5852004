"""How a picture was made: in its PNG, and as options again."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest
import torch

from zimage_vl.cli._records import as_options, get_package_versions, read_png, write_png


PICTURE = PIL.Image.new("RGB", (8, 8), "red")


def test_a_png_carries_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    parameters = {"prompt": "ein rotes Haus am Fluß 家", "seed": 2**40, "alpha": [0.5, None]}
    write_png(PICTURE, path, parameters)
    assert read_png(path) == parameters
    with PIL.Image.open(path) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ValueError, match="exists already"):
        write_png(PICTURE, path, parameters)


def test_pictures_of_others_have_no_record(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "plain.png")
    PICTURE.save(tmp_path / "a.jpg")
    (tmp_path / "text.png").write_text("no picture")
    write_png(PICTURE, tmp_path / "list.png", [1])  # pyright: ignore[reportArgumentType]
    for name in ("plain.png", "a.jpg", "text.png", "list.png"):
        with pytest.raises(ValueError, match=f"{name} holds "):
            read_png(tmp_path / name)


def test_knobs_are_options_again() -> None:
    knobs = {
        "vl_alpha": {"red house": 0.5, "default": 0.0},
        "vl_hidden_layer": {"-6": 1.0, "-8": 3.0},
        "reference_weights": [2.0, 1.0],
        "vl_exclude_sinks": True,
        "vl_text": "",
    }
    assert " ".join(as_options(knobs)) == (
        "--alpha 'red house=0.5' --alpha default=0.0 --layer -6:1.0,-8:3.0 --reference-weights 2.0,1.0 "
        "--exclude-sinks --vl-text ''"
    )


def test_versions_of_what_is_missing_are_none() -> None:
    assert get_package_versions(["torch", "no-such-package"]) == {"torch": torch.__version__, "no-such-package": None}
