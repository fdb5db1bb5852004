"""Painting where memory is short: VL encoder, text encoder and transformer one after another, never two at a time."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.utils import deprecation_utils
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from ..blend.registry import VLReader
from ..pipeline.inputs import Host, max_text_tokens, read_inputs, refuse_unknown, warn_about_models
from ..pipeline.offload import free_memory
from ..pipeline.pipeline_z_image_vl import CALL_NAMES, PAINTING_NAMES, ZImageVLPipeline, ZImageVLPipelineOutput
from ..reference.embeds import ReferenceEmbeds
from ..reference.pictures import ReferenceImage
from ..reference.readers import (
    VLPlace,
    find_reader_source,
    load_vision_tower,
    load_vl_config,
    load_vl_encoder_parts,
)
from ..reference.reading import ReaderSource, Reading


#: The name of that argument of diffusers: older ones ignore `dtype` silently; newer ones, which have this helper, call
#: `torch_dtype` deprecated.
DTYPE = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


def generate_low_memory(
    model: str | os.PathLike[str],
    prompt: str | list[str],
    reference_image: ReferenceImage | list[Any] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    vl_model_id: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> ZImageVLPipelineOutput | tuple[Any]:
    """Paint what `ZImageVLPipeline.from_pretrained(model)(prompt, reference_image)` paints, with less memory.

    The VL encoder is loaded, reads the references and is freed; then the text encoder is loaded, encodes and is freed;
    then transformer and VAE paint. So host memory and the accelerator's hold the largest of the three at a time and
    not all. The price is that everything is loaded again at each call: for many pictures keep a pipeline, or encode
    first and paint many times from the embeddings.

    The bits are those of the ordinary call with the same dtype on the same device. All arguments are checked before
    any weights are loaded.

    Args:
        model: Folder or Hub id of a Z-Image.
        prompt: As in the call.
        reference_image: As in the call.
        dtype: Of all weights.
        torch_dtype: The same, by its older name.
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
        ...         folder, "a blue square", draw_scene(Scene("circle", "red", "white")), dtype=torch.float32,
        ...         height=64, width=64, num_inference_steps=8, guidance_scale=0.0,
        ...     )
        >>> output.images[0].size
        (64, 64)
    """
    call, references = _split_arguments({**kwargs, "prompt": prompt, "reference_image": reference_image})
    dtype = dtype if torch_dtype is None else torch_dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`dtype` must be one such as torch.bfloat16, got {dtype!r:.80}.")
    for name, value in {"model": model, "vl_model_id": vl_model_id or ""}.items():
        if not isinstance(value, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"`{name}` must be a Hub id or the path of a folder, got {value!r:.80}.")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).tolist()  # which torch's meta device cannot
    except (RuntimeError, TypeError, ValueError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` must be one such as 'cpu' or 'cuda:0', got {device!r:.80}: {reason}.") from error
    source = _Source(model, revision, dtype, device, vl_model_id)
    plan = read_inputs(source.get_host(), call, references)
    pictures: Sequence[Reading | ReferenceEmbeds] = plan.acting_pictures
    if any(isinstance(item, Reading) and item.provenance.reader != "text_encoder" for item in pictures):
        pictures = source.read(pictures)
    free_memory()
    pipe = source.load_text_stage(pictures)
    warn_about_models(pipe, call["guidance_scale"], None)
    with torch.no_grad():
        text, negative = pipe.encode_text(plan)
        ready = pipe.condition(plan, text, negative, pipe.read_pictures(pictures))
    del pipe
    free_memory()
    painter = source.load_pipeline(text_encoder=None, tokenizer=None)
    images = painter.paint(plan, text, negative, ready, {name: call[name] for name in PAINTING_NAMES})
    if not kwargs.get("return_dict", True):
        return (images,)
    return ZImageVLPipelineOutput(images, ready.reports or None, ready.negative_reports or None)


def _split_arguments(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parent's arguments, complete, and those about references."""
    parameters = inspect.signature(ZImageVLPipeline.__call__).parameters
    defaults = {name: parameters[name].default for name in CALL_NAMES}
    given = {name: value for name, value in given.items() if name != "return_dict"}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if name in given:
            raise TypeError(f"generate_low_memory takes no `{name}`: it encodes the prompts itself.")
    refuse_unknown([name for name in given if name not in parameters])
    references = {name: value for name, value in given.items() if name not in defaults}
    return {**defaults, **{name: value for name, value in given.items() if name in defaults}}, references


class _Source:
    """A Z-Image in a folder or on the Hub, of which parts are loaded; what a stage loads is gone when it returns."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        revision: str | None,
        dtype: torch.dtype,
        device: torch.device,
        vl_model_id: str | os.PathLike[str] | None,
    ) -> None:
        self.model, self.dtype, self.device, self.vl_model_id = model, dtype, device, vl_model_id
        self.at: dict[str, Any] = {} if revision is None else {"revision": revision}
        index: Any = ZImageVLPipeline.load_config(model, **self.at)
        self.index: dict[str, Any] = dict(index)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, subfolder="tokenizer", **self.at)

    def get_host(self) -> Host:
        """What a call is checked against, from the configs alone."""
        transformer: Any = ZImageTransformer2DModel.load_config(self.model, subfolder="transformer", **self.at)
        vae: Any = AutoencoderKL.load_config(self.model, subfolder="vae", **self.at)
        return Host(
            tokenizer=self.tokenizer,
            width=AutoConfig.from_pretrained(self.model, subfolder="text_encoder", **self.at).hidden_size,
            max_text_tokens=max_text_tokens(transformer["axes_lens"]),
            max_patches=min(transformer["axes_lens"][1:]),
            latent_channels=transformer["in_channels"],
            vae_scale_factor=2 ** (len(vae["block_out_channels"]) - 1),
            find_reader=self.find_reader,
        )

    def find_reader(self, vl_reader: VLReader) -> ReaderSource:
        """The reader asked for, saved with the model or named by it; its config and processor alone."""
        text_config: Any = AutoConfig.from_pretrained(self.model, subfolder="text_encoder", **self.at)
        if vl_reader == "text_encoder" and self._is_saved("vl_vision"):
            vision = Qwen3VLVisionConfig.from_pretrained(self.model, subfolder="vl_vision", **self.at)
            processor: Any = AutoImageProcessor.from_pretrained(self.model, subfolder="vl_processor", **self.at)
            revision = self.at.get("revision")
            return find_reader_source(vl_reader, text_config, vision, processor, self.model, revision)
        place = self._locate_vl_encoder()
        return find_reader_source(vl_reader, text_config, *load_vl_config(place), place.model_id, place.revision)

    def _is_saved(self, name: str) -> bool:
        return self.vl_model_id is None and (self.index.get(name) or [None])[0] is not None

    def _locate_vl_encoder(self) -> VLPlace:
        if self._is_saved("vl_encoder"):
            return VLPlace(self.model, self.at.get("revision"), "vl_encoder", "vl_processor")
        default = inspect.signature(ZImageVLPipeline.__init__).parameters["vl_model_id"].default
        wanted = self.vl_model_id or self.index.get("vl_model_id", default)
        if wanted is None:
            raise ValueError(
                f"{str(self.model)!r} holds no VL encoder and names none to read the reference with: pass "
                "`vl_model_id`, or `reference_embeds` instead of pictures."
            )
        return VLPlace(wanted)

    def read(self, pictures: Sequence[Reading | ReferenceEmbeds]) -> list[ReferenceEmbeds]:
        """The states of pictures, by the VL encoder; it is gone when this returns."""
        loaded, processor = load_vl_encoder_parts(self._locate_vl_encoder(), self.dtype)
        encoder: Any = loaded  # of which pyright does not know that `to` takes a device
        parts: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
        reader = ZImageVLPipeline(
            **parts,
            tokenizer=self.tokenizer,
            vl_encoder=encoder.to(self.device),
            vl_processor=processor,
            vl_model_id=None,
        )
        return reader.read_pictures(pictures)

    def load_text_stage(self, pictures: Sequence[Reading | ReferenceEmbeds]) -> ZImageVLPipeline:
        """A pipeline of the text encoder, with the vision tower where pictures are left to be read."""
        left: dict[str, Any] = {"transformer": None, "vae": None}
        if not any(isinstance(item, Reading) for item in pictures):
            return self.load_pipeline(**left)
        if self._is_saved("vl_vision"):
            return self.load_pipeline(**left, keep=("vl_vision", "vl_processor"))
        tower, processor = load_vision_tower(self._locate_vl_encoder(), self.dtype)
        return self.load_pipeline(**left, vl_vision=tower, vl_processor=processor)

    def load_pipeline(self, keep: Sequence[str] = (), **parts: Any) -> ZImageVLPipeline:
        """A pipeline with these parts, and no VL parts but those; None leaves a part out."""
        without = dict.fromkeys(name for name in ("vl_encoder", "vl_processor", "vl_vision") if name not in keep)
        options: dict[str, Any] = {DTYPE: self.dtype, **self.at, **without, "vl_model_id": None, **parts}
        return ZImageVLPipeline.from_pretrained(self.model, **options).to(self.device)
