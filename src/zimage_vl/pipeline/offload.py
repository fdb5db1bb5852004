"""Which models are on the accelerator, under diffusers' model offload.

accelerate's chain of hooks brings a model in when its forward is called and sends away only the model before it in the
chain. The VL encoder is not always called, and its forward never is (its inner model's is), so that the chain alone
would leave encoders resident beside the transformer.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ..reference.versions import group_offload_settings


# The parent keeps the state of a call on itself and on the scheduler, and offload moves one model at a time: one call
# at a time.
_call_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_call_locks_lock = threading.Lock()


def lock_of_pipeline(pipe: Any) -> threading.RLock:
    """What a thread holds while it runs a pipeline's models."""
    with _call_locks_lock:
        return _call_locks.setdefault(pipe, threading.RLock())


def model_hooks(pipe: Any) -> list[Any]:
    """The hooks of `enable_model_cpu_offload`; none without it."""
    return list(getattr(pipe, "_all_hooks", ()))


def heal_model_hooks(pipe: Any, *staying: Any) -> None:
    """Begin with the pipeline's own offload hooks and nothing on the accelerator.

    Another pipeline that shares modules may have replaced the hooks, or left a model behind. A pipeline that was made
    of the modules of an offloaded one takes the offload over, for its VL encoder too.

    Args:
        pipe: The pipeline.
        staying: Models that may stay where they are.
    """
    if not model_hooks(pipe):
        device = _foreign_offload_device(pipe)
        if device is not None:
            pipe.enable_model_cpu_offload(device=device)
        elif pipe.vl_encoder is not None:
            join_offload(pipe, pipe.vl_encoder)
    if any(getattr(hook.model, "_hf_hook", None) is not hook.hook for hook in model_hooks(pipe)):
        pipe.maybe_free_model_hooks()
    offload_models(pipe, *(hook.model for hook in model_hooks(pipe) if all(hook.model is not m for m in staying)))


def offload_models(pipe: Any, *models: Any) -> None:
    """Send these models away from the accelerator, where model offload manages them."""
    for hook in model_hooks(pipe):
        if any(hook.model is model for model in models):
            hook.offload()


@contextmanager
def freed_after_error(pipe: Any) -> Generator[None]:
    """Whatever ends the block early, Ctrl-C included, leaves no model behind on the accelerator."""
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()
        raise


def _foreign_offload_device(pipe: Any) -> torch.device | None:
    """Where another pipeline's model offload runs the text encoder; None if no such hook is on it."""
    from accelerate.hooks import CpuOffload

    hook = getattr(pipe.text_encoder, "_hf_hook", None)
    return torch.device(hook.execution_device) if isinstance(hook, CpuOffload) else None


def place_new_model(pipe: Any, model: torch.nn.Module) -> None:
    """Bring a model that has just been registered to where the pipeline keeps its others."""
    if model_hooks(pipe):
        pipe.maybe_free_model_hooks()  # sets all hooks anew, the new model's too
    elif not join_offload(pipe, model) and not getattr(model, "quantization_method", None):
        model.to(pipe.device)


def join_offload(pipe: Any, model: torch.nn.Module) -> bool:
    """Offload a component as the text encoder is, module by module or in groups; whether either is so."""
    if _is_sequentially_offloaded(pipe.text_encoder):
        if not _is_sequentially_offloaded(model):
            _offload_sequentially(pipe, model)
        return True
    settings = group_offload_settings(pipe.text_encoder)
    if settings is not None and group_offload_settings(model) is None:
        _offload_in_groups(model, settings)
    return settings is not None


def _is_sequentially_offloaded(model: torch.nn.Module | None) -> bool:
    # The hooks that offload sit on the modules that hold weights, not on the model as a whole.
    for part in () if model is None else model.modules():
        hook = getattr(part, "_hf_hook", None)
        if any(getattr(single, "offload", False) for single in getattr(hook, "hooks", (hook,))):
            return True
    return False


def _offload_in_groups(model: torch.nn.Module, settings: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    # Leaf by leaf whatever the others do: blocks need a number that is theirs, streams an order that never varies.
    apply_group_offloading(model, settings.onload_device, settings.offload_device, offload_type="leaf_level")


def _offload_sequentially(pipe: Any, model: torch.nn.Module) -> None:
    from accelerate import cpu_offload

    device = getattr(pipe, "_offload_device", None) or pipe._execution_device
    cpu_offload(model, device, offload_buffers=any(True for _ in model.parameters(recurse=False)))


def forget_model(pipe: Any, model: torch.nn.Module) -> None:
    """Take a model that is no longer registered off the accelerator's books and give its memory back."""
    from accelerate.hooks import remove_hook_from_module

    if model_hooks(pipe):
        remove_hook_from_module(model, recurse=True)
        pipe.maybe_free_model_hooks()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
