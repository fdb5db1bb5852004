"""A reading: everything about one look at one picture that is known before a model runs. Building it is the check."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, cast

import PIL
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .._version import __version__
from ..blend.regions import Region, TextPosition, check_count, check_flag
from .embeds import ReferenceProvenance
from .pictures import Treatment, fill_hidden, grid_size, treat_picture, visible_tokens
from .turn import TextTurn, picture_turn, read_text_turn


# Qwen2-VL's default bound, which transformers 4 puts in place of the `size` of every preprocessor_config.json: it says
# nothing about the model. Taken as "no bound", it gives the same grid in every version.
_UNTOLD_MAX_PIXELS = 28 * 28 * 1280

#: Library to version, for the provenance of what is read or measured.
VERSIONS = {
    "zimage_vl": __version__,
    "torch": str(torch.__version__),
    "transformers": transformers.__version__,
    "pillow": PIL.__version__,
}


class VLImageProcessor(Protocol):
    """The part of Qwen2-VL's image processor that is used here."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int

    def __call__(self, *, images: list[Image.Image], do_resize: bool, return_tensors: str) -> Mapping[str, Tensor]:
        """Get `pixel_values` (patches, patch values) and `image_grid_thw` (images, 3)."""
        ...


class ReaderSource(NamedTuple):
    """What is known of a reader before its weights are, as `find_reader_source` gives it."""

    reader: str
    processor: VLImageProcessor
    num_hidden_layers: int  # of the language model that reads
    image_token_id: int | None = None  # None: the tokenizer's
    model_id: str | None = None  # Hub id or folder of the VL encoder
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """One picture beside one text, ready for the VL encoder."""

    picture: Image.Image  # the pixels the encoder sees: RGB, at the grid's size, hidden ones filled
    ids: Tensor  # (tokens,) int64, of the turn
    regions: Tensor  # (tokens,) int8 `Region` values
    grid: tuple[int, int]  # rows and columns of image tokens
    visible: Tensor | None  # (image tokens,) bool, False where a mask removes the token; None where none is removed
    layers: Mapping[int, int]  # each layer as asked for, to its number counted from 0
    provenance: ReferenceProvenance  # where the states will come from, as far as it is known without the model
    muted: bool = False  # read the turn a second time, with the picture's features times 0
    # Where the VL encoder is to describe the picture first: the reading with that description beside it.
    with_text: Callable[[str], Reading] | None = field(default=None, repr=False)

    @property
    def kept(self) -> Tensor:
        """`(tokens,)` bool: the tokens that no mask removes."""
        kept = torch.ones_like(self.regions, dtype=torch.bool)
        if self.visible is not None:
            kept[self.regions == Region.IMAGE] = self.visible
        return kept

    @property
    def key(self) -> Hashable:
        """What tells this reading from others of the same encoder: pictures by their SHA-256, no weights."""
        metadata = json.dumps(self.provenance.to_metadata(), sort_keys=True)
        return tuple(self.layers), tuple(self.ids.tolist()), metadata, self.muted


def build_reading(
    source: ReaderSource,
    tokenizer: PreTrainedTokenizerBase,
    image: Image.Image,
    turn: TextTurn,
    layers: Sequence[int],
    *,
    text_position: TextPosition = "after",
    max_pixels: int = 1024 * 1024,
    mask: Image.Image | None = None,
    treatment: Treatment = "none",
    muted: bool = False,
    describe: bool = False,
) -> Reading:
    """Get the reading of a picture and a text; no model is needed or run.

    Args:
        source: The reader, by `find_reader_source`.
        tokenizer: Of Z-Image's text encoder; it holds Qwen's vision tokens.
        image: A PIL RGB image; its sides become multiples of one image token (32 pixels in Qwen3-VL), at least one.
        turn: The text beside it, by `read_text_turn`.
        layers: Indices as of transformers' `hidden_states`: 0 the embeddings, -1 after the final norm.
        text_position: The text `"after"` or `"before"` the picture.
        max_pixels: Bound on the pixels that the encoder sees, beside the image processor's own.
        mask: Greyscale PIL image of any size, white counts. Image tokens whose patch is not white by half are removed.
        treatment: As for `treat_picture`; what a mask hides is gone before.
        muted: Read the turn a second time, with the picture's features times 0.
        describe: Let the VL encoder write the text beside the picture, in place of `turn`.

    Raises:
        TypeError: Another kind of image, mask or layers.
        ValueError: A layer out of range, a picture over 200:1, a text with vision tokens, a mask that hides
            everything, a tokenizer that does not fit the model.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> turn = read_text_turn(pipe.tokenizer, "a red circle")
        >>> build_reading(pipe.find_reader(), pipe.tokenizer, Image.new("RGB", (64, 48)), turn, (-2,)).grid
        (3, 4)
    """
    numbers, name = resolve_layers(layers, source.num_hidden_layers), source.model_id
    max_pixels = check_count("max_pixels", max_pixels)
    check_flag("muted", muted)
    if getattr(image, "mode", None) != "RGB":
        raise TypeError(f'`image` must be a PIL image of mode "RGB", got {image!r:.80}. Use image.convert("RGB").')
    side = source.processor.patch_size * source.processor.merge_size  # pixels along one image token
    size = grid_size(image.size, side, min(max_pixels, _own_max_pixels(source.processor) or max_pixels))
    rows, columns = size[1] // side, size[0] // side
    picture, visible = image, None
    if mask is not None:
        visible = visible_tokens(mask, columns, rows)
        picture = fill_hidden(image, mask, visible.reshape(rows, columns))
        visible = None if bool(visible.all()) else visible
    picture = treat_picture(picture, treatment)
    ids, regions = picture_turn(tokenizer, turn, rows * columns, text_position)
    provenance = ReferenceProvenance(
        # A folder by its full path: what looks like a Hub id is one.
        model_id=os.path.abspath(name) if name is not None and os.path.isdir(name) else name,
        revision=source.revision,
        num_hidden_layers=source.num_hidden_layers,
        image_grid=(rows, columns),
        image_sha256=sha256_of_pixels(image),
        image_size=image.size,
        encoded_size=size,
        mask_sha256=None if mask is None else sha256_of_pixels(mask),
        text=turn.text,
        text_position=text_position,
        max_pixels=max_pixels,
        reader=source.reader,
        treatment=_name_treatment(treatment, picture),
        versions=VERSIONS,
    )
    # Resized here, not in the processor: the same grid in every version of transformers.
    picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
    if source.image_token_id is not None and int((ids == source.image_token_id).sum()) != rows * columns:
        token = f"the image token of `vl_encoder` (id {source.image_token_id})"
        raise ValueError(f"The tokenizer's <|image_pad|> is not {token}: pass Qwen3's, which fits both models.")
    reading = Reading(picture, ids, regions, (rows, columns), visible, numbers, provenance, muted)

    def with_text(text: str) -> Reading:
        described = read_text_turn(tokenizer, text)
        ids, regions = picture_turn(tokenizer, described, rows * columns, text_position)
        return replace(reading, ids=ids, regions=regions, provenance=replace(provenance, text=text, described=True))

    return replace(reading, with_text=with_text) if describe else reading


def _name_treatment(treatment: Treatment, treated: Image.Image) -> str | None:
    if not callable(treatment):
        return None if treatment == "none" else treatment
    # Two functions may have one name.
    return f"{getattr(treatment, '__qualname__', 'function')} {sha256_of_pixels(treated)}"


def resolve_layers(layers: Sequence[int], num_hidden_layers: int) -> dict[int, int]:
    """Get the number, counted from 0, of each layer as asked for.

    Raises:
        TypeError: `layers` is not a sequence of at least one integer.
        ValueError: A layer is out of range.

    Example:
        >>> resolve_layers((-6, 4), 36)
        {-6: 31, 4: 4}
    """
    if not isinstance(layers, Sequence) or isinstance(layers, (str, bytes)) or not layers:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`layers` must be a sequence of integers such as (-6,), got {layers!r}.")
    for layer in layers:
        if type(layer) is not int:
            raise TypeError(f"`layers` must be integers, got {layer!r}.")
        if not -num_hidden_layers - 1 <= layer <= num_hidden_layers:
            raise ValueError(
                f"Layer {layer} is out of range: a language model of {num_hidden_layers} layers has hidden states "
                f"{-num_hidden_layers - 1} .. {num_hidden_layers} (-1 is after the final norm)."
            )
    return {layer: layer % (num_hidden_layers + 1) for layer in layers}


def get_image_processor(vl_processor: object, vision: PretrainedConfig) -> VLImageProcessor:
    """Get the image processor, alone or within a full processor, if it fits; else TypeError or ValueError."""
    processor = getattr(vl_processor, "image_processor", vl_processor)
    names = ("patch_size", "merge_size", "temporal_patch_size")
    expected = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    for name, value in zip(names, expected, strict=True):
        found = getattr(processor, name, None)
        if found != value:
            raise (TypeError if found is None else ValueError)(
                f"`vl_processor` must be the VL encoder's own, with {name} {value}, got {found} of a "
                f"{type(vl_processor).__name__}. Load it with transformers.AutoImageProcessor."
            )
    return cast("VLImageProcessor", processor)


def sha256_of_pixels(image: Image.Image) -> str:
    """Get the SHA-256 of a picture's mode, size and bytes, whatever file it came from."""
    header = f"{image.mode} {image.width}x{image.height} "
    return hashlib.sha256(header.encode() + image.tobytes()).hexdigest()


def _own_max_pixels(processor: VLImageProcessor) -> int | None:
    """The processor's own bound on pixels, None if it states none."""
    size = getattr(processor, "size", None) or {}
    own = size.get("longest_edge") if hasattr(size, "get") else getattr(size, "longest_edge", None)
    return None if own in (None, _UNTOLD_MAX_PIXELS) else int(own)
