"""What the pipeline refuses: with the reason, before any model runs, and leaving everything as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedding_samples import make_reference
from pipeline_samples import KNOBS, OTHER_PROMPT, PROMPT, call, make_picture, paint, paint_with, record_runs, seeded
from tiny_models import tiny_pipeline, tiny_text_encoder, tiny_vl_encoder
from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


PICTURE = make_picture(0)
WIDTH = 32


@pytest.fixture(scope="module")
def pipe() -> ZImageVLPipeline:
    return tiny_pipeline()


def refused(pipe: Any, match: str, prompt: Any = PROMPT, error: Any = ValueError, **kwargs: Any) -> None:
    with record_runs(pipe) as runs, pytest.raises(error, match=match):
        call(pipe, prompt, **kwargs)
    assert runs == []


def refused_beside_a_picture(pipe: Any, match: str, prompt: Any = PROMPT, error: Any = ValueError, **kw: Any) -> None:
    refused(pipe, match, prompt, error, **{"reference_image": PICTURE, **KNOBS, **kw})


def embeds(tokens: int = 5, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(tokens, width, generator=seeded())


# ---- Prompts and their embeddings ----


def test_no_prompt_at_all_and_both_kinds_of_it(pipe: ZImageVLPipeline) -> None:
    refused(pipe, "`prompt`.*or `prompt_embeds`.*neither", None)
    refused(pipe, "`prompt`.*or `prompt_embeds`.*both", PROMPT, prompt_embeds=[embeds()])
    refused(pipe, "empty list", [])
    refused(pipe, "string or a list of strings", 3, TypeError)
    refused(pipe, "string or a list of strings", [PROMPT, None], TypeError)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([embeds(0)], r"\(tokens, 32\).*\(0, 32\)"),
        ([embeds(4, 16)], r"\(tokens, 32\).*\(4, 16\)"),
        ([embeds()[None]], r"\(1, 5, 32\)"),
        (embeds(), "must be a list"),
        ([], "must be a list"),
        ([embeds() * math.nan], "NaN or infinity"),
        ([embeds(), embeds() + math.inf], "NaN or infinity.*prompt 1"),
        ([embeds(1505)], "1504 text tokens.*1505"),
    ],
)
def test_embeddings_that_do_not_fit(pipe: ZImageVLPipeline, given: Any, match: str) -> None:
    refused(pipe, match, None, prompt_embeds=given)
    refused(
        pipe, match, None, prompt_embeds=[embeds()], negative_prompt_embeds=given, guidance_scale=3.0
    )  # the negative ones alike


def test_guided_embeddings_want_negative_ones(pipe: ZImageVLPipeline) -> None:
    refused(pipe, "`negative_prompt_embeds` are needed", None, prompt_embeds=[embeds()], guidance_scale=3.0)
    two = {"prompt_embeds": [embeds()], "negative_prompt_embeds": [embeds()] * 2, "guidance_scale": 3.0}
    refused(pipe, "2 entries for 1 prompts", None, **two)
    refused(pipe, "2 entries for 1 prompts", negative_prompt=["", ""], guidance_scale=3.0)


def test_more_tokens_than_the_transformer_takes(pipe: ZImageVLPipeline) -> None:
    refused(pipe, "at most 1504 text tokens, the prompt has", "a " * 2000, max_sequence_length=4000)
    refused(pipe, "`max_sequence_length`", max_sequence_length=0)


# ---- Numbers of things ----


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"height": 0}, "`height`.*0"),
        ({"width": -32}, "`width`.*-32"),
        ({"num_inference_steps": 0}, "`num_inference_steps`.*0"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt`.*0"),
        ({"sigmas": []}, "`sigmas`.*empty"),
        ({"generator": [seeded(), seeded()]}, "`generator` is a list of 2, but 1"),
        ({"generator": [seeded()], "num_images_per_prompt": 2}, "`generator` is a list of 1, but 2"),
    ],
)
def test_sizes_and_counts(pipe: ZImageVLPipeline, kwargs: dict[str, Any], match: str) -> None:
    refused(pipe, match, **kwargs)
    refused_beside_a_picture(pipe, match, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"height": 33}, r"(?i)height.*divisible by 4.*33"),
        ({"width": 30}, r"(?i)width.*divisible by 4.*30"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "latents"),
        ({"num_images_per_prompt": None}, "num_images_per_prompt"),
    ],
)
def test_what_the_parent_finds_late_is_found_early(pipe: ZImageVLPipeline, kwargs: Any, match: str) -> None:
    refused_beside_a_picture(pipe, match, **kwargs)


def test_references_and_prompts_that_do_not_match_in_number(pipe: ZImageVLPipeline) -> None:
    prompts = [PROMPT, OTHER_PROMPT]
    refused_beside_a_picture(pipe, "3 entries for 2 prompts", prompts, reference_image=[PICTURE] * 3)
    refused_beside_a_picture(pipe, "2 entries for 1 prompt", reference_image=[PICTURE] * 2)
    refused_beside_a_picture(pipe, "empty list", reference_image=[])
    refused_beside_a_picture(pipe, "None in the place", prompts, reference_image=[PICTURE, None])
    refused_beside_a_picture(pipe, "`vl_text` has 1 texts for 2", prompts, vl_text=["a"])
    refused_beside_a_picture(pipe, "`vl_alpha` is a list of 1.*2 prompts", prompts, vl_alpha=[{"prompt": 0.5}])
    refused_beside_a_picture(pipe, "has 2 numbers for 1 references", reference_weights=[1, 1])
    refused_beside_a_picture(pipe, "2 masks", reference_mask=[[Image.new("L", (48, 32), 255)] * 2])


# ---- Knobs ----

BAD_KNOBS: list[tuple[dict[str, Any], Any, str]] = [
    ({"vl_alpha": math.nan}, ValueError, "vl_alpha.*nan"),
    ({"vl_alpha": 1.5}, ValueError, "vl_alpha.*1.5"),
    ({"vl_alpha": -0.1}, ValueError, "vl_alpha"),
    ({"vl_alpha": True}, TypeError, "vl_alpha"),
    ({"vl_alpha": [0.1, 0.2]}, ValueError, "2.*17|17.*2"),
    ({"vl_alpha": {"a yellow": 0.5}}, ValueError, "a yellow"),
    ({"vl_hidden_layer": 7}, ValueError, "-7 .. 6"),
    ({"vl_hidden_layer": -8}, ValueError, "-7 .. 6"),
    ({"vl_hidden_layer": 2.0}, TypeError, "vl_hidden_layer"),
    ({"vl_hidden_layer": {-2: 0, -3: 0}}, ValueError, "sum above 0"),
    ({"vl_text": 3}, TypeError, "vl_text"),
    ({"vl_text_position": "below"}, ValueError, "vl_text_position.*after.*before.*below"),
    ({"vl_token_selection": "words"}, ValueError, "vl_token_selection.*image_no_markers.*words"),
    ({"vl_normalization": "rms"}, ValueError, "vl_normalization.*token_rms.*rms"),
    ({"vl_outlier_masking": "drop"}, ValueError, "vl_outlier_masking.*clamp.*drop"),
    ({"vl_alignment": "stretch"}, ValueError, "vl_alignment.*anchored.*stretch"),
    ({"vl_blend_mode": "multiply"}, ValueError, "vl_blend_mode.*slerp.*multiply"),
    ({"vl_target_std": 0.0}, ValueError, "vl_target_std"),
    ({"vl_outlier_threshold": 1.0}, ValueError, "vl_outlier_threshold.*above 1"),
    ({"vl_exclude_sinks": 1}, TypeError, "vl_exclude_sinks"),
    ({"vl_start": 0.6, "vl_end": 0.6}, ValueError, "vl_start.*below"),
    ({"vl_end": 1.1}, ValueError, "vl_end"),
    ({"vl_start": 0.6, "vl_end": 0.9}, ValueError, "none of 2 steps"),
    ({"vl_max_pixels": 0}, ValueError, "vl_max_pixels"),
    ({"reference_weights": [0.0]}, ValueError, "reference_weights.*sum above 0"),
    ({"reference_weights": [-1.0]}, ValueError, "reference_weights"),
    ({"vl_outlier_masking": "zero", "vl_token_selection": "text"}, ValueError, "would do nothing"),
    ({"vl_blend_mode": "adain_per_dim", "vl_alignment": "pool"}, ValueError, "would do nothing"),
    ({"vl_blend_mode": "style_delta", "vl_normalization": "none"}, ValueError, "neutral_image"),
    ({"vl_blend_mode": "style_delta", "neutral_image": PICTURE}, ValueError, "vl_normalization.*none"),
    ({"neutral_image": PICTURE}, ValueError, "neutral_image.*do nothing"),
    ({"vl_alignment": "concat", "vl_blend_mode": "slerp"}, ValueError, "concat.*linear"),
    ({"vl_alignment": "concat", "vl_alpha": {"prompt": 0.5}}, ValueError, "concat.*one number"),
]


@pytest.mark.parametrize(("kwargs", "error", "match"), BAD_KNOBS, ids=[str(i) for i in range(len(BAD_KNOBS))])
def test_knobs_out_of_range(pipe: ZImageVLPipeline, kwargs: dict[str, Any], error: Any, match: str) -> None:
    refused_beside_a_picture(pipe, f"(?s){match}", error=error, **kwargs)


@pytest.mark.parametrize("name", ["vl_alpha", "vl_target_std", "vl_max_pixels"])
def test_knobs_are_checked_without_a_reference_too(pipe: ZImageVLPipeline, name: str) -> None:
    refused(pipe, name, **{name: -1})


def test_too_few_pixels_for_one_token_and_a_mask_that_hides_everything(pipe: ZImageVLPipeline) -> None:
    refused_beside_a_picture(pipe, "max_pixels.*256", vl_max_pixels=255)
    refused_beside_a_picture(pipe, "mask", reference_mask=Image.new("L", (48, 32), 0))
    refused_beside_a_picture(pipe, "vision", "a <|image_pad|> circle")


# ---- Arguments that exclude each other or would do nothing ----


@pytest.mark.parametrize(
    "kwargs",
    [
        {"reference_weights": [1.0]},
        {"reference_mask": Image.new("L", (48, 32), 255)},
        {"neutral_image": PICTURE, "vl_blend_mode": "style_delta", "vl_normalization": "none"},
        {"vl_text": "a circle"},
    ],
)
def test_what_only_counts_beside_a_reference(pipe: ZImageVLPipeline, kwargs: dict[str, Any]) -> None:
    refused(pipe, "needs a reference", **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"vl_text": "a"},
        {"vl_text_position": "before"},
        {"vl_max_pixels": 4096},
        {"reference_mask": Image.new("L", (48, 32), 255)},
    ],
)
def test_what_ready_embeddings_have_settled(pipe: ZImageVLPipeline, kwargs: dict[str, Any]) -> None:
    ready = make_reference(dims=WIDTH, layers=(-2,))
    refused(pipe, "was settled", reference_embeds=ready, **{**KNOBS, **kwargs})


def test_ready_embeddings_that_do_not_fit(pipe: ZImageVLPipeline) -> None:
    refused(pipe, "(?s)32.*16|16.*32", reference_embeds=make_reference(dims=16, layers=(-2,)), **KNOBS)
    refused(pipe, "-2", reference_embeds=make_reference(dims=WIDTH, layers=(-3,)), **KNOBS)
    refused(pipe, "ReferenceEmbeds", error=TypeError, reference_embeds=embeds(), **KNOBS)
    ready = make_reference(dims=WIDTH, layers=(-2,))
    refused(pipe, "not both", reference_image=PICTURE, reference_embeds=ready, **KNOBS)
    refused(pipe, "`reference_embeds`", error=TypeError, reference_image=ready, **KNOBS)


def test_prompt_embeds_leave_the_words_unknown(pipe: ZImageVLPipeline) -> None:
    refused_beside_a_picture(pipe, "`vl_text` must say", None, prompt_embeds=[embeds()])


def test_embeddings_for_other_pipelines_know_no_steps(pipe: ZImageVLPipeline) -> None:
    with record_runs(pipe) as runs:
        for name in ("vl_start", "vl_end"):
            with pytest.raises(ValueError, match=name):
                pipe.encode_prompt_with_reference(PROMPT, PICTURE, **{name: 0.5})
        with pytest.raises(TypeError, match="vl_aplha"):
            pipe.encode_prompt_with_reference(PROMPT, PICTURE, vl_aplha=0.5)
        with pytest.raises(ValueError, match="needs a reference"):
            pipe.encode_prompt_with_reference(PROMPT, vl_text="a circle")
    assert runs == []


# ---- Pictures ----


def test_pictures_that_are_none(pipe: ZImageVLPipeline, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
    refused_beside_a_picture(pipe, "page.png.*HTML", reference_image=page)
    refused_beside_a_picture(pipe, "missing.png", error=FileNotFoundError, reference_image=tmp_path / "missing.png")
    refused_beside_a_picture(pipe, "directory", reference_image=str(tmp_path))
    refused_beside_a_picture(pipe, "empty", reference_image=b"")
    refused_beside_a_picture(pipe, "float", reference_image=np.full((4, 4, 3), 200.0))
    refused_beside_a_picture(pipe, "200:1", reference_image=make_picture(0, (4000, 10)))
    with record_runs(pipe) as runs, pytest.raises(ValueError, match="200:1"):
        pipe.encode_reference(make_picture(0, (4000, 10)))
    assert runs == []


# ---- VL encoders that do not fit ----


def test_a_vl_encoder_of_another_family_or_width_is_refused() -> None:
    with pytest.raises(TypeError, match="Qwen3VLForConditionalGeneration"):
        tiny_pipeline(vl_encoder=tiny_text_encoder())
    with pytest.raises(TypeError, match=r"part of it|Qwen3VLForConditionalGeneration"):
        tiny_pipeline(vl_encoder=tiny_vl_encoder().model)
    with pytest.raises(ValueError, match=r"(?s)32.*16"):
        tiny_pipeline(vl_encoder=tiny_vl_encoder(16))


def test_a_vl_encoder_put_in_later_is_refused_before_the_text_encoder_runs() -> None:
    pipe = tiny_pipeline()
    pipe.register_modules(vl_encoder=tiny_vl_encoder(16))
    refused_beside_a_picture(pipe, "(?s)32.*16")


def test_a_vl_encoder_without_its_processor_or_with_none_to_load() -> None:
    refused_beside_a_picture(tiny_pipeline(vl_processor=None), "without `vl_processor`")
    refused_beside_a_picture(tiny_pipeline(with_vl=False), "`vl_model_id` is None")
    with pytest.raises(ValueError, match="`vl_model_id` is None"):
        tiny_pipeline(with_vl=False).encode_reference(PICTURE)


def test_a_processor_of_another_grid_is_refused_before_any_model_runs() -> None:
    from tiny_models import tiny_image_processor

    refused_beside_a_picture(tiny_pipeline(vl_processor=tiny_image_processor(patch_size=4)), "patch_size 8, got 4")


# ---- Faults inside the models ----


@pytest.mark.parametrize(("name", "stage"), [("text_encoder", "text encoder"), ("vl_encoder", "Qwen3-VL")])
def test_nan_from_an_encoder_names_the_stage(name: str, stage: str) -> None:
    pipe = tiny_pipeline()
    expected = paint_with(pipe, PICTURE)
    weight = next(getattr(pipe, name).parameters())
    embedding = next(p for n, p in getattr(pipe, name).named_parameters() if "embed_tokens" in n)
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding.fill_(math.nan)
    with record_runs(pipe) as runs, pytest.raises(ValueError, match=f"{stage}.*NaN"):
        paint_with(pipe, PICTURE)
    assert "transformer" not in runs
    with torch.no_grad():
        embedding.copy_(kept)
    assert weight.isfinite().all()
    np.testing.assert_array_equal(paint_with(pipe, PICTURE), expected)


def test_after_a_refusal_the_next_call_is_as_ever(pipe: ZImageVLPipeline) -> None:
    expected = paint_with(pipe, PICTURE)
    config = dict(pipe.config)
    refused_beside_a_picture(pipe, "vl_alpha", vl_alpha=2.0)
    refused(pipe, "height", height=0)
    np.testing.assert_array_equal(paint_with(pipe, PICTURE), expected)
    assert dict(pipe.config) == config
    assert np.isfinite(paint(pipe)).all()
