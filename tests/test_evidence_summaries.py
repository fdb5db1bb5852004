"""Means with errors, the typical alpha of a report, layers by relative depth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conditioning_samples import condition
from zimage_vl.evidence.summaries import format_mean, get_typical_alpha, scale_layer


def test_the_error_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.3, 50)
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(50)
    assert format_mean(values.tolist()) == f"{mean:.2f} ± {error:.2f}"
    assert format_mean([0.25]) == "0.25"
    assert format_mean([]) == "-"


def test_the_typical_alpha_leaves_out_sinks_and_untouched_tokens() -> None:
    _, report = condition(vl_alpha=0.3)
    changed = dataclasses.replace(
        report, effective_alpha=torch.tensor([0.9, 0.0, 0.2, 0.4, 0.3]), text_sinks=(0,), text_tokens=5
    )
    assert get_typical_alpha(changed) == pytest.approx(0.3)
    nothing = dataclasses.replace(changed, effective_alpha=torch.zeros(5))
    assert get_typical_alpha(nothing) == 0.0
    assert get_typical_alpha(condition(vl_blend_mode="slerp")[1]) is None


def test_layers_keep_their_relative_depth() -> None:
    assert [scale_layer(layer, 36) for layer in range(-37, 0)] == list(range(-37, 0))
    assert scale_layer(31, 36) == -6
    assert [scale_layer(layer, 8) for layer in (-1, -2, -6, -8, -16, -24, -37)] == [-1, -2, -2, -3, -4, -6, -9]
    assert scale_layer(-2, 8, of_layers=8) == -2
    with pytest.raises(ValueError, match=r"-37 \.\. 36, got -40"):
        scale_layer(-40, 8)


def test_no_layer_but_the_last_becomes_the_last() -> None:
    for num_layers in (2, 4, 8, 28, 48):
        scaled = [scale_layer(layer, num_layers) for layer in range(-37, 0)]
        assert scaled == sorted(scaled)
        assert all(-num_layers - 1 <= layer < -1 for layer in scaled[:-1])
        assert scaled[-1] == -1
