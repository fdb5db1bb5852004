"""`ZImageVLPipeline`: Z-Image that follows a reference picture as well as a prompt, with no training.

Qwen3-VL reads the picture, its hidden states are blended into the text embeddings that Z-Image is conditioned on, and
diffusers' own `ZImagePipeline` does the rest. No tensor arithmetic here: see `conditioning`.
"""

# ruff: noqa: UP045 - diffusers 0.36 cannot read `X | None` from a constructor's annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, PreTrainedModel, Qwen3VLForConditionalGeneration

from ..blend.embedding_statistics import EmbeddingStatistics
from ..blend.knobs import VLConditioning
from ..blend.knobs import VLAlpha
from ..reference.block_counts import is_cut_short
from ..reference.readers import check_vl_encoder
from ..reference.reference_cache import ReferenceCache
from .call_checks import check_call_inputs, warn_about_call
from .inputs import KNOB_NAMES, build_requests
from .offload import freed_after_error, heal_model_hooks, lock_of_pipeline, offload_models
from .output import PromptConditioning, ZImageVLPipelineOutput
from .saving import (
    image_processor_alone,
    make_self_describing,
    plain_class_name,
    read_single_file,
    refuse_attached_adapters,
)
from .sharing import SharedModulesMixin
from .steps import make_window_callback
from .vl_parts import VLPartsMixin


class ZImageVLPipeline(VLPartsMixin, SharedModulesMixin, ZImagePipeline):
    """Text-to-image with Z-Image, conditioned by a prompt and, if wanted, by reference pictures.

    Experimental: the method shows visible artifacts, and trained adapters are better where there are any.

    Args:
        scheduler: As in `ZImagePipeline`.
        vae: As in `ZImagePipeline`.
        text_encoder: As in `ZImagePipeline`.
        tokenizer: As in `ZImagePipeline`; it holds Qwen's vision tokens too.
        transformer: As in `ZImagePipeline`.
        vl_encoder: A Qwen3-VL as wide as the text encoder (Qwen3-VL-4B beside Qwen3-4B). None: it is loaded from
            `vl_model_id` by the first call that needs it.
        vl_processor: Its image processor, or a full `Qwen3VLProcessor`.
        vl_model_id: Hub id or folder of the VL encoder; None never loads one.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> pipe = load_toy_pipeline()
        >>> photo = draw_scene(Scene("circle", "red", "white"))
        >>> output = pipe("a blue square on a black background", reference_image=photo, vl_alpha=0.3,
        ...               height=64, width=64, num_inference_steps=8, guidance_scale=0.0)
        >>> output.images[0].size, len(output.conditioning)
        ((64, 64), 1)
    """

    # The VL encoder first: a plain pipeline that runs the shared modules under these hooks then finds its own order.
    model_cpu_offload_seq = "vl_encoder->text_encoder->transformer->vae"
    _optional_components = ["vl_encoder", "vl_processor"]  # noqa: RUF012 - as every diffusers pipeline declares it

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: AutoTokenizer,
        transformer: ZImageTransformer2DModel,
        vl_encoder: Optional[Qwen3VLForConditionalGeneration] = None,
        vl_processor: Optional[Any] = None,
        vl_model_id: Optional[str] = "Qwen/Qwen3-VL-4B-Instruct",
    ):
        super().__init__(scheduler, vae, text_encoder, tokenizer, transformer)
        if vl_encoder is not None:
            check_vl_encoder(vl_encoder, getattr(getattr(text_encoder, "config", None), "hidden_size", None))
        self.register_modules(vl_encoder=vl_encoder, vl_processor=vl_processor)
        self.register_to_config(vl_model_id=vl_model_id)
        self._vl_revision: str | None = None
        self._statistics: dict[bool, tuple[Any, EmbeddingStatistics]] = {}
        self._reference_cache, self._prefix_cache = ReferenceCache(), None

    # ---- Encoding ----

    def encode_prompt_with_reference(
        self,
        prompt: str | list[str],
        reference_image: Any = None,
        *,
        reference_embeds: Any = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        max_sequence_length: int = 512,
        reference_weights: Sequence[float] | None = None,
        reference_mask: Any = None,
        neutral_image: Any = None,
        vl_text: str | list[str] | None = None,
        **knobs: Any,
    ) -> PromptConditioning:
        """Embeddings for any Z-Image pipeline: image-to-image, inpainting, ControlNet, or a script of your own.

        Args:
            prompt: One prompt or a list of them.
            reference_image: As in the call.
            reference_embeds: As in the call.
            negative_prompt: One negative prompt a prompt, `""` by default.
            do_classifier_free_guidance: Whether negative embeddings are wanted.
            max_sequence_length: Tokens after which a prompt is cut.
            reference_weights: As in the call.
            reference_mask: As in the call.
            neutral_image: As in the call.
            vl_text: As in the call.
            knobs: The call's `vl_*` knobs, but for `vl_start` and `vl_end`: the other pipeline decides its steps.

        Returns:
            `prompt_embeds`, `negative_prompt_embeds` and `reports`. Under offload no encoder stays resident.

        Raises:
            TypeError: An unknown knob, or a value of the wrong type.
            ValueError: As in the call; `vl_start` or `vl_end` is given.

        Example:
            >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
            >>> photo = draw_scene(Scene("circle", "red", "white"))
            >>> ready = load_toy_pipeline().encode_prompt_with_reference("a square", photo, vl_alpha=0.5)
            >>> ready.prompt_embeds[0].shape
            torch.Size([10, 96])
        """
        values = _complete_knobs(knobs)
        for name in ("vl_start", "vl_end"):
            if name in knobs:
                raise ValueError(
                    f"`{name}` is refused here: the pipeline that takes the embeddings decides its steps."
                )
        check_call_inputs(self, prompt, None, negative_prompt, do_classifier_free_guidance)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        requests = build_requests(
            prompts,
            len(prompts),
            values,
            reference_image=reference_image,
            reference_embeds=reference_embeds,
            reference_weights=reference_weights,
            reference_mask=reference_mask,
            neutral_image=neutral_image,
            vl_text=vl_text,
        )
        with lock_of_pipeline(self), freed_after_error(self), torch.no_grad():
            heal_model_hooks(self)
            encode = {
                "prompt": prompts,
                "negative_prompt": negative_prompt,
                "do_classifier_free_guidance": do_classifier_free_guidance,
                "max_sequence_length": max_sequence_length,
            }
            text, ready = self._condition(requests, encode)
            del text
            offload_models(self, self.text_encoder, self.vl_encoder)
        return ready

    def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, on copies: the parent writes the chat template into the caller's lists."""
        heal_model_hooks(self, self.text_encoder)
        negative = kwargs.get("negative_prompt")
        if isinstance(negative, list):
            kwargs["negative_prompt"] = list(negative)
        args = tuple(list(value) if isinstance(value, list) and i == 2 else value for i, value in enumerate(args))
        return super().encode_prompt(list(prompt) if isinstance(prompt, list) else prompt, *args, **kwargs)

    # ---- The call ----

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride] - the output has a field more
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        cfg_normalization: bool = False,
        cfg_truncation: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: list[torch.Tensor] | None = None,
        negative_prompt_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - the parent's own default
        max_sequence_length: int = 512,
        *,
        reference_image: Any = None,
        reference_embeds: Any = None,
        reference_weights: Sequence[float] | None = None,
        reference_mask: Any = None,
        vl_alpha: VLAlpha | list[Any] = 0.3,
        vl_hidden_layer: int | dict[int, float] = -6,
        vl_text: str | list[str] | None = None,
        vl_text_position: str = "after",
        vl_token_selection: str = "all",
        vl_normalization: str = "global",
        vl_target_std: float | None = None,
        vl_outlier_masking: str = "none",
        vl_outlier_threshold: float = 10.0,
        vl_exclude_sinks: bool = False,
        vl_alignment: str = "anchored",
        vl_blend_mode: str = "linear",
        neutral_image: Any = None,
        vl_start: float = 0.0,
        vl_end: float = 1.0,
        vl_max_pixels: int = 1024 * 1024,
    ) -> ZImageVLPipelineOutput | tuple[Any]:
        """Generate pictures from prompts, each steered by one or several reference pictures.

        The parameters up to `max_sequence_length` are those of `ZImagePipeline`, with its meanings and defaults;
        `prompt` together with `prompt_embeds` is refused. Without a reference, or at alpha 0, the result is the
        parent's bit for bit and the VL encoder is neither loaded nor run.

        Args:
            reference_image: A picture (PIL, array HWC, tensor CHW; uint8 or float 0..1), path or URL; a list is one a
                prompt (one alone serves all), a list inside it is several for one prompt.
            reference_embeds: `ReferenceEmbeds` in place of pictures, nested alike.
            reference_weights: Numbers >= 0, as many as one prompt has references; they are made to sum to 1.
            reference_mask: Greyscale pictures, white counts: what is hidden leaves no trace at all.
            vl_alpha: 0 the text alone .. 1 the reference alone; one a text token; or `{place: alpha}` with the places
                "prefix", "prompt", "suffix", any phrase of the prompt, and "default" for the rest. In a batch also a
                list of such, one a prompt.
            vl_hidden_layer: Index into the VL encoder's hidden states, or `{layer: weight}`.
            vl_text: The text beside the picture; None is the prompt, `""` none.
            vl_text_position: "after" or "before" the picture.
            vl_token_selection: "all", "text", "image" (with the vision markers) or "image_no_markers".
            vl_normalization: "global", "per_dim", "hybrid", "token_rms" or "none".
            vl_target_std: > 0, for "global" and "hybrid"; None is the std of this prompt's embeddings.
            vl_outlier_masking: "none", "zero", "clamp" or "scale", on image tokens.
            vl_outlier_threshold: > 1, the ratio of standard deviations from which a dimension is an outlier.
            vl_exclude_sinks: Leave attention sinks out of statistics, alignment and blend.
            vl_alignment: "anchored", "pool", "interpolate", "truncate" or "concat".
            vl_blend_mode: "linear", "slerp", "adain", "adain_per_dim" or "style_delta".
            neutral_image: The picture without the style, for "style_delta".
            vl_start: Fraction of the steps from which on the reference counts.
            vl_end: Fraction of the steps up to which it counts.
            vl_max_pixels: Bound on the pixels of a reference that are read.

        Returns:
            `ZImageVLPipelineOutput` with the pictures and, in `conditioning`, what each prompt's references did; or
            `(images,)` where `return_dict` is False.

        Raises:
            TypeError: A value of the wrong type.
            ValueError: A value out of range, numbers that do not match, arguments that exclude each other or would do
                nothing; NaN from an encoder.
        """
        knobs = {name: value for name, value in locals().items() if name in KNOB_NAMES}
        call: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "sigmas": sigmas,
            "guidance_scale": guidance_scale,
            "cfg_normalization": cfg_normalization,
            "cfg_truncation": cfg_truncation,
            "num_images_per_prompt": num_images_per_prompt,
            "generator": generator,
            "latents": latents,
            "output_type": output_type,
            "joint_attention_kwargs": joint_attention_kwargs,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
            "max_sequence_length": max_sequence_length,
        }
        with lock_of_pipeline(self), freed_after_error(self):
            heal_model_hooks(self)
            self._guidance_scale = guidance_scale
            guided = self.do_classifier_free_guidance
            check_call_inputs(self, prompt, prompt_embeds, negative_prompt, guided, negative_prompt_embeds, **call)
            prompts = [prompt] if isinstance(prompt, str) else list(prompt) if prompt is not None else None
            requests = build_requests(
                prompts,
                len(prompts if prompts is not None else prompt_embeds or ()),
                knobs,
                reference_image=reference_image,
                reference_embeds=reference_embeds,
                reference_weights=reference_weights,
                reference_mask=reference_mask,
                neutral_image=neutral_image,
                vl_text=vl_text,
            )
            steps = len(sigmas) if sigmas is not None else num_inference_steps
            window = requests[0].knobs.window(steps) if requests else []
            warn_about_call(self, prompts, guidance_scale, max_sequence_length, joint_attention_kwargs)
            encode = {
                "prompt": prompts,
                "negative_prompt": negative_prompt,
                "do_classifier_free_guidance": guided,
                "prompt_embeds": prompt_embeds,
                "negative_prompt_embeds": negative_prompt_embeds,
                "max_sequence_length": max_sequence_length,
            }
            text, ready = self._condition(requests, encode)
            first = ready.prompt_embeds
            if not all(window):
                repeats = num_images_per_prompt or 1
                inside, outside = _repeat_each(first, repeats), _repeat_each(text, repeats)
                call["callback_on_step_end"] = make_window_callback(window, inside, outside, callback_on_step_end)
                first = first if window[0] else text
            call |= {"prompt_embeds": first, "negative_prompt_embeds": ready.negative_prompt_embeds}
            images = super().__call__(return_dict=False, **call)[0]
        if not return_dict:
            return (images,)
        return ZImageVLPipelineOutput(images, ready.reports if requests is not None else None)

    # ---- Saving and loading ----

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own; the folder also carries this pipeline's code, so that it loads by itself.

        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` restores all of it. Of a full
        `Qwen3VLProcessor` the image processor is saved: it is what is used, and loads without torchvision.

        Raises:
            ValueError: A LoRA or another adapter is attached; only the first blocks of the VL encoder were loaded; the
                class has no code to put beside the weights.
        """
        read_single_file(type(self))  # refuses before gigabytes are written, as do the next two
        refuse_attached_adapters(self.components)
        if self.vl_encoder is not None and is_cut_short(self.vl_encoder):
            raise ValueError(
                "Only the first blocks of `vl_encoder` were loaded (load_vl_encoder with `layers`), so that it cannot "
                "be saved. Save without it after unload_vl_encoder(), or load all of it: load_vl_encoder()."
            )
        with image_processor_alone(self):
            super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, and the pipeline's code beside it: `save_pretrained` calls this before it uploads."""
        super().save_config(save_directory, *args, **kwargs)
        make_self_describing(save_directory, type(self))

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return plain_class_name(super()._dict_from_json_file(*args, **kwargs))


def _complete_knobs(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(KNOB_NAMES))
    if unknown:
        raise TypeError(f"Unknown knobs {unknown}; there are {sorted(KNOB_NAMES)}.")
    return {name: given.get(name, getattr(VLConditioning, name)) for name in KNOB_NAMES}


def _repeat_each(items: Sequence[torch.Tensor], times: int) -> list[torch.Tensor]:
    return [item for item in items for _ in range(times)]
