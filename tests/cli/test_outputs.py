"""Output files: checked first, never half-written, never over what is the user's."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest

from zimage_vl.cli._outputs import check_output_path, new_file, new_folder
from zimage_vl.cli._records import write_png


PICTURE = PIL.Image.new("RGB", (8, 8), "red")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_up_meanwhile_stays(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.png"

    def lose() -> None:
        with new_file(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(ValueError, match="exists already"):
        lose()
    assert path.read_bytes() == b"theirs"
    with new_file(tmp_path / "b.png") as file:
        file.write(b"ours")
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
        (".png", "must end in .png, as name.png"),
        ("missing/a.png", "does not exist. Create it first"),
        ("folder.png", "is a directory"),
        ("fifo.png", "is no regular file"),
        ("a.png", "exists already: name another file, or add --overwrite"),
        ("dangling.png", "exists already"),
        ("\x1b\udcff.jpg", r"\\x1b\\udcff\.jpg' must end in .png, as name.png"),
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
