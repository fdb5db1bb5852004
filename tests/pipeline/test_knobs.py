"""Every knob of a call changes what is painted, and each does so by what `condition_prompt_embeds` makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedding_samples import put_sink
from pipeline_samples import KNOBS, PROMPT, call, make_picture, paint, paint_with
from tiny_models import tiny_pipeline
from zimage_vl.blend.regions import Region
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.embeds import ReferenceEmbeds


PICTURE, OTHER_PICTURE = make_picture(0, (64, 48)), make_picture(1, (64, 48))
HALF_MASK = Image.new("L", (64, 48), 0)
HALF_MASK.paste(255, (0, 0, 32, 48))


@pytest.fixture(scope="module")
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline()


def differ(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4)


# Knob and value, and what the call is compared with where it is not the same call without it.
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"vl_alpha": 0.3}, {}),
    ({"vl_alpha": {"prompt": 0.6}}, {}),
    ({"vl_alpha": {"red": 0.6}}, {"vl_alpha": {"prompt": 0.6}}),
    ({"vl_alpha": {"prefix": 0.6}}, {"vl_alpha": {"suffix": 0.6}}),
    ({"vl_alpha": [0.6] * 16 + [0.0]}, {}),
    ({"vl_hidden_layer": -3}, {}),
    ({"vl_hidden_layer": -1}, {}),
    ({"vl_hidden_layer": {-2: 1, -3: 1}}, {"vl_hidden_layer": {-2: 1, -3: 5}}),
    ({"vl_text": ""}, {}),
    ({"vl_text": "a yellow cross"}, {"vl_text": ""}),
    ({"vl_text_position": "before"}, {}),
    ({"vl_token_selection": "text"}, {}),
    ({"vl_token_selection": "image"}, {}),
    # Anchored alignment lays only image tokens on the words: the markers count where all are pooled.
    (
        {"vl_token_selection": "image_no_markers", "vl_alignment": "pool"},
        {"vl_token_selection": "image", "vl_alignment": "pool"},
    ),
    ({"vl_normalization": "per_dim"}, {}),
    ({"vl_normalization": "hybrid"}, {"vl_normalization": "per_dim"}),
    ({"vl_normalization": "token_rms"}, {}),
    ({"vl_normalization": "none"}, {}),
    ({"vl_target_std": 7.0}, {}),
    ({"vl_target_std": 7.0, "vl_normalization": "hybrid"}, {"vl_normalization": "hybrid"}),
    ({"vl_alignment": "pool"}, {}),
    ({"vl_alignment": "interpolate"}, {"vl_alignment": "pool"}),
    ({"vl_alignment": "truncate"}, {"vl_alignment": "interpolate"}),
    ({"vl_alignment": "concat"}, {}),
    ({"vl_blend_mode": "slerp"}, {}),
    ({"vl_blend_mode": "adain"}, {}),
    ({"vl_blend_mode": "adain_per_dim"}, {"vl_blend_mode": "adain"}),
    (
        {"vl_blend_mode": "style_delta", "neutral_image": OTHER_PICTURE, "vl_normalization": "none"},
        {"vl_normalization": "none"},
    ),
    # In more than two steps: before diffusers 0.39 the last one does nothing.
    ({"vl_start": 0.5, "num_inference_steps": 4}, {"num_inference_steps": 4}),
    ({"vl_end": 0.5, "num_inference_steps": 4}, {"num_inference_steps": 4}),
    ({"vl_max_pixels": 1024}, {}),
    ({"reference_mask": HALF_MASK}, {}),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_every_knob_changes_the_picture(pipe: ZImageVLPipeline, number: int) -> None:
    knobs, beside = CHANGES[number]
    first, second = paint_with(pipe, PICTURE, **knobs), paint_with(pipe, PICTURE, **beside)
    assert np.isfinite(first).all()
    assert differ(first, second)
    assert differ(first, paint(pipe))


def test_several_references_and_their_weights(pipe: ZImageVLPipeline) -> None:
    both = [[PICTURE, OTHER_PICTURE]]
    equal = paint_with(pipe, both)
    assert differ(equal, paint_with(pipe, PICTURE))
    assert differ(equal, paint_with(pipe, both, reference_weights=[1, 4]))
    np.testing.assert_array_equal(equal, paint_with(pipe, both, reference_weights=[2, 2]))


def test_the_neutral_picture_itself_counts(pipe: ZImageVLPipeline) -> None:
    style = {"vl_blend_mode": "style_delta", "vl_normalization": "none"}
    one, other = (paint_with(pipe, PICTURE, neutral_image=n, **style) for n in (OTHER_PICTURE, make_picture(5)))
    assert differ(one, other)
    # A reference that is its own neutral picture has no style of its own.
    np.testing.assert_array_equal(paint_with(pipe, PICTURE, neutral_image=PICTURE, **style), paint(pipe))
    ready = (
        pipe.encode_reference(PICTURE, PROMPT, layers=(-2,)),
        pipe.encode_reference(OTHER_PICTURE, PROMPT, layers=(-2,)),
    )
    embeds = paint(pipe, reference_embeds=ready[0], neutral_image=ready[1], **{**KNOBS, **style})
    np.testing.assert_array_equal(embeds, one)


# ---- Sinks and outliers, which tiny models have none of ----


@pytest.fixture(scope="module")
def reference(pipe: ZImageVLPipeline) -> ReferenceEmbeds:
    return pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))


def changed(reference: ReferenceEmbeds, states: torch.Tensor) -> ReferenceEmbeds:
    return ReferenceEmbeds({-2: states}, reference.regions, reference.provenance)


def test_leaving_out_sinks_changes_the_picture_and_the_report(
    pipe: ZImageVLPipeline, reference: ReferenceEmbeds
) -> None:
    sunk = changed(reference, put_sink(reference.get_layer(-2), 0))
    with_sink = call(pipe, reference_embeds=sunk, **KNOBS)
    without = call(pipe, reference_embeds=sunk, vl_exclude_sinks=True, **KNOBS)
    assert differ(with_sink.images, without.images)
    assert with_sink.conditioning[0].reference_sinks == without.conditioning[0].reference_sinks == ((0,),)
    assert with_sink.conditioning[0].references[0].dropped_sinks == ()
    assert without.conditioning[0].references[0].dropped_sinks == (0,)
    # Without a sink there is nothing to leave out.
    same = [paint(pipe, reference_embeds=reference, vl_exclude_sinks=flag, **KNOBS) for flag in (False, True)]
    np.testing.assert_array_equal(*same)


@pytest.fixture(scope="module")
def outlying(pipe: ZImageVLPipeline, reference: ReferenceEmbeds) -> ReferenceEmbeds:
    """One dimension of the image tokens spread 40 times as far as the text encoder's."""
    states, image = reference.get_layer(-2).clone(), reference.regions == Region.IMAGE
    column = states[image, 5]
    wanted = 40 * float(pipe.text_statistics().std[5])
    states[image, 5] = (column - column.mean()) / column.std() * wanted
    return changed(reference, states)


def test_masking_outliers_changes_the_picture_and_the_report(
    pipe: ZImageVLPipeline, outlying: ReferenceEmbeds
) -> None:
    modes = {
        mode: call(pipe, reference_embeds=outlying, vl_outlier_masking=mode, **KNOBS)
        for mode in ("none", "zero", "clamp", "scale")
    }
    images = [output.images for output in modes.values()]
    assert all(differ(a, b) for i, a in enumerate(images) for b in images[:i])
    assert modes["none"].conditioning[0].masked_dimensions == []
    for mode in ("zero", "clamp", "scale"):
        report = modes[mode].conditioning[0]
        assert 5 in report.masked_dimensions
        assert report.masked_dim_ratios[5] == pytest.approx(40, rel=1e-3)
        assert report.masked_dim_directions[5] == "excess"


def test_the_threshold_decides_what_is_an_outlier(pipe: ZImageVLPipeline, outlying: ReferenceEmbeds) -> None:
    clamp = {**KNOBS, "vl_outlier_masking": "clamp", "reference_embeds": outlying}
    assert differ(paint(pipe, **clamp), paint(pipe, vl_outlier_threshold=20.0, **clamp))
    high = call(pipe, vl_outlier_threshold=1e6, **clamp)
    assert high.conditioning[0].masked_dimensions == []
    np.testing.assert_array_equal(high.images, paint(pipe, reference_embeds=outlying, **KNOBS))


# ---- What a mask hides ----


def test_hidden_pixels_leave_no_trace(pipe: ZImageVLPipeline) -> None:
    inside, outside = PICTURE.copy(), PICTURE.copy()
    outside.paste(OTHER_PICTURE.crop((32, 0, 64, 48)), (32, 0))
    inside.paste(OTHER_PICTURE.crop((0, 0, 32, 48)), (0, 0))
    masked = paint_with(pipe, PICTURE, reference_mask=HALF_MASK)
    np.testing.assert_array_equal(paint_with(pipe, outside, reference_mask=HALF_MASK), masked)
    assert differ(paint_with(pipe, inside, reference_mask=HALF_MASK), masked)


# ---- Identities of the whole call ----


def test_token_rms_does_not_hear_how_loud_a_reference_is(pipe: ZImageVLPipeline, reference: ReferenceEmbeds) -> None:
    knobs = {**KNOBS, "vl_normalization": "token_rms"}
    louder = changed(reference, reference.get_layer(-2) * 4)
    images = [paint(pipe, reference_embeds=each, **knobs) for each in (reference, louder)]
    np.testing.assert_allclose(*images, atol=2e-4)


def test_influence_and_effective_alpha_grow_with_alpha(pipe: ZImageVLPipeline) -> None:
    reports = [
        call(pipe, reference_image=PICTURE, **{**KNOBS, "vl_alpha": a}).conditioning[0] for a in (0.0, 0.2, 0.6, 1.0)
    ]
    influences = [report.influence for report in reports]
    assert influences[0] == 0
    assert influences == sorted(influences)
    assert influences[1] > 0
    assert torch.equal(reports[3].effective_alpha, torch.ones(reports[3].text_tokens))
    assert [r.out_tokens == r.text_tokens == len(pipe.tokenize_prompt(PROMPT)) for r in reports] == [True] * 4


def test_a_shorter_prompt_and_the_text_beside_the_picture_are_cut_alike(pipe: ZImageVLPipeline) -> None:
    long = "a red circle on a white background " * 3
    output = call(pipe, long, reference_image=PICTURE, max_sequence_length=20, **KNOBS)
    assert output.conditioning[0].text_tokens == 20
    assert np.isfinite(output.images).all()
