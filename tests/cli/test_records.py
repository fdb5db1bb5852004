"""How a picture was made: in its PNG, and as options again."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import PIL.Image
import PIL.PngImagePlugin
import pytest

from cli_calls import call
from zimage_vl.cli._records import as_options, read_png, write_png


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
    for levels in (100, 900, 10**5):
        with open(tmp_path / f"{levels}.png", "wb") as file:
            text = PIL.PngImagePlugin.PngInfo()
            text.add_text("parameters", '{"seed": ' + "[" * levels + "]" * levels + "}")
            PICTURE.save(file, "PNG", pnginfo=text)
    for name in ("plain.png", "a.jpg", "text.png", "list.png", "100.png", "900.png", "100000.png"):
        with pytest.raises(ValueError, match=f"{name} holds "):
            read_png(tmp_path / name)


def test_what_is_broken_or_no_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as files made to end Pillow, and those that would be read for ever."""
    write_png(PIL.Image.effect_noise((64, 64), 50), tmp_path / "whole.png", {"prompt": "x"})
    whole = (tmp_path / "whole.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + whole[24:29]
    contents = {
        "huge": whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:],
        "chunk": whole.replace(b"IDAT", b"ID\x00T"),
        "short": whole[: len(whole) // 2],
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    for name in (*contents, "fifo", "folder", "gone"):
        file = tmp_path / f"{name}.png"
        call(capsys, "inspect", file).refused(str(file))
        call(capsys, "generate", "--from", file, "-o", tmp_path / "new.png").refused(str(file))
        done = call(capsys, "inspect", "--verify", file)
        assert (done.code, done.out) == (3, f"REFUSED {file}\n")


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
