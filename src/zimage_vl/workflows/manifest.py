"""The folder of a sweep: pictures, thumbnails of their references, and a manifest of what each job came to.

A manifest holds one JSON object per line. It is appended to while jobs run, so that a kill costs at most the last
line, and put into the order of the jobs when nobody writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .files import named_errors, remove_leftovers, whole_file


MANIFEST, PICTURES, REFERENCES = "manifest.jsonl", "pictures", "references"
_is_picture = re.compile(rf"{PICTURES}/[\w-]*\.png", re.ASCII).fullmatch  # and leads nowhere else
#: Checks whether a name is that of a contact sheet.
is_sheet = re.compile(r"sheet(-[0-9]+)?\.png").fullmatch
_START = b'{"job": '  # of every line


class Entry(NamedTuple):
    """Where the line of a job stands."""

    job: int  # its number in the plan
    key: str
    offset: int  # in bytes
    done: bool
    sha256: str | None  # of the picture


class Manifest:
    """The manifest of a folder, which need not be there yet.

    Example:
        >>> import tempfile
        >>> manifest = Manifest(Path(tempfile.mkdtemp()))
        >>> files = {"failed": None, "done": "pictures/a.png"}
        >>> for status in files:
        ...     manifest.append({"job": 0, "key": "a", "status": status, "file": files[status]})
        >>> [row["status"] for row in manifest.rows()]
        ['done']
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MANIFEST

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line in one write, so that several processes of one machine can append side by side."""
        append_line(self.path, json.dumps(row))

    def entries(self) -> list[Entry]:
        """Get the last line of each job, in the order of the jobs; a later failure does not undo what was done.

        Raises:
            ValueError: It is the manifest of something else.
        """
        found: dict[str, Entry] = {}
        other = ValueError(f"{self.path} is the manifest of something else than a sweep: name another folder.")
        offset, line = 0, b""
        for offset, line in self._lines():
            if (row := _parse(line)) is None:
                continue
            if not isinstance(row, dict) or not {"job", "key", "status"} <= row.keys():
                raise other
            entry = Entry(row["job"], row["key"], offset, row["status"] == "done", row.get("sha256"))
            with self.blaming(row):
                has_file = _is_picture(row["file"]) if entry.done else row["file"] is None
                if not (type(row["job"]) is int and isinstance(row["key"], str) and has_file):
                    raise TypeError
            if entry.done or entry.key not in found or not found[entry.key].done:
                found[entry.key] = entry
        if not found and (offset or line.endswith(b"\n") or line[: len(_START)] != _START[: len(line)]):
            raise other  # and not the first line of ours, cut off
        return sorted(found.values())

    def has_picture(self, entry: Entry) -> bool:
        """Check that the picture of a job that is done is there, with the bytes that its line names."""
        path = self.path.parent / PICTURES / f"{entry.key}.png"
        return path.is_file() and _digest(path) == entry.sha256

    def rows(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Get the rows of these lines, or of the first of them, one after another."""
        return map(json.loads, self._read(self.entries()[:limit]))

    @contextmanager
    def blaming(self, row: Mapping[str, Any]) -> Generator[None]:
        """Within it, what a value of another kind than a sweep writes brings about is a ValueError that says so."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
            named = f"the line of job {row.get('job')!r:.20}, key {row.get('key')!r:.30},"
            raise ValueError(f"{self.path}: {named} is damaged: delete it, and the next run does the job.") from error

    def tidy(self) -> None:
        """Leave one line per job, in the order of the jobs. Nobody may append meanwhile."""
        entries = self.entries()
        offsets = [entry.offset for entry in entries]
        if offsets != [offset for offset, _ in self._lines()]:
            with whole_file(self.path) as file:
                file.writelines(self._read(entries))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        if self.path.exists():
            if not self.path.is_file():  # reading a pipe or a device could wait for ever
                raise ValueError(f"{self.path} is no regular file: name another folder.")
            with open(self.path, "rb") as file:
                offset = 0
                for line in file:
                    yield offset, line
                    offset += len(line)

    def _read(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        if entries:
            with open(self.path, "rb") as file:
                for entry in entries:
                    file.seek(entry.offset)
                    yield file.readline()


def append_line(path: Path, text: str) -> None:
    """Write one line more, in one write; a line that a kill cut off before stays alone."""
    with named_errors(path), open(path, "ab+", buffering=0) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        line = (text + "\n").encode("utf-8", "backslashreplace")  # which JSON reads as it was
        if file.write(line) < len(line):  # the next one says why
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _parse(line: bytes) -> object:
    """What a line holds, None where a kill cut it off."""
    with suppress(ValueError, RecursionError):
        return json.loads(line) if line.endswith(b"\n") else None
    return None


def check_sweep_folder(folder: Path) -> None:
    """Refuse a folder in which a sweep would replace what it did not write, or write somewhere else.

    Raises:
        ValueError: It has a file of a name that a sweep writes, and no manifest; or a link or a file in the place of
            the manifest or of a folder.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        of_folder = path.name in (PICTURES, REFERENCES)
        if (of_folder or path.name == MANIFEST) and (path.is_symlink() or path.is_dir() != of_folder):
            raise ValueError(
                f"{path} is a link or no {'folder' if of_folder else 'file'}: name a new or empty folder."
            )
        taken = any(path.iterdir()) if of_folder else is_written(path.name) and path.name != MANIFEST
        manifest = folder / MANIFEST
        if taken and not (manifest.exists() and (of_folder or manifest.stat().st_size)):
            raise ValueError(f"{path} is not of a sweep, which would replace it: name a new or empty folder.")


def is_written(name: str) -> bool:
    """Check whether a sweep writes a file of this name into its folder."""
    return name in (MANIFEST, "index.html") or is_sheet(name) is not None


def prepare_folder(folder: Path) -> None:
    """Make the folder of a sweep where it is missing, put its manifest in order, and remove what a killed run left.

    Nobody may append meanwhile. A ValueError where it is a folder of something else.
    """
    check_sweep_folder(folder)
    folder.mkdir(exist_ok=True)
    Manifest(folder).tidy()
    for each in (folder, folder / PICTURES, folder / REFERENCES):
        each.mkdir(exist_ok=True)
        remove_leftovers(each)


def merge_folders(folders: Sequence[Path], output: Path) -> None:
    """Bring what several folders hold into one, which may be one of them. Files are linked where that is possible.

    Raises:
        FileNotFoundError: A folder has no manifest, or lacks a picture that it names.
        ValueError: A manifest is that of something else, or a picture is not the one that it names.
    """
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(errno.ENOENT, "is no folder of a sweep: it has no manifest.jsonl", str(folder))
    prepare_folder(output)
    manifest = Manifest(output)
    manifest.path.touch()  # pictures without one are of something else, and a merge that was killed goes on
    for folder in folders:
        if folder.resolve() == output.resolve():
            continue
        for row in Manifest(folder).rows():
            if row["file"] is not None:
                bring_file(folder / row["file"], output / row["file"], row.get("sha256"))
            manifest.append(row)
        for thumbnail in (folder / REFERENCES).glob("*.jpg"):
            bring_file(thumbnail, output / REFERENCES / thumbnail.name)
    manifest.tidy()


def bring_file(source: Path, target: Path, sha256: str | None = None) -> None:
    """Link or copy a file unless it is there, whole where its digest is known: equal names are equal contents.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another digest.
    """
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "is named by the manifest beside it, and no file", str(source))
    if target.exists() and sha256 in (None, _digest(target)):
        return
    if sha256 not in (None, _digest(source)):
        raise ValueError(f"{source} is not the picture that its manifest names: the sweep that painted it mends it.")
    try:
        os.link(source.resolve(), target)  # not a link to it, which would lead nowhere
    except OSError:  # another disk, one without links, or a damaged file in its place
        with whole_file(target) as file:
            file.write(source.read_bytes())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
