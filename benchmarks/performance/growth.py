"""How the cost of a reference grows with its size and with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zimage_vl.reference.reading import encode_reference

from .accelerator import Accelerator
from .arithmetic import count_operations, extraction_work
from .extraction import LAYER, PROMPT_TOKENS
from .page import Section, show, show_seconds, table
from .random_models import make_picture, make_prompt
from .timing import Spread, interleave, ratio


def measure_growth(
    pipe: Any, sizes: Sequence[int], numbers: Sequence[int], number_pixels: int, rounds: int, accelerator: Accelerator
) -> list[str]:
    """Tables of both.

    Args:
        pipe: A pipeline of random weights.
        sizes: Sides of square pictures, multiples of 32.
        numbers: Numbers of references of one prompt; the first is what others are compared with.
        number_pixels: The side of each of those.
        rounds: How often each is timed.
        accelerator: Where the models are.
    """
    text = make_prompt(pipe.tokenizer, PROMPT_TOKENS)
    return [
        _by_size(pipe, sizes, text, rounds, accelerator),
        _by_number(pipe, numbers, number_pixels, text, rounds, accelerator),
    ]


def _by_size(pipe: Any, sizes: Sequence[int], text: str, rounds: int, accelerator: Accelerator) -> str:
    operations: dict[str, int] = {}
    tokens: dict[str, int] = {}

    def read(pixels: int) -> Callable[[int], Any]:
        picture = make_picture(pixels)

        def run(_: int) -> None:
            embeds = encode_reference(pipe.vl_encoder, pipe.vl_processor, pipe.tokenizer, picture, text, (LAYER,))
            count = tokens[f"{pixels} px"] = len(embeds.hidden_states[LAYER])
            patches = 4 * embeds.num_image_tokens
            operations[f"{pixels} px"] = count_operations(
                extraction_work(pipe.vl_encoder.config, patches, count, LAYER)
            )

        return run

    sides = {f"{pixels} px": read(pixels) for pixels in sizes}
    times = interleave(sides, rounds, synchronize=accelerator.synchronize)
    first = next(iter(sides))
    rows = [
        (
            *(name, tokens[name], show_seconds(Spread.of(times[name])), show(ratio(times, name, first), 2)),
            f"{operations[name] / operations[first]:.2f}",
        )
        for name in sides
    ]
    return table(("one picture of", "tokens", "reading it", f"times {first}", "arithmetic"), rows)


def _by_number(
    pipe: Any, numbers: Sequence[int], pixels: int, text: str, rounds: int, accelerator: Accelerator
) -> str:
    def read(number: int) -> Callable[[int], Any]:
        def run(i: int) -> None:
            pipe.clear_reference_cache()
            pictures = [make_picture(pixels, seed) for seed in range(number)]
            pipe.encode_prompt_with_reference(text, [pictures], do_classifier_free_guidance=False)

        return run

    sides = {str(number): read(number) for number in numbers}
    times = interleave(sides, rounds, synchronize=accelerator.synchronize)
    first = next(iter(sides))
    rows = [(name, show_seconds(Spread.of(times[name])), show(ratio(times, name, first), 2)) for name in sides]
    return table((f"references of {pixels} px", "to conditioned embeddings, each read anew", f"times {first}"), rows)


def growth_section(tables: list[str], scale: int) -> Section:
    intro = (
        f"Random weights at 1/{scale} of the real width, float32. The patches grow with the area, and so does all "
        "arithmetic but attention over the patches, which grows with its square. Several references are read one "
        "after the other."
    )
    return Section("Growth with size and number of references", [intro, *tables])
