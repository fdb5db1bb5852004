"""The folder of a sweep: lines that survive a kill, one per job in the end, and folders that merge."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from zimage_vl.workflows.manifest import MANIFEST, Manifest, append_line, merge_folders, prepare_folder


def make_row(job: int, status: str = "done", **more: Any) -> dict[str, Any]:
    file = f"pictures/key{job}.png" if status == "done" else None
    return {"job": job, "key": f"key{job}", "status": status, "file": file, **more}


def make_folder(folder: Path, *jobs: int) -> Path:
    """Of pictures that are links into another folder, as caches and archives of files have them."""
    prepare_folder(folder)
    for job in jobs:
        (folder.parent / f"blob{job}").write_bytes(b"%d" % job)
        (folder / "pictures" / f"key{job}.png").symlink_to(f"../../blob{job}")
        Manifest(folder).append(make_row(job, sha256=hashlib.sha256(b"%d" % job).hexdigest()))
    return folder


def jobs_of(folder: Path) -> list[int]:
    return [json.loads(line)["job"] for line in (folder / MANIFEST).read_text().splitlines()]


def test_the_last_word_on_a_job_counts_and_a_cut_line_does_not(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    assert list(manifest.rows()) == []
    for row in (make_row(2), make_row(0, "failed"), make_row(1), make_row(0), make_row(2, "failed")):
        manifest.append(row)
    with open(manifest.path, "ab") as file:
        file.write(b'{"job": 3, "key": "key3", "stat')
    assert [(row["job"], row["status"]) for row in manifest.rows()] == [(0, "done"), (1, "done"), (2, "done")]
    assert [row["job"] for row in manifest.rows(1)] == [0]
    manifest.tidy()
    assert jobs_of(tmp_path) == [0, 1, 2]
    before = os.stat(manifest.path)
    manifest.tidy()  # nothing to do
    assert os.stat(manifest.path).st_ino == before.st_ino


@pytest.mark.parametrize("length", [1, 9, None])
def test_a_first_line_without_its_end_is_not_counted(length: int | None, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(make_row(0))[:length])
    prepare_folder(tmp_path)
    Manifest(tmp_path).append(make_row(1))
    assert jobs_of(tmp_path) == [1]


@pytest.mark.parametrize("text", ['{"source": "a.png"}\n', "[]\n", "1\n", "my notes\nof 2024\n", "my notes", "\n"])
def test_another_manifest_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="of something else than a sweep"):
        prepare_folder(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == text


TAKEN = ["sheet.png", "sheet-2.png", "index.html", "pictures/a.png", "references/a.jpg"]


@pytest.mark.parametrize("name", [*TAKEN, "pictures", "manifest.jsonl", "manifest.jsonl/a"])
def test_the_folder_of_something_else_is_refused_and_kept(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / name).parent.mkdir(parents=True)
    if name in TAKEN or "/" in name:
        (folder / name).write_text("mine")
    else:
        (tmp_path / "target").mkdir()
        (folder / name).symlink_to(tmp_path / "target")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{name.split('/')[0]} is .*: name a new or empty folder"):
        prepare_folder(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_no_sweep_writes_may_lie_beside_it(tmp_path: Path) -> None:
    for name in ("sheet-music.png", "sheet-2.png.bak", "notes.txt"):
        (tmp_path / name).touch()
    for _ in range(2):  # the second time with its empty folders
        prepare_folder(tmp_path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if os.path.exists("/dev/full"):
        (tmp_path / MANIFEST).symlink_to("/dev/full")
        with pytest.raises(OSError, match=MANIFEST):
            Manifest(tmp_path).append(make_row(0))


@pytest.mark.parametrize("linked", [True, False])
def test_folders_merge_in_the_order_of_the_jobs(linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not linked:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    one, two = make_folder(tmp_path / "one", 1, 3), make_folder(tmp_path / "two", 0, 3)
    Manifest(two).append(make_row(2, "failed"))
    (two / "references" / "a.jpg").write_bytes(b"small")
    for _ in range(2):
        merge_folders([one, two], tmp_path / "both")
    assert jobs_of(tmp_path / "both") == [0, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "both").glob("*/*")) == [
        "a.jpg",
        "key0.png",
        "key1.png",
        "key3.png",
    ]
    merge_folders([one, two], one)
    assert (one / MANIFEST).read_bytes() == (tmp_path / "both" / MANIFEST).read_bytes()
    assert not any(path.is_symlink() for path in (tmp_path / "both").rglob("*"))
    # What is damaged is never taken, and mended where another folder has it whole.
    for folder in (two, tmp_path / "both"):
        (folder / "pictures" / "key0.png").unlink()
        (folder / "pictures" / "key0.png").touch()
    with pytest.raises(ValueError, match=r"two/pictures/key0\.png is not the picture that its manifest names"):
        merge_folders([two, one], tmp_path / "new")
    merge_folders([one], tmp_path / "both")
    assert (tmp_path / "both" / "pictures" / "key0.png").read_bytes() == b"0"
    with pytest.raises(FileNotFoundError, match="no manifest"):
        merge_folders([tmp_path / "three"], tmp_path / "four")
    assert not (tmp_path / "four").exists()


def test_a_line_that_was_cut_off_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    append_line(path, '{"source": "ä.png"}')
    path.write_bytes(path.read_bytes() + b'{"source": "cut')
    append_line(path, '{"source": "next"}')
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"source": "ä.png"}',
        '{"source": "cut',
        '{"source": "next"}',
    ]
