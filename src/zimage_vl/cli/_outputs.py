"""Output files: checked before any work is done for them, never half-written, never over what is the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from zimage_vl.workflows.files import whole_file

from ._terminal import escape, one_line


PARTLY_DONE = 3  # the exit code where some inputs were refused and the others were done
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file of the output's name; without, it is refused.")
]


def check_output_path(
    path: Path,
    suffixes: tuple[str, ...] = (".png",),
    *,
    overwrite: bool = False,
    inputs: Sequence[str | os.PathLike[str] | None] = (),
) -> None:
    """Refuse a file that could not or may not be written.

    What the command reads (`inputs`: files, folders of models, and names of neither) is never replaced.
    """
    shown = f"--output '{escape(str(path))}'"
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{shown} must end in {' or '.join(suffixes)}, as name{suffixes[0]}.")
    if path.is_dir():
        raise ValueError(f"{shown} is a directory: name a file in it.")
    check_folder(path.parent, shown)
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{shown} is no regular file: name another.")
    for given in inputs:
        if given is not None and _is_part_of(path, Path(given)):
            raise ValueError(f"{shown} is an input of this command, which is never written over: name another file.")
    if not overwrite:
        raise _exists_already(path)


def check_output_folder(folder: Path, else_: str = "") -> None:
    """Refuse a folder for outputs that could not be made or written to; `else_` says what else might be named."""
    shown = f"--output '{escape(str(folder))}'"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{shown} is a file: name a folder{else_}.")
    check_folder(folder if folder.exists() else folder.parent, shown)


def check_folder(folder: Path, shown: str) -> None:
    """Refuse a folder that is not there, or takes no file: one without a name is made in it, and gone at once."""
    named = f"{shown}: the folder '{escape(str(folder))}'"
    if not folder.is_dir():
        raise ValueError(f"{named} does not exist. Create it first.")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{named} cannot be written to: {error.strerror or one_line(error)}.") from error


def _is_part_of(path: Path, given: Path) -> bool:
    with suppress(OSError, ValueError):
        if given.is_dir():
            return path.resolve().is_relative_to(given.resolve())
        return path.exists() and os.path.samefile(path, given)
    return False


def _exists_already(path: Path) -> ValueError:
    return ValueError(f"--output '{escape(str(path))}' exists already: name another file, or add --overwrite.")


@contextmanager
def new_file(path: Path, overwrite: bool = False) -> Generator[BinaryIO]:
    """Within it, a file to write to, which at the end becomes `path`. Under this name it is whole or not there."""
    try:
        with whole_file(path, overwrite) as file:
            yield file
    except FileExistsError:
        raise _exists_already(path) from None


@contextmanager
def new_folder(folder: Path, *within: str) -> Generator[None]:
    """Within it, the folder and those in it are there; what was made for a command that failed and is empty goes."""
    missing = [each for each in (folder, *(folder / name for name in within)) if not each.is_dir()]
    try:
        for each in missing:
            each.mkdir(exist_ok=True)
        yield
    except BaseException:
        for each in reversed(missing):
            with suppress(OSError):
                each.rmdir()
        raise


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Get the path itself for one result, `name-0.png`, `name-1.png` and so on for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]
