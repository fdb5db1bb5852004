from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from conditioning_samples import condition
from embedding_samples import make_states
from zimage_vl.blend.normalize import OutlierMaskingInfo
from zimage_vl.blend.report import (
    ConditioningReport,
    ReferenceReport,
    get_effective_alpha,
    get_influence,
    measure_dose,
)


def make_reference_report(ratios: dict[int, float], scale_factor: float | None = None) -> ReferenceReport:
    """What conditioning reports of a reference of 23 tokens, of which the first is a sink, with this masking."""
    directions = {dim: "deficit" if ratio > 100 else "excess" for dim, ratio in ratios.items()}
    masking = OutlierMaskingInfo(ratios, {9: float("inf")}, directions, dict.fromkeys(ratios, 0.0))
    _, report = condition()
    return dataclasses.replace(report.references[0], masking=masking, scale_factor=scale_factor, sinks=(0,))


def make_report(*references: ReferenceReport) -> ConditioningReport:
    return ConditioningReport(12, 12, references, 10.0, 9.0, 9.5, (0,), torch.tensor([0.0, 0.5]), 0.25)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_effective_alpha_of_the_published_sizes(alpha: float) -> None:
    """Five of the published table's rows: r to the effective alpha, two decimals."""
    published = {
        0.83: (0.08, 0.17, 0.26, 0.36, 0.45),
        4.1: (0.31, 0.50, 0.64, 0.73, 0.80),
        4.7: (0.34, 0.54, 0.67, 0.76, 0.82),
        5.8: (0.39, 0.59, 0.71, 0.79, 0.85),
        1.0: (0.1, 0.2, 0.3, 0.4, 0.5),
    }
    for r, row in published.items():
        effective = get_effective_alpha(torch.ones(1, 4), torch.full((1, 4), r), torch.tensor([alpha]))
        assert effective.item() == pytest.approx(row[round(10 * alpha) - 1], abs=0.0101)


def test_effective_alpha_of_empty_tokens_is_finite() -> None:
    zero, one, half = torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([0.5])
    found = [get_effective_alpha(*pair, half).item() for pair in ((zero, one), (one, zero), (zero, zero))]
    assert found == [1, 0, 0]


def test_the_dose_is_that_of_the_tokens_acted_on() -> None:
    report = make_report()
    assert measure_dose(report) == (0.5, 1)
    assert measure_dose(dataclasses.replace(report, effective_alpha=torch.zeros(2))) == (0.0, 0)
    assert measure_dose(dataclasses.replace(report, effective_alpha=None)) is None


def test_influence_is_one_minus_the_mean_cosine() -> None:
    text, other = make_states(6, seed=1), make_states(6, seed=2)
    assert get_influence(text, other) == pytest.approx(
        1 - torch.cosine_similarity(text, other).mean().item(), abs=1e-6
    )
    assert get_influence(text, 3 * text) == pytest.approx(0, abs=1e-6)
    assert get_influence(text, text) == 0
    # Rounding may put a cosine above 1; an influence is never negative.
    assert min(get_influence(x, 3 * x) for x in (make_states(1, seed=seed) for seed in range(50))) == 0
    assert get_influence(torch.zeros(2, 4), torch.zeros(2, 4)) == 0


def test_references_are_summed_up() -> None:
    one = make_reference_report({396: 617.9, 4: 42.0}, scale_factor=2.5)
    report = make_report(one)
    assert report.masked_dimensions == [396, 4]
    assert report.masked_dim_ratios == {396: 617.9, 4: 42.0}
    assert report.masked_dim_directions == {396: "deficit", 4: "excess"}
    assert report.left_dim_ratios == {9: float("inf")}
    assert (report.scale_factor, report.reference_tokens, report.reference_sinks) == (2.5, 23, ((0,),))
    report = make_report(make_reference_report({4: 42.0, 7: 11.0}, 2.5), make_reference_report({4: 142.0, 5: 50.0}))
    assert report.masked_dim_ratios == {4: 142.0, 5: 50.0, 7: 11.0}
    assert report.masked_dimensions == [4, 5, 7]
    assert report.masked_dim_directions == {4: "deficit", 5: "excess", 7: "excess"}
    assert (report.scale_factor, report.reference_tokens, report.reference_sinks) == (None, 46, ((0,), (0,)))
    nothing = make_report()
    assert (nothing.reference_tokens, nothing.scale_factor, nothing.appended_tokens) == (0, None, 0)
    assert (nothing.masked_dimensions, nothing.left_dim_ratios) == ([], {})


def test_the_dict_is_json_and_complete() -> None:
    report = make_report(make_reference_report({396: 617.9}, 2.5))
    plain: Any = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert {field.name for field in dataclasses.fields(report)} <= plain.keys()
    assert plain["effective_alpha"] == [0.0, 0.5]
    assert plain["masked_dim_ratios"] == {"396": 617.9}
    assert plain["left_dim_ratios"] == plain["references"][0]["masking"]["left_dim_ratios"] == {"9": "inf"}
    assert plain["references"][0]["sinks"] == [0]
