"""Z-Image that follows a reference picture as well as a prompt, with no training.

The public names are imported when they are first asked for, so that `import zimage_vl` costs nothing:

    from zimage_vl import load_toy_pipeline

    pipe = load_toy_pipeline()
    image = pipe("a red circle on a white background", reference_image="reference.png").images[0]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__


if TYPE_CHECKING:
    from . import recipes
    from .blending import (
        align_sequence,
        blend_adain,
        blend_adain_per_dim,
        blend_embeddings,
        blend_slerp,
        blend_with_style_delta,
        compute_style_delta,
    )
    from .conditioning import condition_prompt_embeds
    from .embeddings import ReferenceEmbeds
    from .encoding import encode_reference
    from .fingerprints import fingerprint_text_encoder, fingerprint_vl_encoder
    from .image_to_image import load_init_image, paint_from_image
    from .iteration import refine_iteratively
    from .knobs import VLConditioning
    from .low_memory import generate_low_memory
    from .normalization import match_token_rms, normalize_hybrid, normalize_per_dimension, scale_embeddings
    from .outliers import get_outlier_dimensions, mask_outlier_dimensions
    from .pipeline_output import PromptConditioning, ZImageVLPipelineOutput
    from .pipeline_z_image_vl import ZImageVLPipeline
    from .prefix_cache import PrefixCache
    from .report import ConditioningReport
    from .statistics import EmbeddingStatistics, find_sink_tokens, per_dimension_correlation
    from .text_statistics import TextStatistics
    from .toy import load_toy_pipeline

__all__ = [
    "ConditioningReport",
    "EmbeddingStatistics",
    "PrefixCache",
    "PromptConditioning",
    "ReferenceEmbeds",
    "TextStatistics",
    "VLConditioning",
    "ZImageVLPipeline",
    "ZImageVLPipelineOutput",
    "__version__",
    "align_sequence",
    "blend_adain",
    "blend_adain_per_dim",
    "blend_embeddings",
    "blend_slerp",
    "blend_with_style_delta",
    "compute_style_delta",
    "condition_prompt_embeds",
    "encode_reference",
    "find_sink_tokens",
    "fingerprint_text_encoder",
    "fingerprint_vl_encoder",
    "generate_low_memory",
    "get_outlier_dimensions",
    "load_init_image",
    "load_toy_pipeline",
    "mask_outlier_dimensions",
    "match_token_rms",
    "normalize_hybrid",
    "normalize_per_dimension",
    "paint_from_image",
    "per_dimension_correlation",
    "recipes",
    "refine_iteratively",
    "scale_embeddings",
]

_MODULE_NAMES: dict[str, tuple[str, ...]] = {
    "blending": (
        "align_sequence",
        "blend_adain",
        "blend_adain_per_dim",
        "blend_embeddings",
        "blend_slerp",
        "blend_with_style_delta",
        "compute_style_delta",
    ),
    "conditioning": ("condition_prompt_embeds",),
    "embeddings": ("ReferenceEmbeds",),
    "encoding": ("encode_reference",),
    "fingerprints": ("fingerprint_text_encoder", "fingerprint_vl_encoder"),
    "image_to_image": ("load_init_image", "paint_from_image"),
    "iteration": ("refine_iteratively",),
    "knobs": ("VLConditioning",),
    "low_memory": ("generate_low_memory",),
    "normalization": ("match_token_rms", "normalize_hybrid", "normalize_per_dimension", "scale_embeddings"),
    "outliers": ("get_outlier_dimensions", "mask_outlier_dimensions"),
    "pipeline_output": ("PromptConditioning", "ZImageVLPipelineOutput"),
    "pipeline_z_image_vl": ("ZImageVLPipeline",),
    "prefix_cache": ("PrefixCache",),
    "report": ("ConditioningReport",),
    "statistics": ("EmbeddingStatistics", "find_sink_tokens", "per_dimension_correlation"),
    "text_statistics": ("TextStatistics",),
    "toy": ("load_toy_pipeline",),
}
_HOME_OF = {name: module for module, names in _MODULE_NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name == "recipes":
        return import_module(".recipes", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
