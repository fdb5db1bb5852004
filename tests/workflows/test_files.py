"""Files that are whole or not there; what a killed process left goes, what another one writes stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment
from zimage_vl.workflows.files import claimed, remove_leftovers, whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(content: bytes) -> None:
        with whole_file(tmp_path / "a") as file:
            file.write(content)

    write(b"before")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(b"after")
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.skipif(os.name == "nt", reason="needs locks of files")
@pytest.mark.parametrize("name", ["a.png", "\u00e4" * 100 + ".png"])
def test_leftovers_go_and_what_is_being_written_stays(name: str, tmp_path: Path) -> None:
    """One process is writing, another was killed while it did."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom zimage_vl.workflows.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half')\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    start = [sys.executable, "-c", program, str(tmp_path / name)]
    killed, writing = (
        subprocess.Popen(start, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    for process in (killed, writing):
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
    killed.kill()
    killed.communicate()
    others = [".b.png.0123456789abcdef.unfinished", ".a.png.unfinished", "a.0123456789abcdef.unfinished"]
    for other in others:
        (tmp_path / other).touch()
    (tmp_path / f".{name[:50]}.0123456789abcdef.unfinished").symlink_to(others[0])
    assert len(names(tmp_path)) == 6
    remove_leftovers(tmp_path, [name])
    assert len(names(tmp_path)) == 5
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 4  # that of b.png went
    writing.communicate("\n")
    assert (tmp_path / name).read_bytes() == b"half"
    assert len(names(tmp_path)) == 4
    remove_leftovers(tmp_path / "nowhere")


def test_a_file_that_goes_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, taken = fcntl.flock, list[str]()

    def late(number: int, how: int) -> None:
        if not taken:
            taken.extend(names(tmp_path))
            remove_leftovers(tmp_path)  # of another process
        flock(number, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with whole_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert len(taken) == 1
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert names(tmp_path) == ["a"]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    left = tmp_path / ".a.0123456789abcdef.unfinished"
    left.touch()
    remove_leftovers(tmp_path)
    with whole_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert names(tmp_path) == [left.name, "a"]


@pytest.mark.skipif(os.name == "nt", reason="needs locks of files")
def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    def claim_twice() -> None:
        with claimed(tmp_path), claimed(tmp_path):
            raise AssertionError

    for _ in range(2):  # the first claim ended with its error
        with pytest.raises(ValueError, match="is being written to by another run"):
            claim_twice()
