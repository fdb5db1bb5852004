"""Files that are whole or not there, and what killed processes left of such ones.

While a file is written it lies beside its final name, locked (`flock`), so that a later run can tell what a killed
process left from what another one is writing. Where there are no such locks, as on Windows, nothing is removed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


_MOST_OF_A_NAME = 50  # characters, so that it stays a name that file systems take
_UNFINISHED = re.compile(r"\.(.*)\.[0-9a-f]{16}\.unfinished", re.DOTALL)


@contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Generator[BinaryIO]:
    """Within it, a new file beside `path` to write to; at the end it becomes `path`, which is whole or not there.

    Raises:
        FileExistsError: There is a `path` at the end, and it may not be replaced.
        OSError: It cannot be written; the error names `path`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a")
        >>> with whole_file(path) as file:
        ...     _ = file.write(b"whole")
        ...     print(path.exists())
        False
        >>> path.read_bytes()
        b'whole'
    """
    with named_errors(path):
        unfinished, file = _open_locked(path)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # which moves no open file
                file.close()
            _move(unfinished, path, overwrite)
        finally:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)


def save_png(image: Any, file: BinaryIO, parameters: Mapping[str, Any]) -> None:
    """Write a PNG that holds how it was made, as JSON in its text "parameters"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters))
    image.save(file, format="PNG", pnginfo=info)


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove what killed processes left in a folder of files of these names, or of all that `whole_file` wrote."""
    wanted = None if names is None else {name[:_MOST_OF_A_NAME] for name in names}
    with suppress(OSError):  # no folder, no leftovers
        for entry in os.scandir(folder):
            match = _UNFINISHED.fullmatch(entry.name)
            if match and (wanted is None or match[1] in wanted) and entry.is_file(follow_symlinks=False):
                with suppress(OSError), open(entry.path, "r+b") as file:
                    if _lock(file.fileno(), wait=False):
                        os.unlink(entry.path)


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Within it, no other process can claim the folder.

    Raises:
        ValueError: Another process has claimed it.
    """
    if os.name == "nt":
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        if _lock(number, wait=False) is False:
            raise ValueError(f"{folder} is being written to by another run: wait for its end, or name another folder.")
        yield
    finally:
        os.close(number)


@contextmanager
def named_errors(path: Path) -> Generator[None]:
    """Within it, an OSError names this file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def _open_locked(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        unfinished = path.with_name(f".{path.name[:_MOST_OF_A_NAME]}.{secrets.token_hex(8)}.unfinished")
        file = open(unfinished, "xb")  # noqa: SIM115 - the caller closes it
        _lock(file.fileno(), wait=True)
        if unfinished.exists():  # nobody took it for a leftover before it was locked
            return unfinished, file
        file.close()


def _lock(number: int, wait: bool) -> bool | None:
    """Lock an open file until it is closed; False where another process has the lock, None where there are none."""
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _move(unfinished: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(unfinished, path)
        return
    try:
        os.link(unfinished, path)  # which, unlike a renaming, never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(unfinished, path)
