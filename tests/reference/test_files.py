"""Tensor files: exact round trips, nothing half-written, and a named refusal for whatever is not whole."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from command_line import environment
from zimage_vl.reference.files import FileKind, read_tensor_file, write_tensor_file


KIND = FileKind("numbers", "test.numbers", "2", "count them again")
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int8)}
METADATA = {"model_id": "a/b", "text": 'two\nlines "töpfe" 漢', "empty": ""}


def write(path: Path, kind: FileKind = KIND) -> Path:
    write_tensor_file(path, kind, TENSORS, METADATA)
    return path


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    tensors, metadata = read_tensor_file(write(tmp_path / "a.safetensors"), KIND)
    assert {name: (x.dtype, x.tolist()) for name, x in tensors.items()} == {
        name: (x.dtype, x.tolist()) for name, x in TENSORS.items()
    }
    assert metadata == METADATA
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as opened:  # as other tools do
        assert opened.get_tensor("a").shape == (2, 3)
        kind = opened.metadata()
    assert (kind["schema"], kind["schema_version"], len(kind["sha256"])) == ("test.numbers", "2", 64)
    # Tensors may share memory and have gradients.
    x = torch.ones(3, 4, requires_grad=True)
    write_tensor_file(tmp_path / "a", KIND, {"x": x, "y": x, "row": x.t()[0]}, {})
    assert torch.equal(read_tensor_file(tmp_path / "a", KIND)[0]["row"], torch.ones(3))


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    # Within one process a hash map may well keep its order; two processes with different hash seeds do not.
    code = "import sys; from test_files import write; from pathlib import Path; write(Path(sys.argv[1]))"
    variables = environment(PYTHONHASHSEED="5")
    folders = [Path(__file__).parent, Path(__file__).parent.parent / "helpers", variables["PYTHONPATH"]]
    variables["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], env=variables, check=True)
    assert write(tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "a").read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_tensor_file(tmp_path / "a", KIND, {}, {})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_folder does not exist"):
        write(tmp_path / "no_such_folder" / "a")
    for text in ("x" * 2**22, "\ud800"):
        with pytest.raises(ValueError, match=r"longer than|surrogates"):
            write_tensor_file(tmp_path / "a", KIND, TENSORS, {"text": text})
    assert not os.listdir(tmp_path)


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    for name in ("nowhere", 100_000 * "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"There is no file .{5,200}nowhere"):
            read_tensor_file(tmp_path / name, KIND)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(ValueError, match=f"{path} is a folder or is no regular file"):
            read_tensor_file(path, KIND)


def assert_refused(path: Path, reason: str = ".") -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read_tensor_file(path, KIND)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("count them again.")


def file_of(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def swap_names(content: bytes) -> bytes:
    return content.replace(b'"a":{', b'"x":{').replace(b'"b":{', b'"a":{').replace(b'"x":{', b'"b":{')


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the tensors": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "names of the tensors": swap_names,
    "metadata": lambda content: content.replace(b'"a/b"', b'"a/c"'),
    "the end": lambda content: content[:-1],
}


@pytest.mark.parametrize("what", CHANGES)  # any other change: tests/reliability/test_files.py
def test_tensors_names_and_metadata_are_in_the_digest(tmp_path: Path, what: str) -> None:
    content = write(tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(CHANGES[what](content))
    assert (tmp_path / "a").read_bytes() != content
    assert_refused(tmp_path / "a", "do not give the digest")


def test_other_schemas_and_versions_are_refused(tmp_path: Path) -> None:
    expected = "expected the schema 'test.numbers', version '2'"
    write(tmp_path / "other", FileKind("letters", "test.letters", "2", ""))
    save_file(TENSORS, tmp_path / "old", {"schema": "test.numbers", "schema_version": "1"})  # as release 0.1.0 did
    save_file({"weight": torch.randn(2)}, tmp_path / "model")
    (tmp_path / "text").write_bytes(file_of([1]))
    assert_refused(tmp_path / "other", f"holds no numbers.*{expected}, got 'test.letters'")
    assert_refused(tmp_path / "old", f"{expected}, got 'test.numbers', version '1'")
    for name in ("model", "text"):
        assert_refused(tmp_path / name, "holds no numbers: its header has no metadata that can be read")


def test_a_huge_file_of_another_kind_is_refused_by_its_header(tmp_path: Path) -> None:
    tensor = {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}
    for name, start in {"model": file_of({"weight": tensor}), "other": struct.pack("<Q", 2**30)}.items():
        (tmp_path / name).write_bytes(start)
        os.truncate(tmp_path / name, 2**40)  # sparse: a read of it would run out of memory
        assert_refused(tmp_path / name)


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save({"a": torch.randn(7, 4)}, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
        assert_refused(tmp_path / "a.safetensors", "is a pickle")


def test_a_header_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    # A header of 640, 896, 1152 or 1408 bytes begins like a pickle: one of these paddings gives such a length.
    lengths: set[int] = set()
    for padding in range(0, 800, 8):
        write_tensor_file(tmp_path / "a", KIND, TENSORS, {"text": "x" * padding})
        lengths.add(int.from_bytes((tmp_path / "a").read_bytes()[:8], "little"))
        assert read_tensor_file(tmp_path / "a", KIND)[1] == {"text": "x" * padding}
    assert lengths & {640, 896, 1152, 1408}
