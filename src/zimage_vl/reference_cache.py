"""What the VL encoder said about the last few references, so that it is not asked twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .bounded_store import BoundedStore, StoreKey
from .embeddings import ReferenceEmbeds, ReferenceProvenance
from .encoder_identity import reader_owners, reader_state
from .encoding import sha256_of_pixels


REFERENCE_CACHE_ENTRIES = 8
#: 24 references of 1024 x 1024 pixels with one layer each in bfloat16 have 128 MB.
REFERENCE_CACHE_BYTES = 2**28


@dataclass(frozen=True)
class _CachedReference:
    """States by layer counted from 0, on the CPU, with the device each belongs on."""

    states: Mapping[int, tuple[Tensor, torch.device]]
    regions: Tensor
    regions_device: torch.device
    provenance: ReferenceProvenance

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x, _ in self.states.values()) + self.regions.numel()


def reference_key(
    vl_encoder: Any,
    vl_processor: Any,
    tokenizer: Any,
    image: Image.Image,
    mask: Image.Image | None,
    *settings: Any,
) -> StoreKey:
    """What decides the states of a reference, whatever layers are asked for.

    Args:
        vl_encoder: It, its processor and the tokenizer count as the objects they are, and by their state.
        vl_processor: As `vl_encoder`.
        tokenizer: As `vl_encoder`.
        image: The picture, which counts by its pixels.
        mask: The mask, which counts by its pixels.
        settings: Everything else that `encode_reference` is told, hashable.
    """
    digests = sha256_of_pixels(image), None if mask is None else sha256_of_pixels(mask)
    state = reader_state(vl_encoder, vl_processor, tokenizer)
    return StoreKey(reader_owners(vl_encoder, vl_processor, tokenizer), (state, digests, settings))


class ReferenceCache:
    """The last few references, found by content. What it keeps lies on the CPU, and nobody else holds it.

    Args:
        max_entries: References kept; 0 keeps none.
        max_bytes: Bound on the size of their states.
    """

    def __init__(self, max_entries: int = REFERENCE_CACHE_ENTRIES, max_bytes: int = REFERENCE_CACHE_BYTES) -> None:
        self._store: BoundedStore[_CachedReference] = BoundedStore(max_entries, max_bytes)

    @property
    def store(self) -> BoundedStore[Any]:
        """The store behind it, for its size and bounds."""
        return self._store

    @property
    def is_on(self) -> bool:
        """Whether anything would be kept."""
        return self._store.max_entries > 0 and self._store.max_bytes > 0

    def find(self, key: StoreKey, wanted: Mapping[int, int]) -> ReferenceEmbeds | None:
        """The reference with these layers, in tensors of its own, where each was computed; None without.

        Args:
            key: From `reference_key`.
            wanted: Layer as asked for to its number, from `resolve_layers`.
        """
        known = self._store.get(key)
        if known is None or not known.states.keys() >= set(wanted.values()):
            return None
        states = {layer: _copy_to(*known.states[number]) for layer, number in wanted.items()}
        provenance = replace(known.provenance, versions=dict(known.provenance.versions))
        return ReferenceEmbeds(states, _copy_to(known.regions, known.regions_device), provenance)

    def keep(self, key: StoreKey, embeds: ReferenceEmbeds, wanted: Mapping[int, int]) -> None:
        """Keep copies of the states, beside those of other layers of the same reference.

        Args:
            key: From `reference_key`.
            embeds: What was computed.
            wanted: As in `find`.
        """
        known = self._store.get(key)
        states = dict(known.states) if known is not None else {}
        for layer, number in wanted.items():
            computed = embeds.hidden_states[layer]
            states[number] = _copy_to(computed, torch.device("cpu")), computed.device
        kept = _CachedReference(
            states,
            _copy_to(embeds.regions, torch.device("cpu")),
            embeds.regions.device,
            replace(embeds.provenance, versions=dict(embeds.provenance.versions)),
        )
        self._store.put(key, kept, kept.num_bytes)


def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, copy=True)
