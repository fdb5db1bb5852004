"""The pictures that the arguments of a command mean: files, folders, globs, URLs."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ._options import option
from ._terminal import escape


# What a folder is searched for; a file that is named is read whatever it is called.
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"})
_NO_URLS = "Refuse addresses: nothing is downloaded as a picture. Also by the variable ZIMAGE_VL_NO_URLS=1."


@dataclass(frozen=True)
class Source:
    """A picture's path or URL, or an argument that means none, with the reason."""

    name: str
    error: str | None = None


NoUrlsOption = Annotated[bool, option("--no-urls", None, _NO_URLS, envvar="ZIMAGE_VL_NO_URLS")]


def find_sources(arguments: Sequence[str], no_urls: bool = False) -> list[Source]:
    """Get the pictures that arguments mean, in their order, each once; an argument that means none has an error.

    They are paths of files; of folders, which mean the pictures directly in them, by suffix, sorted by name; globs,
    sorted (`**` goes into folders); http(s) URLs. A file that exists is that file, even if it looks like a glob.
    """
    refuse_urls(arguments, no_urls)
    sources: dict[str, Source] = {}
    for source in (source for argument in arguments for source in _sources_of(argument)):
        sources.setdefault(source.name if _is_url(source.name) else str(Path(source.name).resolve()), source)
    return list(sources.values())


def _sources_of(argument: str) -> Iterator[Source]:
    shown = f"'{escape(argument)}'"
    if _is_url(argument) or os.path.isfile(argument):  # false, too, of a name that no file can have
        return iter([Source(argument)])
    if not argument:
        found, missing = [], "names nothing"
    elif os.path.isdir(argument):
        found, missing = _pictures(Path(argument).iterdir()), "is a folder without pictures"
    elif os.path.exists(argument):
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


def refuse_urls(arguments: Iterable[str], no_urls: bool) -> None:
    """Refuse addresses where nothing may be downloaded as a picture."""
    for address in filter(_is_url, arguments if no_urls else ()):
        from zimage_vl.reference.pictures import hide_secrets

        raise ValueError(f"--no-urls is set, and '{escape(hide_secrets(address))}' is an address: save it as a file.")


def read_picture(named: str, source: str, no_urls: bool = False) -> tuple[Any, dict[str, str]]:
    """Get a picture from a path or an address, and what is recorded of it."""
    from zimage_vl.reference.pictures import hide_secrets, load_reference_image, read_image_bytes

    refuse_urls([source], no_urls)
    data = read_image_bytes(source, named)
    name = hide_secrets(source)
    image = load_reference_image(data, f"{named} {name}")
    return image, {"option": named, "name": Path(name).name, "sha256": hashlib.sha256(data).hexdigest()}
