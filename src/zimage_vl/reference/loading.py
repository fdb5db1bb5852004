"""Loading Qwen3-VL from the Hub or a folder: the model with its head, and the image processor. No torchvision."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from diffusers.utils import logging
from transformers import AutoConfig, AutoImageProcessor, Qwen3VLForConditionalGeneration

from .block_counts import FULL_DEPTH_FIELD, get_full_depth, is_cut_short
from .readers import resolve_layers


_loading_logger = logging.get_logger(__name__)
_ignoring_lock = threading.Lock()


def load_vl_parts(
    model_id: str | os.PathLike[str],
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    layers: Sequence[int] | None = None,
    *,
    subfolder: str = "",
    processor_subfolder: str = "",
) -> tuple[Qwen3VLForConditionalGeneration, Any]:
    """The VL encoder and its image processor.

    `Qwen3VLForConditionalGeneration` is loaded whole: the bare `Qwen3VLModel` would start from random weights on
    transformers 4.57, with no more than a warning. `AutoImageProcessor` needs no torchvision, `AutoProcessor` does.

    Args:
        model_id: Hub id or local folder.
        revision: Branch, tag or commit of a Hub id.
        dtype: Of the weights; None keeps the checkpoint's.
        layers: Those that will be asked for: the language model's blocks behind the deepest of them are never read
            from disk. None reads all.
        subfolder: Where in the repository or folder the encoder lies.
        processor_subfolder: Where its processor lies.

    Raises:
        OSError: It can neither be found locally nor be downloaded.
        ValueError: A layer that the model does not have; nothing but its config has been read then.
    """
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    where: dict[str, Any] = {**at, "subfolder": subfolder} if subfolder else at
    processor_where: dict[str, Any] = {**at, "subfolder": processor_subfolder} if processor_subfolder else at
    try:
        config = None if layers is None else _cut_config(model_id, layers, where)
        processor = AutoImageProcessor.from_pretrained(model_id, **processor_where)
        given: dict[str, Any] = {} if config is None else {"config": config}
        with _ignoring_blocks_left_out(config):
            encoder: Any = Qwen3VLForConditionalGeneration.from_pretrained(
                model_id, dtype=dtype if dtype is not None else "auto", **given, **where
            )
    except OSError as error:
        raise OSError(
            f"The VL encoder {str(model_id)!r} could not be loaded: it is neither a folder with a Qwen3-VL model nor "
            "in the Hub's cache, and could not be downloaded. Download it while online, or pass the path of a local "
            "folder as `vl_model_id` (or load it yourself and pass `vl_encoder` and `vl_processor`)."
        ) from error
    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    text = encoder.config.text_config
    blocks = f", {text.num_hidden_layers} of {get_full_depth(text)} blocks" if is_cut_short(encoder) else ""
    _loading_logger.warning(
        f"Loaded the VL encoder {model_id} (revision {revision or 'default'}, {encoder.dtype}, {size / 1e9:.2f} GB"
        f"{blocks})."
    )
    return encoder.eval(), processor


def _cut_config(model_id: str | os.PathLike[str], layers: Sequence[int], where: dict[str, Any]) -> Any:
    """The checkpoint's config with as many blocks as the layers need, which remembers how many there are."""
    config: Any = AutoConfig.from_pretrained(model_id, **where)
    if config.model_type != "qwen3_vl":
        raise ValueError(f"{str(model_id)!r} must hold a Qwen3-VL, got a model of type {config.model_type!r}.")
    text = config.text_config
    depth, stored = get_full_depth(text), text.num_hidden_layers
    needed = max(1, *resolve_layers(layers, depth).values())
    if needed > stored:
        raise ValueError(
            f"The layers {tuple(layers)} need {needed} of {depth} blocks, but {str(model_id)!r} holds the first "
            f"{stored} only: it was saved from an encoder of which no more were loaded. Load the original model."
        )
    if needed < depth:
        setattr(text, FULL_DEPTH_FIELD, depth)
        text.num_hidden_layers = needed
    return config


@contextmanager
def _ignoring_blocks_left_out(config: Any) -> Generator[None]:
    """Within it, transformers does not report the blocks that are left out on purpose as unexpected weights."""
    if config is None or config.text_config.num_hidden_layers == get_full_depth(config.text_config):
        yield
        return
    left_out = range(config.text_config.num_hidden_layers, get_full_depth(config.text_config))
    pattern = rf"language_model\.layers\.({'|'.join(map(str, left_out))})\."
    model_class = cast("Any", Qwen3VLForConditionalGeneration)
    with _ignoring_lock:
        before = model_class._keys_to_ignore_on_load_unexpected
        model_class._keys_to_ignore_on_load_unexpected = [*(before or ()), pattern]
        try:
            yield
        finally:
            model_class._keys_to_ignore_on_load_unexpected = before
