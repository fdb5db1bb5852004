"""The text encoder's statistics: which prompts, that they are what the encoder says of them, and whose a file is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding_samples import PUBLISHED_SINK, make_states, put_sink
from pipeline_samples import KNOBS, differ, make_picture, paint_with, record_runs, same
from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from zimage_vl.pipeline.text_statistics import (
    CALIBRATION_PROMPTS,
    STATISTICS_FILE,
    TextStatistics,
    calibration_prompts_sha256,
    measure_text_statistics,
)
from zimage_vl.reference.files import write_tensor_file


TOKENIZER = tiny_tokenizer()
PIPE = tiny_pipeline()
MEASURED = TextStatistics.measure(PIPE, "a/model")
PICTURE = make_picture(0)


# ---- Measuring ----


def encode(prompts: list[str]) -> list[torch.Tensor]:
    """As many tokens as words, each prompt's own numbers."""
    return [make_states(len(prompt.split()) + 4, seed=len(prompt)) for prompt in prompts]


def test_the_prompts_are_many_in_several_scripts_and_lengths() -> None:
    lengths = [len(prompt.split()) for prompt in CALIBRATION_PROMPTS]
    assert len(set(CALIBRATION_PROMPTS)) == len(CALIBRATION_PROMPTS) == 40
    assert (min(lengths), max(lengths) in range(95, 110)) == (1, True)
    for sign in ("a", "灯", "の", "눈", "лес", "منارة"):
        assert any(sign in prompt for prompt in CALIBRATION_PROMPTS), sign
    assert all(prompt == " ".join(prompt.split()) for prompt in CALIBRATION_PROMPTS)


def test_all_tokens_of_all_prompts_are_measured_and_nothing_can_be_changed() -> None:
    weight = torch.ones(1, requires_grad=True)

    def spoil(prompts: list[str]) -> list[torch.Tensor]:
        made = [states * weight for states in encode(prompts)]
        prompts[:] = ["spoilt"] * len(prompts)
        return made

    tokens, measured = torch.cat(encode(list(CALIBRATION_PROMPTS))).double().numpy(), measure_text_statistics(spoil)
    assert measured.count == len(tokens)
    assert not measured.std.requires_grad
    np.testing.assert_allclose(measured.mean.numpy(), tokens.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(measured.std.numpy(), tokens.std(axis=0, ddof=1), rtol=1e-5)


def test_sinks_can_be_left_out() -> None:
    def with_sinks(prompts: list[str]) -> list[torch.Tensor]:
        return [put_sink(make_states(20, 512, seed=len(p)), 0, PUBLISHED_SINK) for p in prompts]

    with_them, without = (measure_text_statistics(with_sinks, exclude) for exclude in (False, True))
    assert (with_them.count, without.count) == (40 * 20, 40 * 19)
    assert (with_them.exclude_sinks, without.exclude_sinks) == (False, True)
    # One token of 20 with 13504 and the others near 0: 13504 * sqrt(p (1 - p)).
    assert float(with_them.std[4]) == pytest.approx(13504 * (0.05 * 0.95) ** 0.5, rel=0.01)
    assert float(without.std[4]) == pytest.approx(10, rel=0.1)


def test_a_pipeline_measures_its_own_encoder_once_and_another_one_anew() -> None:
    pipe = tiny_pipeline(with_vl=False)
    with record_runs(pipe) as runs:
        measured = pipe.text_statistics()
        assert pipe.text_statistics() is measured
        assert len(runs) == 10  # 40 prompts, 4 at a time
        assert pipe.text_statistics(exclude_sinks=True).exclude_sinks
    with torch.no_grad():
        embeds = pipe.encode_prompt(list(CALIBRATION_PROMPTS), do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(measured.std, torch.cat(embeds).std(dim=0), rtol=1e-3, atol=1e-4)
    assert measured.count == sum(len(x) for x in embeds)
    assert not measured.std.requires_grad
    pipe.register_modules(text_encoder=tiny_text_encoder(seed=9, tokenizer=TOKENIZER))
    assert not torch.equal(pipe.text_statistics().std, measured.std)


# ---- In a file ----


def test_a_file_gives_back_what_went_in(tmp_path: Path) -> None:
    assert MEASURED.statistics is PIPE.text_statistics()
    assert (MEASURED.model_id, MEASURED.layer, MEASURED.width, MEASURED.dtype) == ("a/model", -2, 32, "float32")
    assert MEASURED.prompts_sha256 == calibration_prompts_sha256()
    assert set(MEASURED.versions) >= {"zimage_vl", "torch", "transformers", "diffusers"}
    for measured in (MEASURED, TextStatistics.measure(PIPE, "a/model", exclude_sinks=True)):
        measured.save(tmp_path / "a.safetensors")
        loaded = TextStatistics.load(tmp_path / "a.safetensors")
        assert torch.equal(loaded.statistics.mean, measured.statistics.mean)
        assert torch.equal(loaded.statistics.std, measured.statistics.std)
        assert loaded.to_metadata() == measured.to_metadata()
        assert loaded.statistics.exclude_sinks is measured.statistics.exclude_sinks
        loaded.save(tmp_path / "b.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_another_encoders_statistics_are_refused_by_name(tmp_path: Path) -> None:
    MEASURED.check_fits(PIPE.text_encoder)
    MEASURED.check_fits(tiny_text_encoder(tokenizer=TOKENIZER))
    for encoder, what in (
        (tiny_text_encoder(seed=5, tokenizer=TOKENIZER), "fingerprint"),
        (tiny_text_encoder(width=64, tokenizer=TOKENIZER), "width 32; this text encoder has width 64"),
    ):
        with pytest.raises(ValueError, match=f"of 'a/model', {what}"):
            MEASURED.check_fits(encoder)
    with pytest.raises(ValueError, match="layer -1; this text encoder has layer -2"):
        replace(MEASURED, layer=-1).check_fits(PIPE.text_encoder)
    MEASURED.save(tmp_path / "a.safetensors")
    other = tiny_pipeline(text_encoder=tiny_text_encoder(seed=9))
    with pytest.raises(ValueError, match=r"of 'a/model'.*zimage-vl statistics"):
        other.load_text_statistics(tmp_path / "a.safetensors")
    assert other._statistics == {}


def test_statistics_from_a_file_spare_the_measurement_and_decide_what_is_painted(tmp_path: Path) -> None:
    MEASURED.save(tmp_path / "a.safetensors")
    fresh, knobs = tiny_pipeline(), {**KNOBS, "vl_normalization": "per_dim"}
    expected, loaded = paint_with(PIPE, PICTURE, **knobs), fresh.load_text_statistics(tmp_path / "a.safetensors")
    with record_runs(fresh) as runs:
        same(paint_with(fresh, PICTURE, **knobs), expected)
    assert runs.count("text_encoder") == 1
    assert fresh.text_statistics() is loaded.statistics
    wider = replace(MEASURED.statistics, std=MEASURED.statistics.std * torch.linspace(0.2, 5.0, 32))
    replace(MEASURED, statistics=wider).save(tmp_path / "b.safetensors")
    fresh.load_text_statistics(tmp_path / "b.safetensors")
    assert differ(paint_with(fresh, PICTURE, **knobs), expected)


MEAN, STD = MEASURED.statistics.mean, MEASURED.statistics.std


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "33"}, "contradict each other"),
        ({"colour": "red"}, "colour"),
        ({"count": "many"}, "is refused"),
        ({"count": "1"}, "at least two tokens"),
        ({"exclude_sinks": "perhaps"}, "is refused"),
        ({"versions": "[]"}, "contradict each other"),
        ({"versions": "[" * 100_000}, "is refused"),
        ({"fingerprint": None}, "'fingerprint'"),
        ({"layer": None}, "'layer'"),
        ({"tensors": {"mean": MEAN}}, "'std'"),
        ({"tensors": {"mean": MEAN, "std": STD * float("nan")}}, "finite"),
        ({"tensors": {"mean": MEAN, "std": -STD}}, "negative"),
        ({"tensors": {"mean": MEAN[1:], "std": STD}}, "must both be"),
        ({"tensors": {"mean": MEAN.int(), "std": STD}}, "`mean` must be a floating-point tensor"),
    ],
)
def test_files_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {**MEASURED.to_metadata(), "tensors": {"mean": MEAN, "std": STD}, **changes}
    tensors = given.pop("tensors")
    metadata = {key: value for key, value in given.items() if value is not None}
    write_tensor_file(tmp_path / "a.safetensors", STATISTICS_FILE, tensors, metadata)
    with pytest.raises(ValueError, match=f"a.safetensors.*{message}.*zimage-vl statistics"):
        TextStatistics.load(tmp_path / "a.safetensors")
