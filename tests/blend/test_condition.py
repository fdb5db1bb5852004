"""The whole chain: what holds for every way to condition, the order of the steps, and what each knob does in it."""

from __future__ import annotations

import itertools
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
    WITHOUT_SINKS,
    condition,
    replace_rows,
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
from zimage_vl.blend.align import align_anchored, align_sequence
from zimage_vl.blend.condition import condition_prompt_embeds
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.blend.mix import blend_adain_per_dim, blend_embeddings, blend_with_style_delta
from zimage_vl.blend.normalize import (
    OutlierMaskingInfo,
    mask_outlier_dimensions,
    match_token_rms,
    normalize_hybrid,
    normalize_per_dimension,
    scale_embeddings,
)
from zimage_vl.blend.regions import Region, select_tokens
from zimage_vl.reference.embeds import ReferenceEmbeds


# -- what holds for every way


@pytest.mark.parametrize("way", WAYS)
def test_alpha_zero_is_the_text_itself_and_half_is_not(way: str) -> None:
    out, report = condition(**WAYS[way], vl_alpha=0.0)
    assert out is TEXT
    assert (report.influence, report.references, report.out_tokens) == (0.0, (), len(TEXT))
    out, report = condition(**WAYS[way], vl_alpha=0.5)
    assert (out[len(TEXT) :] if "concat" in way else out != TEXT).any()
    assert torch.isfinite(out).all()
    assert report.out_tokens == len(out)
    if way not in ("default", "zero"):
        default, _ = condition(vl_alpha=0.5)
        assert out.shape != default.shape or not torch.allclose(out, default)


@pytest.mark.parametrize("way", [way for way in WAYS if "concat" not in way])
def test_alpha_by_token_keeps_the_bits_of_tokens_at_zero(way: str) -> None:
    alpha, text = torch.zeros(len(TEXT)), TEXT.clone()
    alpha[[2, 5]], text[3] = 0.7, -0.0
    out, _ = condition(text=text, **WAYS[way], alpha=alpha)
    touched = (out != text).any(dim=1)
    assert touched.nonzero().flatten().tolist() == [i for i in (2, 5) if touched[i]]
    assert touched.any()
    assert torch.signbit(out[3]).all()  # the sign of zero, too
    whole, _ = condition(text=text, **WAYS[way], vl_alpha=0.7)
    torch.testing.assert_close(out[[2, 5]], whole[[2, 5]])


@pytest.mark.parametrize("way", WAYS)
def test_several_references_weigh_what_they_shall(way: str) -> None:
    alone, _ = condition(**WAYS[way])
    torch.testing.assert_close(condition(REFERENCE, REFERENCE, **WAYS[way])[0], alone)
    other = change_reference(REFERENCE, make_states(len(STATES), seed=40))
    torch.testing.assert_close(condition(REFERENCE, other, **WAYS[way], reference_weights=[2, 0])[0], alone)
    one, _ = condition(REFERENCE, other, **WAYS[way], reference_weights=[1, 3])
    assert torch.equal(one, condition(other, REFERENCE, **WAYS[way], reference_weights=[3, 1])[0])
    assert not torch.equal(one, condition(other, REFERENCE, **WAYS[way], reference_weights=[1, 3])[0])


# -- the order


@pytest.mark.parametrize("mode", ["linear", "slerp"])
def test_alpha_one_is_the_aligned_reference_and_one_equal_to_the_text_changes_nothing(mode: str) -> None:
    out, _ = condition(vl_alpha=1, vl_normalization="none", vl_blend_mode=mode)
    assert torch.equal(out, align_sequence(STATES, len(TEXT), "interpolate"))
    out, _ = condition(vl_alpha=1, vl_normalization="none", vl_blend_mode=mode, vl_alignment="anchored")
    assert torch.equal(out, align_anchored(STATES, REGIONS, TEXT_REGIONS)[0])
    equal = change_reference(REFERENCE, replace_rows(STATES, select("text"), TEXT))
    for alpha, normalization in itertools.product((0.1, 0.5, 0.9, 1.0), ("none", "token_rms")):
        knobs = {"vl_alpha": alpha, "vl_normalization": normalization, "vl_blend_mode": mode}
        out, report = condition(equal, vl_token_selection="text", **knobs)
        assert torch.equal(out, TEXT)
        assert report.influence == 0


@pytest.mark.parametrize("selection", ["all", "text", "image", "image_no_markers"])
@pytest.mark.parametrize("normalization", ["global", "per_dim", "hybrid", "token_rms", "none"])
@pytest.mark.parametrize("alignment", ["anchored", "pool", "interpolate"])
def test_the_chain_is_its_steps_in_order(selection: Any, normalization: str, alignment: Any) -> None:
    kept = select(selection)
    states, info = STATES, OutlierMaskingInfo()
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
    }.get(normalization, torch.clone)(states[kept])
    if alignment == "anchored":
        rows = replace_rows(states, kept, normalized)
        aligned, covered = align_anchored(rows, REGIONS, TEXT_REGIONS, selection)
    else:
        aligned, covered = align_sequence(normalized, len(TEXT), alignment), torch.ones(len(TEXT), dtype=torch.bool)
    if normalization == "token_rms":
        aligned = match_token_rms(aligned, TEXT)
    expected = torch.where(covered[:, None], blend_embeddings(TEXT, aligned, 0.4), TEXT)
    masking = {} if selection == "text" else {"vl_outlier_masking": "clamp", "vl_outlier_threshold": 3.0}
    knobs = {"vl_token_selection": selection, "vl_normalization": normalization, "vl_alignment": alignment}
    out, report = condition(vl_alpha=0.4, **knobs, **masking)
    torch.testing.assert_close(out, expected)
    assert report.references[0].masking == info
    assert report.references[0].selected_tokens == int(kept.sum())
    assert report.references[0].covered_tokens == int(covered.sum())
    assert torch.equal(out[~covered], TEXT[~covered])
    assert torch.equal(report.effective_alpha > 0, covered)  # pyright: ignore[reportOptionalOperand]


def test_layers_are_mixed_by_their_weights_first() -> None:
    several = make_reference(layers=(-2, -6, -8))
    mixed = (several.hidden_states[-2] + 3 * several.hidden_states[-8]) / 4
    out, report = condition(several, vl_hidden_layer={-2: 1, -8: 3})
    torch.testing.assert_close(out, condition(change_reference(REFERENCE, mixed))[0])
    assert report.references[0].layer_weights == {-2: 0.25, -8: 0.75}
    assert torch.equal(condition(several, vl_hidden_layer={-2: 9})[0], condition(several, vl_hidden_layer=-2)[0])


def test_the_target_is_the_std_of_the_text_or_the_one_given() -> None:
    for target in (None, 70.0):
        _, report = condition(vl_target_std=target)
        expected = target or float(TEXT.std())
        assert report.references[0].std_after == pytest.approx(expected, rel=1e-5)
        assert report.scale_factor == pytest.approx(expected / float(STATES.std()), rel=1e-5)
    for normalization in ("per_dim", "hybrid", "token_rms", "none"):
        assert condition(vl_normalization=normalization)[1].scale_factor is None


def test_an_alpha_over_regions_is_resolved_without_a_tokenizer() -> None:
    out, report = condition(vl_alpha={"suffix": 1.0})
    assert torch.equal(out[:-SUFFIX], TEXT[:-SUFFIX])
    assert report.effective_alpha is not None
    assert report.effective_alpha.tolist() == [0.0] * (len(TEXT) - SUFFIX) + [1.0] * SUFFIX


# -- outliers


# -- the report


def test_the_report_measures_what_came_out() -> None:
    out, report = condition(vl_alpha=0.5, vl_normalization="none", vl_alignment="pool")
    aligned, one = align_sequence(STATES, len(TEXT)), report.references[0]
    assert (report.text_tokens, report.reference_tokens, report.out_tokens) == (12, 23, 12)
    assert (one.tokens, one.selected_tokens, one.aligned_tokens) == (23, 23, 12)
    assert report.text_std == pytest.approx(float(TEXT.std()))
    assert report.out_std == pytest.approx(float(out.std()))
    assert report.aligned_std == pytest.approx(float(aligned.std()))
    r = rms_of(aligned) / rms_of(TEXT)
    assert report.effective_alpha is not None
    torch.testing.assert_close(report.effective_alpha.double(), r / (r + 1), rtol=1e-5, atol=0)
    for mode in ("slerp", "adain", "adain_per_dim", "style_delta"):
        assert condition(**WAYS[mode])[1].effective_alpha is None
    influences = [condition(vl_alpha=alpha)[1].influence for alpha in (0.0, 0.2, 0.5, 0.9)]
    assert influences == sorted(set(influences))


# -- anchored: where nothing lies


ANCHORED: dict[str, Any] = {"vl_alignment": "anchored"}
IMAGE: dict[str, Any] = {**ANCHORED, "vl_token_selection": "image"}
WORDS: dict[str, Any] = {**ANCHORED, "vl_token_selection": "text"}


def test_an_image_has_nothing_to_lie_on_without_words() -> None:
    text, regions = make_text(words=0)
    out, report = condition(text=text, regions=regions, **IMAGE)
    assert torch.equal(out, text)
    assert (report.influence, report.references[0].covered_tokens, report.aligned_std) == (0.0, 0, None)


def test_where_one_of_two_references_lies_it_lies_alone() -> None:
    silent = make_reference(words=0, seed=5)
    out, report = condition(REFERENCE, silent, **WORDS, vl_normalization="none", vl_alpha=1)
    alone, _ = condition(**WORDS, vl_normalization="none", vl_alpha=1)
    assert torch.equal(out[PREFIX:-SUFFIX], alone[PREFIX:-SUFFIX])
    assert not torch.isclose(out[:PREFIX], alone[:PREFIX]).all()
    assert [one.covered_tokens for one in report.references] == [len(TEXT), PREFIX + SUFFIX]


# -- several references


def test_the_mean_of_references_has_their_mean_loudness() -> None:
    out, report = condition(REFERENCE, OTHER, reference_weights=[3, 1], vl_alpha=1, vl_normalization="none")
    states = [one.hidden_states[-6] for one in (REFERENCE, OTHER)]
    parts = [align_sequence(x, len(TEXT), "interpolate").double() for x in states]
    mean = 0.75 * parts[0] + 0.25 * parts[1]
    rms = 0.75 * rms_of(parts[0]) + 0.25 * rms_of(parts[1])
    torch.testing.assert_close(out.double(), mean * (rms / rms_of(mean))[:, None], rtol=1e-4, atol=1e-4)
    assert [one.weight for one in report.references] == [0.75, 0.25]


def test_each_reference_is_normalized_alone_and_huge_weights_still_weigh() -> None:
    out, report = condition(REFERENCE, OTHER)
    for one, reference in zip(report.references, (REFERENCE, OTHER), strict=True):
        stds = float(reference.hidden_states[-6].std()), float(TEXT.std())
        assert (one.std_before, one.std_after) == pytest.approx(stds, rel=1e-5)
        assert one.scale_factor == pytest.approx(stds[1] / stds[0], rel=1e-4)
    assert report.scale_factor is None
    huge, report = condition(REFERENCE, OTHER, reference_weights=[1e308, 1e308])
    assert torch.equal(out, huge)
    assert [one.weight for one in report.references] == [0.5, 0.5]


# -- concat


@pytest.mark.parametrize(
    ("alpha", "tokens", "appended"), [(0.25, None, 3), (0.5, None, 6), (1.0, None, 12), (0.04, None, 1), (0.04, 7, 7)]
)
def test_concat_appends_a_share_of_the_texts_length_or_what_is_asked(
    alpha: float, tokens: int | None, appended: int
) -> None:
    out, report = condition(vl_alignment="concat", vl_alpha=alpha, vl_concat_tokens=tokens, vl_normalization="none")
    assert torch.equal(out[: len(TEXT)], TEXT)
    assert len(out) == report.out_tokens == len(TEXT) + appended
    torch.testing.assert_close(out[len(TEXT) :], align_sequence(STATES, appended))
    assert report.references[0].aligned_tokens == report.appended_tokens == appended
    assert (report.effective_alpha, report.influence) == (None, None)  # nothing turned: tokens were added
    out, _ = condition(vl_alignment="concat", vl_alpha=alpha, vl_concat_tokens=tokens, vl_normalization="token_rms")
    torch.testing.assert_close(rms_of(out[12:]), rms_of(TEXT).median().expand(appended), rtol=1e-5, atol=0)


def test_concat_respects_the_limit_and_goes_by_its_own_alpha() -> None:
    appended, _ = condition(vl_alignment="concat", vl_alpha=0.5, max_tokens=18)
    assert len(appended) == 18
    with pytest.raises(ValueError, match="takes 17 tokens, got 12 of the text and 6 appended"):
        condition(vl_alignment="concat", vl_alpha=0.5, max_tokens=17)
    with pytest.raises(ValueError, match="takes 11 tokens, got 12"):
        condition(max_tokens=11)
    assert torch.equal(condition(vl_alignment="concat", vl_alpha=0.5, alpha=torch.zeros(12))[0], appended)


# -- adain per dimension, style delta


def test_adain_per_dim_takes_all_selected_tokens_unaligned() -> None:
    kept = select("image")
    out, report = condition(
        vl_alpha=0.6, vl_blend_mode="adain_per_dim", vl_token_selection="image", vl_normalization="none"
    )
    torch.testing.assert_close(out, blend_adain_per_dim(TEXT, STATES[kept], 0.6))
    one = report.references[0]
    assert (one.aligned_tokens, one.covered_tokens, report.effective_alpha) == (None, None, None)


@pytest.mark.parametrize("selection", ["all", "image"])
def test_style_delta_is_the_aligned_difference(selection: Any) -> None:
    neutral = make_reference(seed=11)
    knobs = {**WAYS["style_delta"], **ANCHORED, "vl_token_selection": selection}
    out, report = condition(**knobs, vl_alpha=0.4, neutral=neutral)
    delta, _ = align_anchored(STATES - neutral.hidden_states[-6], REGIONS, TEXT_REGIONS, selection)
    torch.testing.assert_close(out, blend_with_style_delta(TEXT, delta, 0.4))
    assert report.effective_alpha is None
    assert torch.equal(condition(**knobs, neutral=REFERENCE)[0], TEXT)


def test_masking_is_the_same_on_both_sides_of_a_style_delta() -> None:
    """Masked apart, two pictures that agree in a dimension would differ in it."""
    masking = {"vl_outlier_masking": "scale", "vl_outlier_threshold": 2.0, "vl_token_selection": "image"}
    shifted, image, kept = change_reference(REFERENCE, STATES + 1.0), REGIONS == Region.IMAGE, select("image")
    out, report = condition(**WAYS["style_delta"], **masking, neutral=shifted, vl_alignment="pool", vl_alpha=0.4)
    _, info = mask_outlier_dimensions(STATES[image], STATISTICS, 2.0, "scale")
    delta = -torch.ones_like(STATES)
    for dim, factor in info.factors.items():
        delta[image, dim] = -factor
    expected = blend_with_style_delta(TEXT, align_sequence(delta[kept], len(TEXT)), 0.4)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
    assert report.masked_dimensions == info.masked_dimensions


def test_a_neutral_that_does_not_match_is_refused() -> None:
    for neutral in (make_reference(patches=4), ReferenceEmbeds({-6: STATES}, make_regions(9, 5))):
        with pytest.raises(ValueError, match=f"size and text, thus tokens, got {neutral.num_tokens} and 23"):
            condition(**WAYS["style_delta"], neutral=neutral)
    for knobs, given in (({}, REFERENCE), (WAYS["style_delta"], None)):
        with pytest.raises(ValueError, match=f"has_neutral_image=True alone, got {bool(knobs)}"):
            condition(**knobs, neutral=given)
    with pytest.raises(ValueError, match="encoded with muted=True"):
        condition(vl_blend_mode="style_delta")


# -- sinks


SINK_TEXT = put_sink(TEXT)
SINK_REFERENCE = change_reference(REFERENCE, put_sink(STATES))


def test_sinks_are_reported_and_count_for_no_influence_whether_or_not_they_are_excluded() -> None:
    image = {"vl_token_selection": "image"}
    for knobs, dropped, selected in (
        ({}, (), 23),
        ({"vl_exclude_sinks": True}, (0,), 22),
        ({"vl_exclude_sinks": True, **image}, (), 11),
    ):
        out, report = condition(SINK_REFERENCE, text=SINK_TEXT, **knobs)
        assert (report.text_sinks, report.reference_sinks) == ((0,), ((0,),))
        one = report.references[0]
        assert (one.dropped_sinks, one.selected_tokens) == (dropped, selected)
        cosine = torch.cosine_similarity(out[1:], SINK_TEXT[1:])
        assert report.influence == pytest.approx(1 - cosine.mean().item(), abs=1e-6)


@pytest.mark.parametrize("way", ["default", "slerp", "adain", "adain_per_dim", "style_delta", "per_dim", "sinks"])
def test_the_texts_sinks_pass_untouched(way: str) -> None:
    knobs = {**WAYS[way], "vl_exclude_sinks": True}
    out, report = condition(SINK_REFERENCE, text=put_sink(TEXT, 4), **knobs, vl_alpha=0.8)
    assert torch.equal(out[4], put_sink(TEXT, 4)[4])
    if report.effective_alpha is not None:
        assert report.effective_alpha[4] == 0


def test_a_sink_of_the_neutral_alone_is_dropped_from_the_delta_too() -> None:
    neutral = make_reference(seed=11)
    knobs = {**WAYS["style_delta"], **ANCHORED, "vl_exclude_sinks": True, "vl_alpha": 1.0}
    out, report = condition(**knobs, neutral=change_reference(neutral, put_sink(neutral.hidden_states[-6], 1)))
    assert torch.equal(out[1], TEXT[1])
    assert report.references[0].dropped_sinks == (1,)
    assert report.reference_sinks == ((),)


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


@pytest.mark.parametrize(("alpha", "selection"), [(0.1, "all"), (0.3, "text"), (0.8, "image")])
def test_without_sinks_global_normalization_restores_nominal_alpha(alpha: float, selection: str) -> None:
    text, regions, reference = make_published_pair()
    knobs = {"vl_alpha": alpha, "vl_token_selection": selection, "vl_alignment": "anchored"}
    _, report = condition(reference, text=text, regions=regions, vl_exclude_sinks=True, **knobs)
    assert report.effective_alpha is not None
    acted = report.effective_alpha > 0
    assert int(acted.sum()) == (10 if selection == "image" else len(text) - 1)
    assert (report.effective_alpha[acted] - alpha).abs().max() < 0.02
    _, report = condition(reference, text=text, regions=regions, vl_alpha=0.3, vl_token_selection="image")
    assert report.effective_alpha is not None
    assert report.effective_alpha[PREFIX : PREFIX + 10].min() > 0.6  # with sinks it overshoots


def make_ordinary(tokens: int, rms: float, lean: float, seed: int) -> Tensor:
    """2560 wide, all of one RMS; a share `lean` of each token's length lies in dimension 4, as in all others."""
    x = make_states(tokens, 2560, seed=seed)
    x[:, 4] = 0
    x *= (1 - lean**2) ** 0.5 / rms_of(x)[:, None].float()
    x[:, 4] = lean * 2560**0.5
    return rms * x


@pytest.mark.parametrize("words", [3, 12, 40])
def test_on_states_of_the_real_sizes_the_default_is_felt_and_anchored_is_not(words: int) -> None:
    """Sizes as published: a sink at position 0, ordinary RMS 10.5, 1,024 image tokens of RMS 7, text positions that
    are what they are without a picture. The picture is felt at alpha .3 and leads at alpha 1."""
    text_regions, regions = make_regions(words, suffix=5), make_regions(words, 1024, suffix=5)
    ordinary = make_ordinary(len(text_regions), 10.5, 0.4, seed=31)
    text, theirs = put_sink(ordinary, 0, PUBLISHED_SINK), put_sink(ordinary, 0, ((4, 8960.0), (396, -3008.0)))
    states = replace_rows(make_ordinary(len(regions), 7.0, 0.25, seed=32), select_tokens(regions, "text"), theirs)
    reference = ReferenceEmbeds({-6: states}, regions)

    def measure(**knobs: Any) -> float:
        influence = condition(reference, text=text, regions=text_regions, **knobs)[1].influence
        assert influence is not None
        return influence

    assert measure() >= 0.25
    assert measure(vl_alpha=1.0) >= 0.7
    assert measure(**ANCHORED) < measure(vl_alpha=1.0, **ANCHORED) < 0.2


# -- refusals


BROKEN = make_reference()
BROKEN.hidden_states[-6][3, 3] = float("nan")
WORDY = ReferenceEmbeds({-6: TEXT}, TEXT_REGIONS)


@pytest.mark.parametrize(
    ("references", "changes", "message"),
    [
        ([], {"text": TEXT.log()}, "`text_embeds` contains NaN"),
        ([], {"text": TEXT[:0], "regions": TEXT_REGIONS[:0]}, "at least one token"),
        ([], {"regions": TEXT_REGIONS[:3]}, r"shape \(12,\), one per token.*got torch.int8 of shape \(3,\)"),
        ([], {"alpha": torch.ones(3)}, "12 values, one per token, got 3"),
        ([], {"alpha": torch.tensor(0.5)}, "`alpha` must have 12 values"),
        ([], {"alpha": torch.full((12,), 1.5)}, "`alpha"),
        ([], {"vl_hidden_layer": -2}, r"layers \[-6\], not -2"),
        ([], {"reference_weights": [1, 1]}, "must be 2, as `reference_weights` are, got 1"),
        ([], {"vl_alignment": "truncate", "vl_token_selection": "image_no_markers"}, "at least 12 tokens.*, got 9"),
        ([], {"text": TEXT.half(), "vl_target_std": 1e6, "vl_alpha": 1}, "`the blended embeddings` contains NaN or"),
        ([REFERENCE, make_reference(dims=32)], {}, r"`reference 1, layer -6` must be 16 wide.*got 32"),
        ([BROKEN], {}, "`reference 0, layer -6` contains NaN"),
        ([WORDY], {"vl_token_selection": "image"}, "'image' keeps none of the 12 tokens of reference 0"),
    ],
)
def test_what_does_not_fit_is_refused(references: list[Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condition(*references, **changes)


def test_references_and_statistics_that_are_needed_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"must be at least one.*got 0"):
        condition_prompt_embeds(TEXT, TEXT_REGIONS, [], VLConditioning())
    for knobs in ({"vl_normalization": "per_dim"}, {"vl_outlier_masking": "zero"}):
        for statistics, got in ((None, "None"), (WITHOUT_SINKS, "exclude_sinks=True")):
            with pytest.raises(ValueError, match=f"need `text_statistics`.*exclude_sinks=False.*got {got}"):
                condition(**knobs, text_statistics=statistics)
