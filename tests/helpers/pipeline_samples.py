"""Calls of the tiny pipeline: pictures, prompts, what is painted, and which models ran."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import ZImagePipeline
from PIL import Image

from dtype_name import DTYPE
from tiny_models import tiny_image_processor, tiny_vl_encoder


PROMPT, OTHER_PROMPT = "a red circle", "a blue square on black"
# The tiny VL encoder has few layers, and the random text encoder next to no range: a large alpha shows what happens.
KNOBS: dict[str, Any] = {"vl_alpha": 0.6, "vl_hidden_layer": -2}
SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0}


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument by which this diffusers takes a dtype."""
    return {DTYPE: dtype}


def make_picture(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


same = np.testing.assert_array_equal


def differ(one: Any, other: Any, by: float = 1e-4) -> bool:
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() > by)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(pipe: Any, prompt: Any = PROMPT, *, seed: int = 0, **kwargs: Any) -> Any:
    """The pipeline's output, its pictures as one array `(images, height, width, 3)`."""
    kwargs = {**SMALL, "generator": seeded(seed), "output_type": "np", **kwargs}
    return pipe(prompt, **kwargs)


def paint(pipe: Any, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray[Any, Any]:
    return call(pipe, prompt, **kwargs).images


def paint_with(pipe: Any, picture: Any, prompt: Any = PROMPT, **kwargs: Any) -> np.ndarray[Any, Any]:
    """What is painted beside a reference picture."""
    return paint(pipe, prompt, reference_image=picture, **{**KNOBS, **kwargs})


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vl_parts(**kwargs: Any) -> dict[str, Any]:
    """What a plain pipeline lacks to be ours."""
    return {"vl_encoder": tiny_vl_encoder(**kwargs), "vl_processor": tiny_image_processor(), "vl_model_id": None}


def save_vl_parts(folder: Any, **kwargs: Any) -> str:
    """A folder as a repository of Qwen3-VL, for `vl_model_id`."""
    tiny_vl_encoder(**kwargs).save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return str(folder)


def make_parent(pipe: Any) -> ZImagePipeline:
    """diffusers' own pipeline over the same components."""
    return quiet(ZImagePipeline(**pipe.z_image_components))


def get_models(pipe: Any) -> dict[str, torch.nn.Module]:
    """What can run, by name; of the VL encoder the inner model, which is what the pipeline calls."""
    models = {name: getattr(pipe, name) for name in ("text_encoder", "transformer")}
    models["vae"] = pipe.vae.decoder
    if pipe.vl_encoder is not None:
        models["vl_encoder"] = pipe.vl_encoder.model
    return models


@contextmanager
def record_runs(pipe: Any) -> Generator[list[str]]:
    """Within it, the list gets the name of each model whenever it runs."""
    runs: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: runs.append(name)

    handles = [model.register_forward_pre_hook(note(name)) for name, model in get_models(pipe).items()]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()
