"""What the arguments of a command mean as pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zimage_vl.cli._sources import Source, find_sources


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", "[1].png", "deep/c.webp", "deep/deeper/d.png", "empty/readme.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    os.mkfifo("pipe.png")
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [source.name.replace(os.sep, "/") for source in find_sources(arguments)]


def test_a_folder_is_the_pictures_in_it(folder: Path) -> None:
    assert names(".") == ["[1].png", "a.JPG", "b.png"]
    assert names("deep") == ["deep/c.webp"]


def test_globs_go_where_they_say(folder: Path) -> None:
    assert names("*.png") == ["[1].png", "b.png"]
    assert names("**/*.png") == ["[1].png", "b.png", "deep/deeper/d.png"]
    assert names("deep/**") == ["deep/c.webp", "deep/deeper/d.png"]
    assert names("?.*") == ["a.JPG", "b.png"]


def test_a_file_that_is_there_is_that_file(folder: Path) -> None:
    assert names("[1].png") == ["[1].png"]
    assert names("notes.txt") == ["notes.txt"]  # it was named: reading it will tell


def test_urls_stay_as_they_are(folder: Path) -> None:
    url = "https://example.com/a*b.png?x=[1]"
    assert find_sources([url]) == [Source(url)]


def test_each_picture_once_in_the_order_given(folder: Path) -> None:
    assert names("b.png", "./b.png", ".", str(folder / "a.JPG")) == ["b.png", "[1].png", "a.JPG"]
    url = "https://example.com/a.png"
    assert names(url, "b.png", url) == [url, "b.png"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("pipe.png", "is no regular file"),
        ("gone\x1b.png", r"gone\x1b.png' does not exist"),
        ("gone/*.png", "matches no picture"),
        ("empty", "a folder without pictures"),
    ],
)
def test_an_argument_that_means_nothing_says_so(argument: str, reason: str, folder: Path) -> None:
    (source,) = find_sources([argument])
    assert source.name == argument
    assert reason in (source.error or "")
