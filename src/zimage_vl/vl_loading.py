"""Loading Qwen3-VL from the Hub or a folder: the model with its head, and the image processor. No torchvision."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers.utils import logging
from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration


_loading_logger = logging.get_logger(__name__)


def load_vl_parts(
    model_id: str | os.PathLike[str], revision: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Qwen3VLForConditionalGeneration, Any]:
    """The VL encoder and its image processor.

    `Qwen3VLForConditionalGeneration` is loaded whole: the bare `Qwen3VLModel` would start from random weights on
    transformers 4.57, with no more than a warning. `AutoImageProcessor` needs no torchvision, `AutoProcessor` does.

    Args:
        model_id: Hub id or local folder.
        revision: Branch, tag or commit of a Hub id.
        dtype: Of the weights; None keeps the checkpoint's.

    Raises:
        OSError: It can neither be found locally nor be downloaded.
    """
    try:
        where: dict[str, Any] = {} if revision is None else {"revision": revision}
        processor = AutoImageProcessor.from_pretrained(model_id, **where)
        encoder = Qwen3VLForConditionalGeneration.from_pretrained(
            model_id, dtype=dtype if dtype is not None else "auto", **where
        )
    except OSError as error:
        raise OSError(
            f"The VL encoder {str(model_id)!r} could not be loaded: it is neither a folder with a Qwen3-VL model nor "
            "in the Hub's cache, and could not be downloaded. Download it while online, or pass the path of a local "
            "folder as `vl_model_id` (or load it yourself and pass `vl_encoder` and `vl_processor`)."
        ) from error
    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    _loading_logger.warning(
        f"Loaded the VL encoder {model_id} (revision {revision or 'default'}, {encoder.dtype}, {size / 1e9:.2f} GB)."
    )
    return encoder.eval(), processor
