from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from conditioning_samples import (
    OTHER,
    REFERENCE,
    REGIONS,
    STATES,
    STATISTICS,
    TEXT,
    TEXT_REGIONS,
    WAYS,
    WITHOUT_SINKS,
    condition,
    replace_rows,
    select,
)
from embedding_samples import (
    SUFFIX,
    change_reference,
    make_reference,
    make_states,
    rms_of,
)
from zimage_vl.blend.align import align_anchored
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.mix import align_sequence, blend_embeddings
from zimage_vl.blend.normalize import match_token_rms, normalize_hybrid, normalize_per_dimension, scale_embeddings
from zimage_vl.blend.normalize import mask_outlier_dimensions
from zimage_vl.blend.regions import Region


# -- what holds for every way


@pytest.mark.parametrize("way", WAYS)
def test_alpha_zero_is_the_text_itself(way: str) -> None:
    out, report = condition(**WAYS[way], vl_alpha=0.0)
    assert out is TEXT
    assert (report.influence, report.references, report.out_tokens) == (0.0, (), len(TEXT))


@pytest.mark.parametrize("way", WAYS)
def test_each_way_changes_the_text_and_differs_from_the_default(way: str) -> None:
    out, report = condition(**WAYS[way], vl_alpha=0.5)
    changed = out[len(TEXT) :] if "concat" in way else out != TEXT
    assert changed.any()
    assert torch.isfinite(out).all()
    assert report.out_tokens == len(out)
    if way not in ("default", "zero"):
        default, _ = condition(vl_alpha=0.5)
        assert out.shape != default.shape or not torch.allclose(out, default)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_stay_and_the_dtype_too(way: str, dtype: torch.dtype) -> None:
    text, states = TEXT.to(dtype), STATES.to(dtype)
    reference = change_reference(REFERENCE, states.clone())
    before = text.clone()
    out, _ = condition(reference, text=text, **WAYS[way])
    assert out.dtype == dtype
    assert torch.equal(text, before)
    assert torch.equal(reference.hidden_states[-6], states)
    exact, _ = condition(change_reference(REFERENCE, states.float()), text=text.float(), **WAYS[way])
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("way", WAYS)
def test_the_report_is_json(way: str) -> None:
    _, report = condition(REFERENCE, **WAYS[way])
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize("way", [way for way in WAYS if "concat" not in way])
def test_alpha_by_token_keeps_the_bits_of_tokens_at_zero(way: str) -> None:
    alpha = torch.zeros(len(TEXT))
    alpha[[2, 5]] = 0.7
    out, _ = condition(**WAYS[way], alpha=alpha)
    touched = (out != TEXT).any(dim=1)
    assert touched.nonzero().flatten().tolist() == [i for i in (2, 5) if touched[i]]
    assert touched.any()
    whole, _ = condition(**WAYS[way], vl_alpha=0.7)
    torch.testing.assert_close(out[[2, 5]], whole[[2, 5]])


@pytest.mark.parametrize("way", WAYS)
def test_the_bits_that_stay_include_the_sign_of_zero(way: str) -> None:
    text = TEXT.clone()
    text[3] = -0.0
    alpha = torch.full((len(TEXT),), 0.5)
    alpha[3] = 0.0
    out, _ = condition(text=text, **WAYS[way], **({"vl_alpha": 0.5} if "concat" in way else {"alpha": alpha}))
    assert torch.signbit(out[3]).all()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "style_delta"])
def test_swapping_two_references_with_their_weights_changes_nothing(way: str) -> None:
    one, _ = condition(REFERENCE, OTHER, **WAYS[way], reference_weights=[1, 3])
    two, _ = condition(OTHER, REFERENCE, **WAYS[way], reference_weights=[3, 1])
    assert torch.equal(one, two)
    three, _ = condition(OTHER, REFERENCE, **WAYS[way], reference_weights=[1, 3])
    assert not torch.equal(one, three)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_reference_twice_is_that_reference(way: str) -> None:
    twice, _ = condition(REFERENCE, REFERENCE, **WAYS[way])
    torch.testing.assert_close(twice, condition(**WAYS[way])[0])


@pytest.mark.parametrize("way", WAYS)
def test_a_reference_of_weight_zero_is_absent(way: str) -> None:
    other = change_reference(REFERENCE, make_states(len(STATES), seed=40))
    weighed, _ = condition(REFERENCE, other, **WAYS[way], reference_weights=[2, 0])
    torch.testing.assert_close(weighed, condition(**WAYS[way])[0])


# -- the order


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_alpha_one_is_the_aligned_reference(mode: str) -> None:
    expected, covered = align_anchored(STATES, REGIONS, TEXT_REGIONS)
    assert covered.all()
    out, _ = condition(vl_alpha=1, vl_normalization="none", vl_blend_mode=mode)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("mode", ["linear", "slerp"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("normalization", ["none", "token_rms"])
def test_a_reference_whose_aligned_states_equal_the_text_changes_nothing(
    mode: str, alpha: float, normalization: str
) -> None:
    kept = select("text")
    equal = change_reference(REFERENCE, replace_rows(STATES, kept, TEXT))
    out, report = condition(
        equal, vl_alpha=alpha, vl_token_selection="text", vl_normalization=normalization, vl_blend_mode=mode
    )
    assert torch.equal(out, TEXT)
    assert report.influence == 0


@pytest.mark.parametrize("selection", ["all", "text", "image", "image_no_markers"])
@pytest.mark.parametrize("normalization", ["global", "per_dim", "hybrid"])
@pytest.mark.parametrize("alignment", ["anchored", "pool", "interpolate"])
def test_the_chain_is_its_steps_in_order(selection: Any, normalization: str, alignment: Any) -> None:
    kept = select(selection)
    states = STATES
    if selection != "text":
        image = REGIONS == Region.IMAGE
        masked, info = mask_outlier_dimensions(states[image], STATISTICS, 3.0, "clamp")
        assert info.masked_dimensions
        states = replace_rows(states, image, masked)
    std = float(TEXT.double().std())
    normalized = {
        "global": lambda x: scale_embeddings(x, std),
        "per_dim": lambda x: normalize_per_dimension(x, STATISTICS),
        "hybrid": lambda x: normalize_hybrid(x, STATISTICS, std),
    }[normalization](states[kept])
    if alignment == "anchored":
        rows = replace_rows(states, kept, normalized)
        aligned, covered = align_anchored(rows, REGIONS, TEXT_REGIONS, selection)
    else:
        aligned, covered = align_sequence(normalized, len(TEXT), alignment), torch.ones(len(TEXT), dtype=torch.bool)
    expected = torch.where(covered[:, None], blend_embeddings(TEXT, aligned, 0.4), TEXT)
    masking = {} if selection == "text" else {"vl_outlier_masking": "clamp", "vl_outlier_threshold": 3.0}
    out, report = condition(
        vl_alpha=0.4,
        vl_token_selection=selection,
        vl_normalization=normalization,
        vl_alignment=alignment,
        **masking,
    )
    torch.testing.assert_close(out, expected)
    assert report.references[0].selected_tokens == int(kept.sum())
    assert report.references[0].covered_tokens == int(covered.sum())
    assert torch.equal(out[~covered], TEXT[~covered])


def test_token_rms_comes_after_alignment() -> None:
    out, _ = condition(vl_alpha=0.4, vl_normalization="token_rms", vl_alignment="pool")
    aligned = match_token_rms(align_sequence(STATES, len(TEXT)), TEXT)
    torch.testing.assert_close(out, blend_embeddings(TEXT, aligned, 0.4))


@pytest.mark.parametrize("selection", ["all", "image"])
@pytest.mark.parametrize("alignment", ["anchored", "pool"])
def test_token_rms_is_unchanged_when_the_reference_is_scaled(selection: str, alignment: str) -> None:
    knobs = {"vl_normalization": "token_rms", "vl_token_selection": selection, "vl_alignment": alignment}
    out, _ = condition(**knobs)
    torch.testing.assert_close(condition(change_reference(REFERENCE, 17 * STATES), **knobs)[0], out)


def test_layers_are_mixed_by_their_weights_first() -> None:
    several = make_reference(layers=(-2, -6, -8))
    mixed = (several.hidden_states[-2] + 3 * several.hidden_states[-8]) / 4
    out, report = condition(several, vl_hidden_layer={-2: 1, -8: 3})
    torch.testing.assert_close(out, condition(change_reference(REFERENCE, mixed))[0])
    assert report.references[0].layer_weights == {-2: 0.25, -8: 0.75}
    assert torch.equal(condition(several, vl_hidden_layer={-2: 9})[0], condition(several, vl_hidden_layer=-2)[0])


def test_the_target_is_the_std_of_the_text_or_the_one_given() -> None:
    _, report = condition(vl_alignment="pool")
    assert report.references[0].std_after == pytest.approx(float(TEXT.std()), rel=1e-5)
    _, report = condition(vl_target_std=70.0)
    assert report.references[0].std_after == pytest.approx(70.0, rel=1e-5)
    assert report.scale_factor == pytest.approx(70.0 / float(STATES.std()), rel=1e-5)


@pytest.mark.parametrize("normalization", ["per_dim", "hybrid", "token_rms", "none"])
def test_a_scale_factor_is_reported_only_where_one_was_applied(normalization: str) -> None:
    assert condition(vl_normalization=normalization)[1].scale_factor is None


def test_an_alpha_over_regions_is_resolved_without_a_tokenizer() -> None:
    out, report = condition(vl_alpha={"suffix": 1.0})
    assert torch.equal(out[:-SUFFIX], TEXT[:-SUFFIX])
    assert report.effective_alpha is not None
    assert report.effective_alpha.tolist() == [0.0] * (len(TEXT) - SUFFIX) + [1.0] * SUFFIX
    with pytest.raises(ValueError, match="text is not known"):
        condition(vl_alpha={"car": 1.0})


# -- outliers


@pytest.mark.parametrize("mode", ["zero", "clamp", "scale"])
def test_masking_touches_image_tokens_alone_and_is_reported(mode: Any) -> None:
    knobs = {"vl_normalization": "none", "vl_alpha": 1, "vl_outlier_threshold": 3.0}
    out, report = condition(**knobs, vl_outlier_masking=mode)
    plain, nothing = condition(**knobs)
    template = TEXT_REGIONS != Region.WORDS
    assert torch.equal(out[template], plain[template])
    assert not torch.allclose(out[~template], plain[~template])
    _, info = mask_outlier_dimensions(STATES[REGIONS == Region.IMAGE], STATISTICS, 3.0, mode)
    assert report.masked_dimensions == info.masked_dimensions != []
    assert report.masked_dim_ratios == info.masked_dim_ratios
    assert report.references[0].left_dim_ratios == info.left_dim_ratios
    assert all(report.masked_dim_directions[dim] == info.directions[dim] for dim in info.masked_dimensions)
    assert nothing.masked_dimensions == []


def test_statistics_are_asked_for_and_must_match() -> None:
    for knobs in ({"vl_normalization": "per_dim"}, {"vl_outlier_masking": "zero"}):
        with pytest.raises(ValueError, match="needs `text_statistics`"):
            condition(**knobs, text_statistics=None)
        with pytest.raises(ValueError, match="exclude_sinks=True: measure them alike"):
            condition(**knobs, text_statistics=WITHOUT_SINKS)
    narrow = EmbeddingStatistics.from_embeddings(make_states(9, 8))
    with pytest.raises(ValueError, match="8 wide"):
        condition(vl_normalization="per_dim", text_statistics=narrow)


# -- the report


def test_the_report_measures_what_came_out() -> None:
    out, report = condition(vl_alpha=0.5, vl_normalization="none", vl_alignment="pool")
    aligned = align_sequence(STATES, len(TEXT))
    assert (report.text_tokens, report.reference_tokens, report.selected_tokens) == (12, 23, 23)
    assert (report.aligned_tokens, report.out_tokens) == (12, 12)
    assert report.text_std == pytest.approx(float(TEXT.std()))
    assert report.out_std == pytest.approx(float(out.std()))
    assert report.aligned_std == pytest.approx(float(aligned.std()))
    r = rms_of(aligned) / rms_of(TEXT)
    assert report.effective_alpha is not None
    torch.testing.assert_close(report.effective_alpha.double(), r / (r + 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["slerp", "adain", "adain_per_dim", "style_delta"])
def test_effective_alpha_is_for_linear_blends(mode: str) -> None:
    assert condition(**WAYS[mode])[1].effective_alpha is None


def test_influence_grows_with_alpha() -> None:
    influences = [condition(vl_alpha=alpha)[1].influence for alpha in (0.0, 0.2, 0.5, 0.9)]
    assert influences == sorted(set(influences))
