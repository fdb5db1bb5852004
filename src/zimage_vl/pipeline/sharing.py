"""Pipelines over the same modules: one made from another without casting anything, its offload restored.

diffusers' own `from_pipe` casts every shared module to float32 in place, the source pipeline's too
(https://github.com/huggingface/diffusers/issues/12754), fails on quantised modules, and leaves the new pipeline's own
modules without the source's offload.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .offload import join_offload, model_hooks


_UNSHARED_SETTINGS = ("_class_name", "_diffusers_version")


def build_over_modules(pipeline_class: Any, source: Any, given: dict[str, Any]) -> Any:
    """A pipeline over the modules of another one, as they are.

    Args:
        pipeline_class: The class to make.
        source: A pipeline that has the components which the class cannot do without.
        given: Components and settings that go before the source's.

    Returns:
        The pipeline. Model offload is on if it is on in `source`; under sequential and group offload the modules that
        are new to it are offloaded like the others.

    Raises:
        TypeError: A name in `given` that the class does not take.
        ValueError: The source lacks a component.
    """
    parameters = dict(inspect.signature(pipeline_class.__init__).parameters)
    parameters.pop("self", None)
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise TypeError(f"Unexpected arguments {unknown}; {pipeline_class.__name__} takes {sorted(parameters)}.")
    components, settings = pipeline_class._get_signature_keys(pipeline_class)
    taken = {name: part for name, part in source.components.items() if name in components}
    for name in settings:
        for key in (name, f"_{name}"):  # under the second a pipeline keeps the settings of the one it was made from
            if key in source.config:
                taken.setdefault(name, source.config[key])
    arguments = {**taken, **given}
    missing = [
        name for name in components if name not in arguments and name not in pipeline_class._optional_components
    ]
    if missing:
        raise ValueError(
            f"{type(source).__name__} has no {missing}, which {pipeline_class.__name__} needs: pass them."
        )
    made = pipeline_class(**arguments)
    known = {*parameters, *(f"_{name}" for name in parameters), *_UNSHARED_SETTINGS}
    made.register_to_config(
        **{name if name[0] == "_" else f"_{name}": value for name, value in source.config.items() if name not in known}
    )
    _restore_offload(source, made)
    return made


def _restore_offload(source: Any, made: Any) -> None:
    if model_hooks(source):
        made.enable_model_cpu_offload(device=source._offload_device)
        return
    shared = {id(part) for part in source.components.values()}
    for part in made.components.values():
        if isinstance(part, torch.nn.Module) and id(part) not in shared:
            join_offload(made, part)


class SharedModulesMixin:
    """How `ZImageVLPipeline` is made from another pipeline, and another from it."""

    _optional_components: list[str]

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """This pipeline over the modules of another one, which stay as they are; its offload is restored.

        Args:
            pipeline: Any pipeline with Z-Image's five components.
            kwargs: Components and settings that go before its own. With `torch_dtype` (or `dtype`) all modules, the
                other pipeline's too, are cast to that one, as diffusers does; without, none is.

        Raises:
            TypeError: An argument that the constructor does not take.
            ValueError: The other pipeline lacks a component.

        Example:
            >>> from diffusers import ZImagePipeline
            >>> from zimage_vl.toy import load_toy_pipeline
            >>> pipe = load_toy_pipeline()
            >>> plain = pipe.to_pipe(ZImagePipeline)
            >>> again = type(pipe).from_pipe(plain)
            >>> again.transformer is plain.transformer, again.config.vl_model_id
            (True, None)
        """
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        made = build_over_modules(cls, pipeline, kwargs)
        return made if dtype is None else made.to(dtype=dtype)

    def to_pipe(self, pipeline_class: Any, **kwargs: Any) -> Any:
        """The way back: a pipeline of another class over this one's modules, nothing cast, its offload restored.

        Args:
            pipeline_class: Such as `ZImagePipeline` or `ZImageImg2ImgPipeline`, whose own `from_pipe` would cast every
                module to float32, here too, unless it is given a dtype.
            kwargs: Components that it needs besides (a ControlNet), or settings.

        Raises:
            TypeError: An argument that the class does not take.
            ValueError: It needs a component that is not here.
        """
        return build_over_modules(pipeline_class, self, kwargs)

    @classmethod
    def extract_init_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """What a loader is to load: as diffusers' own, without the VL parts that its caller passed.

        `DiffusionPipeline.from_pretrained(folder, vl_encoder=mine)` looks for optional components on its own class,
        which has none. So it takes `mine` for a setting, then loads the folder's encoder too and puts that in its
        place, silently. It calls this after it has set the settings aside; nothing that it hands over tells of them,
        so they are read where they lie.
        """
        init_dict, unused, hidden = super().extract_init_dict(*args, **kwargs)  # pyright: ignore
        frame = inspect.currentframe()
        loader = None if frame is None else frame.f_back
        passed: Any = {} if loader is None else loader.f_locals.get("passed_pipe_kwargs", {})
        dropped = {name for name in cls._optional_components if name in passed}
        return {name: value for name, value in init_dict.items() if name not in dropped}, unused, hidden
