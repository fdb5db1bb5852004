"""From the arguments of a call to a plan: all that can be known, and found wrong, before any model loads or runs.

This is the one boundary where arguments are checked. Pictures are loaded here, once, and each becomes a `Reading`.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import ZImagePipeline
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from ..blend.align import align_sequence
from ..blend.checks import check_choice, check_embeddings, check_flag, check_listed, to_plain
from ..blend.condition import check_caption
from ..blend.knobs import PLACES, VLConditioning, resolve_alpha, split_per_prompt
from ..blend.regions import select_tokens
from ..blend.registry import CONDITIONING_NAMES, KNOBS, VLReader
from ..reference.embeds import ReferenceEmbeds, as_reference_embeds
from ..reference.pictures import (
    TREATMENTS,
    ReferenceImage,
    group_references,
    load_reference_image,
    load_reference_mask,
)
from ..reference.reading import ReaderSource, Reading, build_reading
from ..reference.turn import TextTurn, read_text_turn, refuse_lone_surrogates


# What a call takes as pictures and as ready embeddings; a list is one per prompt, a list in it several for one prompt.
ReferenceInput = ReferenceImage | Sequence[ReferenceImage | Sequence[ReferenceImage] | None]
SavedReference = ReferenceEmbeds | str | os.PathLike[str]
EmbedsInput = SavedReference | Sequence[SavedReference | Sequence[SavedReference] | None]

# Names of the Qwen3-VL conditioning guide, of its author's code and of diffusers that are not ours less "vl_".
_GUIDE_NAMES = {
    "image": "reference_image (to paint over it, zimage_vl.paint_from_image)",
    "callback": "callback_on_step_end",
    "control_image": "pipe.to_pipe(ZImageControlNetPipeline, controlnet=...)",
    "image_tokens_no_markers": 'vl_token_selection="image_no_markers"',
    "image_tokens_only": 'vl_token_selection="image" (for False "all")',
    "init_image": "zimage_vl.paint_from_image",
    "ip_adapter_image": "reference_image",
    "layer": "vl_hidden_layer",
    "mask_image": "pipe.to_pipe(ZImageInpaintPipeline)",
    "normalization_mode": "vl_normalization",
    "scale_to_text": 'vl_normalization="global" (for False "none")',
    "strength": "zimage_vl.paint_from_image",
    "text_tokens_only": 'vl_token_selection="text" (for False "all")',
    "text_with_image": "vl_text",
    "vl_embeddings": "reference_embeds",
    "vl_embeds": "reference_embeds",
}
# Settled when a reference is read, and the field of the provenance that says how; of a mask there is only a hash.
_READING_FIELDS = ("text", "text_position", "max_pixels", "treatment")
_READING_NAMES = {f"vl_{name}": name for name in _READING_FIELDS} | {"vl_describe": "described", "reference_mask": ""}
# Those that mean nothing without a reference; scripts may leave all others in place.
_BOUND_NAMES = ("reference_weights", "reference_mask", "neutral_image", "vl_text")
_CALLBACK_INPUTS = ("latents", "prompt_embeds", "negative_prompt_embeds")
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# The transformer pads captions to a multiple of this, and sets the picture one position behind them.
_CAPTION_MULTIPLE = 32
# More tokens than any chat template of Qwen3 puts around a prompt.
_TEMPLATE_TOKENS = 64
_MOST_STEPS, _MOST_TEXT, _MOST = 10_000, 4096, 2**31 - 1  # every prompt is padded to the second
_Pictures = tuple[Reading | ReferenceEmbeds, ...]  # to be read, or read before

_inputs_logger = logging.get_logger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Host:
    """The facts about a pipeline's models that arguments are checked against; None where a model is missing."""

    tokenizer: Any
    width: int | None  # of the text embeddings
    max_text_tokens: int | None
    max_patches: int | None  # along a side of the picture
    latent_channels: int | None
    vae_scale_factor: int
    find_reader: Callable[[VLReader], ReaderSource]


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """How references act on one prompt, known before any model runs."""

    conditioning: VLConditioning
    turn: TextTurn | None = None  # the prompt's tokens; None where only its embeddings are known
    alpha: Tensor | None = None  # (tokens,); None where it is one number and the tokens are not known
    pictures: _Pictures = ()  # the references, then the neutral picture where there is one; empty where nothing acts


@dataclass(frozen=True, eq=False)
class Plan:
    """A call, checked and complete."""

    prompts: list[str] | None  # None where embeddings came in their place
    negative_prompts: list[str] | None  # one per prompt; None for the empty ones
    prompt_embeds: list[Tensor] | None
    negative_prompt_embeds: list[Tensor] | None
    guided: bool
    max_sequence_length: int
    references: tuple[PromptPlan, ...] = ()  # one per prompt; empty without references
    negative_references: tuple[PromptPlan, ...] = ()  # the same for the negative prompts
    window: tuple[bool, ...] = ()  # for each step, whether the references count; empty where no steps are known

    @property
    def active_steps(self) -> tuple[int, int] | None:
        """The first step in which the references count, and one past the last; None where no steps are known."""
        first = self.window.index(True) if self.window else 0
        return (first, first + sum(self.window)) if self.window else None

    @property
    def acting_pictures(self) -> _Pictures:
        """The pictures of all prompts and negative prompts, in order."""
        return tuple(item for one in (*self.references, *self.negative_references) for item in one.pictures)


def read_inputs(host: Host, call: Mapping[str, Any], arguments: Mapping[str, Any]) -> Plan:
    """Check a call and make its plan: TypeError for an unknown name or a wrong type, ValueError for the rest.

    `call` has the arguments of `ZImagePipeline` by name, `arguments` those about references; what is left out has
    diffusers' defaults, or those of `KNOBS`. An OSError: the config of the VL encoder that has to read is not found.
    """
    refuse_unknown(name for name in arguments if name not in KNOBS)
    knobs = {name: knob.default for name, knob in KNOBS.items()} | dict(arguments)
    plan, count = _read_call(host, call)
    conditionings = _read_conditionings(knobs, count)
    own, negative = (_take_references(knobs, side) for side in ("", "negative_"))
    for name in () if own else _BOUND_NAMES:
        if knobs[name] is not None:
            kind = "one of its own, for a negative one it says nothing" if negative else "one"
            raise ValueError(
                f"`{name}` needs a reference, {kind}: pass `reference_image` or `reference_embeds`, or leave it out."
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
    if "num_inference_steps" in call:
        steps = call["num_inference_steps"] if call["sigmas"] is None else len(call["sigmas"])
        plan = replace(plan, window=tuple(conditionings[0].window(steps)))
    side = _Side(host, plan.prompts, plan.max_sequence_length, {**knobs, **own}, conditionings)
    references = side.read() if own else ()
    negatives = _read_negatives(host, plan, {**knobs, **negative}, conditionings) if negative else ()
    _check_room(host, references, plan.prompt_embeds)
    _check_room(host, negatives, plan.negative_prompt_embeds)
    return replace(plan, references=references, negative_references=negatives)


def _take_references(knobs: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What one side has of pictures or embeddings, by the names of the positive one; empty where it has none."""
    given = {name: knobs[f"{side}{name}"] for name in ("reference_image", "reference_embeds")}
    for name, value in given.items():  # a list of nothing but None is what a script without a picture makes
        if isinstance(value, (list, tuple)) and value and all(one is None for one in cast("list[object]", value)):
            given[name] = None
    if all(value is not None for value in given.values()):
        raise ValueError(f"Pass `{side}reference_image` or `{side}reference_embeds`, not both.")
    return given if any(value is not None for value in given.values()) else {}


def refuse_unknown(names: Iterable[str], renamed: Mapping[str, str] | None = None) -> None:
    """Refuse arguments that do not exist, naming those that were meant; some knobs have other names there."""
    for name in names:
        own = next((one for one in (name, f"vl_{name}") if one in KNOBS), _GUIDE_NAMES.get(name))
        if renamed is not None:
            own = renamed.get(str(own), own and "it in the call that blends")
        near = [one for one in KNOBS if one.startswith(name)] or difflib.get_close_matches(name, KNOBS, 1, 0.75)
        if own is not None:
            hint = f": use {own}"
        else:
            hint = f". Did you mean {near[0]}?" if near else f"; those about references are {', '.join(KNOBS)}"
        raise TypeError(f"There is no argument `{name}` here{hint}" + ("" if hint.endswith("?") else "."))


def check_describe(name: str, describe: object, text_name: str, reader: object) -> None:
    """Check whether the VL encoder is to describe a picture: a text beside it, by that name, excludes it."""
    if check_flag(name, describe) and text_name:
        raise ValueError(f"`{name}` lets the VL encoder write the text beside the picture: leave out `{text_name}`.")
    if describe and reader != "qwen3-vl":
        raise ValueError(f"`{name}` needs vl_reader 'qwen3-vl', got {reader!r}: the text encoder cannot write.")


def warn_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _warned:
        _warned.add(message)
        _inputs_logger.warning(message)


def is_guided(guidance_scale: float) -> bool:
    """As diffusers decides it, which varies by version; asked of a stand-in, for the pipeline may be painting."""
    decide: Any = ZImagePipeline.do_classifier_free_guidance
    return decide.fget(SimpleNamespace(_guidance_scale=guidance_scale))


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


def _read_call(host: Host, call: Mapping[str, Any]) -> tuple[Plan, int]:
    """The plan of the parent's call, and the number of its prompts."""
    prompts, embeds = call.get("prompt"), call.get("prompt_embeds")
    if (prompts is None) == (embeds is None):
        raise ValueError(
            "Pass either `prompt` (a string or a list of strings) or `prompt_embeds` (a list of (tokens, dims) "
            f"tensors), got {'neither' if prompts is None else 'both'}."
        )
    prompts = None if prompts is None else check_texts("prompt", prompts)
    embeds = None if embeds is None else _check_embeds_list(host, "prompt_embeds", embeds)
    count = len(prompts or embeds or ())
    guided = call.get("do_classifier_free_guidance")
    if guided is None:
        guided = is_guided(_check_finite("guidance_scale", call.get("guidance_scale", 5.0), at_least=0))
    else:
        check_flag("do_classifier_free_guidance", guided)
    negatives, negative_embeds = call.get("negative_prompt"), call.get("negative_prompt_embeds")
    if not guided:  # as the parent, which ignores them
        negatives = negative_embeds = None
    if negatives is not None and negative_embeds is not None:
        raise ValueError("Pass `negative_prompt` or `negative_prompt_embeds`, not both.")
    if negatives is not None:
        negatives = check_texts("negative_prompt", negatives, count)
    if negative_embeds is not None:
        negative_embeds = _check_embeds_list(host, "negative_prompt_embeds", negative_embeds)
        check_one_per_prompt("negative_prompt_embeds", len(negative_embeds), count)
    elif embeds is not None and guided:
        raise ValueError(
            "With `prompt_embeds` and classifier-free guidance `negative_prompt_embeds` are needed too; pass them, or "
            "guidance_scale=0.0 (as Z-Image-Turbo wants)."
        )
    length = _check_whole("max_sequence_length", call.get("max_sequence_length", 512), _MOST_TEXT)
    _check_lengths(host, prompts or [], length)
    if "num_inference_steps" in call:
        check_painting(host, call, count)
    return Plan(prompts, negatives, embeds, negative_embeds, guided, length), count


def check_texts(name: str, texts: object, count: int | None = None) -> list[str]:
    """A text, or a list of them; with `count`, as many."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple)) or not all(isinstance(x, str) for x in cast("list[object]", listed)):
        raise TypeError(f"`{name}` must be a string or a list of strings, got {texts!r:.80}.")
    if not listed:
        raise ValueError(f"`{name}` is an empty list: pass at least one text.")
    found = list(cast("list[str]", listed))
    for text in found:
        refuse_lone_surrogates(f"`{name}`", text)
    if count is None:
        return found
    found = found * count if len(found) == 1 else found
    check_one_per_prompt(name, len(found), count)
    return found


def check_one_per_prompt(name: str, got: int, count: int) -> None:
    """Refuse a list that is not as long as the prompts are many."""
    if got != count:
        raise ValueError(f"`{name}` has {got} entries for {count} prompts: pass one for all or one per prompt.")


def _check_embeds_list(host: Host, name: str, embeds: object) -> list[Tensor]:
    if not isinstance(embeds, list) or not embeds:
        raise TypeError(
            f"`{name}` must be a list with a (tokens, dims) tensor for each prompt, as `encode_prompt` gives it, got "
            f"{type(embeds).__name__}."
        )
    for i, tensor in enumerate(cast("list[Tensor]", embeds)):
        length = len(check_embeddings(f"{name}[{i}]", tensor, host.width))
        if host.max_text_tokens is not None and length > host.max_text_tokens:
            raise ValueError(
                f"The transformer takes at most {host.max_text_tokens} text tokens, `{name}[{i}]` has {length}."
            )
    return list(cast("list[Tensor]", embeds))


def check_finite_tensors(stage: str, tensors: Sequence[Tensor]) -> None:
    """Refuse NaN and infinity, which would end as a black picture, naming the stage they come from."""
    for tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            half = tensor.dtype == torch.float16
            advice = " In float16 a model can overflow: use bfloat16 or float32." if half else ""
            raise ValueError(f"NaN or infinity in {stage} ({tensor.dtype}), which would paint black.{advice}")


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
        _warn_of_cut("The prompt", prompt, tokens, length)


def read_text_beside(tokenizer: Any, text: str, length: int) -> TextTurn:
    """Read the turn of a text that is not the prompt, and say what of it is cut off."""
    turn = read_text_turn(tokenizer, text, _check_whole("max_sequence_length", length, _MOST_TEXT))
    _warn_of_cut("The text beside the picture", text, len(turn.uncut_ids), length)
    return turn


def _warn_of_cut(name: str, text: str, tokens: int, length: int) -> None:
    if tokens > length:
        _inputs_logger.warning(
            f"{name} has {tokens} tokens with its template, of which the last {tokens - length} are cut off "
            f"(max_sequence_length={length}): {text[:60]!r} ..."
        )


def check_painting(host: Host, call: Mapping[str, Any], count: int) -> None:
    """Check the arguments that only painting needs, by diffusers' names."""
    _check_whole("num_inference_steps", call["num_inference_steps"], _MOST_STEPS)
    images = count * _check_whole("num_images_per_prompt", call["num_images_per_prompt"])
    _check_finite("guidance_scale", call["guidance_scale"], at_least=0)
    multiple, sides = host.vae_scale_factor * 2, list[int]()
    for name in ("height", "width"):
        sides.append(1024 if call[name] is None else _check_whole(name, call[name]))
        if sides[-1] % multiple:
            raise ValueError(f"`{name}` must be divisible by {multiple}, got {sides[-1]}.")
        if host.max_patches is not None and sides[-1] > (most := host.max_patches * multiple):
            raise ValueError(f"`{name}` must be at most {most}, the most that this transformer has, got {sides[-1]}.")
    sigmas = to_plain(call["sigmas"])
    if sigmas is not None and not (isinstance(sigmas, (list, tuple)) and sigmas):
        raise ValueError(f"`sigmas` must be a list of numbers, one per step, got {sigmas!r:.80}.")
    for i, sigma in enumerate(cast("list[object]", sigmas or ())):
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
    check_choice("output_type", call["output_type"], _OUTPUT_TYPES)
    generators = list_generators(call["generator"])
    if isinstance(call["generator"], list) and len(generators) != images:
        raise ValueError(
            f"`generator` is a list of {len(generators)}, but {images} pictures are asked for: pass one generator, or "
            "one per picture."
        )
    attention, callback = call["joint_attention_kwargs"], call["callback_on_step_end"]
    if not isinstance(attention, (dict, type(None))):
        raise TypeError(f"`joint_attention_kwargs` must be a dict or None, got {type(attention).__name__}.")
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback_on_step_end` must be a function, got {type(callback).__name__}.")
    name = "callback_on_step_end_tensor_inputs"
    for one in () if call[name] is None else check_listed(name, call[name]):
        check_choice(name, one, _CALLBACK_INPUTS)


def list_generators(generator: object) -> list[torch.Generator]:
    """Get the generators of a call, none for None; another kind is a TypeError."""
    single = [] if generator is None else [generator]
    listed = cast("list[object]", generator) if isinstance(generator, list) else single
    for one in listed:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")
    return cast("list[torch.Generator]", listed)


def _check_whole(name: str, value: object, most: int = _MOST) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= most:
        raise ValueError(f"`{name}` must be a whole number from 1 to {most}, got {value!r:.80}.")
    return int(value)


def _check_finite(name: str, value: object, at_least: float = -math.inf) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else cast("float", value)
    if not max(at_least, -1e18) <= number <= 1e18:  # torch takes no larger int
        bound = "" if at_least == -math.inf else f" of at least {at_least:g}"
        raise ValueError(f"`{name}` must be a finite number{bound}, got {value!r:.80}.")
    return float(number)


# ---- The references ----


def _read_conditionings(knobs: Mapping[str, Any], count: int) -> list[VLConditioning]:
    """The knobs of each prompt. Without a reference they are checked all the same: scripts switch it on and off."""
    treatment, describe, text, reader = (knobs[f"vl_{name}"] for name in ("treatment", "describe", "text", "reader"))
    if not callable(treatment):
        check_choice("vl_treatment", treatment, TREATMENTS)
    check_describe("vl_describe", describe, "vl_text" if text is not None else "", reader)
    neutral = knobs["neutral_image"] is not None
    names = (*CONDITIONING_NAMES, "reference_weights")
    common: dict[str, Any] = {name: knobs[name] for name in names if name != "vl_alpha"}
    alphas: list[Any] = split_per_prompt(knobs["vl_alpha"], count)
    return [VLConditioning(vl_alpha=alpha, has_neutral_image=neutral, **common) for alpha in alphas]


def _read_negatives(
    host: Host, plan: Plan, knobs: Mapping[str, Any], conditionings: Sequence[VLConditioning]
) -> tuple[PromptPlan, ...]:
    """The negative references, under the same knobs; what is said of single pictures or words is the positive's."""
    prompts = plan.negative_prompts
    plain: dict[str, Any] = {"reference_weights": None, "reference_mask": None, "vl_text": None}
    if plan.negative_prompt_embeds is None:
        prompts = prompts or [""] * len(conditionings)
    else:
        plain["vl_text"] = ""
    if knobs["reference_embeds"] is not None:
        plain |= {name: KNOBS[name].default for name in _READING_NAMES}
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
    return _Side(host, prompts, plan.max_sequence_length, {**knobs, **plain}, acting, "negative_").read()


@dataclass(frozen=True)
class _Side:
    """What is said of the references of the prompts, or of the negative prompts."""

    host: Host
    prompts: Sequence[str] | None
    length: int
    knobs: Mapping[str, Any]
    conditionings: Sequence[VLConditioning]
    prefix: str = ""

    def read(self) -> tuple[PromptPlan, ...]:
        turns = [read_text_turn(self.host.tokenizer, prompt, self.length) for prompt in self.prompts or ()]
        alphas = [
            resolve_alpha(one.vl_alpha, turn.tokens, turn.text)
            for one, turn in zip(self.conditionings, turns, strict=False)
        ]
        has_embeds = self.knobs["reference_embeds"] is not None
        plans: list[PromptPlan] = []
        for i, pictures in enumerate(self.find_embeds() if has_embeds else self.find_pictures(turns)):
            conditioning, alpha = self.conditionings[i], alphas[i] if alphas else None
            weights, count = conditioning.reference_weights, len(pictures) - conditioning.has_neutral_image
            if pictures and weights is not None and len(weights) != count:
                raise ValueError(
                    f"`reference_weights` has {len(weights)} numbers for {count} references of one prompt: several "
                    "references for one prompt go into a list of their own, reference_image=[[first, second]]."
                )
            if not pictures:
                conditioning = replace(conditioning, vl_alpha=0.0, reference_weights=None)
                alpha = None if alpha is None else torch.zeros_like(alpha)
            plans.append(PromptPlan(conditioning, turns[i] if turns else None, alpha, pictures))
        return tuple(plans)

    def find_embeds(self) -> Iterator[_Pictures]:
        groups = self.load_groups("reference_embeds", as_reference_embeds)
        for name, field in _READING_NAMES.items():
            value = self.knobs[name]
            made = [getattr(item.provenance, field, None) for group in groups for item in group]
            if value is not KNOBS[name].default and value != KNOBS[name].default and made != [value] * len(made):
                raise ValueError(
                    f"`{name}` was settled when `{self.prefix}reference_embeds` were encoded: leave it out, or encode "
                    "the reference again with it."
                )
        for group, conditioning in zip(groups, self.conditionings, strict=True):
            for item in group:
                item.check_reader(conditioning.vl_reader)
                if self.host.width is not None:
                    item.check_fits(self.host.width, conditioning.layers)
            yield () if conditioning.is_inert else tuple(group)

    def find_pictures(self, turns: Sequence[TextTurn]) -> Iterator[_Pictures]:
        groups = self.load_groups("reference_image", load_reference_image)
        given, source = self.knobs["reference_mask"], None
        masks = [[]] * len(groups) if given is None else group_references(given, len(groups), "reference_mask")
        for group, own, text, one in zip(groups, masks, self.find_texts(turns), self.conditionings, strict=True):
            masked = _load_masks(own, group[: len(group) - one.has_neutral_image])
            if one.is_inert or not group:
                yield ()
                continue
            if one.has_neutral_image:
                group[-1], masked = group[-1].resize(group[0].size), [*masked, masked[0]]
            source = source or self.host.find_reader(one.vl_reader)
            read = partial(
                build_reading,
                source,
                self.host.tokenizer,
                turn=text,
                layers=one.layers,
                text_position=one.vl_text_position,
                max_pixels=one.vl_max_pixels,
                treatment=self.knobs["vl_treatment"],
                muted=one.needs_muted,
                describe=self.knobs["vl_describe"],
            )
            yield tuple(read(image=picture, mask=mask) for picture, mask in zip(group, masked, strict=True))

    def find_texts(self, turns: Sequence[TextTurn]) -> Sequence[TextTurn]:
        """The turn around the text beside each prompt's pictures: the prompt's own unless `vl_text` says otherwise."""
        vl_text = "" if self.knobs["vl_describe"] else self.knobs["vl_text"]
        if vl_text is not None:
            texts = check_texts("vl_text", vl_text, len(self.conditionings))
            return [read_text_beside(self.host.tokenizer, text, self.length) for text in texts]
        if not turns:
            raise ValueError(
                "With `prompt_embeds` the prompt's words are not known, so `vl_text` must say what stands beside the "
                'reference (vl_text="" for nothing), or pass `reference_embeds`.'
            )
        return turns

    def load_groups(self, kind: str, load: Callable[[Any, str], Any]) -> list[list[Any]]:
        """The references of each prompt and behind them its neutral picture; empty for a prompt without references."""
        given, neutral = self.knobs[kind], self.knobs["neutral_image"]
        name, count = f"{self.prefix}{kind}", len(self.conditionings)
        if isinstance(given, (list, tuple)) and any(entry is None for entry in cast("list[object]", given)):
            entries = cast("list[Any]", given)
            check_one_per_prompt(name, len(entries), count)
            groups = [[] if entry is None else group_references([entry], 1, name)[0] for entry in entries]
        else:
            groups = group_references(given, count, name)
        neutrals = [[]] * count if neutral is None else group_references(neutral, count, "neutral_image")
        loaded: dict[int, Any] = {}  # what serves several prompts is loaded once

        def get(item: Any, name: str) -> Any:
            if id(item) not in loaded:
                loaded[id(item)] = load(item, name)
            return loaded[id(item)]

        for group, own in zip(groups, neutrals, strict=True):
            if len(own) > 1:
                raise ValueError(f"`neutral_image` is one picture per prompt, got {len(own)} for one prompt.")
            group[:] = [get(item, name) for item in group] + [get(item, "neutral_image") for item in own if group]
        return groups


def _check_room(host: Host, plans: Sequence[PromptPlan], embeds: Sequence[Tensor] | None) -> None:
    """Refuse what the blend would: a reference too short to truncate, more tokens than the transformer takes."""
    for plan, text in zip(plans, embeds or [torch.empty(0)] * len(plans), strict=bool(plans)):
        knobs, length = plan.conditioning, len(text) if plan.turn is None else len(plan.turn.ids)
        if knobs.vl_alignment == "concat" and plan.pictures:
            check_caption(length, knobs.count_appended(length), host.max_text_tokens)
        for one in plan.pictures if knobs.vl_alignment == "truncate" else ():
            if isinstance(one, ReferenceEmbeds) or one.with_text is None:  # a description's length is not known yet
                kept = select_tokens(one.regions, knobs.vl_token_selection)
                kept = kept & one.kept if isinstance(one, Reading) else kept
                align_sequence(torch.ones(int(kept.sum()), 1), length, "truncate")


def _load_masks(masks: Sequence[Any], pictures: Sequence[Image.Image]) -> list[Image.Image | None]:
    """A mask for each of a prompt's pictures."""
    if len(masks) not in (0, 1, len(pictures)):
        raise ValueError(
            f"`reference_mask` has {len(masks)} masks for a prompt with {len(pictures)} references: pass one for all "
            "or one per reference."
        )
    each = masks if len(masks) > 1 else (list(masks) or [None]) * len(pictures)
    return [None if m is None else load_reference_mask(m, one.size) for m, one in zip(each, pictures, strict=True)]
