"""The VL side of the pipeline: its parts, loaded when needed, and what they say about a picture."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from PIL import Image

from ..blend.condition import condition_prompt_embeds
from ..blend.embedding_statistics import EmbeddingStatistics
from ..blend.knobs import resolve_alpha
from ..blend.regions import PromptToken
from ..blend.report import ConditioningReport
from ..reference.embeds import ReferenceEmbeds
from ..reference.fingerprints import fingerprint_vl_encoder
from ..reference.loading import load_vl_parts
from ..reference.pictures import load_reference_image, load_reference_mask
from ..reference.readers import check_vl_encoder, resolve_vl_layers
from ..reference.reading import check_reference_inputs
from ..reference.turn import embeds_regions, prompt_turn
from .caching import ReferenceCachesMixin
from .calibration import measure_text_statistics
from .call_checks import check_finite_embeds, get_max_text_tokens, warn_once
from .inputs import ReferenceRequest
from .offload import (
    forget_model,
    freed_after_error,
    heal_model_hooks,
    lock_of_pipeline,
    offload_models,
    place_new_model,
)
from .output import PromptConditioning
from .text_statistics import TextStatistics


class PromptPlan(NamedTuple):
    """What is known of a prompt before any model runs: its tokens, and alpha for each; None without its words."""

    tokens: tuple[PromptToken, ...] | None = None
    alpha: torch.Tensor | None = None


class VLPartsMixin(ReferenceCachesMixin):
    """What `ZImageVLPipeline` has beyond `ZImagePipeline` to read pictures. It works on the pipeline's components."""

    # The pipeline's, which diffusers sets by name.
    encode_prompt: Any
    register_modules: Any
    register_to_config: Any
    text_encoder: Any
    tokenizer: Any
    transformer: Any
    vl_encoder: Any
    vl_processor: Any
    _statistics: dict[bool, tuple[Any, EmbeddingStatistics]]
    _vl_revision: str | None

    @property
    def z_image_components(self) -> dict[str, Any]:
        """The components without the VL parts, for a plain Z-Image pipeline: `ZImagePipeline(**these)`."""
        return {name: part for name, part in cast("Any", self).components.items() if not name.startswith("vl_")}

    def load_vl_encoder(
        self,
        model_id: str | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Load the VL encoder and its image processor, and bring them to where the pipeline keeps its models.

        An encoder that is there already is kept until the new one is; to hold no two, `unload_vl_encoder()` first.

        Args:
            model_id: Hub id or folder; None is `vl_model_id` of the pipeline.
            revision: Branch, tag or commit on the Hub.
            dtype: None is the text encoder's.
            layers: Those that will be asked for, such as `(-6,)`: the blocks behind the deepest of them are never read
                from disk (-6 of 36: 5 blocks of 36). Layers keep their numbers, and results their bits; a deeper layer
                is refused until the encoder is loaded again with it, and such an encoder is not saved. None loads all.

        Raises:
            ValueError: No `model_id` and `vl_model_id=None`; a layer that the model does not have; a model that is not
                as wide as the text encoder.
            OSError: It cannot be found or downloaded.
        """
        model_id = model_id or cast("Any", self).config.vl_model_id
        if model_id is None:
            raise ValueError(
                "This pipeline has no VL encoder and `vl_model_id` is None, so none is loaded. Pass `vl_encoder` and "
                "`vl_processor`, call load_vl_encoder with a `model_id`, or use `reference_embeds`."
            )
        encoder, processor = load_vl_parts(model_id, revision, dtype or self.text_encoder.dtype, layers)
        check_vl_encoder(encoder, self.text_encoder.config.hidden_size)
        self.register_modules(vl_encoder=encoder, vl_processor=processor)
        self.register_to_config(vl_model_id=str(model_id))
        self._vl_revision = revision
        place_new_model(self, encoder)

    def unload_vl_encoder(self) -> None:
        """Forget the VL encoder, its processor and what is kept of references, and give their memory back.

        A later call may load the encoder again.
        """
        with lock_of_pipeline(self):
            encoder = self.vl_encoder
            self.clear_reference_cache()
            self.register_modules(vl_encoder=None, vl_processor=None)
            if encoder is not None:
                forget_model(self, encoder)

    def _require_vl_encoder(self) -> None:
        if self.vl_encoder is None:
            self.load_vl_encoder()
        if self.vl_processor is None:
            raise ValueError(
                "`vl_encoder` was given without `vl_processor`. Pass its image processor too: "
                "transformers.AutoImageProcessor.from_pretrained(<the VL encoder's id or folder>)."
            )
        check_vl_encoder(self.vl_encoder, None if self.text_encoder is None else self.text_encoder.config.hidden_size)

    def encode_reference(
        self,
        image: Any,
        text: str = "",
        layers: Sequence[int] = (-6,),
        *,
        text_position: str = "after",
        max_pixels: int = 1024 * 1024,
        mask: Any = None,
        max_sequence_length: int = 512,
    ) -> ReferenceEmbeds:
        """What the VL encoder says about a picture, to be used again as `reference_embeds` or saved.

        Args:
            image: One picture of any kind that `reference_image` takes.
            text: The text beside it; for the same result as `pipe(prompt, reference_image=image)`, the prompt.
            layers: Those that `vl_hidden_layer` will ask for; all come from one pass.
            text_position: "after" or "before" the picture.
            max_pixels: Bound on the pixels that are read.
            mask: Greyscale picture, white counts.
            max_sequence_length: As in the call: cuts the text as the prompt is cut.

        Returns:
            Hidden states `(tokens, dims)` a layer, with regions and provenance. Under model offload nothing stays on
            the accelerator but these. One of the last references is not read again: see `set_reference_cache_size`.

        Example:
            >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
            >>> embeds = load_toy_pipeline().encode_reference(draw_scene(Scene("cross", "cyan", "gray")), "a circle")
            >>> embeds.num_image_tokens, embeds.width
            (16, 96)
        """
        picture = load_reference_image(image, "image")
        cover = None if mask is None else load_reference_mask(mask, picture.size)
        with lock_of_pipeline(self), freed_after_error(self):
            heal_model_hooks(self)
            self._require_vl_encoder()
            offload_models(self, self.text_encoder, self.vl_encoder)
            embeds = self._read_once(
                picture,
                text,
                layers,
                text_position=text_position,
                max_pixels=max_pixels,
                mask=cover,
                max_sequence_length=max_sequence_length,
                model_id=self._vl_model_name,
                revision=self._vl_revision,
            )
            offload_models(self, self.vl_encoder)
        return embeds

    def tokenize_prompt(self, prompt: str, max_sequence_length: int = 512) -> tuple[PromptToken, ...]:
        """The prompt's tokens with their places, for an alpha a token: row i of its `prompt_embeds` is token i.

        Example:
            >>> from zimage_vl.toy import load_toy_pipeline
            >>> tokens = load_toy_pipeline().tokenize_prompt("a red circle")
            >>> [token.text for token in tokens if token.start >= 0]
            ['a', ' red', ' circle']
        """
        return prompt_turn(self.tokenizer, prompt, max_sequence_length)[1]

    def text_statistics(self, exclude_sinks: bool = False) -> EmbeddingStatistics:
        """Statistics of the text encoder's embeddings over the calibration prompts, measured once an encoder.

        `load_text_statistics` spares the measurement.
        """
        known = self._statistics.get(exclude_sinks)
        if known is None or known[0]() is not self.text_encoder:
            with lock_of_pipeline(self), freed_after_error(self):
                heal_model_hooks(self)
                measured = measure_text_statistics(
                    lambda prompts: self.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0],
                    exclude_sinks,
                )
                offload_models(self, self.text_encoder)
            known = self._statistics[exclude_sinks] = (weakref.ref(self.text_encoder), measured)
        return known[1]

    def load_text_statistics(self, path: str | os.PathLike[str]) -> TextStatistics:
        """Take the text encoder's statistics from a file of `zimage-vl statistics` instead of measuring them.

        They serve the calls whose `vl_exclude_sinks` is that of the file; the other kind is measured when it is
        needed, unless its file is loaded too.

        Args:
            path: The safetensors file.

        Returns:
            What the file holds.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or of another text encoder; also under sequential offload, where it cannot be
                told which encoder this is: load the file before.

        Example:
            >>> from zimage_vl.toy import load_toy_pipeline
            >>> pipe = load_toy_pipeline()
            >>> pipe.load_text_statistics("toy.safetensors").statistics.count  # doctest: +SKIP
            640
        """
        loaded = TextStatistics.load(path)
        loaded.check_fits(self.text_encoder)
        known = (weakref.ref(self.text_encoder), loaded.statistics)
        self._statistics[loaded.statistics.exclude_sinks] = known
        return loaded

    # ---- From a call's requests to embeddings ----

    def _condition(
        self, requests: list[ReferenceRequest] | None, encode: dict[str, Any]
    ) -> tuple[list[torch.Tensor], PromptConditioning]:
        """The text's own embeddings, and what the references make of them; `encode` goes to `encode_prompt`."""
        length = encode["max_sequence_length"]
        plans = [self._plan(request, length) for request in requests or ()]
        if encode.get("prompt_embeds") is not None and encode["prompt"] is None:
            text, negative = list(encode["prompt_embeds"]), list(encode.get("negative_prompt_embeds") or [])
        else:
            text, negative = self.encode_prompt(**encode)
        offload_models(self, self.text_encoder)
        check_finite_embeds("the text encoder", [*text, *(negative or [])])
        if requests is None:
            return text, PromptConditioning(text, negative, [])
        results = [
            self._condition_one(embeds, request, plan, length)
            for embeds, request, plan in zip(text, requests, plans, strict=True)
        ]
        return text, PromptConditioning([out for out, _ in results], negative, [report for _, report in results])

    def _plan(self, request: ReferenceRequest, max_sequence_length: int) -> PromptPlan:
        """Finds what can be found wrong before any model runs."""
        plan = PromptPlan()
        if request.prompt is not None:
            tokens = self.tokenize_prompt(request.prompt, max_sequence_length)
            plan = PromptPlan(tokens, resolve_alpha(request.knobs.vl_alpha, tokens, request.prompt))
        if request.needs_vl_encoder:
            self.check_request(request)
        self._check_embeds(request)
        return plan

    @property
    def _vl_model_name(self) -> str | None:
        return getattr(self.vl_encoder, "name_or_path", None) or cast("Any", self).config.vl_model_id

    def _check_embeds(self, request: ReferenceRequest) -> None:
        """Ready embeddings must be as wide as the text's, hold the layers, and be of the pipeline's own VL encoder."""
        ready = [item for item in (*request.references, request.neutral) if isinstance(item, ReferenceEmbeds)]
        for embeds in ready:
            embeds.check_fits(self.text_encoder.config.hidden_size, request.knobs.layers)
        marked = any(embeds.provenance.vl_fingerprint for embeds in ready)
        fingerprint = fingerprint_vl_encoder(self.vl_encoder) if marked and self.vl_encoder is not None else None
        for embeds in ready:
            made, own = embeds.provenance.model_id, self._vl_model_name
            if not embeds.check_model(own, fingerprint) and None not in (made, own) and made != own:
                warn_once(
                    f"A reference was read by the VL encoder {made}, the pipeline's is {own}: from these names it "
                    "cannot be told whether they are the same model. Only width and layers were compared."
                )

    def check_request(self, request: ReferenceRequest) -> None:
        """Refuse layers and pictures that the VL encoder cannot read, before it runs; it is loaded if need be."""
        self._require_vl_encoder()
        resolve_vl_layers(self.vl_encoder, request.knobs.layers)
        pictures = [*zip(request.references, request.masks, strict=True), (request.neutral, None)]
        for picture, mask in pictures:
            if isinstance(picture, Image.Image):
                check_reference_inputs(
                    self.vl_encoder,
                    self.vl_processor,
                    self.tokenizer,
                    picture,
                    request.text or "",
                    text_position=request.knobs.vl_text_position,
                    max_pixels=request.knobs.vl_max_pixels,
                    mask=mask,
                )

    def _condition_one(
        self,
        text: torch.Tensor,
        request: ReferenceRequest,
        plan: PromptPlan,
        max_sequence_length: int,
    ) -> tuple[torch.Tensor, ConditioningReport]:
        knobs = request.knobs
        references = [] if knobs.is_inert else self.read_references(request, max_sequence_length)
        neutral = references.pop() if request.neutral is not None and references else None
        wanted = knobs.needs_text_statistics and not knobs.is_inert
        return condition_prompt_embeds(
            text,
            embeds_regions(self.tokenizer, len(text), plan.tokens),
            references,
            knobs,
            alpha=plan.alpha,
            text_statistics=self.text_statistics(knobs.vl_exclude_sinks).to(text.device) if wanted else None,
            neutral=neutral,
            max_tokens=None if self.transformer is None else get_max_text_tokens(self.transformer),
        )

    def read_references(self, request: ReferenceRequest, max_sequence_length: int) -> list[ReferenceEmbeds]:
        """The references as the VL encoder saw them, and last, where there is one, the neutral picture."""
        pictures = list(zip(request.references, request.masks, strict=True))
        if request.neutral is not None:
            neutral: Any = request.neutral
            first: Any = request.references[0]
            if not isinstance(neutral, ReferenceEmbeds) and neutral.size != first.size:
                neutral = neutral.resize(first.size)
            pictures.append((neutral, request.masks[0]))
        return [
            picture
            if isinstance(picture, ReferenceEmbeds)
            else self.encode_reference(
                picture,
                request.text or "",
                request.knobs.layers,
                text_position=request.knobs.vl_text_position,
                max_pixels=request.knobs.vl_max_pixels,
                mask=mask,
                max_sequence_length=max_sequence_length,
            )
            for picture, mask in pictures
        ]
