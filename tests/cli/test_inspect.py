"""`zimage-vl inspect`: what it says is what the file holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from cli_calls import call
from embedding_samples import make_reference, make_states, put_sink, rms_of
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics, per_dimension_correlation
from zimage_vl.blend.regions import Region
from zimage_vl.cli._records import write_png
from zimage_vl.pipeline.text_statistics import TextStatistics
from zimage_vl.reference.embeds import ReferenceEmbeds, ReferenceProvenance


def statistics(dims: int = 16) -> TextStatistics:
    spread = torch.ones(dims)
    spread[3], spread[5] = 100.0, 0.01
    tokens = make_states(200, dims, rms=7.0, seed=5) * spread
    return TextStatistics(EmbeddingStatistics.from_embeddings(tokens), "a/text-model", "f" * 64)


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Path, ReferenceEmbeds]:
    made = make_reference(layers=(-6, -2))
    states = {**made.hidden_states, -6: put_sink(made.hidden_states[-6])}
    provenance = ReferenceProvenance(model_id="a/vl-model", image_grid=(3, 3), image_size=(90, 80), text="a b")
    embeds = ReferenceEmbeds(states, made.regions, provenance)
    embeds.save(tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", embeds


def facts_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    done = call(capsys, "inspect", *arguments, "--format", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_json_holds_what_the_file_holds(
    reference: tuple[Path, ReferenceEmbeds], capsys: pytest.CaptureFixture[str]
) -> None:
    path, embeds = reference
    facts = facts_of(capsys, path)
    assert (facts["file"], facts["bytes"]) == (str(path), path.stat().st_size)
    assert (facts["width"], facts["tokens"]) == (16, embeds.num_tokens)
    assert facts["regions"] == {"prefix": 3, "marker": 2, "image": 9, "words": 5, "suffix": 4}
    assert (facts["provenance"]["model_id"], facts["provenance"]["image_grid"]) == ("a/vl-model", [3, 3])
    assert facts["statistics"] is None
    assert list(facts["layers"]) == ["-6", "-2"]
    for layer, states in embeds.hidden_states.items():
        said = facts["layers"][str(layer)]
        assert said["std"] == pytest.approx(float(states.double().std()), rel=1e-5)
        image = states[embeds.regions == Region.IMAGE]
        assert said["image_tokens"]["tokens"] == 9
        assert said["image_tokens"]["std"] == pytest.approx(float(image.double().std()), rel=1e-5)
        assert said["image_tokens"]["median_token_rms"] == pytest.approx(float(rms_of(image).median()), rel=1e-5)
        assert said["text_tokens"]["tokens"] == 12
        assert "outliers" not in said["image_tokens"]


def test_sinks_are_found_and_left_out(
    reference: tuple[Path, ReferenceEmbeds], capsys: pytest.CaptureFixture[str]
) -> None:
    path, embeds = reference
    layers = facts_of(capsys, path)["layers"]
    states = embeds.hidden_states[-6]
    (sink,) = layers["-6"]["sinks"]
    assert (sink["token"], sink["region"]) == (0, "prefix")
    assert sink["rms"] == pytest.approx(float(rms_of(states)[0]), rel=1e-5)
    assert layers["-6"]["std_without_sinks"] == pytest.approx(float(states[1:].double().std()), rel=1e-5)
    assert layers["-2"]["sinks"] == []
    assert layers["-2"]["std_without_sinks"] == layers["-2"]["std"]


def test_outliers_against_statistics(
    reference: tuple[Path, ReferenceEmbeds], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, embeds = reference
    against = statistics()
    against.save(tmp_path / "statistics.safetensors")
    facts = facts_of(capsys, path, "--statistics", tmp_path / "statistics.safetensors")
    assert facts["statistics"] == {"model_id": "a/text-model", "fingerprint": "f" * 64}
    image = embeds.hidden_states[-2][embeds.regions == Region.IMAGE]
    said = facts["layers"]["-2"]["image_tokens"]
    quotients = image.double().std(dim=0) / against.statistics.std.double()
    expected = {d: max(float(q), 1 / float(q)) for d, q in enumerate(quotients) if not 0.1 <= float(q) <= 10}
    assert {o["dimension"]: pytest.approx(o["ratio"], rel=1e-4) for o in said["outliers"]} == expected
    assert {(o["dimension"], o["direction"]) for o in said["outliers"]} == {(3, "deficit"), (5, "excess")}
    assert [o["ratio"] for o in said["outliers"]] == sorted(expected.values(), reverse=True) or len(expected) == 2
    assert said["per_dimension_correlation"] == pytest.approx(per_dimension_correlation(image, against.statistics))
    loose = facts_of(capsys, path, "--statistics", tmp_path / "statistics.safetensors", "--threshold", "1e4")
    assert loose["layers"]["-2"]["image_tokens"]["outliers"] == []
    text = call(capsys, "inspect", path, "--statistics", tmp_path / "statistics.safetensors").out
    assert "direction deficit, dimension 5 ratio 78" in text


def test_text_names_what_matters(reference: tuple[Path, ReferenceEmbeds], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = reference
    done = call(capsys, "inspect", path)
    assert (done.code, done.err) == (0, "")
    rows = {line[:17].strip(): line[18:] for line in done.out.splitlines()}
    assert (rows["width"], rows["tokens"]) == ("16", "23")
    assert rows["regions"] == "prefix 3, marker 2, image 9, words 5, suffix 4"
    assert rows["provenance"] == "model id a/vl-model, image grid 3, 3, image size 90, 80, text a b, versions none"
    assert "    sinks         token 0, region prefix, rms " in done.out
    assert "    sinks         none" in done.out


def test_a_state_that_does_not_vary_has_no_correlation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_reference()
    states = torch.ones_like(made.hidden_states[-6])
    ReferenceEmbeds({-6: states}, made.regions).save(tmp_path / "a.safetensors")
    statistics().save(tmp_path / "s.safetensors")
    facts = facts_of(capsys, tmp_path / "a.safetensors", "--statistics", tmp_path / "s.safetensors")
    said = facts["layers"]["-6"]["image_tokens"]
    assert "per_dimension_correlation" not in said
    assert said["outliers"][0]["ratio"] == "inf"
    assert call(capsys, "inspect", tmp_path / "a.safetensors", "--statistics", tmp_path / "s.safetensors").code == 0


def test_what_does_not_fit_is_refused_by_name(
    reference: tuple[Path, ReferenceEmbeds], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = reference
    other = tmp_path / "other.safetensors"
    statistics(dims=8).save(other)
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    os.mkfifo(tmp_path / "fifo")
    for arguments, reason in (
        ((path, "--statistics", other), "of 'a/text-model', which is 8 wide"),
        ((path, "--statistics", path), "holds no text-encoder statistics"),
        ((other, "--statistics", other), "holds no reference embeddings: --statistics is for"),
        ((tmp_path / "gone.safetensors",), "There is no file"),
        ((tmp_path,), "is no regular file"),
        ((tmp_path / "fifo",), "is no regular file"),
        ((tmp_path / "pickle.safetensors",), "is a pickle"),
        ((tmp_path / "text.safetensors",), "not a complete safetensors file"),
    ):
        call(capsys, "inspect", *arguments).refused(reason)
    statistics().save(tmp_path / "s.safetensors")
    done = call(capsys, "inspect", path, "--statistics", tmp_path / "s.safetensors", "--threshold", "1")
    done.refused("Error: --threshold must be a number above 1")


def test_several_files_are_told_of_in_turn(
    reference: tuple[Path, ReferenceEmbeds], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = reference
    statistics().save(tmp_path / "s.safetensors")
    assert [facts["holds"] for facts in facts_of(capsys, path, tmp_path / "s.safetensors")["files"]] == [
        "reference embeddings",
        "text-encoder statistics",
    ]
    assert call(capsys, "inspect", path, tmp_path / "s.safetensors").out.count("\nholds ") == 2


def test_verify_says_of_each_file_whether_it_is_whole(
    reference: tuple[Path, ReferenceEmbeds], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte anywhere shows, in tensors as in words; a name that is no text ends nothing."""
    path, _ = reference
    statistics().save(tmp_path / "s.safetensors")
    write_png(PIL.Image.new("RGB", (8, 8)), tmp_path / "p.png", {"prompt": "x"})
    whole = [path, tmp_path / "s.safetensors", tmp_path / "p.png"]
    done = call(capsys, "inspect", "--verify", *whole)
    assert (done.code, done.out, done.err) == (0, "".join(f"whole   {file}\n" for file in whole), "")
    broken = []
    for name, record in (("empty.png", {}), ("pairs.png", [[1, 2]])):
        write_png(PIL.Image.new("RGB", (8, 8)), tmp_path / name, record)
        broken.append(tmp_path / name)
    for name, file in ((b"\xff.safetensors", whole[0]), (b"late.safetensors", whole[1])):
        damaged = bytearray(file.read_bytes())
        damaged[-3 if name.startswith(b"l") else 300] ^= 1
        broken.append(tmp_path / os.fsdecode(name))
        broken[-1].write_bytes(damaged)
    done = call(capsys, "inspect", "--verify", *broken, *whole, tmp_path / "gone", "--format", "json")
    assert done.code == 3
    told = json.loads(done.out)
    assert told["whole"] == [str(file) for file in whole]
    assert list(told["refused"]) == [str(file) for file in (*broken, tmp_path / "gone")]
    assert r"\udcff.safetensors" in done.err
    assert "REFUSED" in call(capsys, "inspect", "--verify", broken[-1]).out
