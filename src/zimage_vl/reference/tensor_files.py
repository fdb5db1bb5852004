"""safetensors files with plain text beside the tensors: written in full or not at all, refused where anything is off.

Equal contents give equal bytes, and nothing that is read here can run code.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors_bytes
from safetensors.torch import save as save_safetensors_bytes
from torch import Tensor


# What a file begins with when it is a pickle: torch.save's zip archive, and a bare pickle of protocol 2 to 5.
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class FileKind:
    """A kind of tensor file, for its metadata and for what errors say.

    Attributes:
        contents: What such a file holds, in words.
        schema: Its name in the metadata.
        version: The version of that schema.
        remedy: What to do about a file that is refused.
    """

    contents: str
    schema: str
    version: str
    remedy: str


def write_tensor_file(
    path: str | os.PathLike[str], kind: FileKind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file: all of it or nothing, with the schema of its kind in the metadata.

    Args:
        path: The file. Its folder must exist; a file of that name is replaced.
        kind: What it holds.
        tensors: By name, on any device.
        metadata: Plain texts by name.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written; what was there before still is.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist; make it, then save {path.name} into it.")
    # Cloned: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    schema = {"schema": kind.schema, "schema_version": kind.version}
    _replace_file(path, _sort_header(save_safetensors_bytes(plain, metadata={**metadata, **schema})))


def read_tensor_file(path: str | os.PathLike[str], kind: FileKind) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `write_tensor_file` wrote, onto the CPU.

    Args:
        path: The safetensors file.
        kind: What it must hold.

    Returns:
        Tensors and metadata, the schema among it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, a pickle, truncated, not a safetensors file, or of another kind or schema version.
    """
    path = Path(path)
    content = _read_file_bytes(path, kind)
    try:
        header, _ = _split_at_header(content)
        tensors = load_safetensors_bytes(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}). It may be truncated or of another kind; "
            f"{kind.remedy}."
        ) from error
    metadata: dict[str, str] = header.get("__metadata__", {})
    if metadata.get("schema") != kind.schema:
        raise ValueError(
            f"{path} is refused: it holds no {kind.contents} (expected the schema {kind.schema!r} in its metadata, "
            f"got {metadata.get('schema')!r}); {kind.remedy}."
        )
    if metadata.get("schema_version") != kind.version:
        raise ValueError(
            f"{path} is refused: it is of schema version {metadata.get('schema_version')!r}, this release reads "
            f"version {kind.version!r}; {kind.remedy}, or use the release that wrote the file."
        )
    return tensors, metadata


def _read_file_bytes(path: Path, kind: FileKind) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file with {kind.contents}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content = path.read_bytes()
    # A safetensors header 640 bytes long begins like a pickle, hence the second question.
    if content.startswith(_PICKLE_MAGIC) and _length_of_header(content) > len(content) - 8:
        raise ValueError(
            f"{path} is a pickle (as torch.save writes), whatever its name says. Reading one can run code, so it is "
            f"refused; {kind.remedy}."
        )
    return content


def _length_of_header(content: bytes) -> int:
    # The format: 8 bytes of little-endian length, a JSON header of that length, then the tensors' bytes.
    return int.from_bytes(content[:8], "little")


def _split_at_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = _length_of_header(content)
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(content[8 : 8 + length].decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, content[8 + length :]  # pyright: ignore[reportUnknownVariableType]


def _sort_header(content: bytes) -> bytes:
    # safetensors writes the metadata in the random order of a hash map; sorted, equal contents are equal bytes.
    header, data = _split_at_header(content)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _replace_file(path: Path, content: bytes) -> None:
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
