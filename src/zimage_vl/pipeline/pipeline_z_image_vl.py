"""`ZImageVLPipeline`: Z-Image that follows a reference picture as well as a prompt, with no training.

Qwen3-VL reads the picture, its hidden states are blended into the text embeddings that Z-Image is conditioned on, and
diffusers' own `ZImagePipeline` does the rest. A call is five steps: plan, text, states, blend, paint.
"""

# ruff: noqa: UP045 - diffusers 0.36 cannot read `X | None` from a constructor's annotations

import copy
import inspect
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from ..blend.checks import check_choice, check_flag
from ..blend.condition import condition_prompt_embeds
from ..blend.embedding_statistics import EmbeddingStatistics
from ..blend.knobs import DEFAULT_LAYERS, VLAlpha
from ..blend.regions import PromptToken
from ..blend.registry import KNOBS, TextPosition, VLReader
from ..blend.report import ConditioningReport
from ..recipes import RECIPES
from ..reference.embeds import ReferenceEmbeds
from ..reference.pictures import ReferenceImage, Treatment, load_reference_image, load_reference_mask
from ..reference.readers import (
    VLPlace,
    bring_to_device,
    check_vl_encoder,
    describe_picture,
    find_reader_source,
    fingerprint_vl_encoder,
    load_vision_tower,
    load_vl_config,
    load_vl_encoder_parts,
    read_reference,
    read_with_text_encoder,
    see_picture,
)
from ..reference.reading import ReaderSource, Reading, build_reading
from ..reference.turn import embeds_regions, read_text_turn, tokenizer_lock
from .inputs import (
    EmbedsInput,
    Host,
    Plan,
    PromptPlan,
    ReferenceInput,
    check_describe,
    check_finite_tensors,
    check_painted,
    check_texts,
    max_text_tokens,
    read_inputs,
    read_text_beside,
    refuse_unknown,
    warn_about_models,
    warn_once,
)
from .offload import (
    forget_model,
    freed_after_error,
    heal_model_hooks,
    join_offload,
    lock_of_models,
    model_hooks,
    offload_models,
    place_like_others,
)
from .sharing import (
    build_over_modules,
    make_self_describing,
    read_single_file,
    refuse_attached_adapters,
)
from .steps import StepCallback
from .text_statistics import TextStatistics, measure_text_statistics


_KEPT_READINGS = 8
# Knobs by their names in `encode_reference`.
_OWN_NAMES = {"vl_hidden_layer": "layers", "reference_image": "image", "reference_mask": "mask"} | {
    f"vl_{name}": name for name in ("text", "text_position", "max_pixels", "describe")
}


@dataclass
class ZImageVLPipelineOutput(BaseOutput):
    """The output of a call."""

    images: Any  # PIL images, or an array or tensor as `output_type` asks for
    conditioning: Optional[list[ConditioningReport]] = None  # what the references did to each prompt; None without any
    negative_conditioning: Optional[list[ConditioningReport]] = None  # the same of the negative references


@dataclass
class PromptConditioning(BaseOutput):
    """Embeddings for any Z-Image pipeline, as `encode_prompt_with_reference` gives them."""

    prompt_embeds: list[Tensor]  # (tokens, dims) for each prompt
    negative_prompt_embeds: list[Tensor]  # the same for the negative prompts; empty without classifier-free guidance
    reports: list[ConditioningReport]  # what the references did to each prompt; empty without any
    negative_reports: list[ConditioningReport] = field(default_factory=list[ConditioningReport])


class ZImageVLPipeline(ZImagePipeline):
    """Text-to-image with Z-Image, conditioned by a prompt and, if wanted, by reference pictures.

    Experimental: the method shows visible artifacts, and trained adapters are better where there are any.

    Args:
        scheduler: As in `ZImagePipeline`; copied, so that pipelines over the same modules do not share its state.
        vae: As in `ZImagePipeline`.
        text_encoder: As in `ZImagePipeline`.
        tokenizer: As in `ZImagePipeline`; it holds Qwen's vision tokens too.
        transformer: As in `ZImagePipeline`.
        vl_encoder: A Qwen3-VL as wide as the text encoder (Qwen3-VL-4B beside Qwen3-4B). None: it is loaded from
            `vl_model_id` by the first call that needs it.
        vl_processor: Its image processor, or a full `Qwen3VLProcessor`.
        vl_model_id: Hub id or folder of the VL encoder; None never loads one.
        vl_vision: The VL encoder's vision tower alone, for the reader "text_encoder". None: it is loaded from
            `vl_model_id` by the first call that needs it, unless `vl_encoder` is there, which serves too.

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
    model_cpu_offload_seq = "vl_encoder->vl_vision->text_encoder->transformer->vae"
    _optional_components = ["vl_encoder", "vl_processor", "vl_vision"]  # noqa: RUF012 - as every diffusers pipeline declares it
    vl_encoder: Any
    vl_processor: Any
    vl_vision: Any

    #: Settings for a purpose, by name: `pipe(prompt, reference_image=photo, **pipe.recipes["style-transfer"])`.
    recipes: Mapping[str, Mapping[str, Any]] = RECIPES

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
        *,
        vl_vision: Optional[Qwen3VLVisionModel] = None,
    ):
        super().__init__(copy.deepcopy(scheduler), vae, text_encoder, tokenizer, transformer)
        if vl_encoder is not None:
            check_vl_encoder(vl_encoder, getattr(getattr(text_encoder, "config", None), "hidden_size", None))
        self.register_modules(vl_encoder=vl_encoder, vl_processor=vl_processor, vl_vision=vl_vision)
        self.register_to_config(vl_model_id=vl_model_id)
        self._statistics: dict[bool, tuple[Any, EmbeddingStatistics]] = {}
        self._readings: OrderedDict[Any, ReferenceEmbeds] = OrderedDict()
        self._state: Literal["idle", "encoding", "painting"] = "idle"
        self._device_of_call: torch.device | None = None

    # ---- The VL encoder ----

    @property
    def z_image_components(self) -> dict[str, Any]:
        """The components without the VL parts, for a plain Z-Image pipeline: `ZImagePipeline(**these)`."""
        return {name: part for name, part in self.components.items() if not name.startswith("vl_")}

    def load_vl_encoder(
        self, model_id: str | None = None, revision: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Load the VL encoder and its image processor, and bring them to where the pipeline keeps its models.

        An encoder that is there already is kept until the new one is; to hold no two, `unload_vl_encoder()` first.

        Args:
            model_id: Hub id or folder; None is `vl_model_id` of the pipeline.
            revision: Branch, tag or commit on the Hub; kept for when the encoder is loaded again.
            dtype: None is the text encoder's.

        Raises:
            ValueError: No `model_id` and `vl_model_id=None`; a model that is not as wide as the text encoder.
            OSError: It cannot be found or downloaded.
        """
        self._load_reader("vl_encoder", model_id, revision, dtype)

    def load_vl_vision(
        self, model_id: str | None = None, revision: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Load the VL encoder's vision tower alone, for the reader "text_encoder"; otherwise as `load_vl_encoder`."""
        self._load_reader("vl_vision", model_id, revision, dtype)

    def _load_reader(self, name: str, model_id: str | None, revision: str | None, dtype: torch.dtype | None) -> None:
        for given in (model_id, revision):
            if not isinstance(given, (str, os.PathLike, type(None))):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"`model_id` and `revision` must be strings or None, got {given!r:.80}.")
        place = self._locate_vl_encoder(model_id, revision)
        reader, load = (
            ("qwen3-vl", load_vl_encoder_parts) if name == "vl_encoder" else ("text_encoder", load_vision_tower)
        )
        find_reader_source(reader, self.text_encoder.config, *load_vl_config(place))  # refuses a misfit
        model, processor = load(place, dtype or self.text_encoder.dtype)
        self.register_modules(**{name: model}, vl_processor=processor)
        self.register_to_config(vl_model_id=str(place.model_id), _vl_revision=place.revision)
        place_like_others(self, model)

    def unload_vl_encoder(self) -> None:
        """Forget the VL encoder or its vision tower, the processor and the readings that are kept; free their memory.

        A later call may load them again.
        """
        with lock_of_models(self):
            models = [model for model in (self.vl_encoder, self.vl_vision) if model is not None]
            self.clear_reference_cache()
            self.register_modules(vl_encoder=None, vl_processor=None, vl_vision=None)
            while models:
                forget_model(self, models.pop())

    def clear_reference_cache(self) -> None:
        """Forget the last readings.

        The pipeline keeps its last 8, so that the same picture with the same text runs no VL encoder when only alpha
        or another knob of the blend changes. Call this after changing the encoder's weights in place.
        """
        self._readings.clear()

    def find_reader(self, vl_reader: VLReader = "qwen3-vl") -> ReaderSource:
        """The reader's config and processor; of one that is not loaded yet, without its weights."""
        text_config = self.text_encoder.config
        model = self._get_reader(small=vl_reader == "text_encoder")
        if model is None:
            place = self._locate_vl_encoder()
            return find_reader_source(vl_reader, text_config, *load_vl_config(place), place.model_id, place.revision)
        if self.vl_processor is None:
            name = "vl_vision" if model is self.vl_vision else "vl_encoder"
            raise ValueError(
                f"`{name}` was given without `vl_processor`. Pass its image processor too: "
                "transformers.AutoImageProcessor.from_pretrained(<the VL encoder's id or folder>)."
            )
        named = self._vl_name, self.config.get("_vl_revision")
        return find_reader_source(vl_reader, text_config, model.config, self.vl_processor, *named)

    def _locate_vl_encoder(self, model_id: str | None = None, revision: str | None = None) -> VLPlace:
        """The encoder to load and its revision: without a name, those of the last time."""
        if model_id is None:
            model_id, revision = self.config["vl_model_id"], revision or self.config.get("_vl_revision")
        if model_id is None:
            raise ValueError(
                "This pipeline has no VL encoder and `vl_model_id` is None, so none is loaded. Give it one, "
                "`vl_encoder` and `vl_processor` or a `vl_model_id`, or use `reference_embeds`."
            )
        return VLPlace(model_id, revision)

    @property
    def _vl_name(self) -> str | None:
        return getattr(self.vl_encoder, "name_or_path", None) or self.config["vl_model_id"]

    # ---- Encoding ----

    def encode_reference(
        self,
        image: ReferenceImage,
        text: str | None = None,
        layers: Sequence[int] | None = None,
        *,
        text_position: TextPosition = "after",
        max_pixels: int = 1024 * 1024,
        mask: ReferenceImage | None = None,
        max_sequence_length: int = 512,
        vl_reader: VLReader = "qwen3-vl",
        vl_treatment: Treatment = "none",
        muted: bool = False,
        describe: bool = False,
        **unknown: Any,
    ) -> ReferenceEmbeds:
        """Read a picture, to use the result again as `reference_embeds` or to save it.

        Args:
            image: One picture of any kind that `reference_image` takes.
            text: The text beside it, None for none; for the same result as `pipe(prompt, reference_image=image)`, the
                prompt.
            layers: Those that `vl_hidden_layer` will ask for; all come from one pass. None: the reader's own, (-6,) or
                with "text_encoder" (-2,).
            text_position: "after" or "before" the picture.
            max_pixels: Bound on the pixels that are read.
            mask: Greyscale picture, white counts.
            max_sequence_length: As in the call: cuts the text as the prompt is cut.
            vl_reader: "qwen3-vl", or "text_encoder" behind Qwen3-VL's vision tower.
            vl_treatment: As in the call.
            muted: Read the turn a second time with the picture's features times 0, for "style_delta" without a neutral
                picture.
            describe: Let the VL encoder write the text beside the picture, in place of `text`.

        Returns:
            Hidden states `(tokens, dims)` per layer, with regions and provenance. Under model offload nothing stays on
            the accelerator but these.

        Raises:
            TypeError: A value of the wrong type, an unknown argument.
            ValueError: A picture that cannot be read, a layer out of range, a text to describe beside, NaN from the
                encoder.

        Example:
            >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
            >>> embeds = load_toy_pipeline().encode_reference(draw_scene(Scene("cross", "cyan", "gray")), "a circle")
            >>> embeds.num_image_tokens, embeds.width
            (16, 96)
        """
        check_choice("vl_reader", vl_reader, KNOBS["vl_reader"].choices)
        check_flag("muted", muted)
        (words,) = check_texts("text", "" if text is None else text, 1)
        check_describe("describe", describe, "text" if words else "", vl_reader)
        refuse_unknown(unknown, _OWN_NAMES)
        picture = load_reference_image(image, "image")
        reading = build_reading(
            self.find_reader(vl_reader),
            self.tokenizer,
            picture,
            read_text_beside(self.tokenizer, words, max_sequence_length),
            (DEFAULT_LAYERS[vl_reader],) if layers is None else layers,
            text_position=text_position,
            max_pixels=max_pixels,
            mask=None if mask is None else load_reference_mask(mask, picture.size),
            treatment=vl_treatment,
            muted=muted,
            describe=describe,
        )
        with self.running():
            # A copy: what is done to it does not reach the readings that are kept.
            return copy.deepcopy(self.read_pictures([reading])[0])

    def load_reference(self, path: str | os.PathLike[str]) -> ReferenceEmbeds:
        """Load a file that `encode_reference(...).save(path)` wrote; a call takes the path too.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or of another kind or width.
        """
        embeds = ReferenceEmbeds.load(path)
        embeds.check_fits(self.text_encoder.config.hidden_size, embeds.layers)
        return embeds

    def tokenize_prompt(self, prompt: str, max_sequence_length: int = 512) -> tuple[PromptToken, ...]:
        """Get the prompt's tokens with their places, for an alpha per token: row i of its `prompt_embeds` is token i.

        Example:
            >>> from zimage_vl.toy import load_toy_pipeline
            >>> tokens = load_toy_pipeline().tokenize_prompt("a red circle")
            >>> [token.text for token in tokens if token.start >= 0]
            ['a', ' red', ' circle']
        """
        (text,) = check_texts("prompt", prompt, 1)
        return read_text_turn(self.tokenizer, text, max_sequence_length).tokens

    def encode_prompt_with_reference(
        self,
        prompt: str | list[str],
        reference_image: ReferenceInput | None = None,
        *,
        reference_embeds: EmbedsInput | None = None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        max_sequence_length: int = 512,
        **knobs: Any,
    ) -> PromptConditioning:
        """Get embeddings for any Z-Image pipeline: image-to-image, inpainting, ControlNet, or a script of your own.

        Args:
            prompt: One prompt or a list of them.
            reference_image: As in the call.
            reference_embeds: As in the call.
            negative_prompt: One for all prompts or one per prompt, `""` by default.
            do_classifier_free_guidance: Whether negative embeddings are wanted.
            max_sequence_length: Tokens after which a prompt is cut.
            knobs: The call's other arguments about references, but for `vl_start` and `vl_end`: the other pipeline
                decides its steps.

        Returns:
            `prompt_embeds`, `negative_prompt_embeds` and `reports`. Under offload no encoder stays resident.

        Raises:
            TypeError: An unknown argument, or a value of the wrong type.
            ValueError: As in the call; `vl_start` or `vl_end` is given.

        Example:
            >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
            >>> photo = draw_scene(Scene("circle", "red", "white"))
            >>> ready = load_toy_pipeline().encode_prompt_with_reference("a square", photo, vl_alpha=0.5)
            >>> ready.prompt_embeds[0].shape
            torch.Size([10, 96])
        """
        for name in ("vl_start", "vl_end"):
            if name in knobs:
                raise ValueError(
                    f"`{name}` is refused here: the pipeline that takes the embeddings decides its steps."
                )
        call = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "do_classifier_free_guidance": do_classifier_free_guidance,
            "max_sequence_length": max_sequence_length,
        }
        references = {"reference_image": reference_image, "reference_embeds": reference_embeds}
        plan = self.make_plan(call, {**knobs, **references})
        with self.running(), torch.no_grad():
            text, negative = self.encode_text(plan)
            ready = self.condition(plan, text, negative, self.read_pictures(plan.acting_pictures))
            offload_models(self, self.text_encoder, self.vl_encoder)
        return ready

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride] - the parent names other types
        self,
        prompt: str | list[str],
        device: torch.device | None = None,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: list[Tensor] | None = None,
        negative_prompt_embeds: list[Tensor] | None = None,
        max_sequence_length: int = 512,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As the parent's, on copies: the parent writes the chat template into the caller's lists.

        Raises:
            ValueError: NaN or infinity from the text encoder.
        """
        encode: Callable[..., Any] = super().encode_prompt  # it names narrower types than it takes
        with lock_of_models(self), tokenizer_lock:  # the parent sets padding and truncation on the tokenizer
            heal_model_hooks(self, self.text_encoder)
            embeds, negatives = encode(
                copy.copy(prompt),
                device,
                do_classifier_free_guidance,
                copy.copy(negative_prompt),
                prompt_embeds,
                negative_prompt_embeds,
                max_sequence_length,
            )
        check_finite_tensors("the embeddings of the text encoder", [*embeds, *(negatives or ())])
        return embeds, negatives

    # ---- The text encoder's statistics ----

    def text_statistics(self, exclude_sinks: bool = False) -> EmbeddingStatistics:
        """Get the statistics of the text encoder's embeddings over the calibration prompts, measured once.

        `load_text_statistics` spares the measurement. They are the `reference` of `get_outlier_dimensions` and others.
        """
        known = self._statistics.get(check_flag("exclude_sinks", exclude_sinks))
        if known is None or known[0]() is not self.text_encoder:
            with self.running():
                measured = measure_text_statistics(
                    lambda prompts: self.encode_prompt(prompts, do_classifier_free_guidance=False)[0], exclude_sinks
                )
                offload_models(self, self.text_encoder)
            known = self._statistics[exclude_sinks] = (weakref.ref(self.text_encoder), measured)
        return known[1]

    def load_text_statistics(self, path: str | os.PathLike[str]) -> TextStatistics:
        """Take the text encoder's statistics from a file of `zimage-vl statistics` instead of measuring them.

        They serve the calls whose `vl_exclude_sinks` is that of the file; the other kind is measured when it is
        needed, unless its file is loaded too.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or of another text encoder; also under sequential offload, where it cannot be
                told which encoder this is: load the file before.
        """
        loaded = TextStatistics.load(path)
        loaded.check_fits(self.text_encoder)
        self._statistics[loaded.statistics.exclude_sinks] = (weakref.ref(self.text_encoder), loaded.statistics)
        return loaded

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
        latents: Tensor | None = None,
        prompt_embeds: list[Tensor] | None = None,
        negative_prompt_embeds: list[Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - the parent's own default
        max_sequence_length: int = 512,
        *,
        reference_image: ReferenceInput | None = None,
        reference_embeds: EmbedsInput | None = None,
        reference_weights: Sequence[float] | None = None,
        reference_mask: ReferenceInput | None = None,
        negative_reference_image: ReferenceInput | None = None,
        negative_reference_embeds: EmbedsInput | None = None,
        vl_reader: VLReader = "qwen3-vl",
        vl_treatment: Treatment = "none",
        vl_alpha: VLAlpha | Sequence[VLAlpha] = 0.3,
        vl_hidden_layer: int | Sequence[int] | Mapping[int, float] | None = None,
        vl_text: str | list[str] | None = None,
        vl_describe: bool = False,
        vl_text_position: str = "after",
        vl_token_selection: str = "all",
        vl_normalization: str = "global",
        vl_target_std: float | None = None,
        vl_outlier_masking: str = "none",
        vl_outlier_threshold: float = 10.0,
        vl_exclude_sinks: bool = False,
        vl_alignment: str = "interpolate",
        vl_concat_tokens: int | None = None,
        vl_blend_mode: str = "linear",
        neutral_image: ReferenceInput | EmbedsInput | None = None,
        vl_start: float = 0.0,
        vl_end: float = 1.0,
        vl_max_pixels: int = 1024 * 1024,
        **unknown: Any,
    ) -> ZImageVLPipelineOutput | tuple[Any]:
        """Generate pictures from prompts, each steered by one or several reference pictures.

        The parameters up to `max_sequence_length` are those of `ZImagePipeline`, with its meanings and defaults;
        `prompt` together with `prompt_embeds` is refused. Without a reference, or at alpha 0, the result is the
        parent's bit for bit and the VL encoder is neither loaded nor run.

        Args:
            reference_image: A picture (PIL, array HWC, tensor CHW; uint8 or float 0..1), path or URL; a list is one
                per prompt (one alone serves all; None for a prompt without), a list inside it is several for one
                prompt.
            reference_embeds: `ReferenceEmbeds`, or the paths of their files, in place of pictures, nested alike.
            reference_weights: Numbers >= 0, as many as one prompt has references; they are made to sum to 1.
            reference_mask: Greyscale pictures, white counts: what is hidden leaves no trace at all.
            negative_reference_image: Pictures to keep away from, read beside the negative prompt and blended into its
                embeddings under the same knobs, weights and mask left out. Only guided calls have one.
            negative_reference_embeds: `ReferenceEmbeds` in their place.
            vl_reader: "qwen3-vl"; or "text_encoder": of Qwen3-VL the vision tower alone is loaded (0.8 GB instead of
                8.9), and Z-Image's own text encoder reads its features.
            vl_treatment: "none"; "palette" (colours without shapes), "blur", "greyscale" (shapes without colours), or
                a function from picture to picture: done before a reference is read.
            vl_alpha: 0 the text alone .. 1 the reference alone; one per text token; or `{place: alpha}` with the
                places "prefix", "prompt", "suffix", any phrase of the prompt, and "default" for the rest. In a batch
                also a list with one of these per prompt.
            vl_hidden_layer: Index into the reader's hidden states, several of them, or `{layer: weight}`; None is -6,
                with the reader "text_encoder" -2.
            vl_text: The text beside the picture; None is the prompt, `""` none.
            vl_describe: Let the VL encoder describe the picture first; the description takes the place of `vl_text`.
            vl_text_position: "after" or "before" the picture.
            vl_token_selection: "all", "text", "image" (with the vision markers) or "image_no_markers".
            vl_normalization: "global", "per_dim", "hybrid", "token_rms" or "none".
            vl_target_std: > 0, for "global" and "hybrid"; None is the std of this prompt's embeddings.
            vl_outlier_masking: "none", "zero", "clamp" or "scale", on image tokens.
            vl_outlier_threshold: > 1, the ratio of standard deviations from which a dimension is an outlier.
            vl_exclude_sinks: Leave attention sinks out of statistics, alignment and blend.
            vl_alignment: "interpolate", "pool", "anchored", "truncate" or "concat".
            vl_concat_tokens: >= 1, for "concat": how many tokens of the reference stand behind the text.
            vl_blend_mode: "linear", "slerp", "adain", "adain_per_dim" or "style_delta".
            neutral_image: The picture without the style, for "style_delta"; None is the reference itself, muted: read
                with its features times 0.
            vl_start: Fraction of the steps from which on the reference counts.
            vl_end: Fraction of the steps up to which it counts.
            vl_max_pixels: Bound on the pixels of a reference that are read.

        Returns:
            `ZImageVLPipelineOutput` with the pictures and, in `conditioning`, what each prompt's references did; or
            `(images,)` where `return_dict` is False.

        Raises:
            TypeError: A value of the wrong type, an unknown argument.
            ValueError: A value out of range, numbers that do not match, arguments that exclude each other; NaN from a
                model.
            RuntimeError: The pipeline is called from its own callback.
        """
        given = dict(locals())
        refuse_unknown(list(unknown))
        check_flag("return_dict", return_dict)
        needed = ["scheduler", "transformer", *([] if str(output_type) == "latent" else ["vae"])]
        needed += ["tokenizer", "text_encoder"] * (prompt_embeds is None)
        if lacking := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"The pipeline has no {' and no '.join(lacking)}: pass them where it is made.")
        plan = self.make_plan({name: given[name] for name in CALL_NAMES}, {name: given[name] for name in KNOBS})
        warn_about_models(self, guidance_scale, joint_attention_kwargs)
        with self.running():
            text, negative = self.encode_text(plan)
            ready = self.condition(plan, text, negative, self.read_pictures(plan.acting_pictures))
            images = self.paint(plan, text, negative, ready, {name: given[name] for name in PAINTING_NAMES})
        if not return_dict:
            return (images,)
        return ZImageVLPipelineOutput(images, ready.reports or None, ready.negative_reports or None)

    @contextmanager
    def running(self) -> Generator[None]:
        """One thread at a time, with the pipeline's own hooks, and nothing left on the accelerator after an error."""
        with lock_of_models(self):
            if self._state == "painting":
                raise RuntimeError(
                    "This pipeline is painting: it cannot be called from its own callback. Make another one over the "
                    "same modules, ZImageVLPipeline(**pipe.components)."
                )
            outermost, self._state = self._state == "idle", "encoding"
            try:
                with freed_after_error(self):
                    if outermost:
                        heal_model_hooks(self)
                    yield
            finally:
                if outermost:
                    self._state, self._device_of_call = "idle", None

    @property
    def _execution_device(self) -> torch.device:
        if self._state == "idle":
            return super()._execution_device
        if self._device_of_call is None:  # diffusers walks through all modules for it
            self._device_of_call = super()._execution_device
        return self._device_of_call

    def make_plan(self, call: Mapping[str, Any], arguments: Mapping[str, Any]) -> Plan:
        """The plan of a call by its arguments, as of `read_inputs`, and those about references."""
        plan = read_inputs(self.get_host(), call, arguments)
        for item in plan.acting_pictures:
            if isinstance(item, ReferenceEmbeds):
                self._check_origin(item)
        return plan

    def get_host(self) -> Host:
        text_encoder, transformer = self.text_encoder, self.transformer
        return Host(
            tokenizer=self.tokenizer,
            width=None if text_encoder is None else text_encoder.config.hidden_size,
            max_text_tokens=None if transformer is None else max_text_tokens(transformer.config.axes_lens),
            max_patches=None if transformer is None else min(transformer.config.axes_lens[1:]),
            latent_channels=None if transformer is None else transformer.in_channels,
            vae_scale_factor=self.vae_scale_factor,
            find_reader=self.find_reader,
        )

    def _check_origin(self, embeds: ReferenceEmbeds) -> None:
        """Refuse ready embeddings of another VL encoder than the pipeline's."""
        encoder, fingerprint = self.vl_encoder, None
        if encoder is not None and embeds.provenance.vl_fingerprint is not None:
            fingerprint = fingerprint_vl_encoder(encoder)
        made, own = embeds.provenance.model_id, self._vl_name
        if not embeds.check_model(own, fingerprint) and None not in (made, own) and made != own:
            warn_once(
                f"A reference was read by the VL encoder {made}, the pipeline's is {own}: from these names it cannot "
                "be told whether they are the same model. Only width and layers were compared."
            )

    def encode_text(self, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
        """The text's own embeddings, and the negative prompt's."""
        text, negative = plan.prompt_embeds, plan.negative_prompt_embeds
        if plan.prompts is not None:
            text, negative = self.encode_prompt(
                plan.prompts,
                do_classifier_free_guidance=plan.guided,
                negative_prompt=plan.negative_prompts,
                negative_prompt_embeds=negative,
                max_sequence_length=plan.max_sequence_length,
            )
        return self._to_transformer(text or ()), self._to_transformer(negative or ())

    def _to_transformer(self, embeds: Sequence[Tensor]) -> list[Tensor]:
        """Bring embeddings to a float32 transformer's type; to that of one in half precision diffusers brings them."""
        foreign = any(one.dtype != torch.float32 for one in embeds)
        if foreign and self.transformer is not None and self.transformer.dtype == torch.float32:
            return [one.float() for one in embeds]
        return list(embeds)

    def condition(
        self, plan: Plan, text: list[Tensor], negative: list[Tensor], states: Sequence[ReferenceEmbeds]
    ) -> PromptConditioning:
        """Blend what was read of the references into the text's embeddings."""
        remaining = iter(states)
        ready = PromptConditioning(list(text), list(negative), [])
        for embeds, plans, reports in (
            (ready.prompt_embeds, plan.references, ready.reports),
            (ready.negative_prompt_embeds, plan.negative_references, ready.negative_reports),
        ):
            for i, one in enumerate(plans):
                embeds[i], report = self._condition_one(embeds[i], one, [next(remaining) for _ in one.pictures])
                reports.append(replace(report, active_steps=plan.active_steps if one.pictures else None))
        return ready

    def _condition_one(
        self, text: Tensor, plan: PromptPlan, states: Sequence[ReferenceEmbeds]
    ) -> tuple[Tensor, ConditioningReport]:
        knobs = plan.conditioning
        statistics = self.text_statistics(knobs.vl_exclude_sinks) if states and knobs.needs_text_statistics else None
        *references, neutral = states if states and knobs.has_neutral_image else (*states, None)
        return condition_prompt_embeds(
            text,
            embeds_regions(self.tokenizer, len(text), plan.turn),
            references,
            knobs,
            alpha=plan.alpha,
            text_statistics=None if statistics is None else statistics.to(text.device),
            neutral=neutral,
        )

    def read_pictures(self, pictures: Sequence[Reading | ReferenceEmbeds]) -> list[ReferenceEmbeds]:
        """The states of each picture; read are those that are neither ready nor among the last readings."""
        offload_models(self, self.text_encoder)
        states = [item if isinstance(item, ReferenceEmbeds) else self._read(item) for item in pictures]
        offload_models(self, self.vl_encoder, self.vl_vision, self.text_encoder)
        return states

    def _read(self, reading: Reading) -> ReferenceEmbeds:
        small = reading.provenance.reader == "text_encoder"
        if self._get_reader(small) is None:
            (self.load_vl_vision if small else self.load_vl_encoder)()
        own = self._get_reader(small)
        models = [own, self.text_encoder] if small else [own]
        key = (*((weakref.ref(m), m.dtype) for m in models), id(self.vl_processor), reading.key, not reading.with_text)
        if key not in self._readings:
            if not model_hooks(self):
                join_offload(self, own)
            self._readings[key] = self._read_small(own, reading) if small else self._read_full(reading)
        self._readings.move_to_end(key)
        if len(self._readings) > _KEPT_READINGS:
            self._readings.popitem(last=False)
        return self._readings[key]

    def _get_reader(self, small: bool) -> Any:
        """The model that sees, None where it is not loaded."""
        return self.vl_vision if small and self.vl_vision is not None else self.vl_encoder

    def _read_small(self, own: Any, reading: Reading) -> ReferenceEmbeds:
        bring_to_device(own)
        tower = own if own is self.vl_vision else own.model.visual
        features = see_picture(tower, self.vl_processor, reading)
        offload_models(self, own)
        return read_with_text_encoder(self.text_encoder, features, reading)

    def _read_full(self, reading: Reading) -> ReferenceEmbeds:
        if reading.with_text is not None:
            text = describe_picture(self.vl_encoder, self.vl_processor, self.tokenizer, reading)
            reading = reading.with_text(text)
        return read_reference(self.vl_encoder, self.vl_processor, reading)

    def paint(
        self,
        plan: Plan,
        text: list[Tensor],
        negative: list[Tensor],
        ready: PromptConditioning,
        call: Mapping[str, Any],
    ) -> Any:
        """The parent's call, with embeddings; outside the window of steps the text alone conditions."""
        output_type = call["output_type"]
        inside = {"prompt_embeds": ready.prompt_embeds, "negative_prompt_embeds": ready.negative_prompt_embeds}
        outside = {"prompt_embeds": text, "negative_prompt_embeds": negative}
        user = call["callback_on_step_end"], call["callback_on_step_end_tensor_inputs"] or ()
        step = StepCallback(plan.window, inside, outside, *user, repeats=call["num_images_per_prompt"])
        given = {
            **call,
            **(inside if not plan.window or plan.window[0] else outside),
            # Arrays first: in a PIL image a NaN would be black.
            "output_type": "np" if output_type == "pil" else output_type,
            "callback_on_step_end": step,
            "callback_on_step_end_tensor_inputs": step.tensor_inputs,
        }
        call_parent: Callable[..., Any] = super().__call__  # it names narrower types than it takes
        self._state = "painting"
        try:
            images = call_parent(return_dict=False, **given)[0]
        finally:
            self._state = "encoding"
        check_painted(images, images if output_type == "latent" else step.latents)
        return self.image_processor.numpy_to_pil(images) if output_type == "pil" else images

    # ---- Other pipelines over the same modules, and saved folders ----

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make this pipeline over the modules of another one, which stay as they are; its offload is restored.

        Args:
            pipeline: Any pipeline with Z-Image's five components.
            kwargs: Components and settings that take precedence over its own. With `torch_dtype` (or `dtype`) all
                modules, the other pipeline's too, are cast to that one, as diffusers does; without, none is.

        Raises:
            TypeError: An argument that the constructor does not take, a component that is missing.

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
        """Make a pipeline of another class over this one's modules, nothing cast, its offload restored.

        Args:
            pipeline_class: Such as `ZImagePipeline` or `ZImageImg2ImgPipeline`, whose own `from_pipe` would cast every
                module to float32, here too, unless it is given a dtype.
            kwargs: Components that it needs besides (a ControlNet), or settings.

        Raises:
            TypeError: An argument that the class does not take, a component that it needs besides.
        """
        return build_over_modules(pipeline_class, self, kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As diffusers' own; the folder also carries this pipeline's code, so that it loads by itself.

        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` restores all of it. Of a full
        `Qwen3VLProcessor` the image processor is saved: it is what is used, and loads without torchvision.

        Raises:
            ValueError: A LoRA or another adapter is attached; the class has no code to put beside the weights.
        """
        read_single_file(type(self))  # refuses before gigabytes are written, as does the next
        refuse_attached_adapters(self.components)
        processor = self.vl_processor
        self.register_modules(vl_processor=getattr(processor, "image_processor", processor))
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.register_modules(vl_processor=processor)

    def save_config(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As diffusers' own, and the pipeline's code beside it: `save_pretrained` calls this before it uploads."""
        super().save_config(save_directory, *args, **kwargs)
        make_self_describing(save_directory, type(self))

    @classmethod
    def _dict_from_json_file(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # A class that is asked for by name needs no code from a self-describing folder.
        config = super()._dict_from_json_file(*args, **kwargs)
        name = config.get("_class_name")
        return {**config, "_class_name": name[-1]} if isinstance(name, (list, tuple)) else config


_OWN_SIGNATURE = inspect.signature(ZImageVLPipeline.__call__)
CALL_NAMES = tuple(
    name
    for name, parameter in _OWN_SIGNATURE.parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name not in ("self", "return_dict")
)
#: What goes to the parent as it came; prompts go as embeddings.
PAINTING_NAMES = tuple(name for name in CALL_NAMES if "prompt" not in name or name == "num_images_per_prompt")


def _declare_vl_parts_as_components() -> None:
    """Give the VL parts no default in the signature that diffusers reads, and all parameters their real types.

    `DiffusionPipeline.from_pretrained(folder, vl_encoder=mine)` takes a parameter with a default for a setting, and
    would put the folder's encoder in the place of `mine` without a word. diffusers 0.36 reads the types there too, and
    those of the annotations, which are strings in the single file.
    """
    build: Any = ZImageVLPipeline.__init__
    signature = inspect.signature(build, eval_str=True)
    parameters = [
        parameter.replace(default=parameter.empty) if name.startswith("vl_") and name != "vl_model_id" else parameter
        for name, parameter in signature.parameters.items()
    ]
    build.__signature__ = signature.replace(parameters=parameters)
    build.__annotations__ = {each.name: each.annotation for each in parameters if each.name != "self"}


_declare_vl_parts_as_components()
