"""safetensors files that say whether they are whole: text beside the tensors, and a SHA-256 over all of it.

Equal contents give equal bytes, a file is written in full or not at all, and nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import save as save_safetensors_bytes
from torch import Tensor

from ..blend.regions import check_kind


_OWN_METADATA = ("schema", "schema_version", "sha256")
_MOST_HEADER_BYTES = 2**22  # ours have a few hundred, and the text
# What a file begins with when it is a pickle: torch.save's zip archive, and a bare pickle of protocol 2 to 5.
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class FileKind:
    """A kind of tensor file."""

    contents: str  # in words
    schema: str
    version: str
    remedy: str  # for a refused one


def write_tensor_file(
    file: str | os.PathLike[str] | BinaryIO, kind: FileKind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, with schema and digest in its metadata, over a path or into an open file.

    Raises:
        OSError: The file cannot be written, or has no folder; what was there before still is.
        ValueError: The metadata are no valid Unicode, or larger than a reader would take.
    """
    path = Path(file) if isinstance(file, (str, os.PathLike)) else None
    if path is None:
        check_kind("path", file, "write", "a path or a file open for writing bytes")
    if path and not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist; make it, then save {path.name} into it.")
    # Cloned: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    content = save_safetensors_bytes(plain)
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    header["__metadata__"] = {**metadata, "schema": kind.schema, "schema_version": kind.version}
    header["__metadata__"]["sha256"] = _digest(header, data)
    if len(whole := _pack(header, data)) - len(data) > _MOST_HEADER_BYTES:
        raise ValueError(f"{path or 'The file'} was not written: its text is longer than {_MOST_HEADER_BYTES} bytes.")
    if path is None:
        cast("BinaryIO", file).write(whole)
        return
    replace_file(path, whole)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in full or not at all, over one of its name."""
    # Beside its final name, so that the replacement is one step of the file system; the name is nobody else's.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_tensor_file(path: str | os.PathLike[str], kind: FileKind) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `write_tensor_file` wrote, onto the CPU. Its header is judged before any tensor is read.

    Returns:
        Tensors, and the metadata that was written with them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, a pickle, damaged, not a safetensors file, or of another kind or version.
    """
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`path` must be a path, got {path!r:.80} of type {type(path).__name__}.")
    path = Path(path)
    if not os.path.exists(path):  # false of a name that no file can have, too
        raise FileNotFoundError(f"There is no file {path!s:.300}.")
    if not path.is_file():  # reading a pipe or a device could wait for ever
        raise ValueError(f"{path} is a folder or is no regular file: name a file with {kind.contents}.")
    try:
        with open(path, "rb") as file:
            header, metadata = _read_header(file, kind)
            data = file.read()
        if metadata.get("sha256") != _digest(header, data):
            raise ValueError("is damaged or cut short: its contents do not give the digest in it")
        # What safetensors sees is what the digest was taken of.
        tensors = load_safetensors_bytes(_pack(header, data))
    except Exception as error:  # a file made for it can bring about any in the libraries
        reason = error if isinstance(error, ValueError) else f"cannot be read ({type(error).__name__}: {error!s:.200})"
        raise ValueError(f"{path} {reason}; {kind.remedy}.") from error
    return tensors, {name: text for name, text in metadata.items() if name not in _OWN_METADATA}


def _read_header(file: BinaryIO, kind: FileKind) -> tuple[dict[str, object], dict[str, str]]:
    """The header and the metadata in it, once they are known to be of this kind."""
    start = file.read(8)  # the length of a JSON header, which follows; then come the tensors' bytes
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MOST_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
        if start.startswith(_PICKLE_MAGIC):
            raise ValueError("is a pickle (as torch.save writes), which could run code when it is read")
        raise ValueError("is not a complete safetensors file: cut short, or of another kind")
    try:
        header = json.loads(file.read(length))
        metadata = cast("dict[str, str]", header["__metadata__"])
        schema, version = metadata.get("schema"), metadata.get("schema_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"holds no {kind.contents}: its header has no metadata that can be read") from error
    if (schema, version) != (kind.schema, kind.version):
        raise ValueError(
            f"holds no {kind.contents} that this release reads: expected the schema {kind.schema!r}, version "
            f"{kind.version!r}, got {schema!r:.80}, version {version!r:.80}"
        )
    return header, metadata


def _digest(header: Mapping[str, object], data: bytes) -> str:
    metadata = cast("dict[str, str]", header["__metadata__"])
    rest = {name: text for name, text in metadata.items() if name != "sha256"}
    return hashlib.sha256(_pack({**header, "__metadata__": rest}, data)).hexdigest()


def _pack(header: Mapping[str, object], data: bytes) -> bytes:
    # safetensors writes the metadata in the random order of a hash map; sorted, equal contents are equal bytes.
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data
