"""Which model it is, read off a few of its weights: for files that must not meet another model of the same width."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from .block_counts import get_full_depth


_CONFIG_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_VISION_SIZES = ("hidden_size", "depth", "patch_size", "spatial_merge_size", "out_hidden_size")
_EMBEDDING_ROWS = 16
_SMALLEST_NORMAL_HALF = 2.0**-14  # below it float16 rounds coarsely


def fingerprint_text_encoder(text_encoder: Any) -> str:
    """Which text encoder it is, read off a few of its weights: the SHA-256 of the sizes in its config, of all its norm
    weights, and of 16 rows from the middle of its embeddings.

    It costs nothing next to a forward, and is the same on every version of transformers, on every device and in every
    dtype that keeps the checkpoint's values: float32 and bfloat16 always, float16 of a bfloat16 or float16 checkpoint
    (values are rounded to bfloat16 first, and those that float16 would round are taken as 0). Quantisation leaves
    these weights alone. A LoRA leaves them alone too, so that it does not show.

    Args:
        text_encoder: A transformers language model, such as `pipe.text_encoder`.

    Returns:
        64 hex digits.

    Raises:
        ValueError: Its weights are not in memory, as under sequential offload.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> len(fingerprint_text_encoder(load_toy_pipeline().text_encoder))
        64
    """
    digest = _sizes_digest(text_encoder.config, _CONFIG_SIZES)
    norms = {name: weight for name, weight in text_encoder.named_parameters() if name.endswith("norm.weight")}
    embeddings: Tensor = text_encoder.get_input_embeddings().weight
    middle = embeddings.shape[0] // 2
    for weight in (*(norms[name] for name in sorted(norms)), embeddings[middle : middle + _EMBEDDING_ROWS]):
        if weight.device.type == "meta":
            raise ValueError(
                "The text encoder's weights are not in memory, so that it cannot be told which one it is: take its "
                "fingerprint before enable_sequential_cpu_offload."
            )
        digest.update(_settled_bytes(weight))
    return digest.hexdigest()


def fingerprint_vl_encoder(vl_encoder: Any) -> str | None:
    """Which Qwen3-VL it is: the SHA-256 of the sizes in its configs and of the weights and biases of the norms in its
    vision tower and in its language model's first block.

    As with `fingerprint_text_encoder`, neither dtype, device, version, quantisation nor any offload of accelerate's
    changes it, nor does it matter whether all blocks were loaded; the same model from the Hub and from a folder has
    one fingerprint. Training that leaves these norms as they are, such as a LoRA, does not show.

    Args:
        vl_encoder: A `Qwen3VLForConditionalGeneration`.

    Returns:
        64 hex digits; None where its weights cannot be read, as on torch's meta device.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> len(fingerprint_vl_encoder(load_toy_pipeline().vl_encoder))
        64
    """
    from accelerate.utils import align_module_device

    text_config, inner = vl_encoder.config.text_config, vl_encoder.model
    digest = _sizes_digest(text_config, _CONFIG_SIZES, num_hidden_layers=get_full_depth(text_config))
    digest.update(_sizes_digest(vl_encoder.config.vision_config, _VISION_SIZES).digest())
    read = {"visual": inner.visual, "first": inner.language_model.layers[0]}
    norms = {
        f"{place}.{name}": module
        for place, part in read.items()
        for name, module in part.named_modules()
        if "norm" in name.rpartition(".")[2]
    }
    for name in sorted(norms):
        with align_module_device(norms[name]):  # brings in what is offloaded layer by layer
            for _, weight in sorted(norms[name].named_parameters(recurse=False)):
                if weight.device.type == "meta":
                    return None
                digest.update(_settled_bytes(weight))
    return digest.hexdigest()


def _sizes_digest(config: Any, names: tuple[str, ...], **known: int) -> Any:
    return hashlib.sha256(json.dumps({**{name: getattr(config, name) for name in names}, **known}).encode())


def _settled_bytes(weight: Tensor) -> bytes:
    """The values as they are in every dtype that a checkpoint may be loaded in."""
    values = weight.detach().to("cpu", torch.bfloat16).float()
    values = torch.where(values.abs() < _SMALLEST_NORMAL_HALF, torch.zeros_like(values), values)
    return values.numpy().astype("<f4").tobytes()
