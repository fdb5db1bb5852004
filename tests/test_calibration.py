"""The text encoder's own statistics: over all tokens of all calibration prompts, whatever the batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from embedding_samples import make_states, put_sink
from tiny_models import tiny_pipeline
from zimage_vl.calibration import CALIBRATION_PROMPTS, measure_text_statistics


def encode(prompts: Sequence[str]) -> list[Tensor]:
    """Random states, as many as the prompt has words and the same for the same prompt, with a sink at the start."""
    return [put_sink(make_states(8 + len(p.split()), seed=CALIBRATION_PROMPTS.index(p))) for p in prompts]


def test_the_prompts_are_many_of_all_lengths_and_several_scripts() -> None:
    assert len(set(CALIBRATION_PROMPTS)) == len(CALIBRATION_PROMPTS) >= 20
    lengths = [len(prompt) for prompt in CALIBRATION_PROMPTS]
    assert min(lengths) < 10
    assert max(lengths) > 400
    assert sum(not prompt.isascii() for prompt in CALIBRATION_PROMPTS) >= 6
    assert all(prompt == " ".join(prompt.split()) for prompt in CALIBRATION_PROMPTS)


def test_they_are_the_statistics_of_all_tokens() -> None:
    tokens = torch.cat(encode(CALIBRATION_PROMPTS)).double()
    measured = measure_text_statistics(encode)
    assert measured.count == len(tokens)
    torch.testing.assert_close(measured.mean.double(), tokens.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(measured.std.double(), tokens.std(dim=0), rtol=1e-4, atol=1e-4)


def test_sinks_can_stay_out() -> None:
    tokens = torch.cat([states[1:] for states in encode(CALIBRATION_PROMPTS)]).double()
    measured = measure_text_statistics(encode, exclude_sinks=True)
    assert measured.count == len(tokens)
    torch.testing.assert_close(measured.std.double(), tokens.std(dim=0), rtol=1e-4, atol=1e-4)
    assert measure_text_statistics(encode).std[4] > 20 * measured.std[4]


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_batches_do_not_matter(batch_size: int) -> None:
    asked: list[str] = []

    def encode_and_note(prompts: Sequence[str]) -> list[Tensor]:
        assert 1 <= len(prompts) <= batch_size
        asked.extend(prompts)
        return encode(prompts)

    measured = measure_text_statistics(encode_and_note, batch_size=batch_size)
    assert tuple(asked) == CALIBRATION_PROMPTS
    assert measured.std.equal(measure_text_statistics(encode).std)


def test_the_pipelines_are_those_of_its_text_encoder() -> None:
    pipe = tiny_pipeline(with_vl=False)
    each = [pipe.encode_prompt(p, do_classifier_free_guidance=False)[0][0] for p in CALIBRATION_PROMPTS]
    statistics = pipe.text_statistics()
    assert statistics.count == sum(map(len, each))
    torch.testing.assert_close(statistics.std, torch.cat(each).std(dim=0), rtol=1e-3, atol=1e-4)
