"""Qwen3-VL as the reader of a picture: loading and checking it, and one pass up to a layer that changes nothing.

Layers are numbered as transformers numbers `hidden_states`: 0 is what the first block reads (word and image
embeddings), k what block k reads, and the last one, also -1, is what the final norm gives. DeepStack adds visual
features between the first blocks; here layer k always has them, as block k reads it. That is the library's own
`hidden_states` up to transformers 4; from 5 on the library shows layers 1..3 before the addition, all others alike.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.utils import cached_file

from ..blend.regions import KNOWN_WIDTHS, Region, TextPosition, check_kind
from .embeds import ReferenceEmbeds
from .pictures import Treatment
from .reading import ReaderSource, Reading, VLImageProcessor, build_reading, get_image_processor
from .turn import picture_turn, read_text_turn


_TOWER = re.compile(r"^(model\.)?visual\.")  # before its tensors' names in a checkpoint
_DESCRIBE = "what is in the picture?"
_readers_logger = logging.get_logger(__name__)
_model_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_model_locks_lock = threading.Lock()


def encode_reference(
    vl_encoder: Qwen3VLForConditionalGeneration,
    vl_processor: object,
    tokenizer: PreTrainedTokenizerBase,
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
    treatment: Treatment = "none",
    muted: bool = False,
) -> ReferenceEmbeds:
    """Get the hidden states of Qwen3-VL's language model over one picture and a text.

    Args:
        vl_encoder: A `Qwen3VLForConditionalGeneration`; it is the same after the call as before.
        vl_processor: Its image processor, or a full `Qwen3VLProcessor`.
        tokenizer: The tokenizer of Z-Image's text encoder, which holds Qwen's vision tokens.
        image: A PIL RGB image, as `load_reference_image` gives it.
        text: The text beside it, `""` for none.
        layers: As for `build_reading`, and so are text_position, max_pixels, mask, treatment and muted.
        max_sequence_length: Cuts the text and the template as a prompt of that bound is cut. None: no bound.
        model_id: As for `find_reader_source`, and so is revision.

    Raises:
        TypeError: Another kind of encoder, processor, image, mask, text or layers.
        ValueError: As `find_reader_source`, `build_reading` and `read_reference`.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> image = Image.new("RGB", (64, 64), "red")
        >>> embeds = encode_reference(pipe.vl_encoder, pipe.vl_processor, pipe.tokenizer, image, "a circle", (-2,))
        >>> embeds.num_image_tokens
        16
    """
    check_vl_encoder(vl_encoder)
    turn = read_text_turn(tokenizer, text, max_sequence_length)
    source = find_reader_source("qwen3-vl", None, vl_encoder.config, vl_processor, model_id, revision)
    reading = build_reading(
        source, tokenizer, image, turn, layers,
        text_position=text_position, max_pixels=max_pixels, mask=mask, treatment=treatment, muted=muted,
    )  # fmt: skip
    return read_reference(vl_encoder, vl_processor, reading)


@torch.no_grad()
def read_reference(
    vl_encoder: Qwen3VLForConditionalGeneration, processor: object, reading: Reading
) -> ReferenceEmbeds:
    """Get the states of a reading's layers, from one pass that stops after the deepest: -6 of 36 runs 31 blocks.

    They are `(tokens, dims)`, of the tokens that no mask removes, in the encoder's dtype, on its device.

    Args:
        vl_encoder: Its mode, weights, hooks and `rope_deltas` stay as they are. While one thread is in here with a
            model, others wait for it.
        processor: Its image processor, or a full `Qwen3VLProcessor`.
        reading: By `build_reading`, for this encoder; `encode_reference` shows how.

    Raises:
        ValueError: NaN or infinity in what the encoder gives, or a processor that makes another grid.
    """
    inner: Any = vl_encoder.model
    patches, grid = _cut_into_patches(processor, inner.visual, reading)
    with _running(vl_encoder) as device, _isolating(inner.visual, reading.visible):
        input_ids, grid = reading.ids.to(device)[None], grid.to(device)
        types = _token_types(inner.get_rope_index, input_ids == inner.config.image_token_id)
        # M-RoPE positions (3, 1, tokens), as if no token were masked: a mask with holes breaks the model's own
        # computation in its pass, which would also keep `rope_deltas` on the module.
        positions, _ = inner.get_rope_index(
            input_ids, image_grid_thw=grid, attention_mask=torch.ones_like(input_ids), **types
        )
        arguments = {
            "input_ids": input_ids,
            # Always: without a mask transformers 4 takes the jumps in M-RoPE positions for several packed sequences.
            "attention_mask": reading.kept.long().to(device)[None],
            "position_ids": positions,
            "pixel_values": patches.to(device),
            "image_grid_thw": grid,
        }
        states, muted = _read_layers(inner, inner.language_model, reading, arguments), None
        if reading.muted:
            with _muting(inner.visual):
                muted = _read_layers(inner, inner.language_model, reading, arguments)
        return _make_embeds(reading, states, muted, fingerprint_vl_encoder(vl_encoder))


@torch.no_grad()
def read_with_text_encoder(text_encoder: PreTrainedModel, features: Tensor, reading: Reading) -> ReferenceEmbeds:
    """Get the states of a text encoder over a reading's turn, its image tokens standing for the picture's features.

    Plain positions and no DeepStack: after Qwen3-VL's merger the features lie in the space of the token embeddings of
    Qwen3, so that Z-Image's own text encoder can read them (ComfyUI, pull request 15976).

    Args:
        text_encoder: Z-Image's; unchanged after the call. While one thread is in here with it, others wait.
        features: `(image tokens, dims)` by `see_picture`.
        reading: By `build_reading`, of that reader.
    """
    body: Any = getattr(text_encoder, "model", text_encoder)  # the same with and without a head
    with _running(text_encoder) as device:
        ids = reading.ids.to(device)
        words = text_encoder.get_input_embeddings()(ids)  # (tokens, dims)

        def run(seen: Tensor) -> dict[int, Tensor]:
            arguments = {
                "inputs_embeds": words.index_put((reading.regions.to(device) == Region.IMAGE,), seen.to(words))[None],
                "attention_mask": reading.kept.long().to(device)[None],
                "position_ids": torch.arange(len(ids), device=device)[None],
            }
            return _read_layers(body, body, reading, arguments)

        return _make_embeds(reading, run(features), run(features * 0) if reading.muted else None, None)


@torch.no_grad()
def see_picture(vision: Qwen3VLVisionModel, processor: object, reading: Reading) -> Tensor:
    """Get Qwen3-VL's merged features of a reading's picture, `(image tokens, dims)`, in reading order.

    Args:
        vision: Qwen3-VL's vision tower, alone or as `vl_encoder.model.visual`.
        processor: Its image processor, or a full `Qwen3VLProcessor`.
        reading: By `build_reading`.
    """
    patches, grid = _cut_into_patches(processor, vision, reading)
    features: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:  # what the tower returns varies by version
        features.append(output)

    with _running(vision) as device, _isolating(vision, reading.visible):
        hook = vision.merger.register_forward_hook(keep)
        try:
            vision(patches.to(device, next(vision.parameters()).dtype), grid_thw=grid.to(device))
        finally:
            hook.remove()
    return features[0]


@torch.no_grad()
def describe_picture(
    vl_encoder: Qwen3VLForConditionalGeneration,
    processor: object,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
) -> str:
    """Let the VL encoder say what is in a picture: greedy, at most 96 tokens.

    Args:
        vl_encoder: The whole model, with its head.
        processor: Its image processor, or a full `Qwen3VLProcessor`.
        tokenizer: The pipeline's.
        reading: By `build_reading`; its picture and grid are used, and what a mask hides is gone from both.

    Raises:
        ValueError: The encoder wrote nothing.
    """
    model: Any = vl_encoder
    patches, grid = _cut_into_patches(processor, model.model.visual, reading)
    ids, regions = picture_turn(tokenizer, read_text_turn(tokenizer, _DESCRIBE), reading.grid[0] * reading.grid[1])
    rope_deltas = model.model.rope_deltas
    with _running(vl_encoder) as device:
        input_ids = ids.to(device)[None]
        try:
            written = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                pixel_values=patches.to(device),
                image_grid_thw=grid.to(device),
                max_new_tokens=96,
                do_sample=False,
                eos_token_id=tokenizer.get_vocab()["<|im_end|>"],
                pad_token_id=tokenizer.pad_token_id,
                **_token_types(model.forward, (regions == Region.IMAGE).to(device)[None]),
            )
        finally:
            model.model.rope_deltas = rope_deltas
    text = str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)).strip()
    if not text:
        raise ValueError("The VL encoder wrote no description of the reference: say yourself what is in it, as text.")
    return text


def _make_embeds(
    reading: Reading, states: Mapping[int, Tensor], muted: Mapping[int, Tensor] | None, fingerprint: str | None
) -> ReferenceEmbeds:
    first = next(iter(states.values()))
    dtype = str(first.dtype).removeprefix("torch.")
    provenance = replace(reading.provenance, vl_fingerprint=fingerprint, dtype=dtype)
    return ReferenceEmbeds(states, reading.regions[reading.kept].to(first.device), provenance, muted or {})


def _cut_into_patches(processor: object, visual: Qwen3VLVisionModel, reading: Reading) -> tuple[Tensor, Tensor]:
    """(patches, patch values) and (1, 3) times, rows and columns of patches, before merging."""
    image_processor = get_image_processor(processor, visual.config)
    # The picture has its size already, so the processor must not resize it.
    features = image_processor(images=[reading.picture], do_resize=False, return_tensors="pt")
    expected = [[1, *(side * image_processor.merge_size for side in reading.grid)]]
    if features["image_grid_thw"].tolist() != expected:
        raise ValueError(
            f"The image processor made a grid of {features['image_grid_thw'].tolist()} patches, expected {expected}. "
            "Load it with transformers.AutoImageProcessor from the VL encoder's folder."
        )
    return features["pixel_values"], features["image_grid_thw"]


def _token_types(function: Callable[..., Any], is_image: Tensor) -> dict[str, Tensor]:
    """Wanted by name from transformers 5.1 on; before, the model finds the image tokens by their id."""
    wanted = "mm_token_type_ids" in inspect.signature(function).parameters
    return {"mm_token_type_ids": is_image.int()} if wanted else {}


# ---- Temporary changes, undone whatever happens ----


class _LanguageModel(Protocol):
    """The part of Qwen3 and of Qwen3-VL's language model that is used here."""

    layers: nn.ModuleList
    norm: nn.Module


def _read_layers(
    model: Callable[..., Any], language_model: _LanguageModel, reading: Reading, arguments: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    """(tokens, dims) of each layer asked for, without tokens that a mask removes, from one pass.

    The block list is cut before the deepest layer and the final norm replaced, so the rest never runs (nor is brought
    to the device); other layers are kept as their blocks read them. Bit for bit the `hidden_states` of a full pass.
    """
    blocks, norm, deepest = language_model.layers, language_model.norm, max(reading.layers.values())
    captured: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    with ExitStack() as undo:
        for layer in set(reading.layers.values()) - {deepest}:
            undo.callback(blocks[layer].register_forward_pre_hook(keep(layer), with_kwargs=True).remove)
        if deepest < len(blocks):  # the last one is after the final norm: nothing to leave out
            undo.callback(setattr, language_model, "layers", blocks)
            undo.callback(setattr, language_model, "norm", norm)
            language_model.layers, language_model.norm = nn.ModuleList(list(blocks)[:deepest]), nn.Identity()
        captured[deepest] = model(**arguments, use_cache=False, return_dict=True).last_hidden_state
    kept = reading.kept.to(captured[deepest].device)
    return {asked: captured[layer][0][kept] for asked, layer in reading.layers.items()}


@contextmanager
def _muting(visual: Qwen3VLVisionModel) -> Generator[None]:
    """Within it, the vision tower's features, DeepStack's too, are 0."""

    def mute(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output * 0

    with ExitStack() as undo:
        for merger in (visual.merger, *visual.deepstack_merger_list):
            undo.callback(merger.register_forward_hook(mute).remove)
        yield


@contextmanager
def _isolating(visual: Qwen3VLVisionModel, visible: Tensor | None) -> Generator[None]:
    """Within it, the vision tower's patches attend only within their own kind: kept among kept, hidden among hidden.

    Every attention sees the patches reordered, the kept ones first, as if they were two pictures, and its output
    is put back in place. All else in the tower works on patches, or on the patches of one token, alone.

    `visible` is `(image tokens,)` bool, with at least one of each kind; with None nothing is changed.
    """
    if visible is None:
        yield
        return
    patches = visible.repeat_interleave(visual.spatial_merge_size**2)  # (patches,), in the tower's order
    order = torch.argsort((~patches).int(), stable=True)
    back = torch.argsort(order)
    bounds = [0, int(patches.sum()), patches.numel()]

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs.pop("hidden_states")  # (patches, dims)
        positions = tuple(part[order.to(part.device)] for part in kwargs["position_embeddings"])
        changed = {"position_embeddings": positions, "cu_seqlens": kwargs["cu_seqlens"].new_tensor(bounds)}
        return (states[order.to(states.device)], *args[1:]), kwargs | changed

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[back.to(output.device)]

    with ExitStack() as undo:
        for block in visual.blocks:
            attention = block.get_submodule("attn")
            undo.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(attention.register_forward_hook(after).remove)
        yield


@contextmanager
def _running(model: nn.Module) -> Generator[torch.device]:
    """Within it, a model is this thread's alone, whichever pipeline it is in, and it is where its inputs belong."""
    with lock_of_model(model):
        bring_to_device(model)
        yield execution_device(model)


def lock_of_model(model: nn.Module) -> threading.RLock:
    """Get the one lock of a model, whichever pipeline it is in."""
    with _model_locks_lock:
        return _model_locks.setdefault(model, threading.RLock())


# ---- Devices and hooks ----


def execution_device(module: nn.Module) -> torch.device:
    """Get the device that a module's inputs belong on: that of its offload hooks if it has some, or of its weights."""
    group = group_offload_settings(module)
    if group is not None:
        return torch.device(group.onload_device)
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for single in getattr(hook, "hooks", (hook,)):
            device = getattr(single, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device


def bring_to_device(model: nn.Module) -> None:
    """Bring a reader to where it runs: model offload hooks its outer forward, which may not be called here."""
    hook = getattr(model, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model)
    # transformers 4 looks at the position table's device before it runs it, and would compute on the meta device where
    # sequential offload keeps it away. The table's own hook sends it away again.
    for name, table in model.named_modules():
        hook = getattr(table, "_hf_hook", None)
        if name.endswith("pos_embed") and hook is not None and cast("Any", table).weight.device.type == "meta":
            hook.pre_forward(table)


def group_offload_settings(module: nn.Module | None) -> Any:
    """Get how diffusers' group offload moves a module (`onload_device`, `offload_device`), None without.

    diffusers' functions that tell are private, and moved between versions.
    """
    for part in () if module is None else module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None:
            return hook.config
    return None


# ---- Checks and loading ----


def check_vl_encoder(vl_encoder: object, width: int | None = None) -> None:
    """Check that a VL encoder, quantised or not, can serve, from its config and its parts: no model is run.

    Raises:
        TypeError: It is not of Qwen3-VL's family, or not the whole model.
        ValueError: Its language model is not `width` wide. None leaves the width unchecked.

    Example:
        >>> check_vl_encoder(torch.nn.Linear(2, 2), 2560)
        Traceback (most recent call last):
        TypeError: `vl_encoder` must be a Qwen3VLForConditionalGeneration, the whole model, got Linear.
    """
    inner = getattr(vl_encoder, "model", None)
    if not hasattr(inner, "language_model") or not hasattr(inner, "visual"):
        got = type(vl_encoder).__name__
        raise TypeError(f"`vl_encoder` must be a Qwen3VLForConditionalGeneration, the whole model, got {got}.")
    check_vl_config(getattr(vl_encoder, "config", None), width)


def check_vl_config(config: PretrainedConfig | None, width: int | None = None) -> None:
    """Check that a model can serve as VL encoder, from its config alone; errors as `check_vl_encoder`."""
    family = getattr(config, "model_type", None)
    if config is None or family != "qwen3_vl":
        raise TypeError(f"The VL encoder must be Qwen/Qwen3-VL-4B-Instruct or alike, got a model of type {family!r}.")
    _check_width(config.text_config.hidden_size, width)


def _check_width(own: int, width: int | None) -> None:
    if width is not None and own != width:
        raise ValueError(f"The VL encoder must be as wide as the text encoder, {width}, got {own}. {KNOWN_WIDTHS}")


class VLPlace(NamedTuple):
    """Where a VL encoder lies: Hub id or folder, revision on the Hub, the subfolders of encoder and processor."""

    model_id: str | os.PathLike[str]
    revision: str | None = None
    subfolder: str = ""
    processor_subfolder: str = ""


def load_vl_config(place: VLPlace) -> tuple[Qwen3VLConfig, VLImageProcessor]:
    """Load a VL encoder's config and image processor, a few small files; errors as `load_vl_encoder_parts`."""
    revision = place.revision or "main"
    with _explaining_failure(place):
        config = AutoConfig.from_pretrained(place.model_id, revision=revision, subfolder=place.subfolder)
        check_vl_config(config)
        # AutoImageProcessor needs no torchvision, AutoProcessor does.
        processor = AutoImageProcessor.from_pretrained(
            place.model_id, revision=revision, subfolder=place.processor_subfolder
        )
    return cast("Qwen3VLConfig", config), get_image_processor(processor, cast("Any", config).vision_config)


def find_reader_source(
    vl_reader: str,
    text_config: PretrainedConfig | None,
    config: PretrainedConfig,
    processor: object,
    model_id: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> ReaderSource:
    """Get what a reading is built from, of a reader that fits the text encoder.

    Args:
        vl_reader: Which reader it is.
        text_config: The text encoder's config; None leaves widths unchecked.
        config: The VL encoder's config, or with "text_encoder" that of its vision tower alone.
        processor: Its image processor, or a full `Qwen3VLProcessor`.
        model_id: For the provenance: Hub id or folder of the VL encoder.
        revision: For the provenance: its revision.

    Raises:
        TypeError: Another kind of model or processor.
        ValueError: A reader that is not as wide as the text encoder, a processor of another model.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> find_reader_source("qwen3-vl", None, pipe.vl_encoder.config, pipe.vl_processor).num_hidden_layers
        8
    """
    vision, image_token_id = getattr(config, "vision_config", config), None
    language: Any = text_config
    width = None if text_config is None else text_config.hidden_size
    if vl_reader == "text_encoder":
        _check_width(vision.out_hidden_size, width)
    else:
        check_vl_config(config, width)
        language, image_token_id = config.text_config, config.image_token_id
    name, depth = None if model_id is None else str(model_id), language.num_hidden_layers
    return ReaderSource(vl_reader, get_image_processor(processor, vision), depth, image_token_id, name, revision)


def load_vl_encoder_parts(
    place: VLPlace, dtype: torch.dtype | None = None
) -> tuple[Qwen3VLForConditionalGeneration, VLImageProcessor]:
    """Load a VL encoder and its image processor, and log one line that says what was loaded.

    With None for `dtype` the weights keep the checkpoint's.

    Raises:
        OSError: It can neither be found locally nor be downloaded, or is not whole.
        TypeError: It is another kind of model.
    """
    config, processor = load_vl_config(place)
    with _explaining_failure(place):
        # Whole: the bare Qwen3VLModel would start from random weights on transformers 4.57, with only a warning.
        encoder = Qwen3VLForConditionalGeneration.from_pretrained(
            place.model_id,
            config=config,
            dtype=dtype or "auto",
            revision=place.revision or "main",
            subfolder=place.subfolder,
        )
    _log_loaded("VL encoder", place, encoder)
    return encoder.eval(), processor


def load_vision_tower(place: VLPlace, dtype: torch.dtype | None = None) -> tuple[nn.Module, VLImageProcessor]:
    """Load Qwen3-VL's vision tower alone, and its image processor: 0.41 B of the 4B model's 4.44 B parameters.

    Of a Hub repository only the files that hold the tower are fetched (its index says which), and of these only its
    tensors are read. Errors as `load_vl_encoder_parts`.
    """
    config, processor = load_vl_config(place)
    with _explaining_failure(place):
        with init_empty_weights(include_buffers=False):
            tower = Qwen3VLVisionModel(cast("Any", config.vision_config))
        tower.load_state_dict(_read_tower(place, dtype), assign=True)
    _log_loaded("vision tower of", place, tower)
    return tower.eval(), processor


def _log_loaded(what: str, place: VLPlace, model: PreTrainedModel) -> None:
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    revision = place.revision or "default"
    _readers_logger.warning(f"Loaded the {what} {place.model_id} (revision {revision}, {model.dtype}, {size:.3g} GB).")


def _read_tower(place: VLPlace, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tower's tensors by their names within it, from a whole file or from shards."""
    model_id, at = place.model_id, {"revision": place.revision, "subfolder": place.subfolder}
    index = cached_file(model_id, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **at)
    files = ["model.safetensors"]
    if index is not None:
        listed: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for name, file in listed.items() if _TOWER.match(name)})
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(cast("str", cached_file(model_id, file, **at)), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                if _TOWER.match(name):
                    found[_TOWER.sub("", name)] = tensors.get_tensor(name).to(dtype)
    return found


@contextmanager
def _explaining_failure(place: VLPlace) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
        raise OSError(
            f"The VL encoder {str(place.model_id)!r} could not be loaded: {reason}. Pass the Hub id of a Qwen3-VL "
            "(online, the first time) or the path of a local folder as `vl_model_id`."
        ) from error


# ---- Which model it is ----


def fingerprint_text_encoder(text_encoder: PreTrainedModel) -> str:
    """Get which text encoder it is: the SHA-256 of the sizes in its config and of all its norm weights, in hex.

    It is the same on every device and version of transformers, and in every dtype that keeps the checkpoint's values.
    Quantisation leaves norms alone, and so does a LoRA, which does not show.

    Raises:
        ValueError: Its weights are not in memory, as under sequential offload.

    Example:
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> len(fingerprint_text_encoder(load_toy_pipeline().text_encoder))
        64
    """
    check_kind(
        "text_encoder", text_encoder, "get_input_embeddings", "Z-Image's text encoder, such as pipe.text_encoder"
    )
    body = getattr(text_encoder, "model", text_encoder)  # the same with and without a head
    fingerprint = _norms_digest([text_encoder.config], {"": body})
    if fingerprint is None:
        raise ValueError("The text encoder's weights are away: fingerprint it before enable_sequential_cpu_offload.")
    return fingerprint


def fingerprint_vl_encoder(vl_encoder: Qwen3VLForConditionalGeneration) -> str | None:
    """Get which Qwen3-VL it is, as `fingerprint_text_encoder`, by the norms of its vision tower and first block.

    It works under offload too; None where its weights cannot be read, as on torch's meta device.
    """
    check_vl_encoder(vl_encoder)
    config, inner = vl_encoder.config, cast("Any", vl_encoder.model)
    parts = {"visual": inner.visual, "first": inner.language_model.layers[0]}
    return _norms_digest([config.text_config, config.vision_config], parts)


def _norms_digest(configs: Sequence[object], parts: Mapping[str, nn.Module]) -> str | None:
    from accelerate.utils import align_module_device  # slow to import

    digest = hashlib.sha256()
    for config in configs:
        names = ("hidden_size", "num_hidden_layers", "depth", "intermediate_size", "vocab_size", "patch_size")
        digest.update(repr([getattr(config, name, None) for name in names]).encode())
    norms = {f"{at}.{name}": m for at, part in parts.items() for name, m in part.named_modules() if "norm" in name}
    for _, norm in sorted(norms.items()):
        with align_module_device(norm):  # brings in what is offloaded layer by layer
            for _, weight in sorted(norm.named_parameters(recurse=False)):
                if weight.device.type == "meta":
                    return None
                values = weight.detach().to("cpu", torch.bfloat16).float()
                values = torch.where(values.abs() < 2.0**-14, 0.0, values)  # which float16 would round
                digest.update(values.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
