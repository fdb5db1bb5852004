"""Where the models are: diffusers' kinds of offload, kept right although the VL encoder is not in every call.

accelerate's chain of hooks brings a model in when its forward is called and sends away only the model before it in the
chain. The VL encoder is not always called, and its forward never is (its inner model's is), so that the chain alone
would leave encoders resident beside the transformer.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, remove_hook_from_module
from diffusers import ZImagePipeline
from torch import nn

from ..reference.readers import group_offload_settings, lock_of_model


@contextmanager
def lock_of_models(pipe: ZImagePipeline) -> Generator[None]:
    """Let one thread at a time run these modules, whichever of our pipelines they are reached through.

    A call keeps its state on the pipeline and its scheduler, and offload moves one model at a time.
    """
    # By name: diffusers' `components` reads signatures each time.
    parts = (pipe.vl_encoder, pipe.vl_vision, pipe.text_encoder, pipe.transformer, pipe.vae)
    with ExitStack() as held:
        for module in sorted((part for part in parts if isinstance(part, nn.Module)), key=id):
            held.enter_context(lock_of_model(module))
        yield


@contextmanager
def freed_after_error(pipe: ZImagePipeline) -> Generator[None]:
    """Whatever ends the block early, Ctrl-C included, leaves no model behind on the accelerator."""
    try:
        yield
    except BaseException:
        pipe.maybe_free_model_hooks()
        raise


def model_hooks(pipe: ZImagePipeline) -> list[Any]:
    """The hooks of `enable_model_cpu_offload`; none without it."""
    return list(getattr(pipe, "_all_hooks", ()))


def offload_models(pipe: ZImagePipeline, *models: object) -> None:
    """Send these models away from the accelerator, where model offload manages them."""
    for hook in model_hooks(pipe):
        if any(hook.model is model for model in models):
            hook.offload()


def heal_model_hooks(pipe: ZImagePipeline, *staying: object) -> None:
    """Begin with the pipeline's own offload hooks and nothing but `staying` on the accelerator.

    Another pipeline that shares modules may have replaced the hooks, or left a model behind. A pipeline that was made
    of the modules of an offloaded one takes the offload over.
    """
    if not model_hooks(pipe):
        foreign = getattr(pipe.text_encoder, "_hf_hook", None)
        if not isinstance(foreign, CpuOffload):
            return
        pipe.enable_model_cpu_offload(device=torch.device(foreign.execution_device))
    if any(getattr(hook.model, "_hf_hook", None) is not hook.hook for hook in model_hooks(pipe)):
        pipe.maybe_free_model_hooks()
    offload_models(pipe, *(hook.model for hook in model_hooks(pipe) if all(hook.model is not m for m in staying)))


def place_like_others(pipe: ZImagePipeline, model: nn.Module) -> None:
    """Offload a model as the pipeline's text encoder is, or bring it to the pipeline's device."""
    if any(hook.model is model for hook in model_hooks(pipe)):
        return
    if model_hooks(pipe):
        pipe.maybe_free_model_hooks()  # sets all hooks anew, the new model's too
    elif not join_offload(pipe, model) and not getattr(model, "quantization_method", None):
        model.to(pipe.device)


def join_offload(pipe: ZImagePipeline, model: nn.Module) -> bool:
    """Offload a component as the text encoder is, module by module or in groups; return whether either is so."""
    if is_sequentially_offloaded(pipe.text_encoder):
        if not is_sequentially_offloaded(model):
            device = getattr(pipe, "_offload_device", None) or pipe._execution_device  # pyright: ignore[reportPrivateUsage]
            cpu_offload(model, device, offload_buffers=any(True for _ in model.parameters(recurse=False)))
        return True
    settings = group_offload_settings(pipe.text_encoder)
    if settings is not None and group_offload_settings(model) is None:
        from diffusers.hooks import apply_group_offloading

        # Leaf by leaf whatever the others do: blocks need a number that is theirs, streams an order that never varies.
        apply_group_offloading(model, settings.onload_device, settings.offload_device, offload_type="leaf_level")
    return settings is not None


def is_sequentially_offloaded(model: nn.Module | None) -> bool:
    """Check whether accelerate brings a model in module by module: its hooks sit on what holds weights."""
    for part in () if model is None else model.modules():
        hook = getattr(part, "_hf_hook", None)
        if any(getattr(single, "offload", False) for single in getattr(hook, "hooks", (hook,))):
            return True
    return False


def free_memory() -> None:
    """Give the memory of models that nobody holds any more back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_model(pipe: ZImagePipeline, model: nn.Module) -> None:
    """Take a model that is no longer registered off the accelerator's books and give its memory back."""
    if model_hooks(pipe):
        remove_hook_from_module(model, recurse=True)
        pipe.maybe_free_model_hooks()
    free_memory()
