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


# The parent keeps the state of a call on itself and on the scheduler, and offload moves one model at a time: one call
# at a time.
_call_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_call_locks_lock = threading.Lock()


def lock_of_pipeline(pipe: Any) -> threading.RLock:
    """What a thread holds while it runs a pipeline's models."""
    with _call_locks_lock:
        return _call_locks.setdefault(pipe, threading.RLock())


def _model_hooks(pipe: Any) -> list[Any]:
    """The hooks of `enable_model_cpu_offload`; none without it."""
    return list(getattr(pipe, "_all_hooks", ()))


def heal_model_hooks(pipe: Any) -> None:
    """Put the pipeline's offload hooks back where another pipeline, sharing modules, has replaced them."""
    if any(getattr(hook.model, "_hf_hook", None) is not hook.hook for hook in _model_hooks(pipe)):
        pipe.maybe_free_model_hooks()


def offload_models(pipe: Any, *models: Any) -> None:
    """Send these models away from the accelerator, where model offload manages them."""
    for hook in _model_hooks(pipe):
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


def place_new_model(pipe: Any, model: torch.nn.Module) -> None:
    """Bring a model that has just been registered to where the pipeline keeps its others."""
    if _model_hooks(pipe):
        pipe.maybe_free_model_hooks()  # sets all hooks anew, the new model's too
    elif _is_sequentially_offloaded(pipe):
        _offload_sequentially(pipe, model)
    elif not getattr(model, "quantization_method", None):
        model.to(pipe.device)


def _is_sequentially_offloaded(pipe: Any) -> bool:
    hook = getattr(getattr(pipe, "text_encoder", None), "_hf_hook", None)
    return any(getattr(single, "offload", False) for single in getattr(hook, "hooks", (hook,)))


def _offload_sequentially(pipe: Any, model: torch.nn.Module) -> None:
    from accelerate import cpu_offload

    device = getattr(pipe, "_offload_device", None) or pipe._execution_device
    cpu_offload(model, device, offload_buffers=any(True for _ in model.parameters(recurse=False)))


def forget_model(pipe: Any, model: torch.nn.Module) -> None:
    """Take a model that is no longer registered off the accelerator's books and give its memory back."""
    from accelerate.hooks import remove_hook_from_module

    if _model_hooks(pipe):
        remove_hook_from_module(model, recurse=True)
        pipe.maybe_free_model_hooks()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
