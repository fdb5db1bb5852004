"""The real classes at the real shapes, or at a part of the width, filled with random numbers where they shall run.

Nothing is downloaded and nothing is written to disk: parameters are born on the meta device and drawn directly on the
target device. Buffers (rotary frequencies) are computed as always: they are not random.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline
from zimage_vl.toy.loading import CHECKPOINT

from .real_shapes import SCHEDULER, TEXT, VISION, VL_TEXT, scale_text, scale_transformer, scale_vae, scale_vision


def load_tokenizer() -> Any:
    """The toy world's tokenizer: Qwen's form, special tokens and chat template, with a small vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    tokenizer.model_max_length = TEXT["max_position_embeddings"]  # the toy's own would only bring warnings
    return tokenizer


def make_image_processor() -> Any:
    """Qwen2-VL's image processor, the one that needs Pillow alone, with Qwen3-VL's numbers."""
    old = int(transformers.__version__.split(".")[0]) < 5
    kind = getattr(transformers, "Qwen2VLImageProcessor" if old else "Qwen2VLImageProcessorPil")
    return kind(
        patch_size=VISION["patch_size"],
        merge_size=VISION["spatial_merge_size"],
        temporal_patch_size=VISION["temporal_patch_size"],
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def vl_config(scale: int = 1, tokenizer: Any = None) -> Qwen3VLConfig:
    ids: dict[str, int] = {}
    if tokenizer is not None:
        names = {
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text: Any = scale_text(VL_TEXT, scale)
    vision: Any = scale_vision(scale)
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def empty_models(scale: int = 1, tokenizer: Any = None, text_blocks: int | None = None) -> dict[str, nn.Module]:
    """The four models with all parameters on the meta device.

    Args:
        scale: By which widths are divided.
        tokenizer: Whose vision tokens the VL encoder is to know; None keeps its own.
        text_blocks: Blocks of the text encoder, where it does not matter; None is all of them.
    """
    text = scale_text(TEXT, scale)
    if text_blocks is not None:
        text["num_hidden_layers"] = text_blocks
    with init_empty_weights(include_buffers=False):
        models: dict[str, nn.Module] = {
            "transformer": ZImageTransformer2DModel(**scale_transformer(scale)),
            "text_encoder": Qwen3Model(Qwen3Config(**text)),
            "vl_encoder": Qwen3VLForConditionalGeneration(vl_config(scale, tokenizer)),
            "vae": AutoencoderKL(**scale_vae(scale)),
        }
    _tie(models["vl_encoder"])
    return models


def _tie(model: Any) -> None:
    """Both ways to fill a model make a parameter anew for each place it is in: one again for words and logits."""
    model.tie_weights()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def materialise(model: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """Draw the parameters of a model on the meta device: rows of length about 1, norms of 1, biases of 0."""
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            drawn = torch.empty(parameter.shape, device=device, dtype=dtype)
            if parameter.dim() > 1:
                spread = 1.0 if isinstance(module, nn.Embedding) else parameter[0].numel() ** -0.5
                drawn.normal_(0.0, spread, generator=generator)
            else:
                drawn.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    if hasattr(model, "tie_weights"):
        _tie(model)
    return model.to(device).eval()


def build_pipeline(
    scale: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    text_blocks: int | None = None,
    tell: Callable[[str], None] = print,
) -> Any:
    """A `ZImageVLPipeline` of the real shapes, widths divided by `scale`, with random weights."""
    tokenizer = load_tokenizer()
    parts = empty_models(scale, tokenizer, text_blocks)
    for seed, (name, model) in enumerate(parts.items()):
        parts[name] = materialise(model, device, dtype, seed)
        tell(f"{name}: {count_parameters(parts[name]) / 1e9:.3f} B parameters on {device.type}")
    pipe = ZImageVLPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        tokenizer=tokenizer,
        vl_processor=make_image_processor(),
        vl_model_id=None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_prompt(tokenizer: Any, tokens: int, seed: int = 0) -> str:
    """A prompt of exactly so many tokens, at least 3; another seed gives another one."""
    chance = random.Random(seed)
    words = [" red", " blue", " green", " circle", " square", " cross"]
    text = "a"
    while len(tokenizer(text)["input_ids"]) < tokens:
        text += chance.choice(words)
    if len(tokenizer(text)["input_ids"]) != tokens:
        raise ValueError(f"The words of this tokenizer make no prompt of {tokens} tokens, but {text!r}.")
    return text


def make_picture(pixels: int, seed: int = 0) -> Image.Image:
    """A square RGB picture of noise: a model's time does not depend on what it shows."""
    drawn = np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    return Image.fromarray(drawn)
