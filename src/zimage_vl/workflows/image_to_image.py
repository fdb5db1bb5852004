"""Image-to-image with a reference: a start picture says where painting begins, the reference what it is steered to."""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import numpy as np
import torch
from diffusers import ZImageImg2ImgPipeline
from PIL import Image, ImageOps

from ..pipeline.call_checks import check_call_inputs, warn_about_call
from ..pipeline.inputs import KNOB_NAMES
from ..pipeline.offload import freed_after_error
from ..pipeline.output import ZImageVLPipelineOutput
from ..reference.pictures import load_reference_image


# What goes to `encode_prompt_with_reference`, beside the knobs; the rest goes to diffusers.
_ENCODING_ARGUMENTS = (
    "reference_embeds",
    "reference_weights",
    "reference_mask",
    "neutral_image",
    "vl_text",
    "negative_prompt",
    "max_sequence_length",
)
_MOST_STRETCHED = 200  # longer side over shorter, as with references


def fit_size(size: tuple[int, int], multiple: int, area: int | None = None) -> tuple[int, int]:
    """Width and height of a picture's aspect with sides that are multiples, at its own size or at about an area.

    Args:
        size: Width and height, in pixels.
        multiple: What the sides must be multiples of; 16 in Z-Image.
        area: Pixels that the result should have, about; None keeps the picture's own size.

    Raises:
        ValueError: A side is over 200 times the other.

    Example:
        >>> fit_size((1500, 1000), 16), fit_size((1500, 1000), 16, 1024 * 1024)
        ((1504, 992), (1248, 832))
    """
    if max(size) > _MOST_STRETCHED * min(size):
        raise ValueError(f"A start picture's longer side may be at most {_MOST_STRETCHED} times the shorter: {size}.")
    scale = 1.0 if area is None else math.sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return width, height


def load_init_image(
    image: Any, width: int | None = None, height: int | None = None, multiple: int = 16
) -> Image.Image:
    """A start picture at the size that is painted: scaled to fill it, what stands over cut off evenly at both ends.

    Args:
        image: A picture of any kind that `reference_image` takes.
        width: In pixels, a multiple of `multiple`; None with a height keeps the aspect, without one the own size.
        height: Likewise.
        multiple: What the sides must be multiples of; 16 in Z-Image.

    Returns:
        An RGB image.

    Raises:
        ValueError: The picture cannot be read; a side is no multiple.

    Example:
        >>> load_init_image(Image.new("RGB", (100, 50)), width=64).size
        (64, 32)
    """
    picture = load_reference_image(image, "init_image")
    for name, side in (("width", width), ("height", height)):
        if side is not None and (side < multiple or side % multiple):
            raise ValueError(f"`{name}` must be a multiple of {multiple}, at least that, got {side}.")
    if width is None and height is None:
        width, height = fit_size(picture.size, multiple)
    elif height is None:
        height = max(1, round(cast("int", width) * picture.height / picture.width / multiple)) * multiple
    elif width is None:
        width = max(1, round(height * picture.width / picture.height / multiple)) * multiple
    size = (cast("int", width), height)
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def paint_from_image(
    pipe: Any,
    prompt: str | list[str],
    init_image: Any,
    strength: float = 0.6,
    *,
    reference_image: Any = None,
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
        pipe: A `ZImageVLPipeline`.
        prompt: One prompt or a list of them.
        init_image: The start picture, of any kind that `reference_image` takes; a list is one a prompt.
        strength: Above 0, up to 1: how much of the way from noise is gone. Of the steps `num_inference_steps *
            strength`, rounded up, are run; where that is all of them, nothing of the start picture is left.
        reference_image: As in the pipeline's call; so are all other arguments of the references.
        height: In pixels; None keeps the start picture's, or with a width its aspect. See `load_init_image`.
        width: Likewise.
        num_images_per_prompt: Pictures a prompt.
        guidance_scale: As in the pipeline's call; Turbo wants 0.0.
        generator: One for all pictures, or a list with one a picture.
        output_type: "pil", "np", "pt" or "latent".
        return_dict: False gives `(images,)`.
        kwargs: What the pipeline's call takes about references and knobs, but for `vl_start` and `vl_end`, and what
            `ZImageImg2ImgPipeline` takes, such as `num_inference_steps`.

    Returns:
        The pictures and the reports, as the pipeline's call.

    Raises:
        TypeError: An argument that neither takes.
        ValueError: As `encode_prompt_with_reference` and `load_init_image`; a strength out of range; numbers of
            prompts, start pictures and generators that do not match.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> start, photo = draw_scene(Scene("cross", "red", "white")), draw_scene(Scene("circle", "blue", "black"))
        >>> output = paint_from_image(load_toy_pipeline(), "a red cross", start, 0.6, reference_image=photo,
        ...                           vl_alpha=0.5, num_inference_steps=8, guidance_scale=0.0)
        >>> output.images[0].size, output.conditioning[0].influence > 0
        ((64, 64), True)
    """
    other = _image_to_image_pipeline(pipe, guidance_scale)
    guided = other.do_classifier_free_guidance
    encode, paint = _split_arguments(kwargs)
    _check_strength(strength)
    counts = {"num_images_per_prompt": num_images_per_prompt, "generator": generator}
    counts |= {name: paint[name] for name in ("num_inference_steps", "sigmas") if name in paint}
    check_call_inputs(pipe, prompt, None, encode.get("negative_prompt"), guided, height=height, width=width, **counts)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    starts = _load_starts(init_image, len(prompts), width, height, pipe.vae_scale_factor * 2)
    generators = _one_a_picture(generator, len(prompts) * num_images_per_prompt)
    warn_about_call(pipe, prompts, guidance_scale, encode.get("max_sequence_length", 512))
    ready = pipe.encode_prompt_with_reference(prompt, reference_image, do_classifier_free_guidance=guided, **encode)
    painted: list[Any] = []
    with freed_after_error(pipe):
        for index, start in enumerate(starts):
            negative = ready.negative_prompt_embeds
            embeds = {
                "prompt_embeds": [ready.prompt_embeds[index]],
                "negative_prompt_embeds": [negative[index]] if negative else None,
            }
            for _ in range(num_images_per_prompt):
                images = other(
                    image=start,
                    strength=strength,
                    guidance_scale=guidance_scale,
                    generator=generators[len(painted)],
                    output_type=output_type,
                    return_dict=False,
                    **embeds,
                    **paint,
                )[0]
                painted.append(images)
    pipe.maybe_free_model_hooks()
    images = _join_pictures(painted)
    return ZImageVLPipelineOutput(images, ready.reports or None) if return_dict else (images,)


def _image_to_image_pipeline(pipe: Any, guidance_scale: float) -> Any:
    parts = pipe.z_image_components
    scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    other: Any = ZImageImg2ImgPipeline(**{**parts, "scheduler": scheduler})
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    other._guidance_scale = guidance_scale  # what guidance is depends on the version of diffusers: it is asked
    return other


def _split_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    known = set(inspect.signature(ZImageImg2ImgPipeline.__call__).parameters) - {"self", "prompt", "image"}
    names = {*KNOB_NAMES, *_ENCODING_ARGUMENTS}
    refused = {"prompt_embeds", "negative_prompt_embeds", "latents"}
    unknown = sorted(set(kwargs) - (known - refused) - names)
    if unknown:
        raise TypeError(f"paint_from_image takes no {unknown}: it takes what the pipeline's call does with a prompt.")
    encode = {name: value for name, value in kwargs.items() if name in names}
    return encode, {name: value for name, value in kwargs.items() if name not in names}


def _check_strength(strength: object) -> None:
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise ValueError(
            f"`strength` must be above 0 (which would give the start picture back) and at most 1, got {strength!r}."
        )


def _load_starts(init_image: Any, count: int, width: int | None, height: int | None, multiple: int) -> list[Any]:
    given: list[Any] = list(init_image) if isinstance(init_image, (list, tuple)) else [init_image] * count
    if len(given) != count:
        raise ValueError(f"`init_image` has {len(given)} pictures for {count} prompts: pass one for all or one each.")
    return [load_init_image(image, width, height, multiple) for image in given]


def _one_a_picture(generator: Any, count: int) -> list[Any]:
    return list(cast("list[Any]", generator)) if isinstance(generator, (list, tuple)) else [generator] * count


def _join_pictures(painted: list[Any]) -> Any:
    if isinstance(painted[0], list):
        return [image for images in painted for image in images]
    return torch.cat(painted) if isinstance(painted[0], torch.Tensor) else np.concatenate(painted)
