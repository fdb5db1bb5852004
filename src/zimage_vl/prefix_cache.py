"""Keys and values of a picture that comes before its text: a new text beside it is read alone.

Attention is causal, so that nothing before the text depends on it. The text is read over kept keys and values instead
of in one pass with the picture: exact in principle, and equal up to rounding in practice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .bounded_store import BoundedStore, StoreKey
from .vl_forward import (
    VLInputs,
    bring_to_device,
    execution_device,
    forward_arguments,
    lock_of_model,
    run_to_layers,
)


#: Three pictures of 1024 x 1024 pixels beside Qwen3-VL-4B in bfloat16: 2 x 36 blocks x 8 heads x 128 x 1039 tokens.
PREFIX_CACHE_BYTES = 2**29


@dataclass(frozen=True)
class _Prefix:
    """The tokens before the text: keys and values a block, states a layer; each with the device it belongs on."""

    num_tokens: int
    keys_and_values: Sequence[tuple[Tensor, Tensor, torch.device]]
    states: Mapping[int, tuple[Tensor, torch.device]]

    def serves(self, layers: Sequence[int]) -> bool:
        """Whether it has the states of these layers (counted from 0), and the keys and values of all blocks before."""
        return 0 < max(layers) <= len(self.keys_and_values) and self.states.keys() >= set(layers)

    @property
    def num_bytes(self) -> int:
        tensors = [x for *pair, _ in self.keys_and_values for x in pair] + [x for x, _ in self.states.values()]
        return sum(x.numel() * x.element_size() for x in tensors)


class PrefixCache:
    """The last few pictures as the language model's blocks keep them.

    Under offload they lie on the CPU and are brought in for a run; otherwise where they were computed.

    Args:
        max_bytes: Bound on their size; 2 x blocks x heads x head width x tokens x bytes for keys and values, and
            tokens x dims x bytes a layer for states.
    """

    def __init__(self, max_bytes: int = PREFIX_CACHE_BYTES) -> None:
        self._store: BoundedStore[_Prefix] = BoundedStore(2**62, max_bytes)

    @property
    def store(self) -> BoundedStore[Any]:
        """The store behind it, for its size and bounds."""
        return self._store

    @torch.no_grad()
    def hidden_states(
        self,
        key: StoreKey,
        vl_encoder: Any,
        inputs: VLInputs,
        read_pixels: Callable[[], Tensor],
        layers: Sequence[int],
        device: torch.device | None = None,
    ) -> dict[int, Tensor]:
        """As `vl_hidden_states`; only what follows the picture is run where the picture is known.

        Args:
            key: What decides the states of the picture, beside the ids up to its end.
            vl_encoder: As in `vl_hidden_states`.
            inputs: Of the turn, without `pixel_values`.
            read_pixels: Gives them where they are needed.
            layers: As in `vl_hidden_states`.
            device: As in `vl_hidden_states`.
        """
        length = prefix_length(inputs.input_ids, vl_encoder.config.vision_end_token_id)
        key = StoreKey(key.owners, (*key.details, tuple(inputs.input_ids[:length].tolist())))
        known = self._store.get(key)
        serves = known is not None and known.serves(layers)
        if not serves:
            inputs = replace(inputs, pixel_values=read_pixels())
        with lock_of_model(vl_encoder):
            keep_on = torch.device("cpu") if has_offload_hooks(vl_encoder) else None
            bring_to_device(vl_encoder)
            arguments = forward_arguments(vl_encoder, inputs, device or execution_device(vl_encoder))
            if known is not None and serves:
                return _run_after(vl_encoder, arguments, layers, known)
            past: Any = DynamicCache()
            arguments |= {"past_key_values": past, "use_cache": True}
            states = run_to_layers(vl_encoder, arguments, layers, inputs.visible)
        kept = _cut_prefix(past, states, length, keep_on)
        if known is not None:
            kept = _merge_prefixes(known, kept)
        self._store.put(key, kept, kept.num_bytes)
        return states


def prefix_length(input_ids: Tensor, vision_end_token_id: int) -> int:
    """Tokens up to the end of the picture; 0 without one.

    Example:
        >>> prefix_length(torch.tensor([1, 8, 7, 7, 9, 2]), 9)
        5
    """
    ends = (input_ids == vision_end_token_id).nonzero()
    return int(ends[-1]) + 1 if len(ends) else 0


def has_offload_hooks(model: nn.Module) -> bool:
    """Whether accelerate moves the model or parts of it, so that it need not rest where it runs."""
    return any(hasattr(part, "_hf_hook") for part in model.modules())


def _run_after(vl_encoder: Any, arguments: dict[str, Any], layers: Sequence[int], known: _Prefix) -> dict[int, Tensor]:
    length = known.num_tokens
    past: Any = DynamicCache()
    for block, (keys, values, device) in enumerate(known.keys_and_values[: max(layers)]):
        past.update(keys.to(device), values.to(device), block)
    after = {
        **arguments,
        "input_ids": arguments["input_ids"][:, length:],
        "position_ids": arguments["position_ids"][..., length:],
        "past_key_values": past,
        "use_cache": True,
    }
    states = run_to_layers(vl_encoder, after, layers)
    return {
        k: torch.cat([before.to(device), states[k]]) for k, (before, device) in known.states.items() if k in states
    }


def _cut_prefix(past: Any, states: Mapping[int, Tensor], length: int, device: torch.device | None) -> _Prefix:
    """What is kept, in memory of its own, on `device` or where it is."""

    def own(tensor: Tensor) -> Tensor:
        return tensor.to(device or tensor.device, copy=True)

    return _Prefix(
        length,
        [
            (own(layer.keys[..., :length, :]), own(layer.values[..., :length, :]), layer.keys.device)
            for layer in past.layers
        ],
        {layer: (own(x[:length]), x.device) for layer, x in states.items()},
    )


def _merge_prefixes(known: _Prefix, new: _Prefix) -> _Prefix:
    """The states of both, and the keys and values of more blocks."""
    deeper = max(known, new, key=lambda prefix: len(prefix.keys_and_values))
    return replace(new, keys_and_values=deeper.keys_and_values, states={**known.states, **new.states})
