"""Tensor files: exact round trips, nothing half-written, and a named refusal for everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from command_line import environment
from zimage_vl.reference.tensor_files import FileKind, read_tensor_file, write_tensor_file


KIND = FileKind("numbers", "test.numbers", "1", "count them again")
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int8)}
METADATA = {"model_id": "a/b", "text": 'two\nlines "töpfe"', "empty": ""}


def write(path: Path, kind: FileKind = KIND) -> Path:
    write_tensor_file(path, kind, TENSORS, METADATA)
    return path


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    tensors, metadata = read_tensor_file(write(tmp_path / "a.safetensors"), KIND)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert metadata == {**METADATA, "schema": "test.numbers", "schema_version": "1"}


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    with safe_open(str(write(tmp_path / "a.safetensors")), "pt") as opened:
        assert set(opened.keys()) == {"a", "b"}
        assert opened.metadata()["text"] == METADATA["text"]


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = "import sys; from test_tensor_files import write; from pathlib import Path; write(Path(sys.argv[1]))"
    variables = environment(PYTHONHASHSEED="5")
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent / "helpers"), variables["PYTHONPATH"]])
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], env=variables, check=True)
    assert write(tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_may_share_memory_and_have_gradients(tmp_path: Path) -> None:
    x = torch.ones(3, 4, requires_grad=True)
    write_tensor_file(tmp_path / "a", KIND, {"x": x, "y": x, "row": x.t()[0]}, {})
    tensors, _ = read_tensor_file(tmp_path / "a", KIND)
    assert torch.equal(tensors["row"], torch.ones(3))


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "a").read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_tensor_file(tmp_path / "a", KIND, {"other": torch.zeros(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == before


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone"):
        read_tensor_file(tmp_path / "gone", KIND)
    with pytest.raises(ValueError, match="is a folder; expected a file with numbers"):
        read_tensor_file(tmp_path, KIND)
    with pytest.raises(FileNotFoundError, match="missing does not exist; make it"):
        write(tmp_path / "missing" / "a")


def test_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a").read_bytes()
    for length in (0, 4, 8, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"not a complete safetensors file.*count them again"):
            read_tensor_file(tmp_path / "a", KIND)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"a.safetensors is a pickle.*count them again"):
        read_tensor_file(tmp_path / "a.safetensors", KIND)


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "a", KIND, TENSORS, {"padding": ""})
    length = int.from_bytes((tmp_path / "a").read_bytes()[:8], "little")
    padding = "x" * (640 - length)  # 640 is 0x0280, which begins with the bytes 80 02
    write_tensor_file(tmp_path / "a", KIND, TENSORS, {"padding": padding})
    assert (tmp_path / "a").read_bytes().startswith(b"\x80\x02")
    assert read_tensor_file(tmp_path / "a", KIND)[1]["padding"] == padding


def test_other_kinds_and_versions_are_refused(tmp_path: Path) -> None:
    other = FileKind("letters", "test.letters", "1", "write them again")
    with pytest.raises(ValueError, match=r"holds no letters.*expected the schema 'test.letters'.*got 'test.numbers'"):
        read_tensor_file(write(tmp_path / "a"), other)
    newer = FileKind("numbers", "test.numbers", "2", "count them again")
    with pytest.raises(ValueError, match=r"of schema version '2', this release reads version '1'"):
        read_tensor_file(write(tmp_path / "b", newer), KIND)
    save_file(TENSORS, str(tmp_path / "c"))
    with pytest.raises(ValueError, match="got None"):
        read_tensor_file(tmp_path / "c", KIND)


def test_a_header_that_is_no_object_is_refused(tmp_path: Path) -> None:
    text = json.dumps([1, 2]).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="not a JSON object"):
        read_tensor_file(tmp_path / "a", KIND)
