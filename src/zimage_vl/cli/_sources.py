"""Which pictures the arguments of a command mean: files, folders, globs, URLs."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


# What a folder is searched for; a file that is named is read whatever it is called.
PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".tga"}
)


@dataclass(frozen=True)
class Source:
    """A picture to read, or an argument that means none.

    Attributes:
        name: Its path or URL, or the argument.
        error: Why there is nothing to read; None where there may be.
    """

    name: str
    error: str | None = None


def find_sources(arguments: Sequence[str]) -> list[Source]:
    """The pictures that arguments mean, in their order, each once.

    Args:
        arguments: Paths of files; of folders, which mean the pictures directly in them, by suffix, sorted by name;
            globs (`**` goes into folders), sorted; http(s) URLs. A file that exists is that file, even if its name
            looks like a glob.

    Returns:
        One source a picture, and one with an error for an argument that means none.

    Example:
        >>> find_sources(["https://example.com/a.png", "no/such/*.png"])[1].error
        "'no/such/*.png' matches no picture."
    """
    sources: dict[str, Source] = {}
    for argument in arguments:
        for source in _sources_of(argument):
            key = source.name if _is_url(source.name) else str(Path(source.name).resolve())
            sources.setdefault(key, source)
    return list(sources.values())


def _sources_of(argument: str) -> list[Source]:
    path = Path(argument)
    if _is_url(argument) or path.is_file():
        return [Source(argument)]
    if path.is_dir():
        found = _pictures(path.iterdir())
        return found or [Source(argument, f"{argument!r} is a folder without pictures.")]
    if any(sign in argument for sign in "*?["):
        found = _pictures(Path(match) for match in glob.glob(argument, recursive=True))
        return found or [Source(argument, f"{argument!r} matches no picture.")]
    return [Source(argument, f"{argument!r} does not exist.")]


def _pictures(paths: Iterable[Path]) -> list[Source]:
    files = [path for path in paths if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()]
    return [Source(str(path)) for path in sorted(files)]


def _is_url(argument: str) -> bool:
    return argument.lower().startswith(("http://", "https://"))
