#!/usr/bin/env python
"""Measure what the method costs beside diffusers' own pipeline and write docs/performance.md: benchmarks/bench.py

Ratios within one run, the sides in turns. Parts: a unused, b reading a reference, c reading it again, d a sweep over
ready embeddings, e start-up, f host memory. Leave the machine alone meanwhile: about 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from performance.accelerator import Accelerator
from performance.extraction import extraction_section, measure_extraction
from performance.host import measure_host_memory
from performance.imports import measure_imports
from performance.machine import describe_load, describe_machine
from performance.page import PAGE, Section, findings_table, read_section, write_sections
from performance.random_models import build_pipeline
from performance.reuse import measure_calls, measure_reading
from performance.toy_calls import CALL, PHOTO, PROMPT, load_pipelines, measure_sweep, measure_unused

from zimage_vl.toy import draw_scene


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `scale` divides the widths of the real shapes."""

    steps: int = 8
    unused_steps: int = 2
    unused_rounds: int = 60
    scale: int = 4
    extraction: tuple[tuple[int, int], ...] = ((256, 12), (512, 8), (1024, 5))  # pixels, rounds
    reading: tuple[tuple[int, int], ...] = ((512, 6), (1024, 3))
    call_rounds: int = 20
    alphas: tuple[float, ...] = (0.15, 0.3, 0.5, 0.7, 1.0)
    layers: tuple[int, ...] = (-6, -4, -3, -2)
    seeds: int = 4
    import_rounds: int = 7
    heavy_imports: bool = True


QUICK = Sizes(
    steps=2,
    unused_rounds=3,
    scale=32,
    extraction=((64, 2),),
    reading=((64, 2),),
    call_rounds=2,
    alphas=(0.3,),
    layers=(-6, -2),
    seeds=1,
    import_rounds=2,
    heavy_imports=False,
)


class Parts:
    """What can be measured, by the letter of its section."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.cpu = Accelerator("cpu")

    @cached_property
    def large(self) -> Any:
        """Random weights; the text encoder has two blocks, for it is not what is timed."""
        return build_pipeline(self.sizes.scale, self.cpu.device, torch.float32, text_blocks=2)

    def a(self) -> Section:
        return measure_unused(self.sizes.unused_rounds, self.sizes.unused_steps)

    def b(self) -> Section:
        results = [
            measure_extraction(self.large, pixels, rounds, self.cpu) for pixels, rounds in self.sizes.extraction
        ]
        return extraction_section(results, self.sizes.scale)

    def c(self) -> Section:
        pipe, plain = load_pipelines()
        call = {**CALL, "num_inference_steps": self.sizes.steps}
        calls, seconds = measure_calls(pipe, plain, PROMPT, draw_scene(PHOTO), call, self.sizes.call_rounds, self.cpu)
        readings = [measure_reading(self.large, pixels, rounds, self.cpu) for pixels, rounds in self.sizes.reading]
        blocks = [
            f"Whole calls on the toy world, {self.sizes.steps} steps:",
            *(findings_table(calls), seconds),
            f"Reading alone, random weights at 1/{self.sizes.scale} of the real width:",
            findings_table([finding for findings, _ in readings for finding in findings]),
            *(sentence for _, sentence in readings),
        ]
        return Section("The same reference again", blocks)

    def d(self) -> Section:
        return measure_sweep(self.sizes.steps, self.sizes.alphas, self.sizes.layers, self.sizes.seeds)

    def e(self) -> Section:
        return measure_imports(self.sizes.import_rounds, heavy=self.sizes.heavy_imports)

    def f(self) -> Section:
        return measure_host_memory()


LETTERS = tuple("abcdef")
QUICK_LETTERS = tuple("abcde")  # host memory has one size, and writes it to disk


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=LETTERS, help="some of the parts; default: all, with --quick all but f"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the smallest sizes: does it run? Writes no page by itself"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument("--output", type=Path, help=f"the page; default: docs/{PAGE.name}, none with --quick")
    chosen = parser.parse_args(arguments)
    if chosen.only is None:
        chosen.only = list(QUICK_LETTERS if chosen.quick else LETTERS)
    return chosen


def check_page(page: Path, machine: str, only: list[str]) -> None:
    """A page holds the figures of one machine: what is measured in part must be measured on the same."""
    known = read_section(page, "machine")
    if known is not None and machine not in known and set(only) != set(LETTERS):
        raise SystemExit(
            f"{page} was measured on another machine or with other versions. Measure all parts, or name another "
            "--output."
        )


def main(arguments: list[str] | None = None) -> None:
    chosen = parse_arguments(arguments)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    page = chosen.output if chosen.output is not None or chosen.quick else PAGE
    machine, load = describe_machine(), describe_load()
    if page is not None:
        check_page(page, machine, chosen.only)
    command = "make bench" if set(chosen.only) == set(LETTERS) and not chosen.quick else "python benchmarks/bench.py"
    command += " --quick" if chosen.quick else ""
    parts = Parts(QUICK if chosen.quick else Sizes())
    about = f"## Measured on\n\n{machine}\n\n{load} Sections (a) to (f) are printed by `{command}`, " + (
        "each again by `python benchmarks/bench.py --only` and its letter." if not chosen.quick else "sizes for tests."
    )
    print(about, flush=True)
    for letter in chosen.only:
        measure: Callable[[], Section] = getattr(parts, letter)
        section = measure()
        text = Section(f"({letter}) {section.title}", section.blocks).render()
        print(f"\n{text}", flush=True)
        if page is not None:  # at once: a run that breaks off keeps what it has
            write_sections(page, {"machine": about, letter: text})


if __name__ == "__main__":
    main()
