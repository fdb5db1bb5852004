"""Image-to-image with a reference: a start picture says where painting begins, the reference what it is steered to.

The two may be one picture: `paint_like`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image, ImageOps

from ..blend.checks import check_count, check_kind, to_plain
from ..blend.registry import KNOBS
from ..pipeline.inputs import (
    check_one_per_prompt,
    check_painted,
    check_painting,
    check_texts,
    is_guided,
    refuse_unknown,
    warn_about_models,
)
from ..pipeline.offload import freed_after_error
from ..pipeline.pipeline_z_image_vl import ZImageVLPipeline, ZImageVLPipelineOutput
from ..reference.pictures import ReferenceImage, load_reference_image


# What goes to `encode_prompt_with_reference`, beside what is about references; the rest goes to diffusers.
_ENCODING_NAMES = ("negative_prompt", "max_sequence_length")
_NOT_TAKEN = ("prompt_embeds", "negative_prompt_embeds", "latents", "vl_start", "vl_end")


def fit_size(size: tuple[int, int], multiple: int, area: int | None = None) -> tuple[int, int]:
    """Get width and height of a picture's aspect with sides that are multiples, at its own size or at about an area.

    Args:
        size: Width and height, in pixels.
        multiple: The number that the sides must be multiples of; 16 in Z-Image.
        area: Pixels that the result should have, about; None keeps the picture's own size.

    Example:
        >>> fit_size((1500, 1000), 16), fit_size((1500, 1000), 16, 1024 * 1024)
        ((1504, 992), (1248, 832))
    """
    scale = 1.0 if area is None else math.sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return width, height


def load_init_image(
    image: ReferenceImage, width: int | None = None, height: int | None = None, multiple: int = 16
) -> Image.Image:
    """Load a start picture at the size that is painted: scaled to fill it, the overflow cropped evenly at both ends.

    Args:
        image: A picture of any kind that `reference_image` takes.
        width: In pixels, a multiple of `multiple`; None with a height keeps the aspect, without one the own size.
        height: Likewise.
        multiple: The number that the sides must be multiples of; 16 in Z-Image.

    Returns:
        An RGB image.

    Raises:
        ValueError: The picture cannot be read; a side is no multiple.

    Example:
        >>> load_init_image(Image.new("RGB", (100, 50)), width=64).size
        (64, 32)
    """
    picture = load_reference_image(image, "init_image")
    check_count("multiple", multiple)
    for name, side in (("width", width), ("height", height)):
        if side is not None and (check_count(name, side) < multiple or side % multiple):
            raise ValueError(f"`{name}` must be a multiple of {multiple}, at least that, got {side}.")
    own_width, own_height = fit_size(picture.size, multiple)
    if height is None and width is not None:
        own_height = max(1, round(width * picture.height / picture.width / multiple)) * multiple
    elif width is None and height is not None:
        own_width = max(1, round(height * picture.width / picture.height / multiple)) * multiple
    size = (width or own_width, height or own_height)
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def paint_from_image(
    pipe: Any,
    prompt: str | list[str],
    init_image: ReferenceImage | Sequence[ReferenceImage],
    strength: float = 0.6,
    *,
    reference_image: ReferenceImage | list[Any] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    guidance_scale: float = 5.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    output_type: str = "pil",
    return_dict: bool = True,
    **kwargs: Any,
) -> ZImageVLPipelineOutput | tuple[Any]:
    """Paint over a start picture, steered by a prompt and, if wanted, by references: `encode_prompt_with_reference`
    and diffusers' `ZImageImg2ImgPipeline` over the same modules.

    Pictures are painted one after another, so that each is what its prompt, its start picture and its generator give
    alone. The pipeline's scheduler is copied and stays as it is; under offload nothing stays on the accelerator.

    Args:
        pipe: A `ZImageVLPipeline`, or any pipeline with Z-Image's components.
        prompt: One prompt or a list of them.
        init_image: The start picture, of any kind that `reference_image` takes; a list is one per prompt.
        strength: Above 0, up to 1: how much of the way from noise is gone. Of the steps `num_inference_steps *
            strength`, rounded up, are run; where that is all of them, nothing of the start picture is left.
        reference_image: As in the pipeline's call; so are all other arguments of the references.
        height: In pixels; None keeps the start picture's, or with a width its aspect. See `load_init_image`.
        width: Likewise.
        num_images_per_prompt: Pictures per prompt.
        guidance_scale: As in the pipeline's call; Turbo wants 0.0.
        generator: One for all pictures, or a list with one per picture.
        output_type: "pil", "np", "pt" or "latent".
        return_dict: False gives `(images,)`.
        kwargs: What the pipeline's call takes about references and knobs, but for `vl_start` and `vl_end`, and what
            `ZImageImg2ImgPipeline` takes, such as `num_inference_steps`.

    Returns:
        The pictures and the reports, as the pipeline's call.

    Raises:
        TypeError: An argument that neither takes.
        ValueError: As `encode_prompt_with_reference` and `load_init_image`; a strength out of range, or so high that
            no step is left out (but for 1, which is noise alone); numbers of prompts, start pictures and generators
            that do not match.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> start, photo = draw_scene(Scene("cross", "red", "white")), draw_scene(Scene("circle", "blue", "black"))
        >>> output = paint_from_image(load_toy_pipeline(), "a red cross", start, 0.6, reference_image=photo,
        ...                           vl_alpha=0.5, num_inference_steps=8, guidance_scale=0.0)
        >>> output.images[0].size, output.conditioning[0].influence > 0
        ((64, 64), True)
    """
    check_kind("pipe", pipe, "components", "a ZImageVLPipeline, or any pipeline with Z-Image's components")
    vl = pipe if hasattr(pipe, "encode_prompt_with_reference") else ZImageVLPipeline.from_pipe(pipe)
    other = vl.to_pipe(ZImageImg2ImgPipeline)
    other.set_progress_bar_config(**getattr(vl, "_progress_bar_config", {}))
    encode, paint = _split_arguments(kwargs)
    call = {name: parameter.default for name, parameter in _DEFAULTS.items()} | paint
    call |= {"height": height, "width": width, "num_images_per_prompt": num_images_per_prompt, "latents": None}
    call |= {"guidance_scale": guidance_scale, "generator": generator, "output_type": output_type}
    count = len(check_texts("prompt", prompt))
    check_painting(vl.get_host(), call, count)
    sigmas = call.get("sigmas")
    strength = check_strength(strength, call["num_inference_steps"] if sigmas is None else len(sigmas))
    starts = _load_starts(init_image, count, width, height, vl.vae_scale_factor * 2)
    each = generator if isinstance(generator, list) else [generator] * (count * num_images_per_prompt)
    warn_about_models(vl, guidance_scale, None)
    ready = vl.encode_prompt_with_reference(
        prompt, reference_image, do_classifier_free_guidance=is_guided(guidance_scale), **encode
    )
    painted: list[Any] = []
    with freed_after_error(vl):
        for index in range(count * num_images_per_prompt):
            at = index // num_images_per_prompt
            negative = ready.negative_prompt_embeds
            images = other(
                image=starts[at],
                strength=strength,
                guidance_scale=guidance_scale,
                generator=each[index],
                output_type="np" if output_type == "pil" else output_type,
                return_dict=False,
                prompt_embeds=[ready.prompt_embeds[at]],
                negative_prompt_embeds=[negative[at]] if negative else None,
                **paint,
            )[0]
            check_painted(images, None)
            painted.append(images)
    vl.maybe_free_model_hooks()
    joined = torch.cat(painted) if isinstance(painted[0], torch.Tensor) else np.concatenate(painted)
    images = vl.image_processor.numpy_to_pil(joined) if output_type == "pil" else joined
    if not return_dict:
        return (images,)
    return ZImageVLPipelineOutput(images, ready.reports or None, ready.negative_reports or None)


def check_strength(strength: float, steps: int) -> float:
    """Check a strength, above 0 and up to 1, and return it; a ValueError if it leaves no step out or none to run."""
    strength = cast("float", to_plain(strength))
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"`strength` must be above 0 (which would give the start picture back) and at most 1, got {strength!r}."
        )
    if strength < 1 and count_run_steps(steps, strength) == steps:  # 1 says noise alone, and means it
        raise ValueError(
            f"`strength` {strength} of {steps} steps is all of them, so nothing of the start picture would be left. "
            f"Use at least {math.ceil(1 / (1 - strength) - 1e-9)} steps, or a strength of at most {1 - 1 / steps:.3g}."
        )
    if count_run_steps(steps, strength) == 0:
        raise ValueError(f"`strength` {strength} of {steps} steps is none of them: use at least {1 / steps:.3g}.")
    return strength


def count_run_steps(steps: int, strength: float) -> int:
    """Get how many of the steps are run over a start picture, rounded as diffusers rounds.

    Example:
        >>> count_run_steps(10, 0.9), count_run_steps(9, 0.9), count_run_steps(9, 0.85)
        (9, 9, 8)
    """
    return steps - int(steps - steps * strength)


def paint_like(
    pipe: Any,
    prompt: str | list[str],
    picture: ReferenceImage | Sequence[ReferenceImage],
    strength: float = 0.85,
    *,
    vl_alpha: Any = 0.4,
    **kwargs: Any,
) -> ZImageVLPipelineOutput | tuple[Any]:
    """Paint what a prompt says in the style of a picture, which is start picture and reference at once.

    It is `paint_from_image(pipe, prompt, picture, strength, reference_image=picture, vl_alpha=vl_alpha, ...)`, the one
    way to a style that "sort of worked" for the author of the Qwen3-VL conditioning guide: strength .9, alpha .3 to
    .5, layer -6, all tokens, and a prompt that names another subject. In diffusers .9 of 8 or 9 steps is all of them,
    noise alone, so the default is the nearest that leaves one out. Below a strength of about .7 the picture itself
    stays, and with another start picture its style did not come; 4 steps of Turbo (here at most .75) fused better.

    Args:
        pipe: As for `paint_from_image`.
        prompt: One prompt or a list of them.
        picture: A picture of any kind that `reference_image` takes; a list is one per prompt.
        strength: As for `paint_from_image`.
        vl_alpha: As in the pipeline's call.
        kwargs: What `paint_from_image` takes, but for `init_image`, `reference_image` and `reference_embeds`.

    Raises:
        TypeError: One of these three; otherwise as `paint_from_image`.
        ValueError: Not one picture for each prompt or for all; otherwise as `paint_from_image`.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> photo = draw_scene(Scene("circle", "blue", "black"))
        >>> output = paint_like(load_toy_pipeline(), "a red cross", photo, num_inference_steps=8, guidance_scale=0.0)
        >>> output.images[0].size, output.conditioning[0].influence > 0
        ((64, 64), True)
    """
    for name in ("init_image", "reference_image", "reference_embeds"):
        if name in kwargs:
            raise TypeError(f"paint_like takes no `{name}`: `picture` is start picture and reference at once.")
    given = cast("list[Any]", picture if isinstance(picture, (list, tuple)) else [picture])
    count = len(check_texts("prompt", prompt))
    if len(given) != 1:
        check_one_per_prompt("picture", len(given), count)
    loaded = [load_reference_image(one, "picture") for one in given]  # once, for both
    both = loaded[0] if len(loaded) == 1 else loaded
    return paint_from_image(pipe, prompt, both, strength, reference_image=both, vl_alpha=vl_alpha, **kwargs)


_DEFAULTS: Mapping[str, inspect.Parameter] = {
    name: parameter
    for name, parameter in inspect.signature(ZImageImg2ImgPipeline.__call__).parameters.items()
    if name not in ("self", "prompt", "image", *_NOT_TAKEN)
}


def _split_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    encoding = {*KNOBS, *_ENCODING_NAMES} - set(_NOT_TAKEN)
    for name in kwargs:
        if name in _NOT_TAKEN:
            raise TypeError(f"paint_from_image takes no `{name}`: it encodes the prompt itself, for all of its steps.")
    refuse_unknown([name for name in kwargs if name not in encoding and name not in _DEFAULTS])
    encode = {name: value for name, value in kwargs.items() if name in encoding}
    return encode, {name: value for name, value in kwargs.items() if name not in encoding}


def _load_starts(
    init_image: Any, count: int, width: int | None, height: int | None, multiple: int
) -> list[Image.Image]:
    several = isinstance(init_image, (list, tuple)) or getattr(init_image, "ndim", 0) == 4  # an array of pictures
    given: list[Any] = list(init_image) if several else [init_image]
    given = given * count if len(given) == 1 else given
    check_one_per_prompt("init_image", len(given), count)
    return [load_init_image(image, width, height, multiple) for image in given]
