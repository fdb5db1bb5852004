"""Modular pipelines for Z-Image with our block in them, where this diffusers has any."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from pipeline_samples import SMALL, seeded
from zimage_vl.pipeline.modular import ZImageVLReferenceStep


#: The oldest pair has Modular Diffusers without Z-Image.
HAS_MODULAR = hasattr(diffusers, "ZImageAutoBlocks")
needs_modular = pytest.mark.skipif(not HAS_MODULAR, reason="this diffusers has no modular Z-Image")


def insert_block(step: Any) -> Any:
    blocks = diffusers.ZImageAutoBlocks()  # pyright: ignore
    blocks.sub_blocks.insert("reference", step, 1)
    return blocks


def make_modular(pipe: Any, step: Any = None, **options: Any) -> Any:
    """A modular pipeline over the components of one of ours."""
    made = insert_block(step or ZImageVLReferenceStep()).init_pipeline(**options)
    made.update_components(**pipe.components, vl_model_id=pipe.config.vl_model_id)
    return made


def guide(pipe: Any, **settings: Any) -> Any:
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(**settings))  # pyright: ignore
    return pipe


def run(pipe: Any, prompt: Any, *, seed: int = 0, **inputs: Any) -> Any:
    """The state after a run, in the size of `pipeline_samples.call`."""
    small = {name: value for name, value in SMALL.items() if name != "guidance_scale"}
    return pipe(prompt=prompt, **{**small, "generator": seeded(seed), "output_type": "np", **inputs})
