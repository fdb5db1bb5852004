"""Whether a VL encoder still says what it said before: what a cache of its answers has to know.

An answer may be used again only while encoder, image processor and tokenizer are the same objects, in the same state.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Generator
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from .vl_forward import execution_device


# What peft keeps on its layers beside weights.
_ADAPTER_FIELDS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")


def reader_owners(vl_encoder: Any, vl_processor: Any, tokenizer: Any) -> tuple[weakref.ref[Any], ...]:
    """The three objects themselves, held weakly: equal only while all live and are the same."""
    return tuple(weakref.ref(part) for part in (vl_encoder, vl_processor, tokenizer))


def reader_state(vl_encoder: Any, vl_processor: Any, tokenizer: Any) -> tuple[Any, ...]:
    """What else decides their answers: equal states give equal bits.

    Seen are weights that were replaced, trained, cast, quantised or merged, adapters added, switched or scaled, the
    attention implementation, the device that the encoder runs on, autocast, the processor's settings and the chat
    template. Not seen are forward hooks and patched code, torch's global switches (threads, TF32), single values
    written through `.data`, and, under sequential offload, weights changed where they lie.
    """
    device = execution_device(vl_encoder)
    processor = getattr(vl_processor, "image_processor", vl_processor)
    return (
        str(device),
        _autocast_dtype(device.type),
        vl_encoder.training,
        weights_digest(vl_encoder.model),
        _adapter_state(vl_encoder.model),
        *(getattr(part, "_attn_implementation", None) for part in _configs(vl_encoder.config)),
        repr(sorted(vars(processor).items(), key=_first)),
        getattr(tokenizer, "chat_template", None),
    )


def _autocast_dtype(device_type: str) -> str | None:
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return str(torch.get_autocast_dtype(device_type))


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _configs(config: Any) -> tuple[Any, ...]:
    return config, config.text_config, config.vision_config


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and counts of changes of a model's tensors and the values in their
    corners: a few milliseconds, the same on whatever device the model rests.

    Args:
        model: Any module. Of quantised tensors those that they are made of are read; of tensors without data (meta)
            no values.
    """
    digest = hashlib.sha256()
    corners: dict[torch.device, list[Tensor]] = {}
    with torch.no_grad():
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            for part in _plain_parts(tensor):
                version = 0 if part.is_inference() else part._version
                digest.update(f"{name} {part.dtype} {tuple(part.shape)} {version}\n".encode())
                if part.device.type != "meta" and part.numel():
                    corners.setdefault(part.device, []).append(_corner_bytes(part))
        for pieces in corners.values():  # one copy a device
            digest.update(torch.cat(pieces).cpu().numpy().tobytes())
    return digest.hexdigest()


def _plain_parts(tensor: Tensor) -> Generator[Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _plain_parts(getattr(tensor, name))


def _corner_bytes(tensor: Tensor) -> Tensor:
    plain = tensor.detach().as_subclass(Tensor)
    ends = tuple(slice(None, None, max(1, size - 1)) for size in plain.shape)
    return plain[ends].reshape(-1).contiguous().view(torch.uint8)


def _adapter_state(model: nn.Module) -> str:
    layers = [module for module in model.modules() if hasattr(module, "base_layer")]
    return repr([[getattr(cast("Any", layer), name, None) for name in _ADAPTER_FIELDS] for layer in layers])
