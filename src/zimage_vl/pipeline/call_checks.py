"""What is checked of a call beside its references: prompts, sizes, counts, lengths, and that nothing is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.utils import logging
from torch import Tensor

from ..reference.turn import prompt_turn
from ..reference.versions import takes_attention_kwargs


_checks_logger = logging.get_logger(__name__)
_warned: set[str] = set()

# The transformer pads captions to a multiple of this, and sets the picture one position behind them.
_CAPTION_MULTIPLE = 32


def get_max_text_tokens(transformer: Any) -> int:
    """The longest caption that the transformer's rotary embedding has room for: 1504 tokens for an axis of 1536."""
    room = transformer.config.axes_lens[0] - 2
    return room // _CAPTION_MULTIPLE * _CAPTION_MULTIPLE


def check_finite_embeds(stage: str, embeds: Sequence[Tensor]) -> None:
    """Refuse NaN and infinity, which would end as a black picture.

    Raises:
        ValueError: Naming the stage they come from.
    """
    for index, tensor in enumerate(embeds):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"The embeddings of {stage} contain NaN or infinity (prompt {index}, {tensor.dtype}), which would "
                f"give "
                "a black picture. In float16 the encoder can overflow: use bfloat16 or float32."
            )


def check_call_inputs(
    pipe: Any,
    prompt: Any,
    prompt_embeds: Any,
    negative_prompt: Any,
    guided: bool,
    negative_prompt_embeds: Any = None,
    *,
    height: Any = None,
    width: Any = None,
    num_inference_steps: Any = 1,
    sigmas: Any = None,
    num_images_per_prompt: Any = 1,
    generator: Any = None,
    latents: Any = None,
    max_sequence_length: Any = 512,
    **_: Any,
) -> None:
    """Refuse what diffusers would take for something else, or fail at later, before any model runs.

    Raises:
        TypeError: A prompt that is no text.
        ValueError: No prompt or two kinds of it, numbers that do not match, sizes or counts of 0, embeddings that do
            not fit.
    """
    if (prompt is None) == (prompt_embeds is None):
        got = "neither" if prompt is None else "both"
        raise ValueError(
            f"Pass either `prompt` (a string or a list of strings) or `prompt_embeds` (a list of (tokens, dims) "
            f"tensors), got {got}."
        )
    if prompt is not None:
        count = _check_texts("prompt", prompt)
    else:
        count = _check_embeds_list(pipe, "prompt_embeds", prompt_embeds)
    if negative_prompt is not None and guided:
        negatives = _check_texts("negative_prompt", negative_prompt)
        if negatives != count:
            raise ValueError(f"`negative_prompt` has {negatives} entries for {count} prompts: pass one a prompt.")
    if negative_prompt_embeds is not None:
        negatives = _check_embeds_list(pipe, "negative_prompt_embeds", negative_prompt_embeds)
        if guided and negatives != count:
            raise ValueError(f"`negative_prompt_embeds` has {negatives} entries for {count} prompts.")
    if prompt_embeds is not None and guided and negative_prompt_embeds is None:
        raise ValueError(
            "With `prompt_embeds` and classifier-free guidance `negative_prompt_embeds` are needed too; pass them, or "
            "guidance_scale=0.0 (as Z-Image-Turbo wants)."
        )
    _check_call_counts(num_inference_steps=num_inference_steps, num_images_per_prompt=num_images_per_prompt)
    size = _check_size(pipe, height, width)
    if sigmas is not None and len(sigmas) == 0:
        raise ValueError("`sigmas` must name at least one step, got an empty list.")
    images = count * num_images_per_prompt
    _check_latents(pipe, latents, images, size)
    if isinstance(generator, list) and len(cast("list[Any]", generator)) != images:
        raise ValueError(
            f"`generator` is a list of {len(cast('list[Any]', generator))}, but {images} pictures are asked for: pass "
            "one generator, or one a picture."
        )
    _check_max_length(pipe, max_sequence_length, prompt)


def _check_call_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an int of at least 1, got {value!r}.")


def _check_size(pipe: Any, height: Any, width: Any) -> tuple[int, int]:
    """Height and width; None is diffusers' own 1024, and 0, which it takes for that too, is refused."""
    multiple = pipe.vae_scale_factor * 2
    for name, value in (("height", height), ("width", width)):
        if value is not None and (value <= 0 or value % multiple):
            raise ValueError(f"`{name}` must be at least 1 and divisible by {multiple}, got {value}.")
    return height or 1024, width or 1024


def _check_latents(pipe: Any, latents: Any, images: int, size: tuple[int, int]) -> None:
    if latents is None:
        return
    height, width = (side // pipe.vae_scale_factor for side in size)
    expected = (images, pipe.transformer.in_channels, height, width)
    if tuple(latents.shape) != expected:
        raise ValueError(f"`latents` must be of shape {expected} for this call, got {tuple(latents.shape)}.")


def _check_texts(name: str, texts: Any) -> int:
    if isinstance(texts, str):
        return 1
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in cast("Sequence[Any]", texts)):
        raise TypeError(f"`{name}` must be a string or a list of strings, got {texts!r:.80}.")
    if not texts:
        raise ValueError(f"`{name}` is an empty list: pass at least one text.")
    return len(cast("Sequence[Any]", texts))


def _check_embeds_list(pipe: Any, name: str, embeds: Any) -> int:
    width = pipe.text_encoder.config.hidden_size if pipe.text_encoder is not None else None
    limit = get_max_text_tokens(pipe.transformer) if pipe.transformer is not None else None
    if not isinstance(embeds, list) or not embeds:
        raise ValueError(
            f"`{name}` must be a list with a (tokens, dims) tensor for each prompt, as `encode_prompt` gives it, got "
            f"{type(embeds).__name__}."
        )
    for tensor in cast("list[Any]", embeds):
        shape = tuple(getattr(tensor, "shape", ()))
        if len(shape) != 2 or shape[0] == 0 or (width is not None and shape[1] != width):
            raise ValueError(f"`{name}` must hold (tokens, {width or 'dims'}) tensors, got one of shape {shape}.")
        if limit is not None and shape[0] > limit:
            raise ValueError(f"The transformer takes at most {limit} text tokens, `{name}` has {shape[0]}.")
    check_finite_embeds(f"`{name}`", cast("list[Tensor]", embeds))
    return len(cast("list[Any]", embeds))


def _check_max_length(pipe: Any, max_sequence_length: Any, prompt: Any) -> None:
    """A prompt longer than the transformer's limit, where `max_sequence_length` would let it through."""
    if isinstance(max_sequence_length, bool) or not isinstance(max_sequence_length, int) or max_sequence_length < 1:
        raise ValueError(f"`max_sequence_length` must be an int of at least 1, got {max_sequence_length!r}.")
    limit = get_max_text_tokens(pipe.transformer) if pipe.transformer is not None else max_sequence_length
    if prompt is None or max_sequence_length <= limit:
        return
    for text in [prompt] if isinstance(prompt, str) else prompt:
        tokens = len(prompt_turn(pipe.tokenizer, text, max_sequence_length)[0])
        if tokens > limit:
            raise ValueError(
                f"The transformer takes at most {limit} text tokens, the prompt has {tokens}: shorten it, or lower "
                f"`max_sequence_length` ({max_sequence_length}) to cut it there."
            )


def warn_about_call(
    pipe: Any,
    prompts: Sequence[str] | None,
    guidance_scale: float,
    max_sequence_length: int,
    joint_attention_kwargs: Any = None,
) -> None:
    """Say once what often goes wrong, and each time what of a prompt is cut off."""
    name = str(getattr(pipe.config, "_name_or_path", "") or "")
    if "turbo" in name.lower() and guidance_scale > 0:
        warn_once(
            f"guidance_scale is {guidance_scale}, but {name} is distilled: pass guidance_scale=0.0, as its card says."
        )
    if pipe.text_encoder is not None and pipe.text_encoder.dtype == torch.float16:
        warn_once("The text encoder is in float16, in which Qwen3 can overflow: prefer bfloat16 or float32.")
    if joint_attention_kwargs and not takes_attention_kwargs(pipe.transformer):
        warn_once(
            f"`joint_attention_kwargs` {joint_attention_kwargs} have no effect: this version of diffusers does not "
            "hand them to Z-Image's transformer. For a LoRA's scale use pipe.set_adapters(name, scale)."
        )
    for prompt in prompts or ():
        length = len(prompt_turn(pipe.tokenizer, prompt, None)[0])
        if length > max_sequence_length:
            _checks_logger.warning(
                f"The prompt has {length} tokens with its template, of which the last {length - max_sequence_length} "
                f"are cut off (max_sequence_length={max_sequence_length}): {prompt[:60]!r} ..."
            )


def warn_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _warned:
        _warned.add(message)
        _checks_logger.warning(message)
