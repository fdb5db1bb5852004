"""Iterative refinement: what a reference led to becomes the reference of the next round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..blend.checks import check_count, check_kind, to_plain
from ..pipeline.inputs import list_generators


# What belongs to the picture that was given, and not to those painted from it.
_FIRST_ROUND_ONLY = ("reference_mask", "reference_weights")


def refine_iteratively(
    pipe: Any,
    prompt: str | list[str],
    reference_image: Any,
    iterations: int,
    *,
    on_round: Callable[[int, Any], None] | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Paint, and paint again with the picture that came out as the reference (the Qwen3-VL conditioning guide,
    "Experimental Parameters to Explore", 5).

    `output_0 = pipe(prompt, reference_image)`, `output_n = pipe(prompt, output_(n-1).images)`. In a batch each prompt
    gets its own picture back.

    All rounds start from the same noise: a `generator` is set back to the state it came in before each, so that
    nothing but the reference changes between them, and any round can be had again alone, from the picture before it
    and a generator of the same seed. Afterwards it has advanced by one call. Without a generator each round draws new
    noise.

    Args:
        pipe: A `ZImageVLPipeline`, or a function that paints as its call does.
        prompt: One prompt or a list of them.
        reference_image: As the call takes it: the reference of the first round.
        iterations: Rounds, at least 1; one is the plain call.
        on_round: Called with the number of a round, from 0, and its output, as soon as it is there.
        kwargs: Everything else that the call takes, the same in each round, but for `reference_mask` and
            `reference_weights`: they speak of the picture that was given, and act in the first round alone.

    Returns:
        What the pipeline gave in each round, the first one first.

    Raises:
        TypeError: `iterations` is no whole number.
        ValueError: `iterations` below 1; no reference, or `reference_embeds`; `output_type="latent"`, or several
            pictures a prompt, from which none could be fed back. Otherwise as the call.

    Example:
        >>> from zimage_vl.toy import Scene, draw_scene, load_toy_pipeline
        >>> photo = draw_scene(Scene("circle", "red", "white"))
        >>> rounds = refine_iteratively(load_toy_pipeline(), "a blue square", photo, 2, height=64, width=64,
        ...                             num_inference_steps=2, guidance_scale=0.0)
        >>> [output.images[0].size for output in rounds]
        [(64, 64), (64, 64)]
    """
    check_kind("pipe", pipe, "__call__", "a ZImageVLPipeline, or a function that paints as its call does")
    if on_round is not None and not callable(on_round):
        raise TypeError(f"`on_round` must be a function or None, got {type(on_round).__name__}.")
    _check_iterations(iterations, reference_image, kwargs)
    generators = list_generators(kwargs.get("generator"))
    states = [generator.get_state() for generator in generators]
    outputs: list[Any] = []
    for number in range(iterations):
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        outputs.append(pipe(prompt, reference_image=reference_image, **kwargs))
        if on_round is not None:
            on_round(number, outputs[-1])
        images = list(outputs[-1][0])  # of an output object and of return_dict=False
        reference_image = images[0] if isinstance(prompt, str) else images
        kwargs = {name: value for name, value in kwargs.items() if name not in _FIRST_ROUND_ONLY}
    return outputs


def _check_iterations(iterations: object, reference_image: Any, kwargs: dict[str, Any]) -> None:
    check_count("iterations", iterations)
    if reference_image is None or kwargs.get("reference_embeds") is not None:
        got = "None" if kwargs.get("reference_embeds") is None else "`reference_embeds`"
        raise ValueError(f"Refining needs a `reference_image` to begin with, a picture as every later one; got {got}.")
    if kwargs.get("output_type") == "latent":
        raise ValueError('`output_type` "latent" gives no picture that could be a reference: use "pil", "np" or "pt".')
    if to_plain(kwargs.get("num_images_per_prompt")) not in (None, 1):
        raise ValueError(
            f"`num_images_per_prompt` must be 1, got {kwargs['num_images_per_prompt']}: each prompt has one picture "
            "to feed back. For several, refine once a seed."
        )
