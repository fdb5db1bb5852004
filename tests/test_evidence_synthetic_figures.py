"""The published figures about sinks, outliers and modes, on synthetic states."""

from __future__ import annotations

import pytest
import torch

from zimage_vl.evidence.synthetic_alpha import condition_synthetic
from zimage_vl.evidence.synthetic_figures import (
    get_content,
    get_dose,
    get_energy_share,
    get_global_std,
    get_sink_std,
    make_outlier_tokens,
    measure_adain,
    measure_style_doses,
    tabulate_outliers,
    tabulate_per_dim,
)
from zimage_vl.evidence.synthetic_states import make_calibration_prompts, make_reference, make_text
from zimage_vl.outliers import get_outlier_dimensions, mask_outlier_dimensions
from zimage_vl.statistics import EmbeddingStatistics, find_sink_tokens


def test_the_published_outliers_come_out() -> None:
    text, image = make_outlier_tokens()
    # As published: the text's stds to their one decimal, the image tokens' to theirs.
    assert [round(float(text[:, dim].std()), 1) for dim in (396, 4)] == [927.6, 2689.6]
    assert [round(float(image[:, dim].std()), 1) for dim in (396, 4)] == [1.5, 64.1]
    found = get_outlier_dimensions(image, EmbeddingStatistics.from_embeddings(text))
    assert [(dim, round(ratio, 1)) for dim, ratio in found] == [(396, 617.9), (4, 42.0)]


def test_the_outliers_are_deficits_and_go_with_the_sinks() -> None:
    text, image = make_outlier_tokens()
    _, info = mask_outlier_dimensions(image, EmbeddingStatistics.from_embeddings(text))
    assert info.masked_dimensions == [396, 4]
    assert info.directions == {396: "deficit", 4: "deficit"}
    clean = EmbeddingStatistics.from_embeddings(text[~find_sink_tokens(text)])
    assert get_outlier_dimensions(image, clean) == []


def test_the_conditioning_reports_them() -> None:
    _, report = condition_synthetic(
        make_text(24), make_reference(256, 16), vl_outlier_masking="zero", vl_token_selection="image"
    )
    assert report.masked_dimensions == [396, 4]
    assert report.masked_dim_directions == {396: "deficit", 4: "deficit"}
    _, clean = condition_synthetic(
        make_text(24),
        make_reference(256, 16),
        vl_outlier_masking="zero",
        vl_token_selection="image",
        vl_exclude_sinks=True,
    )
    assert clean.masked_dimensions == []


def test_the_std_of_a_dimension_with_sinks_by_brute_force() -> None:
    column = torch.full((220,), 325.9, dtype=torch.float64)
    column[::22] = 13504.0
    assert get_sink_std(13504.0, 325.9, 10, 220) == pytest.approx(float(column.std()), rel=1e-9)


def test_one_sink_gives_the_published_statistics() -> None:
    every = torch.cat(make_calibration_prompts())
    assert float(every[:, 396].std()) == pytest.approx(948.70, abs=0.5)
    assert float(every[:, 4].std()) == pytest.approx(2752, abs=3)
    assert float(every.std()) == pytest.approx(61, abs=0.5)
    for tokens, published in ((24, 58.6), (16, 71.3), (11, 85.6)):
        assert float(make_text(tokens)[0].std()) == pytest.approx(published, abs=0.25)
        assert get_global_std(tokens, 11.6) == pytest.approx(published, abs=0.05)


def test_per_dim_pours_the_energy_into_the_sinks_dimension() -> None:
    rows = {row[0]: row for row in tabulate_per_dim().rows}
    assert float(rows["per_dim, sinks kept"][2].rstrip("%")) == pytest.approx(83, abs=2)
    assert float(rows["per_dim, sinks excluded"][2].rstrip("%")) == pytest.approx(38, abs=2)
    assert float(rows["per_dim, sinks excluded"][3]) > 3.5 * float(rows["per_dim, sinks kept"][3])


def test_shares_by_hand() -> None:
    states = torch.zeros(1, 2560)
    states[0, 4], states[0, 7] = 4.0, 3.0
    assert get_energy_share(states, 4) == pytest.approx(16 / 25)
    # RMSNorm divides by 5 / sqrt(2560); what is left of 3 over the 2558 dimensions that are no sink's:
    assert get_content(states) == pytest.approx(3 / 5 * (2560 / 2558) ** 0.5)


def test_adain_per_token_is_inert() -> None:
    assert min(measure_adain(seed) for seed in range(4)) >= 0.997


def test_the_style_delta_of_the_guide_is_an_overdose() -> None:
    for tokens, published in ((24, 1.7), (11, 2.4)):
        guide, ours = measure_style_doses(tokens, 0.3)
        assert guide == pytest.approx(published, abs=0.05)
        assert ours == pytest.approx(0.3, abs=0.005)
    text, _ = make_text(12)
    assert get_dose(text, 1.5 * text) == pytest.approx(0.5)


def test_the_outlier_table_shows_the_published_ratios() -> None:
    assert [row[4] for row in tabulate_outliers().rows] == ["617.9", "42.0"]
