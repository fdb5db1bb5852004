#!/usr/bin/env python
"""Measure the true shapes on a GPU and write that part of docs/performance.md: python benchmarks/gpu.py

Z-Image's 6 B transformer, Qwen3-4B, Qwen3-VL-4B and the VAE, all with random weights in bfloat16: nothing is
downloaded. Wants 40 GB on the GPU, as much memory beside it, and up to 10 minutes. Without a GPU the same code runs on
the CPU at a part of the width, in float32, which shows that it runs and nothing about GPUs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from performance.accelerator import Accelerator
from performance.device_memory import count_bytes, measure_offload, measure_resident, show_bytes
from performance.extraction import (
    PARTS_EXPLAINED,
    Extraction,
    extraction_tables,
    make_reading,
    measure_extraction,
    obvious_states,
    prepare_obvious,
)
from performance.machine import describe_load, describe_machine
from performance.page import (
    GPU_PARTS,
    PAGE,
    Finding,
    Section,
    findings_table,
    read_section,
    show_seconds,
    table,
    write_sections,
)
from performance.random_models import (
    build_pipeline,
    count_parameters,
    empty_models,
    load_tokenizer,
    make_image_processor,
    make_picture,
    make_prompt,
    materialise,
)
from performance.real_shapes import SCALES
from performance.reuse import measure_calls, measure_reading
from performance.timing import Spread, interleave

from zimage_vl.reference.readers import read_reference


@dataclass(frozen=True)
class Plan:
    """How large and how often."""

    scale: int
    pixels: int  # a side of the picture that is painted, and of the reference
    sizes: tuple[int, ...]  # of references that are read
    steps: int
    rounds: int


ON_GPU = Plan(scale=1, pixels=1024, sizes=(256, 512, 1024), steps=9, rounds=10)
ON_CPU = Plan(scale=16, pixels=128, sizes=(64, 128), steps=9, rounds=3)
PROMPT_TOKENS = 40
MEMORY_STEPS = 2  # a peak does not depend on their number
PARTS = tuple(name.removeprefix("gpu-") for name in GPU_PARTS)


class Run:
    """The models, and one method for each part, by its name."""

    def __init__(self, plan: Plan, accelerator: Accelerator):
        self.plan, self.accelerator = plan, accelerator
        self.dtype = torch.bfloat16 if accelerator.is_gpu else torch.float32
        self.pipe = build_pipeline(plan.scale, accelerator.device, self.dtype)
        self.plain = ZImagePipeline(**self.pipe.z_image_components)
        self.plain.set_progress_bar_config(disable=True)
        self.prompt = make_prompt(self.pipe.tokenizer, PROMPT_TOKENS)
        self.picture = make_picture(plan.pixels)

    def call(self, steps: int) -> dict[str, Any]:
        return {"height": self.plan.pixels, "width": self.plan.pixels, "num_inference_steps": steps}

    def judge(self, findings: Sequence[Finding]) -> str:
        """Goals speak of the true shapes on a GPU."""
        return findings_table(findings, judged=self.accelerator.is_gpu)

    def reading(self) -> list[str]:
        results = [
            measure_extraction(
                self.pipe, size, self.plan.rounds, self.accelerator, pass_alone=True, time_products=True
            )
            for size in self.plan.sizes
        ]
        rows = [_throughput(each) + self._reading_peaks(each.pixels) for each in results]
        head = ("reference", "operations", "our pass", "TFLOP a second", "bare products", "our pass / bare products")
        memory = ("peak beyond the weights, obvious", "ours")
        return [
            "### Reading a reference",
            *extraction_tables(results, self.accelerator.is_gpu),
            PARTS_EXPLAINED,
            "What the hardware leaves to be won: the same products and attentions alone, shape by shape, with nothing "
            "between them (norms, rotations, activations, the work of Python).",
            table((*head, *memory), rows),
        ]

    def _reading_peaks(self, pixels: int) -> tuple[str, str]:
        encoder = self.pipe.vl_encoder
        prepared = prepare_obvious(self.pipe, make_picture(pixels), self.prompt)
        reading = make_reading(self.pipe, make_picture(pixels), self.prompt)
        sides: list[Callable[[], Any]] = [
            lambda: obvious_states(encoder, prepared),
            lambda: read_reference(encoder, self.pipe.vl_processor, reading),
        ]
        return show_bytes(self._peak_beyond(sides[0])), show_bytes(self._peak_beyond(sides[1]))

    def _peak_beyond(self, work: Callable[[], Any]) -> int | None:
        """The most bytes that a piece of work takes beside what is there before."""
        self.accelerator.free()
        before, peak = self.accelerator.allocated(), self.accelerator.peak_of(work)
        return None if before is None or peak is None else peak - before

    def readers(self) -> list[str]:
        pipe, rows = self.pipe, []
        added = {"qwen3-vl": count_bytes(pipe.vl_encoder), "text_encoder": count_bytes(pipe.vl_encoder.model.visual)}
        for size in self.plan.sizes:
            sides = {name: partial(self._read_anew, name, make_picture(size)) for name in added}
            times = interleave(sides, self.plan.rounds, synchronize=self.accelerator.synchronize)
            for name, side in sides.items():
                beyond = self._peak_beyond(side)
                whole = None if beyond is None else beyond + added[name]
                row = (f"{size} px", f'`"{name}"`', show_seconds(Spread.of(times[name])), show_bytes(added[name]))
                rows.append((*row, show_bytes(beyond), show_bytes(whole)))
        head = ("reference", "reader", "time", "weights beside the text encoder", "peak beyond all weights", "both")
        return [
            "### The two readers",
            "The whole of Qwen3-VL, and its vision tower before the text encoder that is there anyway: what each "
            "takes to read a picture, and what it adds to a device that holds the text encoder.",
            table(head, rows),
        ]

    def _read_anew(self, reader: Any, picture: Any, _: int = 0) -> Any:
        self.pipe.clear_reference_cache()
        return self.pipe.encode_reference(picture, self.prompt, vl_reader=reader)

    def again(self) -> list[str]:
        readings = [
            measure_reading(self.pipe, size, self.plan.rounds, self.accelerator) for size in self.plan.sizes[1:]
        ]
        return [
            "### The same reference again",
            self.judge([finding for findings, _ in readings for finding in findings]),
            *(sentence for _, sentence in readings),
        ]

    def calls(self) -> list[str]:
        findings, seconds = measure_calls(
            *(self.pipe, self.plain, self.prompt, self.picture, self.call(self.plan.steps)),
            rounds=self.plan.rounds,
            accelerator=self.accelerator,
        )
        title = (
            f"### Whole calls: {self.plan.steps} steps, {self.plan.pixels} px, a reference of {self.plan.pixels} px"
        )
        return [title, self.judge(findings), seconds]

    def memory_call(self) -> tuple[Any, ...]:
        call = self.call(min(MEMORY_STEPS, self.plan.steps))
        return self.pipe, self.plain, self.prompt, self.picture, call, self.accelerator

    def resident(self) -> list[str]:
        findings, peaks = measure_resident(*self.memory_call())
        return ["### Peak memory, all on the device", peaks, self.judge(findings)]

    def offloaded(self) -> list[str]:
        if self.pipe.vl_encoder is None:  # unloaded by the part before
            encoder = empty_models(self.plan.scale, self.pipe.tokenizer)["vl_encoder"]
            encoder = materialise(encoder, self.accelerator.device, self.dtype)
            self.pipe.register_modules(vl_encoder=encoder, vl_processor=make_image_processor())
        findings, base = measure_offload(*self.memory_call())
        return ["### Peak memory, model offload", base, self.judge(findings)]


def _throughput(each: Extraction) -> tuple[str, ...]:
    alone, bare = Spread.of(each.times["our pass"]), each.products_seconds
    assert bare is not None
    return (
        *(f"{each.pixels} px", f"{each.operations / 1e12:.2f} T", show_seconds(alone)),
        *(f"{each.operations / alone.median / 1e12:.2f}", f"{1000 * bare:.1f} ms", f"{alone.median / bare:.2f}"),
    )


def parameter_table(scale: int) -> str:
    """Of the true shapes, and, where others are run, of those."""
    true, here = empty_models(1), empty_models(scale, load_tokenizer())
    rows = [
        (name, f"{count_parameters(true[name]) / 1e9:.3f} B", f"{count_parameters(here[name]) / 1e9:.3f} B")
        for name in true
    ]
    return table(("model", "parameters", "in this run"), rows)


def introduce(plan: Plan, accelerator: Accelerator) -> list[str]:
    machine = describe_machine(accelerator.name)
    if accelerator.is_gpu:
        width = "the true shapes" if plan.scale == 1 else f"1/{plan.scale} of the true width"
        first = f"Random weights in bfloat16 at {width}."
    else:
        first = (
            "**The GPU column is open**: no GPU could be had when this was run. What follows was printed by the same "
            f"script on a CPU, in float32, at 1/{plan.scale} of the width and {plan.pixels} px. It shows that the "
            "script runs from end to end, says nothing about GPUs, and is not judged."
        )
    return [
        f"{first} Printed by `python benchmarks/gpu.py`.",
        machine,
        describe_load(),
        parameter_table(plan.scale),
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the parts")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--scale", type=int, choices=SCALES, help="divides all widths; default: 1, on a CPU 16")
    parser.add_argument("--pixels", type=int, help="a side of picture and reference; default: 1024, on a CPU 128")
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the references that are read, at least two")
    parser.add_argument("--steps", type=int, help="default: 9")
    parser.add_argument("--rounds", type=int, help="default: 10, on a CPU 3")
    parser.add_argument("--output", type=Path, default=PAGE, help=f"the page; default: docs/{PAGE.name}")
    return parser.parse_args(arguments)


def make_plan(chosen: argparse.Namespace, default: Plan) -> Plan:
    given = {name: getattr(chosen, name) for name in ("scale", "pixels", "steps", "rounds")}
    values = {name: getattr(default, name) if value is None else value for name, value in given.items()}
    return Plan(sizes=tuple(chosen.sizes or default.sizes), **values)


def start_section(page: Path, text: str, about: list[str]) -> None:
    """Put the introduction into the page; parts that were measured in another way or elsewhere go."""
    known = read_section(page, "gpu") or ""
    same = all(block in known for block in about)
    write_sections(page, {"gpu": text} if same else {"gpu": text, **dict.fromkeys(GPU_PARTS)})


def main(arguments: list[str] | None = None) -> None:
    chosen = parse_arguments(arguments)
    accelerator = Accelerator(chosen.device)
    plan = make_plan(chosen, ON_GPU if accelerator.is_gpu else ON_CPU)
    page: Path | None = chosen.output
    if not accelerator.is_gpu:
        print(f"!!! NO GPU: everything below runs on the CPU at 1/{plan.scale} of the width !!!", flush=True)
        known = read_section(chosen.output, "gpu")
        if known is not None and "- accelerator:" in known:
            print(f"!!! {chosen.output} has figures of a GPU; they are kept, and nothing is written !!!", flush=True)
            page = None
    blocks = introduce(plan, accelerator)
    print("\n\n".join(blocks), flush=True)
    if page is not None:
        start_section(page, Section("On a GPU", blocks).render(), blocks[:2])
    run = Run(plan, accelerator)
    for name in PARTS:
        if name not in chosen.only:
            continue
        measure: Callable[[], list[str]] = getattr(run, name)
        text = "\n\n".join(measure())
        print(f"\n{text}", flush=True)
        if page is not None:  # at once: a run that breaks off keeps what it has
            write_sections(page, {f"gpu-{name}": text})


if __name__ == "__main__":
    main()
