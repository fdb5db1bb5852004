"""A text, references and statistics to condition with, and every way to do so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embedding_samples import make_reference, make_states, make_text
from zimage_vl.blend.condition import condition_prompt_embeds
from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.blend.regions import select_tokens
from zimage_vl.blend.report import ConditioningReport
from zimage_vl.reference.embeds import ReferenceEmbeds


TEXT, TEXT_REGIONS = make_text()
REFERENCE = make_reference()
STATES, REGIONS = REFERENCE.hidden_states[-6], REFERENCE.regions
OTHER = make_reference(seed=3, rms=20.0)
SAMPLES = [make_states(30, seed=s) * torch.linspace(0.02, 40, 16) for s in (7, 8)]
STATISTICS = EmbeddingStatistics.from_embeddings(SAMPLES)
WITHOUT_SINKS = EmbeddingStatistics.from_embeddings(SAMPLES, exclude_sinks=True)

# Every way to condition that one reference allows: name to knobs.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "anchored": {"vl_alignment": "anchored"},
    "guide": {"vl_token_selection": "text", "vl_target_std": 70.0, "vl_alignment": "pool"},
    "per_dim": {"vl_normalization": "per_dim", "vl_token_selection": "image"},
    "hybrid": {"vl_normalization": "hybrid", "vl_alignment": "anchored"},
    "token_rms": {"vl_normalization": "token_rms", "vl_token_selection": "image_no_markers"},
    "none": {"vl_normalization": "none", "vl_alignment": "truncate"},
    "zero": {"vl_outlier_masking": "zero"},
    "clamp": {"vl_outlier_masking": "clamp", "vl_outlier_threshold": 2.0},
    "scale": {"vl_outlier_masking": "scale", "vl_outlier_threshold": 2.0},
    "sinks": {"vl_exclude_sinks": True, "vl_alignment": "pool"},
    "concat": {"vl_alignment": "concat"},
    "concat_tokens": {"vl_alignment": "concat", "vl_concat_tokens": 4},
    "concat_token_rms": {"vl_alignment": "concat", "vl_normalization": "token_rms"},
    "slerp": {"vl_blend_mode": "slerp"},
    "adain": {"vl_blend_mode": "adain"},
    "adain_per_dim": {"vl_blend_mode": "adain_per_dim"},
    "adain_per_dim_token_rms": {"vl_blend_mode": "adain_per_dim", "vl_normalization": "token_rms"},
    "style_delta": {"vl_blend_mode": "style_delta", "has_neutral_image": True},
}


def condition(
    *references: ReferenceEmbeds, text: Tensor = TEXT, regions: Tensor = TEXT_REGIONS, **knobs: Any
) -> tuple[Tensor, ConditioningReport]:
    """Condition the sample text with one reference, or those given."""
    inputs = {key: knobs.pop(key) for key in ("alpha", "neutral", "max_tokens", "text_statistics") if key in knobs}
    conditioning = VLConditioning(**knobs)
    if conditioning.has_neutral_image and "neutral" not in inputs:
        inputs["neutral"] = make_reference(seed=11)
    if conditioning.needs_text_statistics:
        inputs.setdefault("text_statistics", WITHOUT_SINKS if conditioning.vl_exclude_sinks else STATISTICS)
    return condition_prompt_embeds(text, regions, references or (REFERENCE,), conditioning, **inputs)


def select(selection: Any = "all") -> Tensor:
    return select_tokens(REGIONS, selection)


def replace_rows(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    changed = x.clone()
    changed[rows] = values
    return changed
