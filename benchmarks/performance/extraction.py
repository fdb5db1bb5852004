"""Our extraction against the obvious one: the full forward with all hidden states and the logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from zimage_vl import encode_reference
from zimage_vl.reference.readers import read_reference
from zimage_vl.reference.reading import Reading, build_reading
from zimage_vl.reference.turn import read_text_turn

from .accelerator import Accelerator
from .arithmetic import FORMULA, Attention, Work, count_operations, extraction_work, limit
from .page import Finding, Section, findings_table, show, show_seconds, table
from .random_models import make_picture, make_prompt, vl_config
from .timing import Spread, interleave, ratio


LAYER = -6
PROMPT_TOKENS = 24
TOLERANCE = 1.05
PARTS_EXPLAINED = (
    "The limit by the time of the parts is measured: one full forward, less the time of the blocks that are left out, "
    "the final norm and the logits. Where it is above the limit by arithmetic, what is needed runs at fewer "
    "operations a second than what is not, and no early exit could reach the limit by arithmetic."
)


# ---- The obvious way ----


@torch.no_grad()
def prepare_obvious(pipe: Any, picture: Any, text: str) -> dict[str, Any]:
    """What the full forward is given, by the processor and the tokenizer alone."""
    encoder, merge = pipe.vl_encoder, pipe.vl_processor.merge_size
    features = pipe.vl_processor(images=[picture], do_resize=False, return_tensors="pt")
    count = int(features["image_grid_thw"].prod()) // merge**2
    content = "<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" + text
    turn = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    inputs = {**pipe.tokenizer(turn, return_tensors="pt"), **features}
    inputs = {name: value.to(encoder.device) for name, value in inputs.items()}
    inputs.pop("token_type_ids", None)
    if "mm_token_type_ids" in inspect.signature(encoder.forward).parameters:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == encoder.config.image_token_id).int()
    return inputs


@torch.no_grad()
def obvious_states(encoder: Any, inputs: dict[str, Any], layer: int = LAYER) -> Tensor:
    return encoder(**inputs, output_hidden_states=True).hidden_states[layer][0]


def make_reading(pipe: Any, picture: Any, text: str, layer: int = LAYER) -> Reading:
    turn = read_text_turn(pipe.tokenizer, text)
    return build_reading(pipe.find_reader(), pipe.tokenizer, picture, turn, (layer,))


# ---- Floors that are measured ----


def time_of_parts(pipe: Any, inputs: dict[str, Any], accelerator: Accelerator, layer: int = LAYER) -> float:
    """The part of one full forward's time that goes into what the states of this layer need.

    Marks before and after each block that is left out, the final norm and the logits; their time is taken away.
    """
    encoder = pipe.vl_encoder
    model = encoder.model.language_model
    first = layer % (len(model.layers) + 1)
    left_out: list[nn.Module] = [*list(model.layers)[first:], model.norm, encoder.lm_head]
    marks: list[Any] = []
    hooks = [part.register_forward_pre_hook(lambda *_: marks.append(accelerator.mark())) for part in left_out]
    hooks += [part.register_forward_hook(lambda *_: marks.append(accelerator.mark())) for part in left_out]
    try:
        accelerator.synchronize()
        begin = accelerator.mark()
        obvious_states(encoder, inputs, layer)
        end = accelerator.mark()
        accelerator.synchronize()
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(marks[::2], marks[1::2], strict=True)
    return 1 - sum(accelerator.seconds_between(*pair) for pair in pairs) / accelerator.seconds_between(begin, end)


@torch.no_grad()
def time_of_products(work: Work, accelerator: Accelerator, dtype: torch.dtype, repeats: int = 5) -> float:
    """Seconds of the bare products and attentions of that work, each shape timed alone, nothing between them.

    Of each shape the best of three goes: this is a floor.
    """
    seconds = 0.0
    for each in work:
        run = (
            _attention(each, accelerator, dtype) if isinstance(each, Attention) else _product(each, accelerator, dtype)
        )
        run()
        tries: list[float] = []
        for _ in range(3):
            accelerator.synchronize()
            begin = accelerator.mark()
            for _ in range(repeats):
                run()
            end = accelerator.mark()
            accelerator.synchronize()
            tries.append(accelerator.seconds_between(begin, end) / repeats)
        seconds += each.times * min(tries)
    return seconds


def _product(each: Any, accelerator: Accelerator, dtype: torch.dtype) -> Callable[[], Tensor]:
    left = torch.randn(each.rows, each.inner, device=accelerator.device, dtype=dtype)
    weight = torch.randn(each.columns, each.inner, device=accelerator.device, dtype=dtype)
    return lambda: nn.functional.linear(left, weight)


def _attention(each: Attention, accelerator: Accelerator, dtype: torch.dtype) -> Callable[[], Tensor]:
    def draw(tokens: int) -> Tensor:
        return torch.randn(1, each.heads, tokens, each.head_dim, device=accelerator.device, dtype=dtype)

    queries, keys, values = draw(each.queries), draw(each.keys), draw(each.keys)
    causal = each.causal and each.queries == each.keys
    return lambda: scaled_dot_product_attention(queries, keys, values, is_causal=causal)


# ---- The comparison ----


@dataclass(frozen=True)
class Extraction:
    """One size of picture: seconds of all sides, tokens, and the floors as parts of the obvious way."""

    pixels: int
    tokens: int
    times: dict[str, list[float]]
    limit: float
    limit_of_real_shape: float
    limit_of_parts: Spread
    operations: int
    products_seconds: float | None
    same_bits: bool


def measure_extraction(
    pipe: Any,
    pixels: int,
    rounds: int,
    accelerator: Accelerator,
    *,
    pass_alone: bool = False,
    time_products: bool = False,
) -> Extraction:
    """All sides in turns on one picture.

    Args:
        pipe: Whose VL encoder, processor and tokenizer are used.
        pixels: A side of the square picture, a multiple of 32.
        rounds: How often each side is timed.
        accelerator: Where the encoder is.
        pass_alone: Whether the passes alone are timed too, without the work on the turn.
        time_products: Whether the bare products are timed.
    """
    picture, text = make_picture(pixels), make_prompt(pipe.tokenizer, PROMPT_TOKENS)
    encoder, prepared = pipe.vl_encoder, prepare_obvious(pipe, picture, text)

    def ours(_: int) -> Tensor:
        parts = (encoder, pipe.vl_processor, pipe.tokenizer)
        return encode_reference(*parts, picture, text, (LAYER,)).hidden_states[LAYER]

    sides: dict[str, Callable[[int], Any]] = {
        "obvious": lambda _: obvious_states(encoder, prepare_obvious(pipe, picture, text)),
        "ours": ours,
    }
    if pass_alone:
        reading = make_reading(pipe, picture, text)
        sides["obvious pass"] = lambda _: obvious_states(encoder, prepared)
        sides["our pass"] = lambda _: read_reference(encoder, pipe.vl_processor, reading)
    equal: list[bool] = []
    times = interleave(
        sides,
        rounds,
        synchronize=accelerator.synchronize,
        check=lambda states: equal.append(torch.equal(states["obvious"], states["ours"])),
    )
    patches, tokens = prepared["pixel_values"].shape[0], prepared["input_ids"].shape[1]
    work = extraction_work(encoder.config, patches, tokens, LAYER)
    return Extraction(
        pixels,
        tokens,
        times,
        limit(encoder.config, patches, tokens, LAYER),
        limit(vl_config(1), patches, tokens, LAYER),
        Spread.of([time_of_parts(pipe, prepared, accelerator) for _ in range(min(rounds, 3))]),
        count_operations(work),
        time_of_products(work, accelerator, encoder.dtype) if time_products else None,
        all(equal),
    )


def find(each: Extraction, ours: str = "ours", obvious: str = "obvious", what: str = "from the picture") -> Finding:
    found, most = ratio(each.times, ours, obvious), TOLERANCE * each.limit
    return Finding(
        f"{each.pixels} px, {what}",
        f"<= {most:.3f} (limit {each.limit:.3f}, + 5 %)",
        show(found),
        found.median <= most,
    )


def extraction_tables(results: Sequence[Extraction], judged: bool = True) -> list[str]:
    """The findings and what stands behind them."""
    findings = [find(each) for each in results]
    findings += [
        find(each, "our pass", "obvious pass", "the pass alone") for each in results if "our pass" in each.times
    ]
    head = (
        *("picture", "tokens", "obvious", "ours", "limit here", "limit at the real shape"),
        *("limit by the time of the parts", "same bits"),
    )
    rows = [
        (
            *(
                f"{each.pixels} px",
                each.tokens,
                *(show_seconds(Spread.of(each.times[s])) for s in ("obvious", "ours")),
            ),
            *(f"{each.limit:.3f}", f"{each.limit_of_real_shape:.3f}", show(each.limit_of_parts)),
            "yes" if each.same_bits else "**no**",
        )
        for each in results
    ]
    return [findings_table(findings, judged), table(head, rows)]


def extraction_section(results: Sequence[Extraction], scale: int) -> Section:
    intro = (
        f"The states of layer {LAYER} of a Qwen3-VL of 36 + 24 blocks with random weights, 1/{scale} of the real "
        "width, float32: `encode_reference` against the full `Qwen3VLForConditionalGeneration` forward with "
        "`output_hidden_states=True`. Both include the work on picture and text. The limit is the part of the "
        "obvious way's arithmetic that the layer needs at all."
    )
    return Section(
        "Reading a reference, against the obvious way", [intro, *extraction_tables(results), FORMULA, PARTS_EXPLAINED]
    )
