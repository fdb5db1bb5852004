"""Painting where memory is short: VL encoder, text encoder and transformer one after another, never two at a time."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from ..blend.knobs import VLConditioning
from ..blend.knobs import resolve_alpha
from ..pipeline.call_checks import check_call_inputs, warn_about_call
from ..pipeline.inputs import KNOB_NAMES, ReferenceRequest, build_requests
from ..pipeline.output import PromptConditioning, ZImageVLPipelineOutput
from ..pipeline.pipeline_z_image_vl import ZImageVLPipeline
from ..pipeline.steps import make_window_callback
from ..reference.embeds import ReferenceEmbeds
from ..reference.loading import load_vl_parts
from ..reference.readers import check_vl_encoder


_REFERENCE_NAMES = (
    *("reference_image", "reference_embeds", "reference_weights", "reference_mask", "neutral_image", "vl_text"),
)
# Settled when a picture is read: refused beside ready embeddings.
_READING_KNOBS = ("vl_text_position", "vl_max_pixels")
_WINDOW_KNOBS = ("vl_start", "vl_end")


def generate_low_memory(
    model: str | os.PathLike[str],
    prompt: str | list[str],
    reference_image: Any = None,
    *,
    torch_dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    vl_model_id: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> ZImageVLPipelineOutput | tuple[Any]:
    """What `ZImageVLPipeline.from_pretrained(model, ...)(prompt, reference_image, ...)` paints, with less memory.

    The VL encoder is loaded, of its language model only the blocks that the layers need, reads the references and is
    freed; then the text encoder is loaded, encodes and is freed; then transformer and VAE paint. So host memory and
    the accelerator's hold the largest of the three at a time and not all. The price is that everything is loaded again
    at each call: for many pictures keep a pipeline, or encode first and paint many times from the embeddings.

    The bits are those of the ordinary call with the same dtype on the same device. All arguments are checked before
    any weights are loaded.

    Args:
        model: Folder or Hub id of a Z-Image.
        prompt: As in the call.
        reference_image: As in the call.
        torch_dtype: Of all weights.
        device: Where each model runs.
        revision: Branch, tag or commit of `model` on the Hub.
        vl_model_id: Folder or Hub id of the VL encoder; None is the one saved with the model, or that it names.
        kwargs: Everything else that the pipeline's call takes, but for `prompt_embeds` and `negative_prompt_embeds`.

    Returns:
        As the call.

    Raises:
        TypeError: An argument that the call does not have; otherwise as the call.
        ValueError: As the call; a reference to read, and no VL encoder in or named by the model.
        OSError: Something cannot be found or downloaded.

    Example:
        >>> import tempfile
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_toy_pipeline().save_pretrained(folder)
        ...     output = generate_low_memory(
        ...         folder, "a blue square", draw_scene(Scene("circle", "red", "white")), torch_dtype=torch.float32,
        ...         height=64, width=64, num_inference_steps=8, guidance_scale=0.0,
        ...     )
        >>> output.images[0].size
        (64, 64)
    """
    source = _Source(model, revision, torch_dtype, torch.device(device))
    call = _complete_call({**kwargs, "reference_image": reference_image})
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    shapes = source.read_shapes()
    guided = _is_guided(call["guidance_scale"])
    painting = {name: value for name, value in call.items() if name not in (*KNOB_NAMES, *_REFERENCE_NAMES)}
    negative = painting.pop("negative_prompt")
    check_call_inputs(shapes, prompt, None, negative, guided, **painting)
    knobs = {name: call[name] for name in KNOB_NAMES}
    given = {name: call[name] for name in _REFERENCE_NAMES}
    requests = build_requests(prompts, len(prompts), knobs, **given)
    steps = len(call["sigmas"]) if call["sigmas"] is not None else call["num_inference_steps"]
    window = VLConditioning(vl_start=call["vl_start"], vl_end=call["vl_end"]).window(steps)
    if requests is not None:
        _check_places(shapes.tokenizer, requests, call["max_sequence_length"])
        if any(request.needs_vl_encoder for request in requests):
            given |= _read_pictures(source, vl_model_id, requests, shapes.tokenizer, call["max_sequence_length"])
            knobs = {name: value for name, value in knobs.items() if name not in _READING_KNOBS}
        _free_memory()
    text, ready = _encode_prompts(source, prompts, negative, guided, given, knobs, call)
    _free_memory()
    first = ready.prompt_embeds
    check_call_inputs(shapes, None, first, None, guided, ready.negative_prompt_embeds or None, **painting)
    if requests is not None and not all(window):
        repeats = call["num_images_per_prompt"] or 1
        inside, outside = ([embeds for embeds in some for _ in range(repeats)] for some in (first, text))
        own_callback = call["callback_on_step_end"]
        painting["callback_on_step_end"] = make_window_callback(window, inside, outside, own_callback)
        first = first if window[0] else text
    images = _paint(source, {**painting, "return_dict": False}, first, ready.negative_prompt_embeds)
    if not call["return_dict"]:
        return (images,)
    return ZImageVLPipelineOutput(images, ready.reports if requests is not None else None)


# ---- The stages: what each loads is gone when it returns ----


def _read_pictures(
    source: _Source,
    vl_model_id: str | os.PathLike[str] | None,
    requests: Sequence[ReferenceRequest],
    tokenizer: Any,
    max_sequence_length: int,
) -> dict[str, Any]:
    """The references as ready embeddings, in place of all arguments that speak of pictures."""
    layers = sorted({layer for request in requests for layer in request.knobs.layers})
    encoder, processor = source.load_vl_parts(vl_model_id, layers)
    reader = _pipeline_of_parts(tokenizer=tokenizer, vl_encoder=encoder.to(source.device), vl_processor=processor)
    embeds: list[list[ReferenceEmbeds]] = []
    neutrals: list[ReferenceEmbeds] = []
    for request in requests:
        reader.check_request(request)
    for request in requests:
        read: list[ReferenceEmbeds] = reader.read_references(request, max_sequence_length)
        if request.neutral is not None:
            neutrals.append(read.pop())
        embeds.append(read)
    return {
        "reference_image": None,
        "reference_embeds": embeds,
        "reference_mask": None,
        "neutral_image": neutrals or None,
        "vl_text": None,
    }


@torch.no_grad()
def _encode_prompts(
    source: _Source,
    prompts: list[str],
    negative: Any,
    guided: bool,
    given: dict[str, Any],
    knobs: dict[str, Any],
    call: dict[str, Any],
) -> tuple[list[torch.Tensor], PromptConditioning]:
    """The text's own embeddings, where steps need them, and what the references make of them."""
    pipe = source.load_pipeline(transformer=None, vae=None)
    length = call["max_sequence_length"]
    warn_about_call(pipe, prompts, call["guidance_scale"], length)
    ready = pipe.encode_prompt_with_reference(
        prompts,
        negative_prompt=negative,
        do_classifier_free_guidance=guided,
        max_sequence_length=length,
        **given,
        **{name: value for name, value in knobs.items() if name not in _WINDOW_KNOBS},
    )
    if (call["vl_start"], call["vl_end"]) == (0.0, 1.0):
        return [], ready
    text, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=length)
    return list(text), ready


def _paint(source: _Source, painting: dict[str, Any], embeds: list[torch.Tensor], negative: list[torch.Tensor]) -> Any:
    pipe = source.load_pipeline(text_encoder=None, tokenizer=None)
    return pipe(prompt_embeds=embeds, negative_prompt_embeds=negative or None, **painting)[0]


def _pipeline_of_parts(**parts: Any) -> Any:
    """A pipeline with these components alone, for those of its methods that need no more; it never loads one."""
    required: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
    return ZImageVLPipeline(**{**required, **parts}, vl_model_id=None)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- Where the parts come from ----


class _Source:
    """A Z-Image in a folder or on the Hub, of which parts are loaded."""

    def __init__(
        self, model: str | os.PathLike[str], revision: str | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model, self.dtype, self.device = model, dtype, device
        self.at: dict[str, Any] = {} if revision is None else {"revision": revision}
        self.index: Any = ZImageVLPipeline.load_config(model, **self.at)

    def read_shapes(self) -> Any:
        """What can be checked of a call without weights: in place of a pipeline."""
        from diffusers import AutoencoderKL, ZImageTransformer2DModel
        from transformers import AutoTokenizer

        transformer: Any = ZImageTransformer2DModel.load_config(self.model, subfolder="transformer", **self.at)
        vae: Any = AutoencoderKL.load_config(self.model, subfolder="vae", **self.at)
        return SimpleNamespace(
            vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
            transformer=SimpleNamespace(config=SimpleNamespace(**transformer), in_channels=transformer["in_channels"]),
            text_encoder=None,
            tokenizer=AutoTokenizer.from_pretrained(self.model, subfolder="tokenizer", **self.at),
        )

    def load_vl_parts(self, vl_model_id: Any, layers: Sequence[int]) -> tuple[Any, Any]:
        """The VL encoder asked for, saved with the model or named by it, and its processor."""
        from transformers import AutoConfig

        width = AutoConfig.from_pretrained(self.model, subfolder="text_encoder", **self.at).hidden_size
        saved = vl_model_id is None and (self.index.get("vl_encoder") or [None])[0] is not None
        if saved:
            folders = {"subfolder": "vl_encoder", "processor_subfolder": "vl_processor"}
            parts = load_vl_parts(self.model, self.at.get("revision"), self.dtype, layers, **folders)
        else:
            default = inspect.signature(ZImageVLPipeline.__init__).parameters["vl_model_id"].default
            wanted = vl_model_id or self.index.get("vl_model_id", default)
            if wanted is None:
                raise ValueError(
                    f"{str(self.model)!r} holds no VL encoder and names none to read the reference with: pass "
                    "`vl_model_id`, or `reference_embeds` instead of pictures."
                )
            parts = load_vl_parts(wanted, None, self.dtype, layers)
        check_vl_encoder(parts[0], width)
        return parts

    def load_pipeline(self, **parts: None) -> Any:
        """A pipeline without these parts and without a VL encoder, on the device."""
        from diffusers.utils import deprecation_utils

        # Older diffusers ignore `dtype` silently; newer ones, which have this helper, call `torch_dtype` deprecated.
        dtype_name = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"
        without = {"vl_encoder": None, "vl_processor": None, "vl_model_id": None, **parts}
        options: dict[str, Any] = {dtype_name: self.dtype, **self.at, **without}
        return cast("Any", ZImageVLPipeline.from_pretrained(self.model, **options)).to(self.device)


# ---- Arguments ----


def _complete_call(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the pipeline's call but for prompts, with its defaults."""
    refused = ("self", "prompt", "prompt_embeds", "negative_prompt_embeds")
    parameters = inspect.signature(ZImageVLPipeline.__call__).parameters
    defaults = {name: spec.default for name, spec in parameters.items() if name not in refused}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise TypeError(f"generate_low_memory got unexpected arguments {unknown}; it takes {sorted(defaults)}.")
    return {**defaults, **given}


def _is_guided(guidance_scale: float) -> bool:
    """Whether there is classifier-free guidance: the threshold is diffusers' own, and varies by version."""
    pipe = _pipeline_of_parts()
    pipe._guidance_scale = guidance_scale
    return pipe.do_classifier_free_guidance


def _check_places(tokenizer: Any, requests: Sequence[ReferenceRequest], max_sequence_length: int) -> None:
    pipe = _pipeline_of_parts(tokenizer=tokenizer)
    for request in requests:
        if request.prompt is not None:
            resolve_alpha(
                request.knobs.vl_alpha, pipe.tokenize_prompt(request.prompt, max_sequence_length), request.prompt
            )
