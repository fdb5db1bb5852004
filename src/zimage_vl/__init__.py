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
    from .blend.align import align_sequence
    from .blend.condition import condition_prompt_embeds
    from .blend.embedding_statistics import EmbeddingStatistics, find_sink_tokens, per_dimension_correlation
    from .blend.knobs import VLConditioning
    from .blend.mix import (
        blend_adain,
        blend_adain_per_dim,
        blend_embeddings,
        blend_slerp,
        blend_with_style_delta,
        compute_style_delta,
    )
    from .blend.normalize import (
        get_outlier_dimensions,
        mask_outlier_dimensions,
        match_token_rms,
        normalize_hybrid,
        normalize_per_dimension,
        scale_embeddings,
    )
    from .blend.regions import Region
    from .blend.report import ConditioningReport
    from .pipeline.modular import ZImageVLReferenceStep
    from .pipeline.pipeline_z_image_vl import PromptConditioning, ZImageVLPipeline, ZImageVLPipelineOutput
    from .pipeline.text_statistics import TextStatistics
    from .reference.embeds import ReferenceEmbeds
    from .reference.pictures import load_reference_image
    from .reference.readers import encode_reference, fingerprint_text_encoder, fingerprint_vl_encoder
    from .toy import load_toy_pipeline
    from .workflows.image_to_image import load_init_image, paint_from_image, paint_like
    from .workflows.low_memory import generate_low_memory
    from .workflows.rounds import refine_iteratively

__all__ = [
    "ConditioningReport",
    "EmbeddingStatistics",
    "PromptConditioning",
    "ReferenceEmbeds",
    "Region",
    "TextStatistics",
    "VLConditioning",
    "ZImageVLPipeline",
    "ZImageVLPipelineOutput",
    "ZImageVLReferenceStep",
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
    "load_reference_image",
    "load_toy_pipeline",
    "mask_outlier_dimensions",
    "match_token_rms",
    "normalize_hybrid",
    "normalize_per_dimension",
    "paint_from_image",
    "paint_like",
    "per_dimension_correlation",
    "recipes",
    "refine_iteratively",
    "scale_embeddings",
]

_NAMES: dict[str, tuple[str, ...]] = {
    "blend.align": ("align_sequence",),
    "blend.condition": ("condition_prompt_embeds",),
    "blend.embedding_statistics": (
        "EmbeddingStatistics",
        "find_sink_tokens",
        "per_dimension_correlation",
    ),
    "blend.knobs": ("VLConditioning",),
    "blend.mix": (
        "blend_adain",
        "blend_adain_per_dim",
        "blend_embeddings",
        "blend_slerp",
        "blend_with_style_delta",
        "compute_style_delta",
    ),
    "blend.normalize": (
        "get_outlier_dimensions",
        "mask_outlier_dimensions",
        "match_token_rms",
        "normalize_hybrid",
        "normalize_per_dimension",
        "scale_embeddings",
    ),
    "blend.regions": ("Region",),
    "blend.report": ("ConditioningReport",),
    "pipeline.modular": ("ZImageVLReferenceStep",),
    "pipeline.pipeline_z_image_vl": (
        "PromptConditioning",
        "ZImageVLPipeline",
        "ZImageVLPipelineOutput",
    ),
    "pipeline.text_statistics": ("TextStatistics",),
    "reference.embeds": ("ReferenceEmbeds",),
    "reference.pictures": ("load_reference_image",),
    "reference.readers": (
        "encode_reference",
        "fingerprint_text_encoder",
        "fingerprint_vl_encoder",
    ),
    "toy": ("load_toy_pipeline",),
    "workflows.image_to_image": (
        "load_init_image",
        "paint_from_image",
        "paint_like",
    ),
    "workflows.low_memory": ("generate_low_memory",),
    "workflows.rounds": ("refine_iteratively",),
}
_HOME_OF = {name: module for module, names in _NAMES.items() for name in names}


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
