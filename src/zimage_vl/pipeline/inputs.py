"""From the arguments of a call to a plan: all that can be known, and found wrong, before any model loads or runs.

This is the one boundary where arguments are checked. Pictures are loaded here, once, and each becomes a `Reading`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, cast

import torch
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from ..blend.align import align_sequence
from ..blend.checks import check_choice
from ..blend.condition import check_caption
from ..blend.knobs import PLACES, VLConditioning, resolve_alpha, split_per_prompt
from ..blend.regions import Region, select_tokens
from ..blend.registry import CONDITIONING_NAMES, KNOBS, VLReader
from ..reference.embeds import ReferenceEmbeds, as_reference_embeds, describe_width
from ..reference.pictures import (
    TREATMENTS,
    ReferenceImage,
    group_references,
    load_reference_image,
    load_reference_mask,
)
from ..reference.reading import ReaderSource, Reading, build_reading
from ..reference.turn import TextTurn, read_text_turn


# What a call takes as pictures and as ready embeddings; a list is one per prompt, a list in it several for one prompt.
ReferenceInput = ReferenceImage | Sequence[ReferenceImage | Sequence[ReferenceImage] | None]
SavedReference = ReferenceEmbeds | str | os.PathLike[str]
EmbedsInput = SavedReference | Sequence[SavedReference | Sequence[SavedReference] | None]

# The names of the Qwen3-VL conditioning guide and of its author's code, and ours.
_GUIDE_NAMES = {
    "alpha": "vl_alpha",
    "hidden_layer": "vl_hidden_layer",
    "image": "reference_image",
    "callback": "callback_on_step_end",
    "image_tokens_no_markers": 'vl_token_selection="image_no_markers"',
    "image_tokens_only": 'vl_token_selection="image" (for False "all")',
    "init_image": "zimage_vl.paint_from_image, or pipe.to_pipe(ZImageImg2ImgPipeline)",
    "ip_adapter_image": "reference_image",
    "layer": "vl_hidden_layer",
    "mask_image": "pipe.to_pipe(ZImageInpaintPipeline)",
    "normalization_mode": "vl_normalization",
    "outlier_masking": "vl_outlier_masking",
    "outlier_threshold": "vl_outlier_threshold",
    "scale_to_text": 'vl_normalization="global" (for False "none")',
    "strength": "zimage_vl.paint_from_image, or pipe.to_pipe(ZImageImg2ImgPipeline)",
    "target_std": "vl_target_std",
    "text": "vl_text",
    "text_tokens_only": 'vl_token_selection="text" (for False "all")',
    "text_with_image": "vl_text",
    "vl_embeddings": "reference_embeds",
    "vl_embeds": "reference_embeds",
}
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# The transformer pads captions to a multiple of this, and sets the picture one position behind them.
_CAPTION_MULTIPLE = 32
# More tokens than any chat template of Qwen3 puts around a prompt.
_TEMPLATE_TOKENS = 64
_MOST_STEPS = 10_000

_inputs_logger = logging.get_logger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Host:
    """The facts about a pipeline's models that arguments are checked against; None where a model is missing."""

    tokenizer: Any
    width: int | None  # of the text embeddings
    max_text_tokens: int | None
    latent_channels: int | None
    vae_scale_factor: int
    callback_inputs: Sequence[str]
    is_guided: Callable[[float], bool]
    find_reader: Callable[[VLReader], ReaderSource]


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """How references act on one prompt, known before any model runs.

    Attributes:
        conditioning: The knobs.
        turn: The prompt's tokens; None where only its embeddings are known.
        alpha: `(tokens,)`; None where it is one number and the tokens are not known.
        references: What is to be read, or was read before; empty where nothing acts.
        neutral: The neutral picture of "style_delta".
    """

    conditioning: VLConditioning
    turn: TextTurn | None = None
    alpha: Tensor | None = None
    references: tuple[Reading | ReferenceEmbeds, ...] = ()
    neutral: Reading | ReferenceEmbeds | None = None

    @property
    def pictures(self) -> tuple[Reading | ReferenceEmbeds, ...]:
        """The references, and behind them the neutral picture where there is one."""
        return self.references if self.neutral is None else (*self.references, self.neutral)


@dataclass(frozen=True, eq=False)
class Plan:
    """A call, checked and complete.

    Attributes:
        prompts: The prompts; None where embeddings came in their place.
        negative_prompts: One per prompt; None for the empty ones.
        prompt_embeds: The embeddings that came.
        negative_prompt_embeds: Likewise.
        guided: Whether there is classifier-free guidance.
        max_sequence_length: Tokens after which a prompt is cut.
        references: One plan per prompt; empty without references.
        negative_references: The same for the negative prompts.
        window: For each step, whether the references count.
    """

    prompts: list[str] | None
    negative_prompts: list[str] | None
    prompt_embeds: list[Tensor] | None
    negative_prompt_embeds: list[Tensor] | None
    guided: bool
    max_sequence_length: int
    references: tuple[PromptPlan, ...] = ()
    negative_references: tuple[PromptPlan, ...] = ()
    window: tuple[bool, ...] = ()

    @property
    def acting_pictures(self) -> list[Reading | ReferenceEmbeds]:
        """The pictures of all prompts and negative prompts, in order."""
        return [item for one in (*self.references, *self.negative_references) for item in one.pictures]


def read_inputs(host: Host, call: Mapping[str, Any], arguments: Mapping[str, Any]) -> Plan:
    """Check a call and make its plan.

    Args:
        host: The facts about the pipeline.
        call: The arguments of `ZImagePipeline` by name; those left out have diffusers' defaults.
        arguments: The arguments about references by name; those left out have the defaults of `KNOBS`.

    Raises:
        TypeError: A value of the wrong type, an unknown name.
        ValueError: A value out of range, numbers that do not match, arguments that exclude each other.
        OSError: A VL encoder has to read a picture, and its config cannot be found.
    """
    refuse_unknown([name for name in arguments if name not in KNOBS])
    knobs = {name: knob.default for name, knob in KNOBS.items()} | dict(arguments)
    plan = _read_call(host, call)
    count = len(plan.prompts if plan.prompts is not None else cast("list[Tensor]", plan.prompt_embeds))
    conditionings = _read_conditionings(knobs, count)
    own, negative = _has_reference(knobs), _has_reference(knobs, "negative_")
    for name in () if own else ("reference_weights", "reference_mask", "neutral_image", "vl_text"):
        if knobs[name] is not None:
            raise ValueError(
                f"`{name}` needs a reference: pass `reference_image` or `reference_embeds`, or leave it out."
            )
    if negative and not plan.guided:
        raise ValueError(
            "A negative reference acts on the negative prompt, and this call has none: it needs guidance, "
            "guidance_scale above 0, in diffusers 0.36 above 1 (for which Z-Image-Turbo is not made)."
        )
    if not own and not negative:
        return plan
    for sentence in dict.fromkeys(note for one in conditionings for note in one.unused):
        warn_once(sentence)
    steps = len(call["sigmas"]) if call.get("sigmas") is not None else call.get("num_inference_steps", 1)
    length = plan.max_sequence_length
    references = _read_references(host, plan.prompts, length, knobs, conditionings) if own else ()
    negatives = _read_negatives(host, plan, knobs, conditionings) if negative else ()
    _check_room(host, references, plan.prompt_embeds)
    _check_room(host, negatives, plan.negative_prompt_embeds)
    window = tuple(conditionings[0].window(steps))
    return replace(plan, references=references, negative_references=negatives, window=window)


def _has_reference(knobs: Mapping[str, Any], side: str = "") -> bool:
    return knobs[f"{side}reference_image"] is not None or knobs[f"{side}reference_embeds"] is not None


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuse arguments that do not exist, naming those that were meant."""
    for name in names:
        own = f"vl_{name}" if f"vl_{name}" in KNOBS else _GUIDE_NAMES.get(name)
        near = difflib.get_close_matches(name, KNOBS, n=1, cutoff=0.75)
        if own is not None:
            hint = f": use {own}"
        else:
            hint = f". Did you mean {near[0]}?" if near else f"; those about references are {', '.join(KNOBS)}"
        raise TypeError(f"There is no argument `{name}` here{hint}" + ("" if hint.endswith("?") else "."))


def warn_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _warned:
        _warned.add(message)
        _inputs_logger.warning(message)


def max_text_tokens(axes_lens: Sequence[int]) -> int:
    """The longest caption that the transformer's rotary embedding has room for: 1504 tokens for an axis of 1536."""
    return (axes_lens[0] - 2) // _CAPTION_MULTIPLE * _CAPTION_MULTIPLE


def warn_about_models(pipe: Any, guidance_scale: float, attention_kwargs: Mapping[str, Any] | None) -> None:
    """Say once what often goes wrong with these models."""
    name = str(getattr(pipe.config, "_name_or_path", "") or "")
    if "turbo" in name.lower() and guidance_scale > 0:
        warn_once(
            f"guidance_scale is {guidance_scale}, but {name} is distilled: pass guidance_scale=0.0, as its card says."
        )
    if pipe.text_encoder is not None and pipe.text_encoder.dtype == torch.float16:
        warn_once("The text encoder is in float16, in which Qwen3 can overflow: prefer bfloat16 or float32.")
    if attention_kwargs:
        forward = getattr(pipe.transformer, "_orig_mod", pipe.transformer).forward
        if "joint_attention_kwargs" not in inspect.signature(forward).parameters:
            warn_once(
                f"`joint_attention_kwargs` {attention_kwargs} have no effect: this version of diffusers does not hand "
                "them to Z-Image's transformer. For a LoRA's scale use pipe.set_adapters(name, scale)."
            )


# ---- The call without its references ----


def _read_call(host: Host, call: Mapping[str, Any]) -> Plan:
    prompts, embeds = _read_prompts(host, call.get("prompt"), call.get("prompt_embeds"))
    count = len(prompts if prompts is not None else cast("list[Tensor]", embeds))
    guided = call.get("do_classifier_free_guidance")
    if guided is None:
        guided = host.is_guided(_check_guidance(call.get("guidance_scale", 5.0)))
    elif not isinstance(guided, bool):
        raise TypeError(f"`do_classifier_free_guidance` must be True or False, got {guided!r}.")
    negatives, negative_embeds = call.get("negative_prompt"), call.get("negative_prompt_embeds")
    if guided and negatives is not None and negative_embeds is not None:
        raise ValueError("Pass `negative_prompt` or `negative_prompt_embeds`, not both.")
    if negatives is not None and guided:
        negatives = _check_texts("negative_prompt", negatives)
        negatives = negatives * count if len(negatives) == 1 else negatives
        _check_count("negative_prompt", len(negatives), count)
    if negative_embeds is not None:
        _check_embeds_list(host, "negative_prompt_embeds", negative_embeds)
        _check_count("negative_prompt_embeds", len(negative_embeds), count if guided else len(negative_embeds))
    if embeds is not None and guided and negative_embeds is None:
        raise ValueError(
            "With `prompt_embeds` and classifier-free guidance `negative_prompt_embeds` are needed too; pass them, or "
            "guidance_scale=0.0 (as Z-Image-Turbo wants)."
        )
    length = _check_whole("max_sequence_length", call.get("max_sequence_length", 512))
    _check_lengths(host, prompts or [], length)
    if "num_inference_steps" in call:
        check_painting(host, call, count)
    return Plan(prompts, negatives if guided else None, embeds, negative_embeds, guided, length)


def _read_prompts(host: Host, prompt: Any, embeds: Any) -> tuple[list[str] | None, list[Tensor] | None]:
    if (prompt is None) == (embeds is None):
        raise ValueError(
            "Pass either `prompt` (a string or a list of strings) or `prompt_embeds` (a list of (tokens, dims) "
            f"tensors), got {'neither' if prompt is None else 'both'}."
        )
    if prompt is not None:
        return _check_texts("prompt", prompt), None
    return None, _check_embeds_list(host, "prompt_embeds", embeds)


def _check_texts(name: str, texts: Any) -> list[str]:
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple)) or not all(isinstance(t, str) for t in cast("list[Any]", listed)):
        raise TypeError(f"`{name}` must be a string or a list of strings, got {texts!r:.80}.")
    if not listed:
        raise ValueError(f"`{name}` is an empty list: pass at least one text.")
    for text in cast("list[str]", listed):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"`{name}` is no valid Unicode (a lone surrogate): {text!r:.80}.") from error
    return list(cast("list[str]", listed))


def _check_count(name: str, got: int, count: int) -> None:
    if got != count:
        raise ValueError(f"`{name}` has {got} entries for {count} prompts: pass one for all or one per prompt.")


def _check_embeds_list(host: Host, name: str, embeds: Any) -> list[Tensor]:
    if not isinstance(embeds, list) or not embeds:
        raise TypeError(
            f"`{name}` must be a list with a (tokens, dims) tensor for each prompt, as `encode_prompt` gives it, got "
            f"{type(embeds).__name__}."
        )
    for tensor in cast("list[Any]", embeds):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"`{name}` must hold floating-point (tokens, dims) tensors, got {got}.")
        if tensor.dim() != 2 or 0 in tensor.shape or (host.width or tensor.shape[1]) != tensor.shape[1]:
            raise ValueError(
                f"`{name}` must hold (tokens, {host.width or 'dims'}) tensors with at least one token, got one of "
                f"shape {tuple(tensor.shape)}; its width is {describe_width(tensor.shape[-1])}."
            )
        if host.max_text_tokens is not None and tensor.shape[0] > host.max_text_tokens:
            raise ValueError(
                f"The transformer takes at most {host.max_text_tokens} text tokens, `{name}` has {tensor.shape[0]}."
            )
    check_finite_tensors(f"`{name}`", cast("list[Tensor]", embeds))
    return list(cast("list[Tensor]", embeds))


def check_finite_tensors(stage: str, tensors: Sequence[Tensor]) -> None:
    """Refuse NaN and infinity, which would end as a black picture, naming the stage they come from."""
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"NaN or infinity in {stage} ({tensor.dtype}), which would give a black picture. In float16 a model "
                "can overflow: use bfloat16 or float32."
            )


def check_painted(images: Any, latents: Tensor | None) -> None:
    """Refuse pictures with NaN or infinity, naming the stage by the last latents."""
    painted = torch.as_tensor(images)
    if not bool(torch.isfinite(painted).all()):
        check_finite_tensors("the latents that the transformer painted", [] if latents is None else [latents])
        check_finite_tensors("the pictures that were painted", [painted])


def _check_lengths(host: Host, prompts: Sequence[str], length: int) -> None:
    """Refuse prompts that the transformer cannot take, and say what of a prompt is cut off."""
    limit = length if host.max_text_tokens is None else host.max_text_tokens
    for prompt in prompts:
        if len(prompt.encode("utf-8")) + _TEMPLATE_TOKENS <= min(limit, length):
            continue  # a token has at least one byte
        tokens = len(read_text_turn(host.tokenizer, prompt).ids)
        if min(tokens, length) > limit:
            raise ValueError(
                f"The transformer takes at most {limit} text tokens, the prompt has {tokens}: shorten it, or lower "
                f"`max_sequence_length` ({length}) to cut it there."
            )
        if tokens > length:
            _inputs_logger.warning(
                f"The prompt has {tokens} tokens with its template, of which the last {tokens - length} are cut off "
                f"(max_sequence_length={length}): {prompt[:60]!r} ..."
            )


def check_painting(host: Host, call: Mapping[str, Any], count: int) -> None:
    """Check the arguments that only painting needs, by diffusers' names."""
    if _check_whole("num_inference_steps", call["num_inference_steps"]) > _MOST_STEPS:
        raise ValueError(f"`num_inference_steps` may be at most {_MOST_STEPS}, got {call['num_inference_steps']}.")
    _check_guidance(call["guidance_scale"])
    images = count * _check_whole("num_images_per_prompt", call["num_images_per_prompt"])
    multiple = host.vae_scale_factor * 2
    sides = []
    for name in ("height", "width"):
        side = call[name]
        if side is not None and (_check_whole(name, side) % multiple):
            raise ValueError(f"`{name}` must be divisible by {multiple}, got {side}.")
        sides.append(1024 if side is None else int(side))
    if call["sigmas"] is not None:
        sigmas = call["sigmas"]
        if isinstance(sigmas, str) or not hasattr(sigmas, "__len__") or len(sigmas) == 0:
            raise ValueError(f"`sigmas` must be a list of numbers, one per step, got {sigmas!r:.80}.")
        for i, sigma in enumerate(sigmas):
            _check_finite(f"sigmas[{i}]", sigma)
    for name in ("cfg_truncation", "cfg_normalization"):
        if call.get(name) is not None:
            _check_finite(name, float(call[name]) if isinstance(call[name], bool) else call[name])
    latents = call["latents"]
    if latents is not None:
        expected = (images, host.latent_channels, *(side // host.vae_scale_factor for side in sides))
        if not isinstance(latents, Tensor) or tuple(latents.shape) != expected:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"`latents` must be a tensor of shape {expected} for this call, got {got}.")
        check_finite_tensors("`latents`", [latents])
    if call["output_type"] not in _OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be one of {list(_OUTPUT_TYPES)}, got {call['output_type']!r}.")
    _check_generator(call["generator"], images)
    _check_callback(host, call["callback_on_step_end"], call["callback_on_step_end_tensor_inputs"])


def _check_generator(generator: Any, images: int) -> None:
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    for one in cast("list[Any]", generators):
        if one is not None and not isinstance(one, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")
    if isinstance(generator, (list, tuple)) and len(cast("list[Any]", generators)) != images:
        raise ValueError(
            f"`generator` is a list of {len(cast('list[Any]', generators))}, but {images} pictures are asked for: "
            "pass one generator, or one per picture."
        )


def _check_callback(host: Host, callback: Any, inputs: Any) -> None:
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be a function, got {type(callback).__name__}.")
    unknown = [name for name in inputs or () if name not in host.callback_inputs]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` may name {list(host.callback_inputs)}, got {unknown}.")


def _check_guidance(value: Any) -> float:
    return _check_finite("guidance_scale", value, at_least=0)


def _check_whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
    return int(value)


def _check_finite(name: str, value: Any, at_least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < at_least:
        bound = "" if at_least == -math.inf else f" of at least {at_least:g}"
        raise ValueError(f"`{name}` must be a finite number{bound}, got {value!r}.")
    return float(value)


# ---- The references ----


def _read_conditionings(knobs: Mapping[str, Any], count: int) -> list[VLConditioning]:
    """The knobs of each prompt. Without a reference they are checked all the same: scripts switch it on and off."""
    if not callable(knobs["vl_treatment"]):
        check_choice("vl_treatment", knobs["vl_treatment"], TREATMENTS)
    neutral = knobs["neutral_image"] is not None
    names = (*CONDITIONING_NAMES, "reference_weights")
    common: dict[str, Any] = {name: knobs[name] for name in names if name != "vl_alpha"}
    alphas: list[Any] = split_per_prompt(knobs["vl_alpha"], count)
    return [VLConditioning(vl_alpha=alpha, has_neutral_image=neutral, **common) for alpha in alphas]


def _read_negatives(
    host: Host, plan: Plan, knobs: Mapping[str, Any], conditionings: Sequence[VLConditioning]
) -> tuple[PromptPlan, ...]:
    """The negative references, under the same knobs; what is said of single pictures or words is the positive's."""
    given = {name: knobs[f"negative_{name}"] for name in ("reference_image", "reference_embeds")}
    plain: dict[str, Any] = {"reference_weights": None, "reference_mask": None, "vl_text": None}
    prompts = plan.negative_prompts
    if plan.negative_prompt_embeds is None:
        prompts = prompts or [""] * len(conditionings)
    elif given["reference_image"] is not None:
        plain["vl_text"] = ""
    if all(item is not None for item in given.values()):
        raise ValueError("Pass `negative_reference_image` or `negative_reference_embeds`, not both.")
    if given["reference_embeds"] is not None:  # read before: what is said of reading is the positive's
        reading = ("vl_text_position", "vl_max_pixels", "vl_treatment", "vl_describe")
        plain |= {name: KNOBS[name].default for name in reading}
    acting: list[VLConditioning] = []
    for one in conditionings:
        alpha: Any = one.vl_alpha
        if isinstance(alpha, Mapping):
            alpha = {place: value for place, value in alpha.items() if place in PLACES}
        if (not alpha and not isinstance(alpha, float)) or isinstance(alpha, tuple):
            raise ValueError(
                f"With a negative reference `vl_alpha` must be one number, or one per place of {PLACES}: the negative "
                f"prompt has words of its own. Got {one.vl_alpha!r}."
            )
        acting.append(replace(one, vl_alpha=alpha, reference_weights=None))
    return _read_references(host, prompts, plan.max_sequence_length, {**knobs, **given, **plain}, acting)


def _read_references(
    host: Host,
    prompts: Sequence[str] | None,
    length: int,
    knobs: Mapping[str, Any],
    conditionings: Sequence[VLConditioning],
) -> tuple[PromptPlan, ...]:
    count = len(conditionings)
    if knobs["reference_image"] is not None and knobs["reference_embeds"] is not None:
        raise ValueError("Pass `reference_image` or `reference_embeds`, not both.")
    turns = [read_text_turn(host.tokenizer, prompt, length) for prompt in prompts or ()]
    alphas = [
        resolve_alpha(one.vl_alpha, turn.tokens, turn.text) for one, turn in zip(conditionings, turns, strict=False)
    ]
    if knobs["reference_embeds"] is not None:
        found = _read_embeds(host, knobs, conditionings)
    else:
        found = _read_pictures(host, knobs, conditionings, turns, length)
    weights = conditionings[0].reference_weights
    for references, _ in found:
        if weights is not None and references and len(weights) != len(references):
            raise ValueError(
                f"`reference_weights` has {len(weights)} numbers for {len(references)} references of one prompt: "
                "several references for one prompt go into a list of their own, reference_image=[[first, second]]."
            )
    none = replace(conditionings[0], vl_alpha=0.0, reference_weights=None)
    return tuple(
        PromptPlan(
            conditionings[i] if references else none,
            turns[i] if turns else None,
            (alphas[i] if references else torch.zeros_like(alphas[i])) if alphas else None,
            references,
            neutral,
        )
        for i, (references, neutral) in enumerate(found[:count])
    )


_Found = tuple[tuple[Reading | ReferenceEmbeds, ...], Reading | ReferenceEmbeds | None]


def _read_embeds(host: Host, knobs: Mapping[str, Any], conditionings: Sequence[VLConditioning]) -> list[_Found]:
    settled = ("vl_text", "reference_mask", "vl_text_position", "vl_max_pixels", "vl_treatment", "vl_describe")
    for name in settled:
        if knobs[name] != KNOBS[name].default:
            raise ValueError(
                f"`{name}` was settled when `reference_embeds` were encoded: leave it out, or encode the reference "
                "again with it."
            )
    count = len(conditionings)
    groups = _group_per_prompt(knobs["reference_embeds"], count, "reference_embeds")
    neutrals = _group_neutrals(knobs["neutral_image"], count)
    loaded: dict[int, ReferenceEmbeds] = {}
    found: list[_Found] = []
    for group, neutral, conditioning in zip(groups, neutrals, conditionings, strict=True):
        items = [*group, *([] if neutral is None or not group else [neutral])]
        for item in items:
            if id(item) not in loaded:
                loaded[id(item)] = as_reference_embeds(item)
            loaded[id(item)].check_reader(conditioning.vl_reader)
            if host.width is not None:
                loaded[id(item)].check_fits(host.width, conditioning.layers)
        ready = [] if conditioning.is_inert else [loaded[id(item)] for item in items]
        found.append((tuple(ready[: len(group)]), ready[-1] if len(ready) > len(group) else None))
    return found


def _read_pictures(
    host: Host,
    knobs: Mapping[str, Any],
    conditionings: Sequence[VLConditioning],
    turns: Sequence[TextTurn],
    length: int,
) -> list[_Found]:
    count = len(conditionings)
    loaded: dict[int, Image.Image] = {}  # a picture that serves several prompts is loaded once

    def load(item: Any, name: str) -> Image.Image:
        if isinstance(item, ReferenceEmbeds):
            raise TypeError(f"`{name}` takes pictures; pass ReferenceEmbeds as `reference_embeds`.")
        if id(item) not in loaded:
            loaded[id(item)] = load_reference_image(item, name)
        return loaded[id(item)]

    groups = [
        [load(item, "reference_image") for item in group]
        for group in _group_per_prompt(knobs["reference_image"], count, "reference_image")
    ]
    masks = _load_masks(knobs["reference_mask"], groups)
    neutrals = [
        None if item is None else load(item, "neutral_image")
        for item in _group_neutrals(knobs["neutral_image"], count)
    ]
    texts = _read_texts(host, knobs, turns, length, count)
    source: ReaderSource | None = None
    found: list[_Found] = []
    for group, own_masks, neutral, text, conditioning in zip(
        groups, masks, neutrals, texts, conditionings, strict=True
    ):
        if conditioning.is_inert or not group:
            found.append(((), None))
            continue
        source = source or host.find_reader(conditioning.vl_reader)

        def read(
            picture: Image.Image,
            mask: Image.Image | None,
            source: ReaderSource = source,
            text: TextTurn = text,
            conditioning: VLConditioning = conditioning,
        ) -> Reading:
            return build_reading(
                source,
                host.tokenizer,
                picture,
                text,
                conditioning.layers,
                text_position=conditioning.vl_text_position,
                max_pixels=conditioning.vl_max_pixels,
                mask=mask,
                treatment=knobs["vl_treatment"],
                muted=conditioning.needs_muted,
                describe=knobs["vl_describe"],
            )

        readings = tuple(read(picture, mask) for picture, mask in zip(group, own_masks, strict=True))
        twin = None if neutral is None else read(neutral.resize(group[0].size), own_masks[0])
        found.append((readings, twin))
    return found


def _read_texts(
    host: Host, knobs: Mapping[str, Any], turns: Sequence[TextTurn], length: int, count: int
) -> list[TextTurn]:
    """The turn around the text beside each prompt's pictures: the prompt's own unless `vl_text` says otherwise."""
    vl_text, describe = knobs["vl_text"], knobs["vl_describe"]
    if not isinstance(describe, bool):
        raise TypeError(f"`vl_describe` must be True or False, got {describe!r}.")
    if describe and (vl_text is not None or knobs["vl_reader"] != "qwen3-vl"):
        raise ValueError(
            "`vl_describe` lets the VL encoder write the text beside the picture: leave out `vl_text`, and use "
            f"vl_reader 'qwen3-vl' (the text encoder cannot write); got {vl_text!r} and {knobs['vl_reader']!r}."
        )
    if vl_text is None and describe:
        vl_text = ""
    if vl_text is None:
        if not turns:
            raise ValueError(
                "With `prompt_embeds` the prompt's words are not known, so `vl_text` must say what stands beside the "
                'reference (vl_text="" for nothing), or pass `reference_embeds`.'
            )
        return list(turns)
    texts = _check_texts("vl_text", vl_text)
    texts = texts * count if len(texts) == 1 else texts
    _check_count("vl_text", len(texts), count)
    return [read_text_turn(host.tokenizer, text, length) for text in texts]


def _check_room(host: Host, plans: Sequence[PromptPlan], embeds: Sequence[Tensor] | None) -> None:
    """Refuse what the blend would: a reference too short to truncate, more tokens than the transformer takes."""
    for plan, text in zip(plans, embeds or [torch.empty(0)] * len(plans), strict=True):
        knobs, length = plan.conditioning, len(text) if plan.turn is None else len(plan.turn.ids)
        if knobs.vl_alignment == "concat" and plan.references:
            check_caption(length, knobs.count_appended(length), host.max_text_tokens)
        for one in plan.references if knobs.vl_alignment == "truncate" else ():
            if isinstance(one, ReferenceEmbeds) or one.with_text is None:  # a description's length is not known yet
                kept = select_tokens(one.regions, knobs.vl_token_selection)
                if isinstance(one, Reading) and one.visible is not None:
                    kept[one.regions == Region.IMAGE] &= one.visible
                align_sequence(torch.ones(int(kept.sum()), 1), length, "truncate")


def _load_masks(mask: Any, groups: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image | None]]:
    if mask is None:
        return [[None] * len(group) for group in groups]
    result: list[list[Image.Image | None]] = []
    for own, pictures in zip(group_references(mask, len(groups), "reference_mask"), groups, strict=True):
        if len(own) not in (1, len(pictures)):
            raise ValueError(
                f"`reference_mask` has {len(own)} masks for a prompt with {len(pictures)} references: pass one for "
                "all or one per reference."
            )
        each = own * len(pictures) if len(own) == 1 else own
        result.append([load_reference_mask(m, picture.size) for m, picture in zip(each, pictures, strict=True)])
    return result


def _group_per_prompt(given: Any, count: int, name: str) -> list[list[Any]]:
    """The references of each prompt; None in the list of prompts is a prompt without any."""
    if not isinstance(given, (list, tuple)) or all(entry is not None for entry in cast("list[Any]", given)):
        return group_references(given, count, name)
    entries = cast("list[Any]", given)
    _check_count(name, len(entries), count)
    return [[] if entry is None else group_references([entry], 1, name)[0] for entry in entries]


def _group_neutrals(neutral: Any, count: int) -> list[Any]:
    if neutral is None:
        return [None] * count
    groups = group_references(neutral, count, "neutral_image")
    for group in groups:
        if len(group) != 1:
            raise ValueError(f"`neutral_image` is one picture per prompt, got {len(group)} for one prompt.")
    return [group[0] for group in groups]
