"""Statistics in a file: whose they are, and that nobody else's are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from zimage_vl.pipeline.calibration import calibration_prompts_sha256
from zimage_vl.pipeline.text_statistics import TextStatistics


TOKENIZER = tiny_tokenizer()
PIPE = tiny_pipeline(with_vl=False)
MEASURED = TextStatistics.measure(PIPE, "a/model")


def encoder(**kwargs: Any) -> Any:
    return tiny_text_encoder(tokenizer=TOKENIZER, **kwargs)


def test_what_is_measured_is_the_pipelines_own() -> None:
    assert MEASURED.statistics is PIPE.text_statistics()
    assert (MEASURED.model_id, MEASURED.layer, MEASURED.width, MEASURED.dtype) == ("a/model", -2, 32, "float32")
    assert MEASURED.prompts_sha256 == calibration_prompts_sha256()
    assert set(MEASURED.versions) >= {"zimage_vl", "torch", "transformers", "diffusers"}
    assert not MEASURED.statistics.exclude_sinks
    assert TextStatistics.measure(PIPE, "a/model", exclude_sinks=True).statistics.exclude_sinks


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    MEASURED.save(tmp_path / "a.safetensors")
    loaded = TextStatistics.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.statistics.mean, MEASURED.statistics.mean)
    assert torch.equal(loaded.statistics.std, MEASURED.statistics.std)
    assert loaded.statistics.count == MEASURED.statistics.count
    assert loaded.to_metadata() == MEASURED.to_metadata()
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as opened:
        assert opened.metadata()["schema"] == "zimage_vl.pipeline.text_statistics"


def test_sinks_left_out_are_remembered(tmp_path: Path) -> None:
    TextStatistics.measure(PIPE, "a/model", exclude_sinks=True).save(tmp_path / "a.safetensors")
    assert TextStatistics.load(tmp_path / "a.safetensors").statistics.exclude_sinks is True


def test_another_encoders_statistics_are_refused_by_name() -> None:
    MEASURED.check_fits(PIPE.text_encoder)
    MEASURED.check_fits(encoder())
    with pytest.raises(ValueError, match=r"of 'a/model' \(fingerprint .{12}\), which is not this text encoder"):
        MEASURED.check_fits(encoder(seed=5))
    with pytest.raises(ValueError, match="layer -1 of 'a/model'; Z-Image reads layer -2"):
        replace(MEASURED, layer=-1).check_fits(PIPE.text_encoder)
    with pytest.raises(ValueError, match=r"of 'a/model', which is 32 wide; this text encoder is 64 wide"):
        MEASURED.check_fits(encoder(width=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "33"}, "its metadata say width 33, its tensors 32"),
        ({"count": "many"}, "invalid literal"),
        ({"count": "1"}, "at least two tokens"),
        ({"exclude_sinks": "perhaps"}, "is refused"),
        ({"exclude_sinks": "1"}, "its metadata cannot be read"),
        ({"versions": "[]"}, "its metadata cannot be read"),
        ({"fingerprint": None}, "'fingerprint' is missing"),
        ({"schema": "zimage_vl.reference_embeds"}, "holds no text-encoder statistics"),
        ({"schema_version": "9"}, "schema version '9'"),
    ],
)
def test_other_and_contradicting_files_are_refused(
    changes: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    tensors = {"mean": MEASURED.statistics.mean, "std": MEASURED.statistics.std}
    metadata = {
        **MEASURED.to_metadata(),
        "schema": "zimage_vl.pipeline.text_statistics",
        "schema_version": "1",
        **changes,
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, str(path), {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=message) as refused:
        TextStatistics.load(path)
    assert "a.safetensors" in str(refused.value)
    assert "zimage-vl statistics" in str(refused.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.zeros(32)},
        {"mean": torch.zeros(32), "std": torch.full((32,), float("nan"))},
        {"mean": torch.zeros(32), "std": -torch.ones(32)},
        {"mean": torch.zeros(31), "std": torch.ones(32)},
    ],
)
def test_bad_numbers_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    metadata = {**MEASURED.to_metadata(), "schema": "zimage_vl.pipeline.text_statistics", "schema_version": "1"}
    save_file(tensors, str(tmp_path / "a.safetensors"), metadata)
    with pytest.raises(ValueError, match=r"a\.safetensors is refused"):
        TextStatistics.load(tmp_path / "a.safetensors")
