"""Effective alpha on synthetic states: against the published figures, a formula, and states measured by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zimage_vl.evidence.synthetic_alpha import (
    ALPHAS,
    PUBLISHED,
    condition_synthetic,
    get_formula_alpha,
    get_formula_ratio,
    get_ratio,
    read_alphas,
    tabulate_length,
    tabulate_regions,
    tabulate_resolution,
)
from zimage_vl.evidence.synthetic_states import LAYER_6, UNIFORM, make_reference, make_text
from zimage_vl.regions import Region


TEXT = make_text(24)
REFERENCE = make_reference(64, 16)
CLEAN: dict[str, Any] = {"vl_normalization": "global", "vl_exclude_sinks": True}


@pytest.mark.parametrize("tokens", [11, 64])
@pytest.mark.parametrize("patches", [1, 64, 1024])
@pytest.mark.parametrize("selection", ["all", "image_no_markers"])
def test_global_without_sinks_restores_nominal_alpha(tokens: int, patches: int, selection: str) -> None:
    text, reference = make_text(tokens), make_reference(patches, tokens - 8)
    found = read_alphas(text, reference, ALPHAS[:3], vl_token_selection=selection, **CLEAN)
    assert found == pytest.approx(ALPHAS[:3], abs=0.02)


@pytest.mark.parametrize("alignment", ["anchored", "pool"])
def test_every_token_is_restored_not_only_the_median(alignment: str) -> None:
    _, report = condition_synthetic(TEXT, REFERENCE, vl_alpha=0.3, vl_alignment=alignment, **CLEAN)
    assert report.effective_alpha is not None
    assert report.text_sinks == (0,)
    assert float((report.effective_alpha[1:] - 0.3).abs().max()) < 0.02
    assert report.effective_alpha[0] == 0


def test_global_with_sinks_does_not() -> None:
    assert read_alphas(TEXT, make_reference(1024, 16), [0.3], vl_normalization="global")[0] > 0.6


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_the_published_table_comes_out(row: Any) -> None:
    reference = make_reference(row.tokens - 15, 5, row.kind)
    measured = read_alphas(TEXT, reference, [alpha for alpha, _ in row.published], **row.knobs)
    for (alpha, published), found in zip(row.published, measured, strict=True):
        assert found == pytest.approx(published, abs=0.0075)  # half a digit, and .506 that is published as .50
        assert found == pytest.approx(get_formula_alpha(alpha, row.formula_ratio), abs=0.002)
    if row.published_ratio != "-":
        assert row.formula_ratio == pytest.approx(float(row.published_ratio), abs=0.05)


def test_the_report_is_what_the_states_say() -> None:
    """Recomputed without the package: image tokens alone, laid one on one where their number is the text's."""
    reference = make_reference(24, 5, LAYER_6)
    states = reference.hidden_states[-6][reference.regions == Region.IMAGE].double()
    text = TEXT[0].double()
    factor = text.std() / states.std()
    r = (states * factor).pow(2).mean(1).sqrt() / text.pow(2).mean(1).sqrt()
    expected = 0.4 * r / (0.4 * r + 0.6)
    _, report = condition_synthetic(TEXT, reference, vl_alpha=0.4, vl_token_selection="image_no_markers")
    assert report.effective_alpha is not None
    torch.testing.assert_close(report.effective_alpha.double(), expected, rtol=1e-4, atol=0)
    assert read_alphas(TEXT, reference, [0.4], vl_token_selection="image_no_markers")[0] == pytest.approx(
        float(expected[1:].median()), rel=1e-4
    )


def test_the_formula_is_the_std_of_a_sequence_with_a_sink() -> None:
    states = make_reference(500, 5, UNIFORM).hidden_states[-2]
    sink = float(states[0].norm())
    expected = 61.0 * 7.0 / float(states.std()) / 10.5
    assert get_formula_ratio(61.0, 7.0, sink, len(states)) == pytest.approx(expected, rel=1e-3)


def test_ratio_and_alpha_are_inverse() -> None:
    for alpha in ALPHAS:
        assert get_ratio(alpha, get_formula_alpha(alpha, 4.1)) == pytest.approx(4.1)


def test_an_unknown_effective_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only known of a linear blend, got .*slerp"):
        read_alphas(TEXT, REFERENCE, [0.3], vl_blend_mode="slerp")


def get_rows(table: Any) -> dict[str, list[float]]:
    return {row[0]: [float(cell) for cell in row[1:]] for row in table.rows}


def test_more_pixels_raise_alpha_and_longer_prompts_lower_it() -> None:
    resolution, length = get_rows(tabulate_resolution((256, 512))), get_rows(tabulate_length((11, 64)))
    assert resolution["global, sinks kept"][0] < resolution["global, sinks kept"][1] - 0.1
    assert length["global, sinks kept"][0] > length["global, sinks kept"][1] + 0.1
    for rows in (resolution, length):
        assert rows["global, sinks excluded"] == pytest.approx([0.3, 0.3], abs=0.02)
        assert rows["token_rms, sinks kept"] == [0.3, 0.3]


def test_one_factor_does_not_fit_text_and_image_tokens_both() -> None:
    parts = get_rows(tabulate_regions())
    assert parts["token_rms, sinks kept"] == [0.3, 0.3, 0.3]
    assert parts["global, sinks excluded"][0] > 0.35
