"""Every knob of a call changes what is painted; the identities that hold between them hold for whole pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedding_samples import put_sink
from pipeline_samples import KNOBS, PROMPT, call, differ, make_picture, paint, paint_with, same
from zimage_vl.blend.regions import Region
from zimage_vl.blend.registry import KNOBS as REGISTRY
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.reference.embeds import ReferenceEmbeds


PICTURE, OTHER_PICTURE = make_picture(0, (64, 48)), make_picture(1, (64, 48))
HALF_MASK = Image.new("L", (64, 48), 0)
HALF_MASK.paste(255, (0, 0, 32, 48))
LOUD: dict[str, Any] = {"vl_normalization": "none"}


@pytest.fixture(scope="module")
def reference(pipe: ZImageVLPipeline) -> ReferenceEmbeds:
    return pipe.encode_reference(PICTURE, PROMPT, layers=(-2,))


def changed(reference: ReferenceEmbeds, states: torch.Tensor) -> ReferenceEmbeds:
    return ReferenceEmbeds({-2: states}, reference.regions, reference.provenance)


@pytest.fixture(scope="module")
def outlying(pipe: ZImageVLPipeline, reference: ReferenceEmbeds) -> ReferenceEmbeds:
    """One dimension of the image tokens spread 40 times as far as the text encoder's, one a fiftieth as far."""
    states, image = reference.get_layer(-2).clone(), reference.regions == Region.IMAGE
    for dim, factor in ((5, 40), (6, 1 / 50)):
        column = states[image, dim]
        wanted = factor * float(pipe.text_statistics().std[dim])
        states[image, dim] = (column - column.mean()) / column.std() * wanted
    return changed(reference, states)


# Knob and value, and what the call is compared with where it is not the same call without it.
CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"vl_alpha": 0.3}, {}),
    ({"vl_alpha": {"prompt": 0.6}}, {}),
    ({"vl_alpha": {"red": 0.6}}, {"vl_alpha": {"prompt": 0.6}}),
    ({"vl_alpha": {"prefix": 0.6}}, {"vl_alpha": {"suffix": 0.6}}),
    ({"vl_alpha": [0.6] * 16 + [0.0]}, {}),
    ({"vl_hidden_layer": -3}, {}),
    ({"vl_hidden_layer": -1}, {}),
    ({"vl_hidden_layer": [-2, -3]}, {"vl_hidden_layer": {-2: 1, -3: 5}}),
    ({"vl_text": ""}, {}),
    ({"vl_text": "a yellow cross"}, {"vl_text": ""}),
    ({"vl_text_position": "before"}, {}),
    ({"vl_token_selection": "text"}, {}),
    ({"vl_token_selection": "image"}, {}),
    ({"vl_token_selection": "image_no_markers"}, {"vl_token_selection": "image"}),
    ({"vl_normalization": "per_dim"}, {}),
    ({"vl_normalization": "hybrid"}, {"vl_normalization": "per_dim"}),
    ({"vl_normalization": "token_rms"}, {}),
    ({"vl_normalization": "none"}, {}),
    ({"vl_target_std": 7.0}, {}),
    ({"vl_target_std": 7.0, "vl_normalization": "hybrid"}, {"vl_normalization": "hybrid"}),
    ({"vl_alignment": "pool"}, {}),
    ({"vl_alignment": "anchored"}, {"vl_alignment": "pool"}),
    ({"vl_alignment": "truncate"}, {}),
    ({"vl_alignment": "concat"}, {}),
    ({"vl_alignment": "concat", "vl_concat_tokens": 2}, {"vl_alignment": "concat"}),
    ({"vl_blend_mode": "slerp"}, {}),
    ({"vl_blend_mode": "adain"}, {}),
    ({"vl_blend_mode": "adain_per_dim"}, {"vl_blend_mode": "adain"}),
    ({"vl_blend_mode": "style_delta", "neutral_image": OTHER_PICTURE}, LOUD),
    # In more than two steps: before diffusers 0.39 the last one does nothing.
    ({"vl_start": 0.5, "num_inference_steps": 4}, {"num_inference_steps": 4}),
    ({"vl_end": 0.5, "num_inference_steps": 4}, {"num_inference_steps": 4}),
    ({"vl_max_pixels": 1024}, {}),
    ({"vl_reader": "text_encoder"}, {}),
    ({"vl_treatment": "palette"}, {"vl_treatment": "blur"}),
    ({"vl_treatment": "greyscale"}, {}),
    ({"vl_describe": True}, {}),
    ({"negative_reference_image": OTHER_PICTURE, "guidance_scale": 3.0}, {"guidance_scale": 3.0}),
    ({"reference_mask": HALF_MASK}, {}),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_every_knob_changes_the_picture(pipe: ZImageVLPipeline, number: int) -> None:
    knobs, beside = CHANGES[number]
    first, second = paint_with(pipe, PICTURE, **knobs), paint_with(pipe, PICTURE, **beside)
    assert np.isfinite(first).all()
    assert differ(first, second)
    assert differ(first, paint(pipe))


def test_every_knob_and_choice_is_tried() -> None:
    # Those of test_pipeline_z_image_vl.py, and those of below.
    elsewhere = {"reference_image", "reference_embeds", "reference_weights", "negative_reference_embeds"}
    below = {"vl_outlier_masking", "vl_outlier_threshold", "vl_exclude_sinks"}
    assert {name for knobs, _ in CHANGES for name in knobs} >= set(REGISTRY) - elsewhere - below
    for name, knob in REGISTRY.items():
        tried = {
            value for pair in CHANGES for knobs in pair for key, value in knobs.items() if key == name and knob.choices
        }
        assert name in below or tried >= set(knob.choices) - {knob.default}, name


def test_the_neutral_picture_itself_counts(pipe: ZImageVLPipeline, reference: ReferenceEmbeds, tmp_path: Path) -> None:
    style = {"vl_blend_mode": "style_delta"}
    one, other = (paint_with(pipe, PICTURE, neutral_image=n, **style) for n in (OTHER_PICTURE, make_picture(5)))
    assert differ(one, other)
    # A reference that is its own neutral picture has no style of its own.
    same(paint_with(pipe, PICTURE, neutral_image=PICTURE, **style), paint(pipe))
    neutral = pipe.encode_reference(OTHER_PICTURE, PROMPT, layers=(-2,))
    neutral.save(tmp_path / "neutral.safetensors")
    for given in (neutral, str(tmp_path / "neutral.safetensors")):
        same(paint(pipe, reference_embeds=reference, neutral_image=given, **{**KNOBS, **style}), one)


# ---- Sinks and outliers, which tiny models have none of ----


def test_leaving_out_sinks_changes_the_picture_and_the_report(
    pipe: ZImageVLPipeline, reference: ReferenceEmbeds
) -> None:
    sunk = changed(reference, put_sink(reference.get_layer(-2), 0))
    with_sink, without = (call(pipe, reference_embeds=sunk, vl_exclude_sinks=flag, **KNOBS) for flag in (False, True))
    assert differ(with_sink.images, without.images)
    reports = [output.conditioning[0] for output in (with_sink, without)]
    assert [report.reference_sinks for report in reports] == [((0,),)] * 2
    assert [report.references[0].dropped_sinks for report in reports] == [(), (0,)]
    # Without a sink there is nothing to leave out.
    same(*[paint(pipe, reference_embeds=reference, vl_exclude_sinks=flag, **KNOBS) for flag in (False, True)])


def test_masking_outliers_changes_the_picture_and_the_report(
    pipe: ZImageVLPipeline, outlying: ReferenceEmbeds
) -> None:
    given = {**KNOBS, "reference_embeds": outlying}
    outputs = {mode: call(pipe, vl_outlier_masking=mode, **given) for mode in ("none", "zero", "clamp", "scale")}
    images = [output.images for output in outputs.values()]
    assert all(differ(a, b) for i, a in enumerate(images) for b in images[:i])
    for mode, output in outputs.items():
        report = output.conditioning[0]
        if mode == "none":
            assert report.masked_dimensions == []
            continue
        assert report.masked_dim_ratios[5] == pytest.approx(40, rel=1e-3)
        # A deficit is masked by zero alone, and reported by the others as left.
        deficits = report.masked_dim_ratios if mode == "zero" else report.left_dim_ratios
        assert deficits[6] == pytest.approx(50, rel=1e-3)
    clamp = {**given, "vl_outlier_masking": "clamp"}
    assert differ(images[2], paint(pipe, vl_outlier_threshold=20.0, **clamp))
    same(paint(pipe, vl_outlier_threshold=1e6, **clamp), images[0])
