"""Files of another model: refused by name, also where they are as wide; statistics from a file serve the calls."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline_samples import KNOBS, PROMPT, make_picture, paint, record_runs
from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_vl_encoder
from zimage_vl.pipeline.text_statistics import TextStatistics
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.toy import load_toy_pipeline


PICTURE = make_picture(0)
INSTRUCT, THINKING = "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Thinking"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def embeds(pipe: Any) -> ReferenceEmbeds:
    return pipe.encode_reference(PICTURE, PROMPT, (-2,))


def relabel(embeds: ReferenceEmbeds, **provenance: Any) -> ReferenceEmbeds:
    return ReferenceEmbeds(embeds.hidden_states, embeds.regions, replace(embeds.provenance, **provenance))


def refusal(pipe: Any, **kwargs: Any) -> str:
    with record_runs(pipe) as runs, pytest.raises(ValueError, match="read by") as refused:
        paint(pipe, **{**KNOBS, **kwargs})
    assert runs == []
    return str(refused.value)


def test_another_encoder_of_the_same_width_is_refused_by_name(embeds: ReferenceEmbeds) -> None:
    other = tiny_pipeline(vl_encoder=tiny_vl_encoder(seed=7), vl_model_id="some/where")
    said = refusal(other, reference_embeds=relabel(embeds, model_id=INSTRUCT))
    assert INSTRUCT in said
    assert "some/where" in said
    assert "again" in said
    style: dict[str, Any] = {"vl_blend_mode": "style_delta", "vl_normalization": "none"}
    own = other.encode_reference(PICTURE, PROMPT, (-2,))
    assert "another VL encoder" in refusal(other, reference_embeds=own, neutral_image=embeds, **style)


def test_the_same_model_under_other_names_is_taken(pipe: Any, embeds: ReferenceEmbeds, tmp_path: Path) -> None:
    pipe.vl_encoder.save_pretrained(tmp_path)
    loaded = type(pipe.vl_encoder).from_pretrained(tmp_path)
    same = tiny_pipeline(vl_encoder=loaded, vl_model_id=THINKING)
    expected = paint(pipe, reference_embeds=embeds, **KNOBS)
    given = relabel(embeds, model_id=INSTRUCT)
    assert (paint(same, reference_embeds=given, **KNOBS) == expected).all()
    assert same.encode_reference(PICTURE, PROMPT, (-2,)).provenance.model_id == str(tmp_path)


def test_without_an_encoder_two_hub_ids_are_compared(embeds: ReferenceEmbeds) -> None:
    bare = tiny_pipeline(with_vl=False, vl_model_id=INSTRUCT)
    said = refusal(bare, reference_embeds=relabel(embeds, model_id=THINKING))
    assert f"--vl-model {THINKING}" in said
    assert f"vl_model_id='{THINKING}'" in said
    assert bare.vl_encoder is None
    given = relabel(embeds, model_id=THINKING)
    meant = tiny_pipeline(with_vl=False, vl_model_id=THINKING)
    assert (
        paint(meant, reference_embeds=given, **KNOBS) == paint(tiny_pipeline(), reference_embeds=embeds, **KNOBS)
    ).all()


def test_what_cannot_be_compared_is_said_once(embeds: ReferenceEmbeds, caplog: pytest.LogCaptureFixture) -> None:
    bare = tiny_pipeline(with_vl=False, vl_model_id=INSTRUCT)
    logging.getLogger("zimage_vl.pipeline.call_checks").propagate = True
    given = relabel(embeds, model_id="/data/qwen3-vl")
    for _ in range(2):
        paint(bare, reference_embeds=given, **KNOBS)
    assert sum("/data/qwen3-vl" in record.getMessage() for record in caplog.records) == 1


def test_files_of_earlier_releases_and_embeddings_made_by_hand_are_taken(pipe: Any, embeds: ReferenceEmbeds) -> None:
    expected = paint(pipe, reference_embeds=embeds, **KNOBS)
    for given in (relabel(embeds, vl_fingerprint=None), ReferenceEmbeds(embeds.hidden_states, embeds.regions)):
        assert (paint(pipe, reference_embeds=given, **KNOBS) == expected).all()


def test_a_file_carries_the_fingerprint(embeds: ReferenceEmbeds, tmp_path: Path) -> None:
    embeds.save(tmp_path / "a.safetensors")
    loaded = ReferenceEmbeds.load(tmp_path / "a.safetensors")
    assert loaded.provenance.vl_fingerprint == embeds.provenance.vl_fingerprint
    assert len(loaded.provenance.vl_fingerprint or "") == 64


def test_the_toy_has_a_name_that_is_no_path() -> None:
    assert load_toy_pipeline().encode_reference(PICTURE).provenance.model_id == "toy"


# ---- Statistics from a file ----

PER_DIM: dict[str, Any] = {"reference_image": PICTURE, "vl_normalization": "per_dim", **KNOBS}


@pytest.fixture
def statistics(pipe: Any, tmp_path: Path) -> Path:
    TextStatistics.measure(pipe, "tiny").save(tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def test_statistics_from_a_file_spare_the_measurement(pipe: Any, statistics: Path) -> None:
    fresh = tiny_pipeline()
    loaded = fresh.load_text_statistics(statistics)
    assert torch.equal(loaded.statistics.std, pipe.text_statistics().std)
    with record_runs(fresh) as runs:
        painted = paint(fresh, **PER_DIM)
    assert runs.count("text_encoder") == 1
    assert (painted == paint(pipe, **PER_DIM)).all()
    assert fresh.text_statistics() is loaded.statistics


def test_statistics_decide_what_is_painted(pipe: Any, statistics: Path, tmp_path: Path) -> None:
    fresh, known = tiny_pipeline(), TextStatistics.load(statistics)
    wider = replace(known.statistics, std=known.statistics.std * torch.linspace(0.2, 5.0, known.width))
    replace(known, statistics=wider).save(tmp_path / "wider.safetensors")
    fresh.load_text_statistics(tmp_path / "wider.safetensors")
    assert (paint(fresh, **PER_DIM) != paint(pipe, **PER_DIM)).any()


def test_statistics_of_another_text_encoder_are_refused(statistics: Path) -> None:
    other = tiny_pipeline(text_encoder=tiny_text_encoder(seed=9))
    with pytest.raises(ValueError, match=r"of 'tiny'.*which is not this text encoder"):
        other.load_text_statistics(statistics)
    assert other._statistics == {}
