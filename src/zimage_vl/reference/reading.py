"""A picture and a text, read by Qwen3-VL: what the method blends into a prompt's embeddings.

Knows Qwen3-VL and nothing of Z-Image. The turn is built in `turn`, the picture brought to the patch grid in
`patch_grid`, the model run in `vl_forward`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import PIL
import torch
import transformers
from PIL import Image
from torch import Tensor

from .._version import __version__
from ..blend.regions import Region, TextPosition
from .block_counts import get_full_depth
from .bounded_store import StoreKey
from .embeds import ReferenceEmbeds, ReferenceProvenance
from .encoder_identity import reader_owners, reader_state
from .fingerprints import fingerprint_vl_encoder
from .patch_grid import fill_hidden, grid_size, resize_to_grid, visible_tokens
from .prefix_cache import PrefixCache
from .readers import VLInputs, check_vl_encoder, resolve_vl_layers, vl_hidden_states
from .turn import reference_turn
from .versions import get_own_max_pixels


def encode_reference(
    vl_encoder: Any,
    vl_processor: Any,
    tokenizer: Any,
    image: Image.Image,
    text: str,
    layers: Sequence[int] = (-6,),
    *,
    text_position: TextPosition = "after",
    max_pixels: int = 1024 * 1024,
    mask: Image.Image | None = None,
    max_sequence_length: int | None = None,
    model_id: str | None = None,
    revision: str | None = None,
    device: torch.device | None = None,
    prefix_cache: PrefixCache | None = None,
) -> ReferenceEmbeds:
    """Hidden states of Qwen3-VL's language model over one picture and a text.

    Which layer and which text are worth asking for is told by the Qwen3-VL conditioning guide, sections 2 to 4. All
    layers come from one pass, which stops after the deepest: -6 of 36 runs 31 blocks, neither the final norm nor the
    logits.

    Args:
        vl_encoder: A `Qwen3VLForConditionalGeneration`; it is the same after the call as before.
        vl_processor: Its image processor, or a full `Qwen3VLProcessor`.
        tokenizer: The tokenizer of Z-Image's text encoder, which holds Qwen's vision tokens.
        image: A PIL RGB image; its sides become multiples of one image token (32 pixels in Qwen3-VL), at least one.
        text: The text beside it, `""` for none.
        layers: Indices as of transformers' `hidden_states`: 0 the embeddings, -1 after the final norm.
        text_position: The text `"after"` or `"before"` the picture.
        max_pixels: Bound on the pixels that the encoder sees, beside the image processor's own.
        mask: Greyscale PIL image of any size, white counts. Image tokens whose patch is not white by half are
            removed: from the result, from the vision tower's attention and from the language model's, and hidden
            pixels leave no trace at all.
        max_sequence_length: Cuts the text and the template as a prompt of that bound is cut. None: no bound.
        model_id: For the provenance: where the encoder is from.
        revision: For the provenance: its revision.
        device: Where the encoder runs; None to ask its offload hooks, or else its weights.
        prefix_cache: Where the picture's keys and values are kept and looked up, so that another text after the same
            picture is read alone: equal up to rounding. None: always all in one pass.

    Returns:
        States, regions and provenance, in the encoder's dtype, on its device.

    Raises:
        TypeError: Another kind of encoder, image, mask, text or layers.
        ValueError: A layer out of range, a picture over 200:1, a text with vision tokens, a mask that hides
            everything, a processor or tokenizer that does not fit the model; NaN or infinity in what the encoder
            gives.

    Example:
        >>> embeds = encode_reference(vl_encoder, image_processor, tokenizer, image, "a red circle")  # doctest: +SKIP
        >>> embeds.hidden_states[-6].shape  # doctest: +SKIP
        torch.Size([1041, 2560])
    """
    check_vl_encoder(vl_encoder)
    _check_image(image)
    config = vl_encoder.config
    wanted = resolve_vl_layers(vl_encoder, layers)
    processor = _image_processor(vl_processor, config.vision_config)
    pixels, rows, columns, visible = _prepare_picture(processor, image, mask, max_pixels)
    ids, regions = reference_turn(tokenizer, text, rows * columns, text_position, max_sequence_length)
    if int((ids == config.image_token_id).sum()) != rows * columns:
        raise ValueError(
            f"The tokenizer's <|image_pad|> is not the image token of `vl_encoder` (id {config.image_token_id}). "
            "Pass the tokenizer that belongs to both models, Qwen3's."
        )
    origin = _picture_provenance(image, mask)
    grid = torch.tensor([[1, rows * processor.merge_size, columns * processor.merge_size]])
    inputs = VLInputs(ids, None, grid, visible)
    numbers = tuple(wanted.values())
    if prefix_cache is None or text_position == "before":
        inputs = replace(inputs, pixel_values=_patches(processor, pixels, grid))
        states = vl_hidden_states(vl_encoder, inputs, numbers, device)
    else:
        state = reader_state(vl_encoder, vl_processor, tokenizer)
        seen = origin["image_sha256"], origin["mask_sha256"], pixels.size
        key = StoreKey(reader_owners(vl_encoder, vl_processor, tokenizer), (state, seen, str(device)))
        states = prefix_cache.hidden_states(
            key, vl_encoder, inputs, lambda: _patches(processor, pixels, grid), numbers, device
        )
    kept = _kept_tokens(regions, visible)
    hidden_states = {
        layer: _checked(states[index][kept.to(states[index].device)], layer) for layer, index in wanted.items()
    }
    first = next(iter(hidden_states.values()))
    provenance = ReferenceProvenance(
        # A folder by its full path: what looks like a Hub id is one.
        model_id=os.path.abspath(model_id) if model_id is not None and os.path.isdir(model_id) else model_id,
        revision=revision,
        vl_fingerprint=fingerprint_vl_encoder(vl_encoder),
        num_hidden_layers=get_full_depth(config.text_config),
        image_grid=(rows, columns),
        encoded_size=pixels.size,
        text=text,
        text_position=text_position,
        max_pixels=max_pixels,
        dtype=str(first.dtype).removeprefix("torch."),
        **origin,
    )
    return ReferenceEmbeds(hidden_states, regions[kept].to(first.device), provenance)


def check_reference_inputs(
    vl_encoder: Any,
    vl_processor: Any,
    tokenizer: Any,
    image: Image.Image,
    text: str,
    *,
    text_position: TextPosition,
    max_pixels: int,
    mask: Image.Image | None,
) -> None:
    """Raise what `encode_reference` would refuse of these inputs, without reading the picture or running a model.

    Raises:
        TypeError: As `encode_reference`.
        ValueError: As `encode_reference`.
    """
    processor = _image_processor(vl_processor, vl_encoder.config.vision_config)
    _, rows, columns = _find_grid(processor, image, max_pixels)
    if mask is not None:
        visible_tokens(mask, columns, rows)
    reference_turn(tokenizer, text, 1, text_position)


def _find_grid(processor: Any, image: Image.Image, max_pixels: int) -> tuple[int, int, int]:
    """The bound on pixels that holds, and the rows and columns of image tokens."""
    multiple = processor.patch_size * processor.merge_size
    own = get_own_max_pixels(processor)
    bound = max_pixels if own is None else min(max_pixels, own)
    width, height = grid_size(image.size, multiple, bound)
    return bound, height // multiple, width // multiple


def _check_image(image: Any) -> None:
    if not isinstance(image, Image.Image):
        raise TypeError(f"`image` must be a PIL image, got {type(image).__name__}.")
    if image.mode != "RGB":
        raise ValueError(f'`image` must be an RGB image, got mode {image.mode!r}. Use image.convert("RGB").')


def _image_processor(vl_processor: Any, vision_config: Any) -> Any:
    """The image processor, alone or within a full processor, once it is known to fit the vision tower."""
    processor = getattr(vl_processor, "image_processor", vl_processor)
    pairs = {
        "patch_size": vision_config.patch_size,
        "merge_size": vision_config.spatial_merge_size,
        "temporal_patch_size": vision_config.temporal_patch_size,
    }
    for name, expected in pairs.items():
        if not hasattr(processor, name):
            raise TypeError(
                "`vl_processor` must be Qwen3-VL's image processor or its full processor, got "
                f"{type(vl_processor).__name__}, which has no `{name}`. Load it with transformers.AutoImageProcessor."
            )
        if getattr(processor, name) != expected:
            raise ValueError(
                f"`vl_processor` does not belong to `vl_encoder`: expected {name} {expected}, got "
                f"{getattr(processor, name)}."
            )
    return processor


def _prepare_picture(
    processor: Any, image: Image.Image, mask: Image.Image | None, max_pixels: int
) -> tuple[Image.Image, int, int, Tensor | None]:
    """The picture as the encoder shall see it, its rows and columns of image tokens, and those a mask leaves."""
    multiple = processor.patch_size * processor.merge_size
    bound, rows, columns = _find_grid(processor, image, max_pixels)
    if mask is None:
        return resize_to_grid(image, multiple, bound), rows, columns, None
    visible = visible_tokens(mask, columns, rows)
    pixels = resize_to_grid(fill_hidden(image, mask, columns, rows), multiple, bound)
    return pixels, rows, columns, None if bool(visible.all()) else visible


def _patches(processor: Any, pixels: Image.Image, grid: Tensor) -> Tensor:
    """`pixel_values`; the picture has its size already, so the processor must not resize it."""
    features = processor(images=[pixels], do_resize=False, return_tensors="pt")
    if features["image_grid_thw"].tolist() != grid.tolist():
        raise ValueError(
            f"The image processor made a grid of {features['image_grid_thw'].tolist()} patches from a picture of "
            f"{pixels.size} pixels, expected {grid.tolist()}. Load it with transformers.AutoImageProcessor from the "
            "VL encoder's folder."
        )
    return features["pixel_values"]


def _kept_tokens(regions: Tensor, visible: Tensor | None) -> Tensor:
    kept = torch.ones_like(regions, dtype=torch.bool)
    if visible is not None:
        kept[regions == Region.IMAGE] = visible
    return kept


def _checked(states: Tensor, layer: int) -> Tensor:
    if not bool(torch.isfinite(states).all()):
        raise ValueError(
            f"The Qwen3-VL hidden states at layer {layer} contain NaN or infinity. In float16 they can overflow: "
            "load the VL encoder in bfloat16 or float32."
        )
    return states


def _picture_provenance(image: Image.Image, mask: Image.Image | None) -> dict[str, Any]:
    return {
        "image_sha256": sha256_of_pixels(image),
        "image_size": image.size,
        "mask_sha256": None if mask is None else sha256_of_pixels(mask),
        "versions": {
            "zimage_vl": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
    }


def sha256_of_pixels(image: Image.Image) -> str:
    """SHA-256 of a picture's mode, size and bytes, whatever file it came from."""
    header = f"{image.mode} {image.width}x{image.height} "
    return hashlib.sha256(header.encode() + image.tobytes()).hexdigest()
