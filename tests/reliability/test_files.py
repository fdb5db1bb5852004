"""A file of ours that was changed anywhere is refused by its name, or holds what it held."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from cli_calls import call
from pipeline_samples import PROMPT, make_picture
from tally import CHANGES, change, count, expect, fuzz, is_ours
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.text_statistics import STATISTICS_FILE, TextStatistics
from zimage_vl.reference.embeds import REFERENCE_FILE, ReferenceEmbeds
from zimage_vl.reference.files import _digest, _pack, read_tensor_file


ROW = "files"
CLASSES: dict[str, Any] = {"embeds": ReferenceEmbeds, "statistics": TextStatistics}
KINDS = {"embeds": REFERENCE_FILE, "statistics": STATISTICS_FILE}
Loaded = tuple[dict[str, torch.Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind."""
    folder, pipe = tmp_path_factory.mktemp("files"), tiny_pipeline()
    pipe.encode_reference(make_picture(), PROMPT, (-6, -2), muted=True).save(folder / "embeds.safetensors")
    TextStatistics.measure(pipe, "tiny").save(folder / "statistics.safetensors")
    return {path.stem: path for path in folder.iterdir()}


def load(path: Path, kind: str) -> Loaded:
    """What a file holds once it is taken: its tensors and texts, as it would be written again."""
    again = path.with_name("again.safetensors")
    CLASSES[kind].load(path).save(again)
    return read_tensor_file(again, KINDS[kind])


def same(one: Loaded, other: Loaded) -> bool:
    return one[1] == other[1] and one[0].keys() == other[0].keys() and all(
        x.dtype == other[0][name].dtype and torch.equal(x, other[0][name]) for name, x in one[0].items()
    )  # fmt: skip


def refused_or_same(path: Path, kind: str, expected: Loaded | None, what: object) -> bool:
    """Whether it is refused; what is taken must hold what is expected, or, with None, nothing that was not read."""
    count(ROW)
    try:
        loaded = load(path, kind)
    except Exception as error:
        own = type(error) is ValueError and is_ours(error) and str(path) in str(error) and len(str(error)) < 2500
        expect(ROW, own, f"{error!r} after {what}")
        return True
    expect(ROW, same(loaded, expected or read_tensor_file(path, KINDS[kind])), f"other content after {what}")
    return False


@fuzz(90)
@given(st.sampled_from(list(KINDS)), CHANGES)
def test_changed_bytes(whole: dict[str, Path], kind: str, changes: list[tuple[str, float, int]]) -> None:
    path = whole[kind].with_name("changed.safetensors")
    path.write_bytes(change(whole[kind].read_bytes(), changes))
    refused_or_same(path, kind, read_tensor_file(whole[kind], KINDS[kind]), changes)


ODD: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "-6", "[-6]", "[]", "{}", "null", "NaN",
    "1e3", "true", " 2", "0" * 64, "\ud800", "\x1b[2J", "x" * 10**5, [], [-6], [None], {}, {"a": {"b": "c"}},
    "[" * 10**5, '{"a": 1}', "F32", "F64", "F8_E4M3", [0, 4], [2**62, 2],
]  # fmt: skip
EDIT = st.tuples(st.sampled_from(["set", "set", "delete", "rename", "copy"]), st.floats(0, 1), st.sampled_from(ODD))


def places(header: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a header."""
    items = header.items() if isinstance(header, dict) else enumerate(header) if isinstance(header, list) else ()
    return [place for key, value in items for place in [(*way, key), *places(value, (*way, key))]]


def edit(header: Any, how: str, share: float, value: Any) -> None:
    found = places(header) or [("x",)]
    found += 3 * [place for place in found if place[0] == "__metadata__"]  # which is the smaller part, and ours
    *way, last = found[int(share * (len(found) - 1))]
    parent = header
    for key in way:
        parent = parent[key]
    if how == "set" or isinstance(parent, list):
        parent[last] = copy.deepcopy(value)
    elif last in parent:
        kept = parent[last] if how == "copy" else parent.pop(last)
        parent.update({} if how == "delete" else {str(value)[:9]: kept})


@fuzz(200)
@given(st.sampled_from(list(KINDS)), st.lists(EDIT, min_size=1, max_size=2), st.integers(0, 3).map(bool))
def test_an_edited_header(
    whole: dict[str, Path], kind: str, edits: list[tuple[str, float, Any]], signed: bool
) -> None:
    """With the digest made anew, what is taken must be a file like any other: nothing in it is left unread."""
    content, path = whole[kind].read_bytes(), whole[kind].with_name("edited.safetensors")
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    for one in edits:
        edit(header, *one)
    with contextlib.suppress(Exception):  # of a header that has no place for it
        if signed:
            header["__metadata__"]["sha256"] = _digest(header, data)
    text = json.dumps(header, sort_keys=True).encode()
    with contextlib.suppress(UnicodeEncodeError):  # of a lone surrogate, which escaped is one all the same
        text = _pack(header, b"")[8:]
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    refused_or_same(path, kind, None if signed else read_tensor_file(whole[kind], KINDS[kind]), edits)


def test_other_kinds_are_refused_by_both_and_by_the_command_line(
    whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content, archive, picture = whole["embeds"].read_bytes(), io.BytesIO(), io.BytesIO()
    torch.save({"regions": torch.zeros(3)}, archive)
    make_picture().save(picture, "PNG")
    others = {
        "empty": b"", "zeros": bytes(4096), "ones": b"\xff" * 4096, "a pickle": pickle.dumps({"regions": [1]}),
        "torch.save": archive.getvalue(), "gzip": gzip.compress(content), "json": b'{"hidden_states": [1]}',
        "a picture": picture.getvalue(), "a web page": b"<!doctype html><html></html>" + content,
        "gguf": b"GGUF\3\0\0\0" + content, "weights": save({"model.weight": torch.zeros(4, 4)}),
        "twice": content + content, "a header of 2^62 bytes": struct.pack("<Q", 2**62) + content[8:],
        "a header of 4 MB": struct.pack("<Q", 2**22 + 1) + content[8:] + bytes(2**22),
        "a deep header": struct.pack("<Q", 10**6) + b"[" * 10**6, "utf-16": content.decode("latin-1").encode("utf-16"),
    }  # fmt: skip
    path = whole["embeds"].with_name("other kind.safetensors")
    for name, other in others.items():
        path.write_bytes(other)
        for kind in KINDS:
            expect(ROW, refused_or_same(path, kind, None, name), f"{name} is taken for {kind}")
        call(capsys, "inspect", path).refused("other kind.safetensors")
    for kind, other in (("embeds", "statistics"), ("statistics", "embeds")):
        expect(ROW, refused_or_same(whole[other], kind, None, other), f"{other} is taken for {kind}")
