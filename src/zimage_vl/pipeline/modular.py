"""`ZImageVLReferenceStep`: a reference picture as a block of Modular Diffusers, behind the step of the text encoder.

The block has no arithmetic of its own. A `ZImageVLPipeline` over the components of the modular pipeline plans, reads
pictures and blends as in a call of its own, on the embeddings that the steps before have made.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, ModularPipelineBlocks, OutputParam
from torch import Tensor
from transformers import AutoImageProcessor, Qwen2Tokenizer, Qwen3Model, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from ..blend.registry import KNOBS, VLReader
from ..blend.report import ConditioningReport
from ..reference.reading import Reading
from ..reference.turn import TextTurn, template_ends
from .pipeline_z_image_vl import ZImageVLPipeline


_VL_PARTS = ("vl_encoder", "vl_processor", "vl_vision")
_BORROWED = ("text_encoder", "tokenizer", "transformer", *_VL_PARTS)
# The readings and statistics of each modular pipeline. Not on the block, which diffusers copies with all it holds.
_lent: weakref.WeakKeyDictionary[Any, ZImageVLPipeline] = weakref.WeakKeyDictionary()


class ZImageVLReferenceStep(ModularPipelineBlocks):
    """Blends reference pictures into the prompt's embeddings; it stands right behind the text encoder's step.

    Its inputs about references are those of a call of `ZImageVLPipeline`, and so are the embeddings it gives, bit for
    bit. Without a reference, or at alpha 0, they stay as they are, and no VL model is loaded or run.

    Qwen3-VL is loaded with the first reference that is to be read, from the Hub id or folder in the setting
    `vl_model_id`, unless the modular pipeline has it: `update_components(vl_encoder=..., vl_processor=...)`.

    Example:
        >>> from diffusers import ZImageAutoBlocks
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> blocks = ZImageAutoBlocks()
        >>> _ = blocks.sub_blocks.insert("reference", ZImageVLReferenceStep(), 1)
        >>> pipe = blocks.init_pipeline()
        >>> pipe.update_components(**load_toy_pipeline().components)
        >>> state = pipe(prompt="a blue square", reference_image=draw_scene(Scene("circle", "red", "white")),
        ...              vl_alpha=0.3, height=64, width=64, num_inference_steps=8)
        >>> state.get("images")[0].size, len(state.get("conditioning"))
        ((64, 64), 1)
    """

    model_name = "z-image"
    _requirements = {"diffusers": ">=0.41.0"}  # noqa: RUF012 - as every block declares it

    @property
    def description(self) -> str:
        return "Blends what Qwen3-VL reads in reference pictures into the prompt's embeddings. Nothing is trained."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [
            ComponentSpec("text_encoder", Qwen3Model),
            ComponentSpec("tokenizer", Qwen2Tokenizer),
            ComponentSpec("vl_encoder", Qwen3VLForConditionalGeneration, "reads references; loaded with the first"),
            ComponentSpec("vl_processor", AutoImageProcessor, "its image processor; loaded with it"),
            ComponentSpec("vl_vision", Qwen3VLVisionModel, 'its vision tower alone, for vl_reader="text_encoder"'),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        default = inspect.signature(ZImageVLPipeline.__init__).parameters["vl_model_id"].default
        return [ConfigSpec("vl_model_id", default, "Hub id or folder of the VL encoder; None never loads one")]

    @property
    def inputs(self) -> list[InputParam]:
        about = {name: f"{knob.values}: {knob.help}" for name, knob in KNOBS.items()}
        for name in ("vl_start", "vl_end"):
            about[name] = "refused here: the denoising step takes one set of embeddings for all of its steps"
        return [
            InputParam("prompt", description="The prompt or prompts that were encoded."),
            InputParam("negative_prompt", description="The same of the negative prompts."),
            InputParam("max_sequence_length", default=512, description="Tokens after which a prompt was cut."),
            InputParam("prompt_embeds", list[Tensor], required=True, description="Their embeddings."),
            InputParam("negative_prompt_embeds", list[Tensor], description="The same of the negative prompts."),
            *(InputParam(name, default=knob.default, description=about[name]) for name, knob in KNOBS.items()),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        fields, reports = "denoiser_input_fields", list[ConditioningReport]
        return [
            OutputParam("prompt_embeds", list[Tensor], "the embeddings with the references in them", fields),
            OutputParam("negative_prompt_embeds", list[Tensor], "the same of the negative prompts", fields),
            OutputParam("conditioning", reports, "what the references did, one report per prompt; None without any"),
            OutputParam("negative_conditioning", reports, "the same of the negative references"),
        ]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Blend the references of a state into its embeddings; diffusers calls this.

        Raises:
            TypeError: As `ZImageVLPipeline`.
            ValueError: As `ZImageVLPipeline`; `vl_start` or `vl_end`; a negative reference while the guider is off; no
                `prompt` behind the step of the text encoder.
        """
        block_state: Any = self.get_block_state(state)
        text, negative = block_state.prompt_embeds, block_state.negative_prompt_embeds
        knobs = {name: getattr(block_state, name) for name in KNOBS}
        _refuse_what_blocks_cannot_do(knobs, negative is not None)
        if block_state.prompt is None and "text_encoder" in getattr(components.blocks, "sub_blocks", ()):
            raise ValueError(
                "Pass `prompt`. For `prompt_embeds` of your own, which the step of the text encoder would replace, "
                'take that step out: blocks.sub_blocks.pop("text_encoder").'
            )
        with _borrow_parts(components) as pipe:
            call = _read_call_of_block(block_state, pipe.tokenizer)
            plan = pipe.make_plan(call, knobs)
            if plan.references and plan.prompts is not None:
                _check_belongs(text, [one.turn for one in plan.references if one.turn is not None])
            if any(isinstance(item, Reading) for item in plan.acting_pictures):
                _load_reader(components, pipe, knobs["vl_reader"])
            plan = replace(plan, prompts=None, prompt_embeds=text, negative_prompt_embeds=negative)
            with pipe.running():
                texts = pipe.encode_text(plan)
                ready = pipe.condition(plan, *texts, pipe.read_pictures(plan.acting_pictures))
        block_state.prompt_embeds = ready.prompt_embeds
        block_state.negative_prompt_embeds = None if negative is None else ready.negative_prompt_embeds
        block_state.conditioning = ready.reports or None
        block_state.negative_conditioning = ready.negative_reports or None
        self.set_block_state(state, block_state)
        return components, state


def _refuse_what_blocks_cannot_do(knobs: Mapping[str, Any], is_guided: bool) -> None:
    for name in ("vl_start", "vl_end"):
        if knobs[name] != KNOBS[name].default:
            raise ValueError(
                f"`{name}` is refused in a block, got {knobs[name]!r}: the denoising step takes one set of embeddings "
                "for all of its steps. Leave it out, or call ZImageVLPipeline, which has windows of steps."
            )
    if not is_guided and any(knobs[f"negative_reference_{kind}"] is not None for kind in ("image", "embeds")):
        raise ValueError(
            "A negative reference acts on the negative prompt, and there is none while the guider is off: "
            "pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0)), for which Z-Image-Turbo is "
            "not made."
        )


def _check_belongs(embeds: list[Tensor], turns: list[TextTurn]) -> None:
    expected, got = [len(turn.ids) for turn in turns], [len(one) for one in embeds]
    if expected != got:
        raise ValueError(
            f"`prompt_embeds` must be those of `prompt`, of {expected} tokens, got {got}: leave them to the step of "
            "the text encoder, or pass no `prompt`."
        )


def _read_call_of_block(block_state: Any, tokenizer: Any) -> dict[str, Any]:
    """The arguments that the plan of a call is made from; the words are left out where embeddings alone are known."""
    call = {
        "do_classifier_free_guidance": block_state.negative_prompt_embeds is not None,
        "max_sequence_length": block_state.max_sequence_length,
    }
    if block_state.prompt is None:
        return call | {name: getattr(block_state, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    return call | {
        name: _without_template(getattr(block_state, name), tokenizer) for name in ("prompt", "negative_prompt")
    }


def _without_template(texts: Any, tokenizer: Any) -> Any:
    """A list of texts as it was: diffusers' own step writes the chat template into the caller's list."""
    if not isinstance(texts, list):
        return texts
    begin, end = template_ends(tokenizer)
    return [
        text[len(begin) : len(text) - len(end)] if text.startswith(begin) and text.endswith(end) else text
        for text in texts
    ]


@contextmanager
def _borrow_parts(components: Any) -> Generator[ZImageVLPipeline]:
    """Within it, a pipeline over the parts of the modular one; it keeps what it has read and measured, no model."""
    pipe = _lent.get(components)
    if pipe is None:
        parts: dict[str, Any] = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "transformer"))
        pipe = _lent[components] = ZImageVLPipeline(**parts)
    pipe.register_modules(**{name: getattr(components, name, None) for name in _BORROWED})
    pipe.register_to_config(vl_model_id=components.config["vl_model_id"])
    try:
        yield pipe
    finally:
        pipe.register_modules(**dict.fromkeys(_BORROWED))


def _load_reader(components: Any, pipe: ZImageVLPipeline, vl_reader: VLReader) -> None:
    """Load what reads as a component of the modular pipeline, while nothing else is on the accelerator."""
    if pipe.vl_encoder is not None or (vl_reader == "text_encoder" and pipe.vl_vision is not None):
        return
    manager = getattr(components, "_components_manager", None)
    strategy = getattr(manager, "_offload_strategy", None)
    for hook in getattr(manager, "model_hooks", None) or ():
        hook.offload()
    (pipe.load_vl_vision if vl_reader == "text_encoder" else pipe.load_vl_encoder)()
    loaded = {name: getattr(pipe, name) for name in _VL_PARTS if getattr(pipe, name) is not None}
    components.update_components(**loaded)
    if manager is not None and strategy is not None:  # for a new model it sets its hooks anew, with its own strategy
        manager.set_offload_strategy(strategy)
