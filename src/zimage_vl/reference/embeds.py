"""What the VL encoder said about one reference picture, where it came from, and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..blend.regions import Region
from .tensor_files import FileKind, read_tensor_file, write_tensor_file


REFERENCE_SCHEMA = "zimage_vl.reference_embeds"
REFERENCE_FILE = FileKind(
    contents="reference embeddings",
    schema=REFERENCE_SCHEMA,
    version="1",
    remedy="encode the reference again and save it with ReferenceEmbeds.save",
)
_STATES_KEY = "hidden_states."
_REGIONS_KEY = "regions"
# The fields of a file's metadata that are not plain text; lists are of integers.
_JSON_FIELDS: dict[str, Any] = {
    "layers": list,
    "num_hidden_layers": int,
    "image_grid": list,
    "image_size": list,
    "encoded_size": list,
    "max_pixels": int,
    "versions": dict,
}


@dataclass(frozen=True)
class ReferenceProvenance:
    """Where the states of a reference come from. Whatever is not known is None.

    Attributes:
        model_id: Hub id or folder of the VL encoder.
        revision: Its revision.
        vl_fingerprint: Which encoder it was, as `fingerprint_vl_encoder` gives it.
        num_hidden_layers: Layers of its language model; hidden states 0 .. num_hidden_layers exist.
        image_grid: Rows and columns of image tokens, before a mask removed any.
        image_sha256: Of the pixels given (their mode, size and bytes), whatever file they came from.
        image_size: Width and height of the picture given, in pixels.
        encoded_size: Width and height that the encoder saw, in pixels.
        mask_sha256: Of the mask's pixels, None without a mask.
        text: The text beside the picture, `""` for none.
        text_position: `"after"` or `"before"` the picture.
        max_pixels: The bound on pixels that was asked for.
        dtype: Of the encoder's language model, such as `"bfloat16"`.
        versions: Library to version, zimage_vl among them.
    """

    model_id: str | None = None
    revision: str | None = None
    num_hidden_layers: int | None = None
    image_grid: tuple[int, int] | None = None
    image_sha256: str | None = None
    image_size: tuple[int, int] | None = None
    encoded_size: tuple[int, int] | None = None
    mask_sha256: str | None = None
    text: str | None = None
    text_position: str | None = None
    max_pixels: int | None = None
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    vl_fingerprint: str | None = None

    def to_metadata(self) -> dict[str, str]:
        """The fields that are known, as the string to string pairs a safetensors file can hold."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in known.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ReferenceProvenance:
        """Reads what `to_metadata` wrote; other keys are left alone.

        Raises:
            ValueError: A field cannot be read.
        """
        values: dict[str, Any] = {}
        for spec in fields(cls):
            if spec.name in metadata:
                text = metadata[spec.name]
                values[spec.name] = _parse_field(spec.name, text) if spec.name in _JSON_FIELDS else text
        return cls(**values)


def _parse_field(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"its field {name!r} cannot be read: {text!r}.") from error
    wanted = _JSON_FIELDS[name]
    fits = isinstance(value, wanted) and (wanted is not list or all(isinstance(item, int) for item in value))
    if not fits:
        raise ValueError(f"its field {name!r} should be of type {wanted.__name__}, got {text!r}.")
    return tuple(value) if wanted is list else value


@dataclass(frozen=True, eq=False)
class ReferenceEmbeds:
    """Hidden states of Qwen3-VL's language model over one reference's turn.

    Attributes:
        hidden_states: Layer, as it was asked for (negative counts from the end), to a `(tokens, dims)` tensor.
        regions: `(tokens,)` int8 tensor of `Region` values, one for each token.
        provenance: Where the states come from.

    Raises:
        ValueError: No layer, states that are not 2-D and floating, that differ in shape between layers, hold NaN or
            infinity, or do not fit the regions; regions that are not `Region` values.

    Example:
        >>> states = torch.randn(4, 8)
        >>> regions = torch.tensor([Region.PREFIX, Region.IMAGE, Region.WORDS, Region.SUFFIX])
        >>> embeds = ReferenceEmbeds({-6: states}, regions)
        >>> embeds.num_tokens, embeds.num_image_tokens, embeds.width, embeds.layers
        (4, 1, 8, (-6,))
    """

    hidden_states: Mapping[int, Tensor]
    regions: Tensor
    provenance: ReferenceProvenance = field(default_factory=ReferenceProvenance)

    def __post_init__(self) -> None:
        _check_states(self.hidden_states)
        _check_regions(self.regions, self.num_tokens)
        # A copy of the mapping: what the caller does with its own dict later does not reach in here.
        object.__setattr__(self, "hidden_states", dict(self.hidden_states))
        object.__setattr__(self, "regions", self.regions.to(torch.int8))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it holds, in the order they were asked for."""
        return tuple(self.hidden_states)

    @property
    def num_tokens(self) -> int:
        """Tokens of the turn (those that a mask removed are not among them)."""
        return next(iter(self.hidden_states.values())).shape[0]

    @property
    def num_image_tokens(self) -> int:
        """Image tokens, vision markers not counted."""
        return int((self.regions == Region.IMAGE).sum())

    @property
    def width(self) -> int:
        """Dimensions of a token's state."""
        return next(iter(self.hidden_states.values())).shape[1]

    def get_layer(self, layer: int) -> Tensor:
        """The `(tokens, dims)` states of a layer, under either of its names (-6 of 36 layers is also 31).

        Raises:
            ValueError: The layer is not in here.
        """
        if layer in self.hidden_states:
            return self.hidden_states[layer]
        depth = self.provenance.num_hidden_layers
        if depth is not None:
            for other, states in self.hidden_states.items():
                if other % (depth + 1) == layer % (depth + 1) and -depth - 1 <= layer <= depth:
                    return states
        raise ValueError(
            f"This reference holds the hidden states of layers {list(self.layers)}, not of layer {layer}. Use one of "
            "these, or encode the reference again with that layer among `layers`."
        )

    def check_fits(self, width: int, layers: Sequence[int]) -> None:
        """Refuse states that cannot be blended into embeddings `width` wide, or lack one of the layers.

        Raises:
            ValueError: Naming what was expected and what is here.
        """
        if self.width != width:
            source = f" They are from {self.provenance.model_id}." if self.provenance.model_id else ""
            raise ValueError(
                f"The reference's states are {self.width} wide, the text embeddings {width}.{source} Qwen3-VL-2B is "
                "2048 wide, 4B 2560, 8B 4096; Z-Image's text encoder goes with 2560."
            )
        for layer in layers:
            self.get_layer(layer)

    def check_model(self, model_id: str | None, fingerprint: str | None = None) -> bool:
        """Refuse states of another VL encoder than the pipeline's, also where it is as wide.

        Fingerprints decide where both are known: one model may have many names. Without them two Hub ids
        (`owner/name`) can be compared; a folder's path tells nothing.

        Args:
            model_id: Hub id or folder of the pipeline's VL encoder, None where it has none.
            fingerprint: Of that encoder, as `fingerprint_vl_encoder` gives it; None where none is loaded.

        Returns:
            Whether it is known to be the same encoder; False where nothing could be compared.

        Raises:
            ValueError: It is another one. Both are named, and what to do.
        """
        made = self.provenance
        if made.vl_fingerprint is not None and fingerprint is not None:
            if made.vl_fingerprint != fingerprint:
                raise ValueError(
                    f"The reference was read by another VL encoder, {made.model_id!r} (fingerprint "
                    f"{made.vl_fingerprint[:12]}); the pipeline's is {model_id!r} (fingerprint {fingerprint[:12]}). "
                    "Encode the reference again with the pipeline's, or give the pipeline the encoder of the file."
                )
            return True
        if not _is_hub_id(made.model_id) or not _is_hub_id(model_id):
            return False
        if made.model_id != model_id:
            raise ValueError(
                f"The reference was read by the VL encoder {made.model_id!r}, the pipeline's is {model_id!r}. Encode "
                f"the reference again, or, if it belongs to this pipeline, make the pipeline with vl_model_id="
                f"{made.model_id!r} (`--vl-model {made.model_id}` on the command line)."
            )
        return True

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ReferenceEmbeds:
        """The same on another device, with the states in another floating dtype. The original stays as it is."""
        states = {layer: x.to(device=device, dtype=dtype) for layer, x in self.hidden_states.items()}
        return ReferenceEmbeds(states, self.regions.to(device=device), self.provenance)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file: all of it or nothing. Equal contents give equal bytes.

        Args:
            path: The file. Its folder must exist; a file of that name is replaced.

        Raises:
            FileNotFoundError: The folder does not exist.
        """
        tensors = {f"{_STATES_KEY}{layer}": x for layer, x in self.hidden_states.items()}
        write_tensor_file(path, REFERENCE_FILE, {**tensors, _REGIONS_KEY: self.regions}, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return self.provenance.to_metadata() | {
            "layers": json.dumps(list(self.layers)),
            "width": str(self.width),
            "num_tokens": str(self.num_tokens),
            "num_image_tokens": str(self.num_image_tokens),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceEmbeds:
        """Reads a file that `save` wrote, onto the CPU.

        Args:
            path: The safetensors file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is a folder, a pickle, truncated, not a safetensors file, of another kind or schema
                version, or holds NaN, infinity or shapes that do not fit each other.
        """
        tensors, metadata = read_tensor_file(path, REFERENCE_FILE)
        try:
            return cls._from_file(metadata, tensors)
        except ValueError as error:
            raise ValueError(f"{Path(path)} is refused: {error}") from error

    @classmethod
    def _from_file(cls, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> ReferenceEmbeds:
        layers = _parse_field("layers", metadata.get("layers", ""))
        wanted = {f"{_STATES_KEY}{layer}" for layer in layers} | {_REGIONS_KEY}
        if wanted != set(tensors):
            raise ValueError(f"it should hold the tensors {sorted(wanted)}, got {sorted(tensors)}.")
        states = {int(layer): tensors[f"{_STATES_KEY}{layer}"] for layer in layers}
        embeds = cls(states, tensors[_REGIONS_KEY], ReferenceProvenance.from_metadata(metadata))
        _check_counts(embeds, metadata)
        return embeds


def _is_hub_id(name: str | None) -> bool:
    """`owner/name`, and not a folder's path."""
    if name is None or name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        return False
    return "\\" not in name and not os.path.isdir(name)


def _check_states(hidden_states: Mapping[int, Tensor]) -> None:
    if not hidden_states:
        raise ValueError("`hidden_states` must hold at least one layer, got none.")
    shapes = {layer: tuple(states.shape) for layer, states in hidden_states.items()}
    for layer, states in hidden_states.items():
        if states.dim() != 2 or 0 in states.shape or not states.is_floating_point():
            raise ValueError(
                f"the hidden states of layer {layer} must be a floating (tokens, dims) tensor with at least one "
                f"token, got {states.dtype} of shape {tuple(states.shape)}."
            )
        if not bool(torch.isfinite(states).all()):
            raise ValueError(
                f"the hidden states of layer {layer} contain NaN or infinity. Encode the reference again; in "
                "float16 the encoder may overflow, bfloat16 and float32 do not."
            )
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all layers must have the same number of tokens and dimensions, got {shapes}.")


def _check_regions(regions: Tensor, num_tokens: int) -> None:
    if tuple(regions.shape) != (num_tokens,) or regions.is_floating_point() or regions.dtype == torch.bool:
        raise ValueError(
            f"`regions` must be an integer tensor of shape ({num_tokens},), one value a token, got {regions.dtype} of "
            f"shape {tuple(regions.shape)}."
        )
    least, most = int(regions.min()), int(regions.max())
    if least < min(Region) or most > max(Region):
        raise ValueError(f"`regions` must hold values of Region (0..{max(Region).value}), got {least} .. {most}.")


def _check_counts(embeds: ReferenceEmbeds, metadata: Mapping[str, str]) -> None:
    for name in ("width", "num_tokens", "num_image_tokens"):
        if metadata.get(name) != str(getattr(embeds, name)):
            raise ValueError(f"its metadata say {name} {metadata.get(name)!r}, its tensors {getattr(embeds, name)}.")
