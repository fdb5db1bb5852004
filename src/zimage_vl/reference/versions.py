"""What differs between the versions of the libraries, where it cannot be avoided; and who else has to know.

Supported from diffusers 0.36 and transformers 4.57 on. The rest of the code avoids the question:

- Guidance starts above 1 in diffusers 0.36 and above 0 later: the pipeline asks its own `do_classifier_free_guidance`.
- The last of N steps does nothing up to diffusers 0.38: `vl_start` and `vl_end` count the steps that are asked for.
- `hidden_states` of the DeepStack layers differ, and how they are asked for: `vl_forward` takes what the blocks read.
- Only diffusers from 0.38 on asks for `trust_remote_code`, and only from 0.40 on for `dtype`: callers write both.
- Configs and tokenizers that transformers 5 saves do not load in 4.57: the toy world is packed in the older form.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


# The library's default bound of Qwen2-VL. transformers 4 puts it in place of the `size` of every
# preprocessor_config.json, so it says nothing about the model; taken as "no bound of its own", it gives the same
# grid in every version.
_UNTOLD_MAX_PIXELS = 28 * 28 * 1280


def compute_position_ids(inner: Any, input_ids: Tensor, image_grid_thw: Tensor, image_token_id: int) -> Tensor:
    """M-RoPE positions `(3, 1, tokens)`, by Qwen3-VL's own rule, as if no token were masked.

    Passed to the model instead of left to it: a mask with holes breaks its own computation, and it would keep
    `rope_deltas` of this call on the module.
    """
    arguments: dict[str, Any] = {"image_grid_thw": image_grid_thw, "attention_mask": torch.ones_like(input_ids)}
    # Wanted by name from transformers 5.1 on; before, the model finds the image tokens by their id.
    if "mm_token_type_ids" in inspect.signature(inner.get_rope_index).parameters:
        arguments["mm_token_type_ids"] = (input_ids == image_token_id).int()
    return inner.get_rope_index(input_ids, **arguments)[0]


def get_own_max_pixels(image_processor: Any) -> int | None:
    """A Qwen2-VL image processor's own bound on pixels, None if it states none."""
    size: Any = getattr(image_processor, "size", None) or {}
    own = size.get("longest_edge") if hasattr(size, "get") else getattr(size, "longest_edge", None)
    return None if own in (None, _UNTOLD_MAX_PIXELS) else int(own)


def bring_position_table(visual: Any) -> None:
    """Bring the vision tower's position table in, where sequential offload keeps it away.

    transformers 4 looks at the table's device before it runs it, and computes on the meta device if it is away. Its
    own hook sends it away again after it has run.
    """
    table = visual.pos_embed
    hook = getattr(table, "_hf_hook", None)
    if hook is not None and table.weight.device.type == "meta":
        hook.pre_forward(table)


def group_offload_settings(module: nn.Module | None) -> Any:
    """How diffusers' group offload moves a module: an object with `onload_device` and `offload_device`; None without.

    diffusers' functions that tell are private, and moved between versions.
    """
    for part in () if module is None else module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hook = None if registry is None else registry.get_hook("group_offloading")
        if hook is not None:
            return hook.config
    return None


def takes_attention_kwargs(transformer: Any) -> bool:
    """Whether Z-Image's transformer reads `joint_attention_kwargs`; diffusers 0.36 drops them, a LoRA's scale too."""
    forward = getattr(transformer, "_orig_mod", transformer).forward
    return "joint_attention_kwargs" in inspect.signature(forward).parameters
