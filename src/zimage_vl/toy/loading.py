"""The packed checkpoint of the toy world as a ready pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3Model, Qwen3VLForConditionalGeneration

from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


CHECKPOINT = Path(__file__).parent / "checkpoint"
TOY_MODEL_ID = "toy"


def load_toy_pipeline(checkpoint: str | os.PathLike[str] | None = None) -> ZImageVLPipeline:
    """The toy world's `ZImageVLPipeline`: a trained miniature of every model, of the real classes, in float32 on the
    CPU.

    It paints 64 x 64 pictures of one coloured shape in a fraction of a second; call it with `height=64, width=64,
    num_inference_steps=8, guidance_scale=0.0`. What it shows is about the toy and not about the real models.

    Args:
        checkpoint: Another folder that the training packed; None is the one that comes with the package.

    Raises:
        FileNotFoundError: The checkpoint is missing from the installation.

    Example:
        >>> from zimage_vl.toy import judge, load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> image = pipe("a red circle on a white background", height=64, width=64, num_inference_steps=8,
        ...              guidance_scale=0.0, generator=torch.Generator().manual_seed(0)).images[0]
        >>> judge(image).shape
        'circle'
    """
    if not isinstance(checkpoint, (str, os.PathLike, type(None))):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`checkpoint` must be the path of a folder or None, got {checkpoint!r:.80}.")
    folder = CHECKPOINT if checkpoint is None else Path(checkpoint)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(
            f"The toy checkpoint is missing from {folder}. Install the package again; in a checkout it is made by "
            "`python tools/train_toy.py`."
        )
    dtype = torch.float32
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    pipe = ZImageVLPipeline(
        scheduler=scheduler,
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=Qwen3Model.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=ZImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        vl_encoder=Qwen3VLForConditionalGeneration.from_pretrained(folder / "vl_encoder", dtype=dtype),
        vl_processor=AutoImageProcessor.from_pretrained(folder / "vl_processor"),
        vl_model_id=None,
    )
    pipe.vl_encoder.name_or_path = TOY_MODEL_ID  # not the path of an installation
    for model in (pipe.vae, pipe.text_encoder, pipe.transformer, pipe.vl_encoder):
        model.eval()
    return pipe
