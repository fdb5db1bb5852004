"""The text encoder's statistics: which prompts, and that they are what the encoder says about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from embedding_samples import PUBLISHED_SINK, make_states, put_sink
from tiny_models import tiny_pipeline
from zimage_vl.pipeline.calibration import CALIBRATION_PROMPTS, calibration_prompts_sha256, measure_text_statistics


def encode(prompts: list[str]) -> list[torch.Tensor]:
    """As many tokens as words, each prompt's own numbers."""
    return [make_states(len(prompt.split()) + 4, seed=len(prompt)) for prompt in prompts]


def test_the_prompts_are_many_in_several_scripts_and_lengths() -> None:
    lengths = [len(prompt.split()) for prompt in CALIBRATION_PROMPTS]
    assert len(set(CALIBRATION_PROMPTS)) == len(CALIBRATION_PROMPTS) == 40
    assert (min(lengths), max(lengths) in range(95, 110)) == (1, True)
    scripts = {"latin": "a", "han": "灯", "kana": "の", "hangul": "눈", "cyrillic": "лес", "arabic": "منارة"}
    for script, sign in scripts.items():
        assert any(sign in prompt for prompt in CALIBRATION_PROMPTS), script
    for prompt in CALIBRATION_PROMPTS:
        assert prompt == prompt.strip()
        assert "  " not in prompt


def test_the_digest_is_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = calibration_prompts_sha256()
    assert before == calibration_prompts_sha256()
    monkeypatch.setattr("zimage_vl.pipeline.calibration.CALIBRATION_PROMPTS", (*CALIBRATION_PROMPTS[:-1], "another"))
    assert calibration_prompts_sha256() != before


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_all_tokens_of_all_prompts_are_measured(batch_size: int) -> None:
    measured = measure_text_statistics(encode, batch_size=batch_size)
    tokens = torch.cat(encode(list(CALIBRATION_PROMPTS))).double().numpy()
    assert measured.count == len(tokens)
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


def test_no_graph_is_kept_and_no_prompt_can_be_changed() -> None:
    weight = torch.ones(1, requires_grad=True)

    def spoil(prompts: list[str]) -> list[torch.Tensor]:
        made = [states * weight for states in encode(prompts)]
        prompts[:] = ["spoilt"] * len(prompts)
        return made

    before = CALIBRATION_PROMPTS
    measured = measure_text_statistics(spoil)
    assert not measured.std.requires_grad
    assert before == CALIBRATION_PROMPTS
    assert torch.equal(measured.std, measure_text_statistics(encode).std)


@pytest.mark.parametrize("batch_size", [0, -1, True])
def test_a_bad_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
        measure_text_statistics(encode, batch_size=batch_size)


def test_an_encoder_that_drops_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 for 4 prompts"):
        measure_text_statistics(lambda prompts: encode(prompts)[1:])


def test_the_pipeline_measures_its_own_encoder_once() -> None:
    pipe = tiny_pipeline(with_vl=False)
    ran: list[Any] = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    measured = pipe.text_statistics()
    assert pipe.text_statistics() is measured
    handle.remove()
    assert len(ran) == 10  # 40 prompts, 4 a forward
    with torch.no_grad():
        embeds = pipe.encode_prompt(list(CALIBRATION_PROMPTS), do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(measured.std, torch.cat(embeds).std(dim=0), rtol=1e-3, atol=1e-4)
    assert measured.count == sum(len(x) for x in embeds)
    assert not measured.std.requires_grad
