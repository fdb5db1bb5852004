"""What the VL encoder said about one reference picture, where it came from, and its file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from ..blend.regions import KNOWN_WIDTHS, Region, TokenSelection, check_kind, check_regions, has_values, select_tokens
from .files import FileKind, read_tensor_file, write_tensor_file


REFERENCE_FILE = FileKind(
    contents="reference embeddings",
    schema="zimage_vl.reference_embeds",
    version="2",
    remedy="encode the reference again and save it with ReferenceEmbeds.save",
)
_STATES_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_COUNT, _PAIR, _DIGEST = r"[1-9]\d{0,17}", r"\[[1-9]\d{0,17}, [1-9]\d{0,17}\]", "[0-9a-f]{64}"
# What the fields of the provenance that are not free text look like in a file.
_JSON_FORMS = {
    **dict.fromkeys(("num_hidden_layers", "max_pixels"), _COUNT),
    **dict.fromkeys(("image_grid", "image_size", "encoded_size"), _PAIR),
    "versions": r'\{("[^"]*": "[^"]*"(, (?=")|(?=\})))*\}',
    "described": "true",
}
_FORMS = {
    **_JSON_FORMS,
    **dict.fromkeys(("image_sha256", "mask_sha256", "vl_fingerprint"), _DIGEST),
    "text_position": "after|before",
    "reader": "qwen3-vl|text_encoder",
}


@dataclass(frozen=True)
class ReferenceProvenance:
    """Where the states of a reference come from. Whatever is not known is None; another kind of field a ValueError."""

    model_id: str | None = None  # Hub id or folder of the VL encoder
    revision: str | None = None
    num_hidden_layers: int | None = None  # of its language model; hidden states 0 .. num_hidden_layers exist
    image_grid: tuple[int, int] | None = None  # rows and columns of image tokens, before a mask removed any
    image_sha256: str | None = None  # of the pixels given (their mode, size and bytes), whatever file they came from
    image_size: tuple[int, int] | None = None  # width and height of the picture given, in pixels
    encoded_size: tuple[int, int] | None = None  # width and height that the encoder saw, in pixels
    mask_sha256: str | None = None  # of the mask's pixels, None without a mask
    text: str | None = None  # beside the picture, "" for none
    text_position: str | None = None  # "after" or "before" the picture
    max_pixels: int | None = None  # the bound on pixels that was asked for
    dtype: str | None = None  # of the encoder's language model, such as "bfloat16"
    versions: Mapping[str, str] = field(default_factory=dict[str, str])  # library to version, zimage_vl among them
    vl_fingerprint: str | None = None  # which encoder it was, as `fingerprint_vl_encoder` gives it
    reader: str | None = None  # "qwen3-vl", or "text_encoder" behind Qwen3-VL's vision tower
    treatment: str | None = None  # what was done to the picture before it was read; None for nothing
    described: bool | None = None  # True where the VL encoder wrote `text`

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in _JSON_FORMS and not isinstance(value, (str, type(None))):
                raise TypeError(
                    f"`{name}` must be a string or None, got {value!r:.80} of type {type(value).__name__}."
                )
        for name, text in self.to_metadata().items():
            _check_form(name, text)

    def to_metadata(self) -> dict[str, str]:
        """Get the fields that are known, as the string to string pairs that a safetensors file can hold."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in known.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ReferenceProvenance:
        """Get what `to_metadata` wrote; other keys are left alone. A field of another kind is a ValueError."""
        values: dict[str, Any] = {spec.name: metadata[spec.name] for spec in fields(cls) if spec.name in metadata}
        for name in _JSON_FORMS.keys() & values.keys():
            _check_form(name, values[name])
            value = json.loads(values[name])
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


@dataclass(frozen=True, eq=False)
class ReferenceEmbeds:
    """Hidden states of Qwen3-VL's language model over one reference's turn.

    No layer, states that are not 2-D and floating, that differ in shape between layers, hold NaN or infinity, or do
    not fit the regions, and regions that are not `Region` values, are a ValueError.

    Example:
        >>> states = torch.randn(4, 8)
        >>> regions = torch.tensor([Region.PREFIX, Region.IMAGE, Region.WORDS, Region.SUFFIX])
        >>> embeds = ReferenceEmbeds({-6: states}, regions)
        >>> embeds.num_tokens, embeds.num_image_tokens, embeds.width, embeds.layers
        (4, 1, 8, (-6,))
    """

    # Layer as it was asked for (negative counts from the end) to (tokens, dims).
    hidden_states: Mapping[int, Tensor] = field(repr=False)
    regions: Tensor = field(repr=False)  # (tokens,) int8 `Region` values
    provenance: ReferenceProvenance = field(default_factory=ReferenceProvenance)
    # The same states of the turn with the picture's features times 0, where they were read too.
    muted_states: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor], repr=False)

    def __post_init__(self) -> None:
        check_kind("provenance", self.provenance, "num_hidden_layers", "a ReferenceProvenance")
        _check_states("hidden_states", self.hidden_states, self.provenance.num_hidden_layers)
        if not isinstance(self.muted_states, Mapping) or self.muted_states:  # pyright: ignore[reportUnnecessaryIsInstance]
            _check_states("muted_states", self.muted_states, self.provenance.num_hidden_layers)
            if set(self.muted_states) != set(self.hidden_states) or self.muted.width != self.width:
                raise ValueError("`muted_states` must have the layers, tokens and dimensions of `hidden_states`.")
        check_regions("regions", self.regions, self.num_tokens)
        # A copy of the mapping: what the caller does with its own dict later does not reach in here.
        object.__setattr__(self, "hidden_states", dict(self.hidden_states))
        object.__setattr__(self, "muted_states", dict(self.muted_states))
        object.__setattr__(self, "regions", self.regions.to(torch.int8))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it holds, in the order they were asked for."""
        return tuple(self.hidden_states)

    @property
    def num_tokens(self) -> int:
        """Tokens of the turn, without those that a mask removed."""
        return next(iter(self.hidden_states.values())).shape[0]

    @property
    def num_image_tokens(self) -> int:
        """Image tokens, vision markers not counted."""
        return int((self.regions == Region.IMAGE).sum())

    @property
    def width(self) -> int:
        """Dimensions of a token's state."""
        return next(iter(self.hidden_states.values())).shape[1]

    @property
    def muted(self) -> ReferenceEmbeds:
        """The muted reading as a reference of its own. A ValueError if it was not read."""
        return ReferenceEmbeds(self.muted_states, self.regions, self.provenance)

    def get_layer(self, layer: int) -> Tensor:
        """Get the `(tokens, dims)` states of a layer, under either of its names (-6 of 36 layers is also 31).

        One that is not in here is a ValueError.
        """
        if not isinstance(layer, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"`layer` must be an int such as -6, got {layer!r:.80} of type {type(layer).__name__}.")
        count = (self.provenance.num_hidden_layers or 0) + 1
        for held, states in self.hidden_states.items():
            if held == layer or (-count <= layer < count and abs(held - layer) == count > 1):
                return states
        raise ValueError(
            f"The reference holds the layers {list(self.layers)}, not {layer}: encode it with that one too."
        )

    def select(self, selection: TokenSelection, layer: int | None = None) -> Tensor:
        """Get the `(tokens, dims)` states of the tokens that a selection keeps: "all", "text", "image" or so.

        A selection or layer that does not exist, or None for `layer` where there are several, is a ValueError.
        """
        first, *others = self.layers
        if layer is None and others:
            raise ValueError(f"The reference holds the layers {list(self.layers)}: name one, layer={first}.")
        return self.get_layer(first if layer is None else layer)[select_tokens(self.regions, selection)]

    def check_fits(self, width: int, layers: Sequence[int]) -> None:
        """Refuse, by a ValueError, states that do not fit embeddings `width` wide, or lack one of the layers."""
        if self.width != width:
            raise ValueError(
                f"The reference's states, from {self.provenance.model_id!r}, are {self.width} wide, the text "
                f"embeddings {width}. {KNOWN_WIDTHS}"
            )
        for layer in layers:
            self.get_layer(layer)

    def check_reader(self, reader: str) -> None:
        """Refuse, by a ValueError, states of another reader than the one asked for."""
        made = self.provenance.reader
        if made is not None and made != reader:
            raise ValueError(
                f"The reference was read with vl_reader {made!r}: pass that, or encode it with {reader!r}."
            )

    def check_model(self, model_id: str | None, fingerprint: str | None = None) -> bool:
        """Check that the states are of the pipeline's VL encoder; a ValueError names both where they are not.

        Fingerprints decide where both are known: one model may have many names. Without them two Hub ids
        (`owner/name`) can be compared; a folder's path tells nothing. False is returned where nothing can be compared.
        """
        made, own = self.provenance.model_id, self.provenance.vl_fingerprint
        theirs, ours = (own, fingerprint) if own and fingerprint else (made, model_id)
        if not (own and fingerprint) and not (_is_hub_id(made) and _is_hub_id(model_id)):
            return False
        if theirs != ours:
            raise ValueError(
                f"The reference was read by another VL encoder: {made!r} (fingerprint {own and own[:12]}), the "
                f"pipeline's is {model_id!r} (fingerprint {fingerprint and fingerprint[:12]}). Encode it again, or "
                f"make the pipeline with `vl_model_id` {made!r}."
            )
        return True

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write a safetensors file with a digest of it all, or into an open file. Equal contents give equal bytes.

        Its folder must exist; a file of that name is replaced, in full or not at all.
        """
        tensors = {f"hidden_states.{layer}": x for layer, x in self.hidden_states.items()}
        tensors |= {f"muted_states.{layer}": x for layer, x in self.muted_states.items()}
        write_tensor_file(path, REFERENCE_FILE, {**tensors, "regions": self.regions}, self._metadata())

    def _metadata(self) -> dict[str, str]:
        counts = {name: str(getattr(self, name)) for name in ("width", "num_tokens", "num_image_tokens")}
        return {**self.provenance.to_metadata(), **counts, "layers": json.dumps(self.layers)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReferenceEmbeds:
        """Read a file that `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is a folder, a pickle, damaged, not a safetensors file, of another kind or schema version,
                or contradicts itself. The message has the file's name.
        """
        tensors, metadata = read_tensor_file(path, REFERENCE_FILE)
        try:
            layers = metadata.get("layers", "")
            names = {f"hidden_states.{layer}": int(layer) for layer in re.findall(r"-?\d{1,9}", layers)}
            twins = {name.replace("hidden", "muted"): layer for name, layer in names.items()}
            if set(tensors) not in ({*names, "regions"}, {*names, *twins, "regions"}):
                raise ValueError(f"It should hold regions and the layers {layers!r}, got {sorted(tensors)}.")
            states = {layer: tensors[name] for name, layer in names.items()}
            muted = {layer: tensors[name] for name, layer in twins.items() if name in tensors}
            embeds = cls(states, tensors["regions"], ReferenceProvenance.from_metadata(metadata), muted)
            wrong = {name for name, _ in metadata.items() ^ embeds._metadata().items()}
            if wrong:
                raise ValueError(f"Its metadata contradict its tensors, or are unknown here: {sorted(wrong)}.")
        except ValueError as error:
            raise ValueError(f"{Path(path)} is refused: {error} To mend it, {REFERENCE_FILE.remedy}.") from error
        return embeds


def as_reference_embeds(reference: object, name: str = "reference_embeds") -> ReferenceEmbeds:
    """Get `ReferenceEmbeds` from a path, or from an object of another copy of this code (the single file's).

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is neither.
        ValueError: As `ReferenceEmbeds` and `ReferenceEmbeds.load`.
    """
    if isinstance(reference, ReferenceEmbeds):
        return reference
    if isinstance(reference, (str, os.PathLike)):
        return ReferenceEmbeds.load(cast("str | os.PathLike[str]", reference))
    if not all(hasattr(reference, name) for name in ("hidden_states", "regions", "provenance")):
        raise TypeError(
            f"`{name}` must be ReferenceEmbeds or the path of their file here, got {type(reference).__name__}."
        )
    other = cast("ReferenceEmbeds", reference)
    provenance = ReferenceProvenance.from_metadata(other.provenance.to_metadata())
    return ReferenceEmbeds(other.hidden_states, other.regions, provenance, getattr(other, "muted_states", {}))


def _is_hub_id(name: str | None) -> bool:
    """`owner/name`, and not a folder's path."""
    if name is None or name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        return False
    return "\\" not in name and not os.path.isdir(name)


def _check_form(name: str, text: str) -> None:
    if not re.fullmatch(_FORMS.get(name, ".*"), text, re.DOTALL):
        raise ValueError(f"The provenance's field {name!r} is of another kind: {text[:80]!r}.")


def _check_states(name: str, hidden_states: Mapping[int, Tensor], depth: int | None) -> None:
    check_kind(name, hidden_states, "items", "a dict of layers and their (tokens, dims) states")
    for layer, states in hidden_states.items():
        check_kind(f"{name}[{layer}]", states, "layout", "a tensor of shape (tokens, dims)")
    shapes = {tuple(states.shape) for states in hidden_states.values()}
    if len(shapes) != 1:
        raise ValueError(f"`{name}` must hold at least one layer, all of one shape, got {sorted(shapes)}.")
    for layer, states in hidden_states.items():
        if depth is not None and not -depth - 1 <= layer <= depth:
            raise ValueError(f"A language model of {depth} layers has no hidden states {layer}.")
        if states.dim() != 2 or 0 in states.shape or states.dtype not in _STATES_DTYPES or not has_values(states):
            got = f"{states.dtype} of shape {tuple(states.shape)}, {states.layout}, on {states.device}"
            raise ValueError(
                f"The states of layer {layer} must be floating (tokens, dims), at least one token, got {got}."
            )
        if not bool(torch.isfinite(states).all()):
            raise ValueError(
                f"The Qwen3-VL hidden states of layer {layer} contain NaN or infinity, often an overflow of float16: "
                "encode the reference in bfloat16 or float32."
            )
