"""What the arguments of a command mean as pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zimage_vl.cli._sources import find_sources


URL = "https://example.com/a*b.png?x=[1]"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ([".", "deep"], ["[1].png", "a.JPG", "b.png", "deep/c.webp"]),  # a folder: the pictures in it
        (["*.png"], ["[1].png", "b.png"]),
        (["deep/**"], ["deep/c.webp", "deep/deeper/d.png"]),
        (["?.*"], ["a.JPG", "b.png"]),
        (["[1].png", "notes.txt"], ["[1].png", "notes.txt"]),  # a file that is there, whatever it is called
        ([URL, "b.png", "./b.png", ".", URL], [URL, "b.png", "[1].png", "a.JPG"]),  # each once, in the order given
        (["pipe.png"], "is no regular file"),
        (["gone\x1b.png"], r"gone\x1b.png' does not exist"),
        (["gone/*.png"], "matches no picture"),
        (["empty"], "a folder without pictures"),
    ],
)
def test_files_folders_globs_and_addresses(
    arguments: list[str], meant: list[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", "[1].png", "deep/c.webp", "deep/deeper/d.png", "empty/readme.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    os.mkfifo("pipe.png")
    sources = find_sources(arguments)
    if isinstance(meant, list):
        assert [(source.name, source.error) for source in sources] == [(name, None) for name in meant]
    else:
        assert [source.name for source in sources] == arguments
        assert meant in (sources[0].error or "")
