"""The pipeline's side of the two caches: what is kept of references, how much of it, and when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from .bounded_store import check_bound
from .embeddings import ReferenceEmbeds
from .encoding import check_reference_inputs, encode_reference
from .prefix_cache import PREFIX_CACHE_BYTES, PrefixCache
from .reference_cache import REFERENCE_CACHE_BYTES, REFERENCE_CACHE_ENTRIES, ReferenceCache, reference_key
from .vl_forward import resolve_vl_layers


class ReferenceCachesMixin:
    """What `ZImageVLPipeline` has so that no reference is read twice."""

    tokenizer: Any
    vl_encoder: Any
    vl_processor: Any
    _reference_cache: ReferenceCache
    _prefix_cache: PrefixCache | None

    def set_reference_cache_size(
        self, entries: int = REFERENCE_CACHE_ENTRIES, max_bytes: int = REFERENCE_CACHE_BYTES
    ) -> None:
        """How many of the last references the pipeline keeps, so that the VL encoder does not read them again.

        A reference is known by its pixels, mask, text, text position, `max_pixels` and `max_sequence_length`, and by
        the encoder, processor and tokenizer: the same objects in the same state, their weights, adapters, dtype and
        device included. Only those of its layers that were asked for are kept. A known one gives the same bits as a
        new one, in new tensors where the encoder would have left them; the encoder is neither run nor brought to the
        accelerator. What is kept lies on the CPU. What was used least recently goes first.

        Not noticed are forward hooks put on the encoder, patched code, and single weights written through `.data`:
        call `clear_reference_cache` after such a change.

        Args:
            entries: References kept, 8 by default; 0 keeps none and frees what there is.
            max_bytes: Bound on the bytes of their states, 256 MiB by default.

        Raises:
            TypeError: No whole numbers.
            ValueError: Negative ones.

        Example:
            >>> from zimage_vl.toy import load_toy_pipeline
            >>> pipe = load_toy_pipeline()
            >>> pipe.set_reference_cache_size(0)  # each call reads its references
            >>> pipe.set_reference_cache_size(64)  # a sweep over 64 pictures
        """
        self._reference_cache.store.resize(check_bound("entries", entries), check_bound("max_bytes", max_bytes))

    def clear_reference_cache(self) -> None:
        """Forget all references, and the pictures of the prefix cache, and free their memory. Sizes stay as set."""
        self._reference_cache.store.clear()
        if self._prefix_cache is not None:
            self._prefix_cache.store.clear()

    def enable_prefix_cache(self, max_bytes: int = PREFIX_CACHE_BYTES) -> None:
        """Keep the keys and values of pictures, so that a new prompt beside a known picture costs its text alone.

        For `vl_text_position` "after": attention is causal, so the picture does not depend on what follows it. Results
        are equal up to rounding, no longer bit for bit, and depend in their last digits on which calls came before;
        so it is off unless it is enabled here. Under offload the keys and values lie on the CPU and are brought in for
        a run, else where the encoder runs.

        Args:
            max_bytes: Bound on their size, 512 MiB by default. One picture takes 2 x blocks x key-value heads x head
                width x tokens x bytes a value: 153 MB for 1024 x 1024 pixels in all 36 blocks of Qwen3-VL-4B in
                bfloat16, 132 MB in the 31 that layer -6 needs. A picture too large for it is not kept.

        Raises:
            TypeError: No whole number.
            ValueError: Below 1.

        Example:
            >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
            >>> pipe, photo = load_toy_pipeline(), draw_scene(Scene("circle", "red", "white"))
            >>> pipe.enable_prefix_cache()
            >>> several = [pipe.encode_reference(photo, text) for text in ("a square", "a cross", "a ring")]
            >>> pipe.disable_prefix_cache()
        """
        if check_bound("max_bytes", max_bytes) < 1:
            raise ValueError("`max_bytes` must be at least 1, got 0; disable_prefix_cache() turns it off.")
        if self._prefix_cache is None:
            self._prefix_cache = PrefixCache(max_bytes)
        else:
            self._prefix_cache.store.resize(self._prefix_cache.store.max_entries, max_bytes)

    def disable_prefix_cache(self) -> None:
        """Read pictures and texts in one pass again, bit for bit as ever, and free the memory."""
        self._prefix_cache = None

    def _read_once(
        self,
        picture: Image.Image,
        text: str,
        layers: Sequence[int],
        *,
        text_position: Any,
        max_pixels: int,
        mask: Image.Image | None,
        max_sequence_length: int,
        model_id: str | None,
        revision: str | None,
    ) -> ReferenceEmbeds:
        """What is known of a reference, or else what the VL encoder says about it; inputs are checked in any case."""
        reader = self.vl_encoder, self.vl_processor, self.tokenizer
        check_reference_inputs(*reader, picture, text, text_position=text_position, max_pixels=max_pixels, mask=mask)
        wanted = resolve_vl_layers(self.vl_encoder, layers)
        key = None
        if self._reference_cache.is_on:
            # With the prefix cache, results may differ in their last digits: they are kept apart.
            settings = text, text_position, max_pixels, max_sequence_length, model_id, revision
            key = reference_key(*reader, picture, mask, *settings, self._prefix_cache is not None)
            known = self._reference_cache.find(key, wanted)
            if known is not None:
                return known
        embeds = encode_reference(
            *reader,
            picture,
            text,
            layers,
            text_position=text_position,
            max_pixels=max_pixels,
            mask=mask,
            max_sequence_length=max_sequence_length,
            model_id=model_id,
            revision=revision,
            prefix_cache=self._prefix_cache,
        )
        if key is not None:
            self._reference_cache.keep(key, embeds, wanted)
        return embeds
