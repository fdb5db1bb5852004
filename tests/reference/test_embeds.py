"""ReferenceEmbeds: what it refuses, and that its file gives back exactly what went in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from zimage_vl.reference.embeds import REFERENCE_FILE, ReferenceEmbeds, ReferenceProvenance, as_reference_embeds
from zimage_vl.reference.files import write_tensor_file


REGIONS = torch.tensor([0, 1, 2, 2, 1, 3, 4], dtype=torch.int8)  # a prefix, a picture of two tokens, a word, a suffix
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


def test_it_says_what_it_holds_and_the_caller_keeps_its_own_dict():
    embeds = make_embeds()
    assert (embeds.num_tokens, embeds.num_image_tokens, embeds.width, embeds.layers) == (7, 2, 4, (-6, 12))
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
        ({-6: torch.ones(7, 4).to(torch.float8_e4m3fn)}, REGIONS, "float8"),
        ({-6: torch.randn(7, 4), -2: torch.randn(6, 4)}, REGIONS, r"of one shape, got \[\(6, 4\), \(7, 4\)\]"),
        ({-6: torch.randn(7, 4), -2: torch.randn(7, 5)}, REGIONS, "of one shape"),
        ({-6: torch.full((7, 4), float("nan"))}, REGIONS, "states of layer -6 contain NaN"),
        ({-6: torch.full((7, 4), float("inf"))}, REGIONS, "layer -6 contain NaN or infinity"),
        ({-6: torch.randn(7, 4)}, REGIONS[:6], r"shape \(7,\)"),
        ({-6: torch.randn(7, 4)}, REGIONS.float(), "integer"),
        ({-6: torch.randn(7, 4)}, REGIONS.to(torch.uint16), "integer"),
        ({-6: torch.randn(7, 4)}, REGIONS + 1, "values of Region, 0..4, got"),
        ({-6: torch.randn(7, 4)}, REGIONS - 1, "values of Region, 0..4, got"),
    ],
)
def test_refuses_what_does_not_fit(states: dict[int, torch.Tensor], regions: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        ReferenceEmbeds(states, regions)


def test_layers_are_known_by_both_names_and_selections_give_their_tensor():
    embeds = make_embeds()
    for layer, same in ((-6, -6), (31, -6), (-25, 12)):
        assert embeds.get_layer(layer) is embeds.hidden_states[same]
    assert torch.equal(embeds.select("image", layer=-6), embeds.hidden_states[-6][1:5])
    assert torch.equal(embeds.select("image_no_markers", 12), embeds.hidden_states[12][2:4])
    alone = ReferenceEmbeds({-6: torch.randn(7, 4)}, REGIONS)
    assert torch.equal(alone.select("text"), alone.hidden_states[-6][[0, 5, 6]])
    for missing in (-5, 30, 49, 68, -43):
        with pytest.raises(ValueError, match=rf"\[-6, 12\], not {missing}"):
            embeds.get_layer(missing)
    with pytest.raises(ValueError, match=r"holds the layers \[-6, 12\]: name one, layer=-6"):
        embeds.select("text")
    with pytest.raises(ValueError, match="must be one of"):
        embeds.select("words", -6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_file_gives_back_what_went_in(tmp_path: Path, dtype: torch.dtype):
    known = make_embeds(dtype)
    unknown = ReferenceEmbeds(known.hidden_states, REGIONS, muted_states=make_embeds(dtype, seed=1).hidden_states)
    for embeds in (known, unknown):
        embeds.save(tmp_path / "a")
        loaded = ReferenceEmbeds.load(tmp_path / "a")
        assert_same(embeds, loaded)
        loaded.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert_same(unknown.muted, loaded.muted)


def test_other_tools_can_read_it(tmp_path: Path):
    embeds = make_embeds()
    embeds.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert torch.equal(file.get_tensor("hidden_states.-6"), embeds.hidden_states[-6])
    assert (metadata["schema"], metadata["schema_version"]) == ("zimage_vl.reference_embeds", "2")
    assert (metadata["text"], metadata["width"], metadata["layers"]) == (PROVENANCE.text, "4", "[-6, 12]")
    assert json.loads(metadata["versions"]) == PROVENANCE.versions


OF_ANOTHER_KIND: dict[str, list[Any]] = {
    "num_hidden_layers": [0, True],
    "max_pixels": [1.5],
    "image_grid": [(1, 2, 3)],
    "image_size": [(0, 2)],
    "encoded_size": ["64x32"],
    "image_sha256": ["0" * 63],
    "mask_sha256": ["G" * 64],
    "vl_fingerprint": ["a" * 64 + "\n"],
    "text_position": ["beside"],
    "versions": [{"torch": 2}, ["torch"]],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in OF_ANOTHER_KIND for value in OF_ANOTHER_KIND[name]]
)
def test_provenance_of_another_kind_is_refused(name: str, value: Any):
    with pytest.raises(ValueError, match=f"field '{name}' is of another kind"):
        replace(PROVENANCE, **{name: value})


def assert_file_refused(
    path: Path, message: str, metadata: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """The file of `make_embeds` with some of it changed, or left out where None, and with a right digest."""
    embeds = make_embeds()
    held = {"regions": REGIONS, **{f"hidden_states.{layer}": x for layer, x in embeds.hidden_states.items()}}
    said = {**embeds._metadata(), **(metadata or {})}
    known = {name: text for name, text in said.items() if text is not None}
    write_tensor_file(path, REFERENCE_FILE, {**held, **(tensors or {})}, known)
    with pytest.raises(ValueError, match=message) as caught:
        ReferenceEmbeds.load(path)
    assert str(caught.value).startswith(f"{path} is refused: ")
    assert "encode the reference again" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "[-6]"}, "should hold"),
        ({"layers": "nonsense"}, "should hold"),
        ({"layers": None}, "should hold"),
        ({"layers": "[-6, 12, 12]"}, r"contradict.*\['layers'\]"),
        ({"width": "2560"}, r"contradict.*\['width'\]"),
        ({"num_tokens": None}, r"contradict.*\['num_tokens'\]"),
        ({"somebody": "else"}, r"unknown here: \['somebody'\]"),
        ({"num_hidden_layers": "5"}, "of 5 layers has no hidden states 12"),
        ({"versions": "[" * 100_000}, "'versions' is of another kind"),
    ],
)
def test_metadata_that_contradict_are_refused(tmp_path: Path, changes: dict[str, str | None], message: str):
    assert_file_refused(tmp_path / "a.safetensors", message, changes)


def test_bad_tensors_are_refused(tmp_path: Path):
    for changed, message in (
        ({"hidden_states.-6": torch.full((7, 4), float("nan"))}, "layer -6 contain NaN"),
        ({"hidden_states.-1": torch.randn(7, 4)}, "should hold"),
        ({"regions": torch.full((7,), 9, dtype=torch.int8)}, "values of Region, 0..4, got"),
    ):
        assert_file_refused(tmp_path / "a", message, tensors=changed)


def test_a_path_and_embeds_of_another_copy_of_the_code_serve(tmp_path: Path):
    embeds = make_embeds()
    assert as_reference_embeds(embeds) is embeds
    embeds.save(tmp_path / "a")
    assert_same(as_reference_embeds(tmp_path / "a"), embeds)
    assert_same(as_reference_embeds(str(tmp_path / "a")), embeds)
    other = SimpleNamespace(hidden_states=embeds.hidden_states, regions=REGIONS, provenance=PROVENANCE)
    ours = as_reference_embeds(other)
    assert isinstance(ours, ReferenceEmbeds)
    assert_same(ours, embeds)
    for wrong in (None, 3, torch.zeros(2), [embeds]):
        with pytest.raises(TypeError, match=f"or the path of their file here, got {type(wrong).__name__}"):
            as_reference_embeds(wrong)


def test_another_model_is_refused_by_fingerprint_and_by_hub_id(tmp_path: Path):
    def made_by(**provenance: str | None) -> ReferenceEmbeds:
        embeds = make_embeds()
        return ReferenceEmbeds(embeds.hidden_states, REGIONS, replace(PROVENANCE, **provenance))

    marked = made_by(vl_fingerprint="a" * 64)
    assert marked.check_model("any/name", "a" * 64)
    with pytest.raises(ValueError, match=r"Qwen3-VL-4B-Instruct' \(fingerprint a{12}\).*'b/b' \(fingerprint b{12}\)"):
        marked.check_model("b/b", "b" * 64)
    assert marked.check_model("Qwen/Qwen3-VL-4B-Instruct")
    with pytest.raises(ValueError, match="`vl_model_id` 'Qwen/Qwen3-VL-4B-Instruct'"):
        marked.check_model("Qwen/Qwen3-VL-4B-Thinking")
    with pytest.raises(ValueError, match="Thinking"):
        made_by().check_model("Qwen/Qwen3-VL-4B-Thinking", "b" * 64)
    for name in (str(tmp_path), "./models", "/data/qwen", "~/qwen", "toy", "a/b/c", None):
        assert not marked.check_model(name)
        assert not made_by(model_id=name).check_model("Qwen/Qwen3-VL-4B-Thinking")
