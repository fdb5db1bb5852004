"""Words that are safe to show, files that are never half-written, models that are refused by name."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest
import torch

from zimage_vl.cli._shared import (
    check_model_name,
    check_output_path,
    check_text,
    choose_device,
    get_package_versions,
    new_file,
    new_folder,
    numbered_paths,
    write_png,
)


PICTURE = PIL.Image.new("RGB", (8, 8), "red")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_png_carries_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    parameters = {"prompt": "ein rotes Haus am Fluß 家", "seed": 2**40, "alpha": [0.5, None]}
    write_png(PICTURE, path, parameters, overwrite=False)
    with PIL.Image.open(path) as image:
        assert json.loads(image.info["parameters"]) == parameters
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert names(tmp_path) == ["picture.png"]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


class _BreaksHalfWay(PIL.Image.Image):
    """An image whose saving fails after some bytes, as on a full disk."""

    def save(self, fp: object, *arguments: object, **options: object) -> None:
        fp.write(b"half a picture")
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_failed_write_names_the_file_and_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(OSError, match=os.strerror(28)) as failed:
        write_png(_BreaksHalfWay(), path, {}, overwrite=True)
    assert failed.value.filename == str(path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert names(tmp_path) == ([] if before is None else ["picture.png"])


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_up_meanwhile_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.png"

    def lose() -> None:
        with new_file(path, overwrite=False) as unfinished:
            unfinished.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(ValueError, match="exists already"):
        lose()
    assert path.read_bytes() == b"theirs"
    with new_file(tmp_path / "b.png", overwrite=False) as unfinished:
        unfinished.write_bytes(b"ours")
        assert unfinished.suffix == ".png"
    assert (tmp_path / "b.png").read_bytes() == b"ours"
    assert names(tmp_path) == ["a.png", "b.png"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(b"precious")
    (tmp_path / "link.png").symlink_to("precious.png")
    write_png(PICTURE, tmp_path / "link.png", {}, overwrite=True)
    assert (tmp_path / "precious.png").read_bytes() == b"precious"
    assert not (tmp_path / "link.png").is_symlink()


def test_output_paths_are_checked(tmp_path: Path) -> None:
    check_output_path(tmp_path / "a.PNG", overwrite=False)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.png")
    for name, reason in (
        ("a.jpg", "must end in .png"),
        ("a", "must end in .png"),
        ("missing/a.png", "does not exist. Create it first"),
        ("folder.png", "is a directory"),
        ("fifo.png", "is no regular file"),
        ("a.png", "exists already: name another file, or add --overwrite"),
        ("dangling.png", "exists already"),
        ("\x1b\udcff.jpg", r"\x1b\udcff.jpg' must end in".replace("\\", "\\\\")),
    ):
        with pytest.raises(ValueError, match=reason):
            check_output_path(tmp_path / name, overwrite=False)


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to(path)
    os.link(path, tmp_path / "hard.png")
    for name in ("mine.png", "link.png", "hard.png"):
        for given in (path, str(tmp_path / ".." / tmp_path.name / "mine.png"), tmp_path):
            with pytest.raises(ValueError, match="is an input of this command"):
                check_output_path(tmp_path / name, overwrite=True, inputs=[None, "https://example.com/a.png", given])
    check_output_path(tmp_path / "new.png", overwrite=True, inputs=[tmp_path])
    check_output_path(path, overwrite=True, inputs=["nowhere.png"])


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    def fail(folder: Path, file: str | None = None) -> None:
        with suppress(KeyboardInterrupt), new_folder(folder):
            assert folder.is_dir()
            if file is not None:
                (folder / file).write_bytes(b"")
            raise KeyboardInterrupt

    fail(tmp_path / "new")
    assert names(tmp_path) == []
    fail(tmp_path / "kept", "file")
    fail(tmp_path / "kept")
    (tmp_path / "old").mkdir()
    fail(tmp_path / "old")
    assert names(tmp_path) == ["kept", "old"]


def test_several_results_are_numbered() -> None:
    assert numbered_paths(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert numbered_paths(Path("a/b.png"), 3) == [Path("a/b-0.png"), Path("a/b-1.png"), Path("a/b-2.png")]


def test_texts_are_texts() -> None:
    check_text("--prompt", "家 \x1b")
    check_text("--prompt", None)
    with pytest.raises(ValueError, match=r"--prompt is no valid UTF-8 text: 'a\\udcff'"):
        check_text("--prompt", "a\udcff")


def test_versions_of_what_is_missing_are_none() -> None:
    assert get_package_versions(["torch", "no-such-package"]) == {"torch": torch.__version__, "no-such-package": None}


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device(None) in ("cpu", "cuda", "mps")
    for device in (f"cuda:{torch.cuda.device_count()}", "gpu"):
        with pytest.raises(ValueError, match=f"--device '{device}' cannot be used here: .+"):
            choose_device(device)


def test_what_is_no_model_is_refused_without_asking_a_hub(tmp_path: Path) -> None:
    for model in ("toy", str(tmp_path), "Tongyi-MAI/Z-Image-Turbo"):
        check_model_name(model)
    check_model_name(str(tmp_path), "Qwen/Qwen3-VL-4B-Instruct")
    for model in ("./nowhere", "/nowhere/at/all", "turbo", "a/b/c", "a/\x1b", "a b/c"):
        with pytest.raises(ValueError, match=r"--model '.*' is neither a folder"):
            check_model_name(model)
    with pytest.raises(ValueError, match="--vl-model 'toy' is neither a folder"):
        check_model_name(str(tmp_path), "toy")
    with pytest.raises(ValueError, match="--vl-model does nothing with --model toy"):
        check_model_name("toy", "a/b")
