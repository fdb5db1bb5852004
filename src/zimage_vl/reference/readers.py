"""One forward pass of Qwen3-VL's inner model: the states of some layers, no logits, and nothing left changed.

Layers are numbered as transformers numbers `hidden_states`: 0 is what the first block reads (word and image
embeddings), k what block k reads, and the last one, also -1, is what the final norm gives. DeepStack adds visual
features between the first blocks; here layer k always has them, as block k reads it. That is the library's own
`hidden_states` up to transformers 4; from 5 on the library shows layers 1..3 before the addition, all others alike.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .block_counts import get_full_depth
from .versions import bring_position_table, compute_position_ids, group_offload_settings


_VL_WIDTHS = {2048: "Qwen3-VL-2B", 2560: "Qwen3-VL-4B", 4096: "Qwen3-VL-8B", 5120: "Qwen3-VL-32B"}

_model_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_model_locks_lock = threading.Lock()


@dataclass(frozen=True)
class VLInputs:
    """What the inner model reads for one reference.

    Attributes:
        input_ids: `(tokens,)` int64 ids of the turn.
        pixel_values: `(patches, patch values)` from the image processor; None where the picture is not read again.
        image_grid_thw: `(1, 3)` int64: 1, rows and columns of patches (before merging).
        visible: `(image tokens,)` bool, False where a mask removes the token; None without a mask.
    """

    input_ids: Tensor
    pixel_values: Tensor | None
    image_grid_thw: Tensor
    visible: Tensor | None = None


# ---- Devices and hooks ----


def execution_device(module: nn.Module) -> torch.device:
    """The device that a module's inputs belong on: that of its offload hooks if it has some, or of its weights."""
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


def bring_to_device(vl_encoder: Any) -> None:
    # Model offload hooks the outer model's forward, which is never called here: its hook has to be told.
    hook = getattr(vl_encoder, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(vl_encoder)
    bring_position_table(vl_encoder.model.visual)


# ---- Checks ----


def check_vl_encoder(vl_encoder: Any, width: int | None = None) -> None:
    """Refuses a VL encoder that cannot serve, from its config alone: no model is run.

    Args:
        vl_encoder: Should be a `Qwen3VLForConditionalGeneration`, quantised or not.
        width: Dimensions of the text embeddings its states are blended into; None to leave the width unchecked.

    Raises:
        TypeError: It is not of Qwen3-VL's family, or not the whole model.
        ValueError: Its language model is not `width` wide.

    Example:
        >>> check_vl_encoder(torch.nn.Linear(2, 2), 2560)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: `vl_encoder` must be a Qwen3VLForConditionalGeneration, got Linear. Load ...
    """
    wanted = "`vl_encoder` must be a Qwen3VLForConditionalGeneration"
    family = getattr(getattr(vl_encoder, "config", None), "model_type", None)
    got = type(vl_encoder).__name__ + (f" of model type {family!r}" if family else "")
    if family != "qwen3_vl":
        raise TypeError(f"{wanted}, got {got}. Load Qwen/Qwen3-VL-4B-Instruct as one.")
    inner = getattr(vl_encoder, "model", None)
    if not hasattr(inner, "language_model") or not hasattr(inner, "visual"):
        raise TypeError(f"{wanted}, got {got}, which is only a part of it. Pass the whole model.")
    own_width = vl_encoder.config.text_config.hidden_size
    if width is not None and own_width != width:
        raise ValueError(
            f"`vl_encoder` must be as wide as the text encoder: expected hidden size {width}{_width_hint(width)}, got "
            f"{own_width}{_width_hint(own_width)}. Load a Qwen3-VL of width {width}."
        )


def _width_hint(width: int) -> str:
    return f" (that of {_VL_WIDTHS[width]})" if width in _VL_WIDTHS else ""


def resolve_layers(layers: Sequence[int], num_hidden_layers: int) -> dict[int, int]:
    """Each layer as asked for, to its number counted from 0.

    Raises:
        TypeError: `layers` is not a sequence of integers.
        ValueError: It is empty, or a layer is out of range.

    Example:
        >>> resolve_layers((-6, 4), 36)
        {-6: 31, 4: 4}
    """
    given = cast(Any, layers)
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise TypeError(f"`layers` must be a sequence of integers such as (-6,), got {layers!r}.")
    if not layers:
        raise ValueError("`layers` must name at least one layer, got none.")
    for layer in cast("Sequence[Any]", given):
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise TypeError(f"`layers` must be integers, got {layer!r}.")
        if not -num_hidden_layers - 1 <= layer <= num_hidden_layers:
            raise ValueError(
                f"Layer {layer} is out of range: a language model of {num_hidden_layers} layers has hidden states "
                f"{-num_hidden_layers - 1} .. {num_hidden_layers} (-1 is after the final norm)."
            )
    return {layer: layer % (num_hidden_layers + 1) for layer in layers}


def resolve_vl_layers(vl_encoder: Any, layers: Sequence[int]) -> dict[int, int]:
    """As `resolve_layers`, of the whole model's layers; refuses those whose blocks were not loaded.

    Raises:
        TypeError: As `resolve_layers`.
        ValueError: As `resolve_layers`; a layer needs blocks that were left out when the encoder was loaded.
    """
    config = vl_encoder.config.text_config
    depth, loaded = get_full_depth(config), config.num_hidden_layers
    wanted = resolve_layers(layers, depth)
    for layer, number in wanted.items():
        if loaded < depth and number > loaded:
            raise ValueError(
                f"Layer {layer} needs {min(number, depth)} of the VL encoder's {depth} blocks, but only the first "
                f"{loaded} were loaded. Load it again, `pipe.unload_vl_encoder()` and then "
                f"`pipe.load_vl_encoder(layers=({layer},))`, or without `layers` for all blocks."
            )
    return wanted


# ---- Temporary changes, undone whatever happens ----


@contextmanager
def early_exit(language_model: Any, layer: int) -> Generator[None]:
    """Within it, the language model stops before block `layer` and its output is what that block would read.

    The block list is cut and the final norm replaced, so the rest never runs (nor is brought to the device); both
    are put back at the end. Bit for bit the `hidden_states[layer]` of a full pass.
    """
    layers, norm = language_model.layers, language_model.norm
    if layer >= get_full_depth(language_model.config):
        yield  # the last one is after the final norm: nothing to leave out
        return
    try:
        language_model.layers = nn.ModuleList(list(layers)[:layer])
        language_model.norm = nn.Identity()
        yield
    finally:
        language_model.layers, language_model.norm = layers, norm


@contextmanager
def _capture_inputs(language_model: Any, layers: Sequence[int], captured: dict[int, Tensor]) -> Generator[None]:
    """Within it, what each of these blocks reads is kept, by hooks of our own: the library's vary by version."""

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    with ExitStack() as undo:
        for layer in layers:
            handle = language_model.layers[layer].register_forward_pre_hook(keep(layer), with_kwargs=True)
            undo.callback(handle.remove)
        yield


@contextmanager
def isolate_patches(visual: Any, visible: Tensor) -> Generator[None]:
    """Within it, the vision tower's patches attend only within their own kind: kept among kept, hidden among hidden.

    Every attention sees the patches reordered, the kept ones first, as if they were two pictures, and its output
    is put back in place. All else in the tower works on patches, or on the patches of one token, alone.

    Args:
        visual: Qwen3-VL's vision model.
        visible: `(patches,)` bool, in the tower's order, with at least one of each kind.
    """
    order = torch.argsort((~visible).int(), stable=True)
    back = torch.argsort(order)
    bounds = [0, int(visible.sum()), visible.numel()]

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = args[0] if args else kwargs.pop("hidden_states")
        at = order.to(states.device)
        cos, sin = kwargs["position_embeddings"]
        cut = torch.tensor(bounds, dtype=kwargs["cu_seqlens"].dtype, device=kwargs["cu_seqlens"].device)
        changed = {"position_embeddings": (cos[at.to(cos.device)], sin[at.to(sin.device)]), "cu_seqlens": cut}
        return (states[at], *args[1:]), kwargs | changed

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[back.to(output.device)]

    with ExitStack() as undo:
        for block in visual.blocks:
            undo.callback(block.attn.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(block.attn.register_forward_hook(after).remove)
        yield


def lock_of_model(model: nn.Module) -> threading.RLock:
    with _model_locks_lock:
        return _model_locks.setdefault(model, threading.RLock())


# ---- The pass ----


@torch.no_grad()
def vl_hidden_states(
    vl_encoder: Any, inputs: VLInputs, layers: Sequence[int], device: torch.device | None = None
) -> dict[int, Tensor]:
    """States of the layers asked for, from one pass that stops after the deepest of them.

    Args:
        vl_encoder: A `Qwen3VLForConditionalGeneration`. Its mode, weights, hooks and `rope_deltas` stay as they are.
            While one thread is in here with a model, others wait for it.
        inputs: Ids, patches and mask of one reference.
        layers: Layers counted from 0, each at most the number of blocks.
        device: Where the inputs belong; None to ask accelerate's hooks, or else the weights.

    Returns:
        Layer to `(tokens, dims)`, in the model's dtype and on its device; all tokens, also those a mask hides.
    """
    with lock_of_model(vl_encoder):
        bring_to_device(vl_encoder)
        arguments = forward_arguments(vl_encoder, inputs, device or execution_device(vl_encoder))
        return run_to_layers(vl_encoder, arguments, layers, inputs.visible)


def run_to_layers(
    vl_encoder: Any, arguments: dict[str, Any], layers: Sequence[int], visible: Tensor | None = None
) -> dict[int, Tensor]:
    """The pass itself, over ready arguments; the model's lock is held, and it is where it runs.

    Args:
        vl_encoder: As in `vl_hidden_states`.
        arguments: Of the inner model.
        layers: As in `vl_hidden_states`.
        visible: `(image tokens,)` bool where hidden patches are to be kept apart in the vision tower.
    """
    inner, deepest = vl_encoder.model, max(layers)
    captured: dict[int, Tensor] = {}
    with ExitStack() as undo:
        if visible is not None:
            merge = vl_encoder.config.vision_config.spatial_merge_size
            undo.enter_context(isolate_patches(inner.visual, visible.repeat_interleave(merge * merge)))
        undo.enter_context(_capture_inputs(inner.language_model, [k for k in layers if k != deepest], captured))
        undo.enter_context(early_exit(inner.language_model, deepest))
        captured[deepest] = inner(**arguments).last_hidden_state
    return {layer: captured[layer][0] for layer in layers}


def forward_arguments(vl_encoder: Any, inputs: VLInputs, device: torch.device) -> dict[str, Any]:
    """What the inner model is called with, on its device. Without pixels, what the language model reads alone."""
    image_token_id = vl_encoder.config.image_token_id
    input_ids = inputs.input_ids.to(device)[None]
    grid = inputs.image_grid_thw.to(device)
    # Always a mask: without one transformers 4 takes the jumps in M-RoPE positions for several packed sequences.
    attention_mask = torch.ones_like(input_ids)
    if inputs.visible is not None:
        attention_mask[input_ids == image_token_id] = inputs.visible.to(device, attention_mask.dtype)
    picture = {}
    if inputs.pixel_values is not None:
        picture = {"pixel_values": inputs.pixel_values.to(device), "image_grid_thw": grid}
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": compute_position_ids(vl_encoder.model, input_ids, grid, image_token_id),
        **picture,
        "use_cache": False,
        "return_dict": True,
    }
