"""ReferenceEmbeds: what it refuses, and that its file gives back exactly what went in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds, ReferenceProvenance


REGIONS = torch.tensor(
    [Region.PREFIX, Region.MARKER, Region.IMAGE, Region.IMAGE, Region.MARKER, Region.WORDS, Region.SUFFIX],
    dtype=torch.int8,
)
PROVENANCE = ReferenceProvenance(
    model_id="Qwen/Qwen3-VL-4B-Instruct",
    revision="abc",
    num_hidden_layers=36,
    image_grid=(1, 2),
    image_sha256="0" * 64,
    image_size=(60, 30),
    encoded_size=(64, 32),
    text='[1] "töpfe" und\nZeilen',
    text_position="after",
    max_pixels=1024,
    dtype="bfloat16",
    versions={"zimage_vl": "0.1.0", "torch": "2.13.0"},
)


def make_embeds(dtype: torch.dtype = torch.float32, seed: int = 0) -> ReferenceEmbeds:
    generator = torch.Generator().manual_seed(seed)
    states = {layer: torch.randn(7, 4, generator=generator).to(dtype) for layer in (-6, 12)}
    return ReferenceEmbeds(states, REGIONS, PROVENANCE)


def assert_same(first: ReferenceEmbeds, second: ReferenceEmbeds) -> None:
    assert first.layers == second.layers
    for layer in first.layers:
        assert first.hidden_states[layer].dtype == second.hidden_states[layer].dtype
        assert torch.equal(first.hidden_states[layer], second.hidden_states[layer])
    assert torch.equal(first.regions, second.regions)
    assert first.provenance == second.provenance


def test_says_what_it_holds():
    embeds = make_embeds()
    assert (embeds.num_tokens, embeds.num_image_tokens, embeds.width, embeds.layers) == (7, 2, 4, (-6, 12))


def test_caller_keeps_its_own_dict():
    states = {-6: torch.randn(7, 4)}
    embeds = ReferenceEmbeds(states, REGIONS)
    states.clear()
    assert embeds.layers == (-6,)


@pytest.mark.parametrize(
    ("states", "regions", "message"),
    [
        ({}, REGIONS, "at least one layer"),
        ({-6: torch.randn(1, 7, 4)}, REGIONS, r"shape \(1, 7, 4\)"),
        ({-6: torch.zeros(0, 4)}, REGIONS[:0], "at least one token"),
        ({-6: torch.ones(7, 4, dtype=torch.int64)}, REGIONS, "int64"),
        ({-6: torch.randn(7, 4), -2: torch.randn(6, 4)}, REGIONS, "same number of tokens"),
        ({-6: torch.randn(7, 4), -2: torch.randn(7, 5)}, REGIONS, "same number of tokens"),
        ({-6: torch.full((7, 4), float("nan"))}, REGIONS, "layer -6 contain NaN"),
        ({-6: torch.full((7, 4), float("inf"))}, REGIONS, "layer -6 contain NaN or infinity"),
        ({-6: torch.randn(7, 4)}, REGIONS[:6], r"shape \(7,\)"),
        ({-6: torch.randn(7, 4)}, REGIONS.float(), "integer"),
        ({-6: torch.randn(7, 4)}, REGIONS + 1, "got 1 .. 5"),
        ({-6: torch.randn(7, 4)}, REGIONS - 1, "got -1 .. 3"),
    ],
)
def test_refuses_what_does_not_fit(states: dict[int, torch.Tensor], regions: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        ReferenceEmbeds(states, regions)


def test_get_layer_knows_both_names():
    embeds = make_embeds()
    assert embeds.get_layer(-6) is embeds.hidden_states[-6]
    assert embeds.get_layer(31) is embeds.hidden_states[-6]
    assert embeds.get_layer(-25) is embeds.hidden_states[12]
    for missing in (-5, 30, 49, 68):
        with pytest.raises(ValueError, match=rf"\[-6, 12\], not of layer {missing}"):
            embeds.get_layer(missing)


def test_to_casts_a_copy():
    embeds = make_embeds()
    half = embeds.to(dtype=torch.bfloat16)
    assert half.hidden_states[-6].dtype == torch.bfloat16
    assert half.regions.dtype == torch.int8
    assert embeds.hidden_states[-6].dtype == torch.float32
    with pytest.raises(ValueError, match="NaN or infinity"):
        ReferenceEmbeds({-1: torch.full((7, 4), 1e6)}, REGIONS).to(dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_file_gives_back_what_went_in(tmp_path: Path, dtype: torch.dtype):
    embeds = make_embeds(dtype)
    embeds.save(tmp_path / "a.safetensors")
    loaded = ReferenceEmbeds.load(tmp_path / "a.safetensors")
    assert_same(embeds, loaded)
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_unknown_provenance_survives(tmp_path: Path):
    embeds = ReferenceEmbeds({-6: torch.randn(7, 4)}, REGIONS)
    embeds.save(tmp_path / "a")
    assert_same(embeds, ReferenceEmbeds.load(tmp_path / "a"))


def test_layers_may_share_memory(tmp_path: Path):
    whole = torch.randn(7, 8)
    embeds = ReferenceEmbeds({-1: whole[:, :4], 36: whole[:, :4], -2: whole.T[4:].T}, REGIONS)
    embeds.save(tmp_path / "a")
    assert_same(embeds, ReferenceEmbeds.load(tmp_path / "a"))


def test_other_tools_can_read_it(tmp_path: Path):
    embeds = make_embeds()
    embeds.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("hidden_states.-6"), embeds.hidden_states[-6])
    assert metadata["schema_version"] == "1"
    assert metadata["text"] == PROVENANCE.text
    assert metadata["width"] == "4"
    assert json.loads(metadata["versions"]) == PROVENANCE.versions


def test_same_bytes_in_every_process(tmp_path: Path):
    # Within one process a hash map may well keep its order; two processes with different hash seeds do not.
    code = "import sys; from zimage_vl.reference.embeds import ReferenceEmbeds as R; R.load(sys.argv[1]).save(sys.argv[2])"
    make_embeds().save(tmp_path / "0")
    for seed in ("1", "2"):
        arguments = [sys.executable, "-c", code, str(tmp_path / "0"), str(tmp_path / seed)]
        subprocess.run(arguments, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert (tmp_path / seed).read_bytes() == (tmp_path / "0").read_bytes()


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.safetensors"
    make_embeds(seed=0).save(path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_embeds(seed=1).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_save_leaves_the_file_alone_and_no_other(tmp_path: Path):
    make_embeds(seed=0).save(tmp_path / "a")
    make_embeds(seed=1).save(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert_same(ReferenceEmbeds.load(tmp_path / "a"), make_embeds(seed=1))
    with pytest.raises(FileNotFoundError, match="no_such_folder does not exist"):
        make_embeds().save(tmp_path / "no_such_folder" / "a")


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere"):
        ReferenceEmbeds.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a folder"):
        ReferenceEmbeds.load(tmp_path)


def test_truncated_anywhere_is_refused(tmp_path: Path):
    make_embeds().save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in (0, 3, 8, 9, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut is not a complete safetensors file"):
            ReferenceEmbeds.load(tmp_path / "cut")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_under_another_name_is_refused(tmp_path: Path, zipped: bool):
    path = tmp_path / "a.safetensors"
    torch.save({"hidden_states": torch.randn(7, 4)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="is a pickle"):
        ReferenceEmbeds.load(path)


def test_header_that_looks_like_a_pickle_is_read(tmp_path: Path):
    # A header of 640, 896, 1152 or 1408 bytes begins like a pickle: one of these paddings gives such a length.
    lengths: set[int] = set()
    for padding in range(0, 800, 8):
        provenance = ReferenceProvenance(text="x" * padding)
        ReferenceEmbeds({-6: torch.randn(7, 4)}, REGIONS, provenance).save(tmp_path / "a")
        lengths.add(int.from_bytes((tmp_path / "a").read_bytes()[:8], "little"))
        assert ReferenceEmbeds.load(tmp_path / "a").provenance == provenance
    assert lengths & {640, 896, 1152, 1408}


def file_with(path: Path, **changes: str | None) -> None:
    """The file of `make_embeds` with some of its metadata changed, or left out where None."""
    make_embeds().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changes}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    save_file(tensors, path, {key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "somebody.else"}, "no reference embeddings"),
        ({"schema": None}, "no reference embeddings"),
        ({"schema_version": "2"}, "schema version '2', this release reads version '1'"),
        ({"layers": "[-6]"}, "should hold the tensors"),
        ({"layers": "nonsense"}, "'layers' cannot be read"),
        ({"layers": None}, "'layers' cannot be read"),
        ({"layers": '["a"]'}, "'layers' should be of type list"),
        ({"width": "2560"}, "width '2560', its tensors 4"),
        ({"num_image_tokens": "3"}, "num_image_tokens '3', its tensors 2"),
        ({"num_hidden_layers": "[]"}, "'num_hidden_layers' should be of type int"),
    ],
)
def test_other_schema_and_contradictions_are_refused(tmp_path: Path, changes: dict[str, str | None], message: str):
    path = tmp_path / "a.safetensors"
    file_with(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        ReferenceEmbeds.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_states.-6": torch.full((7, 4), float("nan"))}, "layer -6 contain NaN"),
        ({"hidden_states.-6": torch.randn(8, 4)}, "same number of tokens"),
        ({"regions": torch.full((7,), 9, dtype=torch.int8)}, "got 9 .. 9"),
        ({"regions": torch.zeros(6, dtype=torch.int8)}, r"shape \(7,\)"),
    ],
)
def test_bad_content_is_refused(tmp_path: Path, changed: dict[str, torch.Tensor], message: str):
    path = tmp_path / "a"
    make_embeds().save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    save_file({**tensors, **changed}, path, metadata)
    with pytest.raises(ValueError, match=message):
        ReferenceEmbeds.load(path)


def test_other_safetensors_file_is_refused(tmp_path: Path):
    save_file({"weight": torch.randn(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no reference embeddings"):
        ReferenceEmbeds.load(tmp_path / "model.safetensors")


def test_another_model_is_refused_by_fingerprint_and_by_hub_id(tmp_path: Path):
    def made_by(**provenance: str | None) -> ReferenceEmbeds:
        embeds = make_embeds()
        return ReferenceEmbeds(embeds.hidden_states, REGIONS, replace(PROVENANCE, **provenance))

    marked = made_by(vl_fingerprint="a" * 64)
    assert marked.check_model("any/name", "a" * 64)
    with pytest.raises(ValueError, match=r"Qwen3-VL-4B-Instruct' \(fingerprint a{12}\).*'b/b' \(fingerprint b{12}\)"):
        marked.check_model("b/b", "b" * 64)
    assert marked.check_model("Qwen/Qwen3-VL-4B-Instruct")
    with pytest.raises(ValueError, match="vl_model_id='Qwen/Qwen3-VL-4B-Instruct'"):
        marked.check_model("Qwen/Qwen3-VL-4B-Thinking")
    with pytest.raises(ValueError, match="Thinking"):
        made_by().check_model("Qwen/Qwen3-VL-4B-Thinking", "b" * 64)
    for name in (str(tmp_path), "./models", "/data/qwen", "~/qwen", "toy", "a/b/c", None):
        assert not marked.check_model(name)
        assert not made_by(model_id=name).check_model("Qwen/Qwen3-VL-4B-Thinking")
