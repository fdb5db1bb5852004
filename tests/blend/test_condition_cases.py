"""The rarer roads through a conditioning: gaps, several references, concat, style, sinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conditioning_samples import (
    OTHER,
    REFERENCE,
    REGIONS,
    STATES,
    STATISTICS,
    TEXT,
    TEXT_REGIONS,
    WAYS,
    condition,
    select,
)
from embedding_samples import (
    PREFIX,
    PUBLISHED_SINK,
    SUFFIX,
    change_reference,
    make_reference,
    make_regions,
    make_states,
    make_text,
    put_sink,
    rms_of,
)
from zimage_vl.blend.align import align_anchored
from zimage_vl.blend.condition import condition_prompt_embeds
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.blend.mix import align_sequence, blend_adain_per_dim, blend_with_style_delta
from zimage_vl.blend.normalize import mask_outlier_dimensions
from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds


# -- anchored: where nothing lies


@pytest.mark.parametrize("mode", ["linear", "slerp", "adain"])
@pytest.mark.parametrize("normalization", ["global", "token_rms"])
def test_image_tokens_leave_the_template_alone(mode: str, normalization: str) -> None:
    out, report = condition(
        vl_alpha=0.7, vl_token_selection="image", vl_blend_mode=mode, vl_normalization=normalization
    )
    template = TEXT_REGIONS != Region.WORDS
    assert torch.equal(out[template], TEXT[template])
    assert (out[~template] != TEXT[~template]).any(dim=1).all()
    assert report.references[0].covered_tokens == 5
    if mode == "linear":
        assert report.effective_alpha is not None
        assert not report.effective_alpha[template].any()
        assert (report.effective_alpha[~template] > 0).all()


def test_no_words_anywhere() -> None:
    text, regions = make_text(words=0)
    out, report = condition(text=text, regions=regions)
    assert (out != text).any(dim=1).all()
    out, report = condition(text=text, regions=regions, vl_token_selection="image")
    assert torch.equal(out, text)
    assert (report.influence, report.references[0].covered_tokens, report.aligned_std) == (0.0, 0, None)


def test_a_reference_without_words() -> None:
    silent = make_reference(words=0)
    out, _ = condition(silent)
    assert (out != TEXT).any(dim=1).all()
    out, report = condition(silent, vl_token_selection="text")
    assert torch.equal(out[PREFIX:-SUFFIX], TEXT[PREFIX:-SUFFIX])
    assert report.references[0].covered_tokens == PREFIX + SUFFIX


def test_where_one_of_two_references_lies_it_lies_alone() -> None:
    silent = make_reference(words=0, seed=5)
    out, report = condition(REFERENCE, silent, vl_token_selection="text", vl_normalization="none", vl_alpha=1)
    alone, _ = condition(vl_token_selection="text", vl_normalization="none", vl_alpha=1)
    assert torch.equal(out[PREFIX:-SUFFIX], alone[PREFIX:-SUFFIX])
    assert not torch.isclose(out[:PREFIX], alone[:PREFIX]).all()
    assert [one.covered_tokens for one in report.references] == [len(TEXT), PREFIX + SUFFIX]


# -- several references


def test_the_mean_of_references_has_their_mean_loudness() -> None:
    out, report = condition(REFERENCE, OTHER, reference_weights=[3, 1], vl_alpha=1, vl_normalization="none")
    parts = [align_anchored(one.hidden_states[-6], REGIONS, TEXT_REGIONS)[0].double() for one in (REFERENCE, OTHER)]
    mean = 0.75 * parts[0] + 0.25 * parts[1]
    rms = 0.75 * rms_of(parts[0]) + 0.25 * rms_of(parts[1])
    torch.testing.assert_close(out.double(), mean * (rms / rms_of(mean))[:, None], rtol=1e-4, atol=1e-4)
    assert [one.weight for one in report.references] == [0.75, 0.25]


def test_each_reference_is_normalized_alone() -> None:
    _, report = condition(REFERENCE, OTHER)
    for one, reference in zip(report.references, (REFERENCE, OTHER), strict=True):
        assert one.std_before == pytest.approx(float(reference.hidden_states[-6].std()), rel=1e-5)
        assert one.std_after == pytest.approx(float(TEXT.std()), rel=1e-5)
        assert one.scale_factor == pytest.approx(one.std_after / one.std_before, rel=1e-4)
    assert report.scale_factor is None


def test_references_may_differ_in_size_and_text() -> None:
    out, report = condition(REFERENCE, make_reference(words=2, patches=30))
    assert out.shape == TEXT.shape
    assert [one.tokens for one in report.references] == [len(STATES), len(make_regions(2, 30))]


# -- concat


@pytest.mark.parametrize(("alpha", "appended"), [(0.25, 3), (0.5, 6), (1.0, 12), (0.04, 0)])
def test_concat_appends_a_share_of_the_texts_length(alpha: float, appended: int) -> None:
    out, report = condition(vl_alignment="concat", vl_alpha=alpha, vl_normalization="none")
    assert torch.equal(out[: len(TEXT)], TEXT)
    assert len(out) == report.out_tokens == len(TEXT) + appended
    if appended:
        torch.testing.assert_close(out[len(TEXT) :], align_sequence(STATES, appended))
        assert report.aligned_tokens == appended
    assert report.effective_alpha is None
    assert report.influence == 0


def test_concat_with_token_rms_takes_the_texts_median() -> None:
    out, _ = condition(vl_alignment="concat", vl_alpha=0.5, vl_normalization="token_rms")
    torch.testing.assert_close(rms_of(out[len(TEXT) :]), rms_of(TEXT).median().expand(6), rtol=1e-5, atol=0)


def test_concat_respects_the_limit() -> None:
    assert len(condition(vl_alignment="concat", vl_alpha=0.5, max_tokens=18)[0]) == 18
    with pytest.raises(ValueError, match="takes 17 tokens, got 12 of the text and 6 appended"):
        condition(vl_alignment="concat", vl_alpha=0.5, max_tokens=17)
    with pytest.raises(ValueError, match="takes 11 tokens, got 12"):
        condition(max_tokens=11)
    with pytest.raises(ValueError, match=r"'concat' needs `alpha` to be vl_alpha, 0.5, everywhere"):
        condition(vl_alignment="concat", vl_alpha=0.5, alpha=torch.linspace(0, 1, 12))


# -- adain per dimension, style delta


def test_adain_per_dim_takes_all_selected_tokens_unaligned() -> None:
    kept = select("image")
    out, report = condition(
        vl_alpha=0.6, vl_blend_mode="adain_per_dim", vl_token_selection="image", vl_normalization="none"
    )
    torch.testing.assert_close(out, blend_adain_per_dim(TEXT, STATES[kept], 0.6))
    assert (report.aligned_tokens, report.references[0].covered_tokens, report.effective_alpha) == (None, None, None)


@pytest.mark.parametrize("selection", ["all", "image"])
def test_style_delta_is_the_aligned_difference(selection: Any) -> None:
    neutral = make_reference(seed=11)
    knobs = {**WAYS["style_delta"], "vl_token_selection": selection}
    out, report = condition(**knobs, vl_alpha=0.4, neutral=neutral)
    delta, _ = align_anchored(STATES - neutral.hidden_states[-6], REGIONS, TEXT_REGIONS, selection)
    torch.testing.assert_close(out, blend_with_style_delta(TEXT, delta, 0.4))
    assert report.effective_alpha is None


def test_a_reference_that_is_neutral_adds_no_style() -> None:
    out, report = condition(**WAYS["style_delta"], neutral=REFERENCE)
    assert torch.equal(out, TEXT)
    assert report.influence == 0


def test_masking_is_the_same_on_both_sides_of_a_style_delta() -> None:
    """Masked apart, two pictures that agree in a dimension would differ in it."""
    knobs = {**WAYS["style_delta"], "vl_outlier_masking": "scale", "vl_outlier_threshold": 2.0}
    image = REGIONS == Region.IMAGE
    shifted = change_reference(REFERENCE, STATES + 1.0)
    out, report = condition(**knobs, neutral=shifted, vl_token_selection="image", vl_alignment="pool", vl_alpha=0.4)
    _, info = mask_outlier_dimensions(STATES[image], STATISTICS, 2.0, "scale")
    factors = torch.ones(16)
    for dim, factor in info.factors.items():
        factors[dim] = factor
    kept = select("image")
    delta = torch.where((REGIONS == Region.IMAGE)[:, None], -factors.expand_as(STATES), torch.full_like(STATES, -1.0))
    expected = blend_with_style_delta(TEXT, align_sequence(delta[kept], len(TEXT)), 0.4)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    assert report.masked_dimensions == info.masked_dimensions


def test_a_neutral_that_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="same tokens as the reference, got 18 and 23"):
        condition(**WAYS["style_delta"], neutral=make_reference(patches=4))
    moved = ReferenceEmbeds({-6: STATES}, make_regions(9, 5))
    with pytest.raises(ValueError, match="same tokens"):
        condition(**WAYS["style_delta"], neutral=moved)
    with pytest.raises(ValueError, match="needs `neutral` and no other takes it: got one with 'linear'"):
        condition(neutral=REFERENCE)
    conditioning = VLConditioning(**WAYS["style_delta"])
    with pytest.raises(ValueError, match="got None with 'style_delta'"):
        condition_prompt_embeds(TEXT, TEXT_REGIONS, [REFERENCE], conditioning)


# -- sinks


SINK_TEXT = put_sink(TEXT)
SINK_REFERENCE = change_reference(REFERENCE, put_sink(STATES))


def test_sinks_are_reported_whether_or_not_they_are_excluded() -> None:
    _, report = condition(SINK_REFERENCE, text=SINK_TEXT)
    assert (report.text_sinks, report.reference_sinks) == ((0,), ((0,),))
    assert report.references[0].dropped_sinks == ()
    _, report = condition(SINK_REFERENCE, text=SINK_TEXT, vl_exclude_sinks=True)
    assert (report.text_sinks, report.reference_sinks) == ((0,), ((0,),))
    assert report.references[0].dropped_sinks == (0,)
    assert report.references[0].selected_tokens == len(STATES) - 1
    _, report = condition(SINK_REFERENCE, text=SINK_TEXT, vl_exclude_sinks=True, vl_token_selection="image")
    assert report.references[0].dropped_sinks == ()


@pytest.mark.parametrize("way", ["default", "slerp", "adain", "adain_per_dim", "style_delta", "per_dim", "sinks"])
def test_the_texts_sinks_pass_untouched(way: str) -> None:
    knobs = {**WAYS[way], "vl_exclude_sinks": True}
    out, report = condition(SINK_REFERENCE, text=put_sink(TEXT, 4), **knobs, vl_alpha=0.8)
    assert torch.equal(out[4], put_sink(TEXT, 4)[4])
    if report.effective_alpha is not None:
        assert report.effective_alpha[4] == 0


def test_a_sink_of_the_neutral_alone_is_dropped_from_the_delta_too() -> None:
    neutral = make_reference(seed=11)
    knobs = {**WAYS["style_delta"], "vl_exclude_sinks": True, "vl_alpha": 1.0}
    out, report = condition(**knobs, neutral=change_reference(neutral, put_sink(neutral.hidden_states[-6], 1)))
    assert torch.equal(out[1], TEXT[1])
    assert report.references[0].dropped_sinks == (1,)
    assert report.reference_sinks == ((),)


@pytest.mark.parametrize("selection", ["all", "text"])
def test_the_partner_of_a_dropped_sink_stays(selection: str) -> None:
    """Here the reference has a sink at its second token and the text has none."""
    reference = change_reference(REFERENCE, put_sink(STATES, 1))
    out, _ = condition(reference, vl_exclude_sinks=True, vl_token_selection=selection, vl_alpha=1.0)
    assert torch.equal(out[1], TEXT[1])
    assert (out[[0, 2]] != TEXT[[0, 2]]).any(dim=1).all()


@pytest.mark.parametrize("alignment", ["pool", "interpolate", "truncate"])
def test_dropped_sinks_are_as_if_they_had_not_been_there(alignment: Any) -> None:
    knobs = {"vl_exclude_sinks": True, "vl_alignment": alignment, "vl_normalization": "none", "vl_alpha": 1.0}
    out, _ = condition(change_reference(REFERENCE, put_sink(STATES, 5)), **knobs)
    rest = torch.cat([STATES[:5], STATES[6:]])
    torch.testing.assert_close(out, align_sequence(rest, len(TEXT), alignment))


@pytest.mark.parametrize("normalization", ["global", "per_dim", "hybrid", "token_rms"])
@pytest.mark.parametrize("mode", ["linear", "adain_per_dim"])
def test_excluded_sinks_move_no_other_token(normalization: str, mode: str) -> None:
    knobs = {"vl_exclude_sinks": True, "vl_normalization": normalization, "vl_blend_mode": mode}
    one, _ = condition(SINK_REFERENCE, text=SINK_TEXT, **knobs)
    louder = change_reference(REFERENCE, put_sink(STATES, 0, ((4, 99999.0), (7, -5000.0))))
    two, _ = condition(louder, text=put_sink(TEXT, 0, ((2, -88888.0),)), **knobs)
    assert torch.equal(one[1:], two[1:])
    if (normalization, mode) != ("token_rms", "linear"):  # there each token is on its own anyway
        without, _ = condition(SINK_REFERENCE, text=SINK_TEXT, **{**knobs, "vl_exclude_sinks": False})
        assert not torch.allclose(one[1:], without[1:])


def make_published_pair(patches: int = 256) -> tuple[Tensor, Tensor, ReferenceEmbeds]:
    """2560 wide, ordinary RMS 10.5 in the text and 7 in the reference, position 0 of both the published sink."""
    regions, reference_regions = make_regions(10), make_regions(10, patches)
    text = put_sink(make_states(len(regions), 2560, rms=10.5, seed=21), 0, PUBLISHED_SINK)
    states = put_sink(make_states(len(reference_regions), 2560, rms=7.0, seed=22), 0, PUBLISHED_SINK)
    return text, regions, ReferenceEmbeds({-6: states}, reference_regions)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("selection", ["all", "text", "image"])
def test_without_sinks_global_normalization_restores_nominal_alpha(alpha: float, selection: str) -> None:
    text, regions, reference = make_published_pair()
    knobs = {"vl_alpha": alpha, "vl_token_selection": selection, "vl_alignment": "anchored"}
    _, report = condition(reference, text=text, regions=regions, vl_exclude_sinks=True, **knobs)
    assert report.effective_alpha is not None
    acted = report.effective_alpha > 0
    assert int(acted.sum()) == (10 if selection == "image" else len(text) - 1)
    assert (report.effective_alpha[acted] - alpha).abs().max() < 0.02


def test_with_sinks_global_normalization_overshoots() -> None:
    text, regions, reference = make_published_pair()
    _, report = condition(reference, text=text, regions=regions, vl_alpha=0.3, vl_token_selection="image")
    assert report.effective_alpha is not None
    assert report.effective_alpha[PREFIX : PREFIX + 10].min() > 0.6


def test_token_rms_makes_alpha_nominal_with_or_without_sinks() -> None:
    text, regions, reference = make_published_pair()
    _, report = condition(reference, text=text, regions=regions, vl_alpha=0.3, vl_normalization="token_rms")
    assert report.effective_alpha is not None
    torch.testing.assert_close(report.effective_alpha, torch.full((len(text),), 0.3))


def test_influence_leaves_sinks_out() -> None:
    out, report = condition(SINK_REFERENCE, text=SINK_TEXT)
    cosine = torch.cosine_similarity(out[1:], SINK_TEXT[1:])
    assert report.influence == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
