"""The pictures that the arguments of a command mean: files, folders, globs, URLs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._shared import escape


# What a folder is searched for; a file that is named is read whatever it is called.
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"})


@dataclass(frozen=True)
class Source:
    """A picture's path or URL, or an argument that means none, with the reason."""

    name: str
    error: str | None = None


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """Get the pictures that arguments mean, in their order, each once.

    Args:
        arguments: Paths of files; of folders, which mean the pictures directly in them, by suffix, sorted by name;
            globs (`**` goes into folders), sorted; http(s) URLs. A file that exists is that file, even if its name
            looks like a glob.

    Returns:
        One source per picture, and one with an error for an argument that means none.

    Example:
        >>> find_sources(["https://example.com/a.png", "no/such/*.png"])[1].error
        "'no/such/*.png' matches no picture."
    """
    sources: dict[str, Source] = {}
    for source in (source for argument in arguments for source in _sources_of(argument)):
        sources.setdefault(source.name if _is_url(source.name) else str(Path(source.name).resolve()), source)
    return list(sources.values())


def _sources_of(argument: str) -> Iterator[Source]:
    path, shown = Path(argument), f"'{escape(argument)}'"
    if _is_url(argument) or path.is_file():
        return iter([Source(argument)])
    if path.is_dir():
        found, missing = _pictures(path.iterdir()), "is a folder without pictures"
    elif path.exists():
        found, missing = [], "is no regular file"
    elif any(sign in argument for sign in "*?["):
        found, missing = _pictures(map(Path, glob.glob(argument, recursive=True))), "matches no picture"
    else:
        found, missing = [], "does not exist"
    return iter(found or [Source(argument, f"{shown} {missing}.")])


def _pictures(paths: Iterable[Path]) -> list[Source]:
    files = [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()]
    return [Source(str(path)) for path in sorted(files)]


def _is_url(argument: str) -> bool:
    return argument.lower().startswith(("http://", "https://"))
