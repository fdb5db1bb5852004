#!/usr/bin/env python
"""Print how well the toy world follows its prompts: python benchmarks/toy_quality.py

Fresh scenes, no reference, 8 steps. Prompts that name everything, and prompts that leave attributes open: of the named
ones, the share of pictures that show them; of the open ones, the largest share of one value over an even share. The
scenes that were held out of the training are asked beside them. Ends with exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zimage_vl.toy import ALL_SCENES, ATTRIBUTES, SIZE, STEPS, Scene, Verdict, judge, load_toy_pipeline
from zimage_vl.toy.judging import count_right
from zimage_vl.toy.world import HELD_OUT


# The parts of a caption that people type.
PARTS: tuple[tuple[str, ...], ...] = (
    ("shape",),
    ("colour", "shape"),
    ("fill", "shape"),
    ("fill", "colour", "shape"),
    ("shape", "place"),
    ("colour", "shape", "place"),
    ("shape", "background"),
    ("fill",),
)
NAMED = {"shape": 0.95, "colour": 0.95, "background": 0.95, "place": 0.95, "fill": 0.90}
PARTIAL, SPREAD, CORRELATION, SECONDS = 0.93, 2.0, 0.85, 0.25
BATCH = 25


def paint(pipe: Any, prompts: Sequence[str], seed: int) -> list[Image.Image]:
    """Paint one picture per prompt; picture n starts from noise of seed + n."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        chunk = list(prompts[start : start + BATCH])
        generator = [torch.Generator().manual_seed(seed + start + n) for n in range(len(chunk))]
        images += pipe(
            chunk, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=0.0, generator=generator
        ).images
    return images


def read(pipe: Any, scenes: Sequence[Scene], named: Collection[str], seed: int) -> list[Verdict]:
    return [judge(image) for image in paint(pipe, [scene.caption(*named) for scene in scenes], seed)]


def largest_share(verdicts: Sequence[Verdict], name: str) -> float:
    """Get the share of the most frequent value over an even share."""
    counts = Counter(getattr(verdict, name) for verdict in verdicts)
    return max(counts.values()) / len(verdicts) * len(ATTRIBUTES[name])


def cells(values: dict[str, float]) -> str:
    return " | ".join(f"{values[name]:.3f}" if name in values else "-" for name in ATTRIBUTES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, help="a packed folder (default: the shipped one)")
    arguments = parser.parse_args()
    pipe = load_toy_pipeline(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    rng, missed = random.Random(arguments.seed), []

    def check(what: str, value: float, target: float, is_least: bool = True) -> None:
        if value < target if is_least else value > target:
            missed.append(f"{what}: {value:.3f}, target {'>=' if is_least else '<='} {target}")

    print(f"{arguments.scenes} scenes, seed {arguments.seed}: share of pictures that show what the prompt names\n")
    print("| prompt | " + " | ".join(ATTRIBUTES) + " | correlation |\n|---|" + "---|" * (len(ATTRIBUTES) + 1))
    scenes = rng.choices(ALL_SCENES, k=arguments.scenes)
    for title, asked in (("everything", scenes), ("everything, held out of the training", list(HELD_OUT) * 4)):
        verdicts = read(pipe, asked, (), 1000 * arguments.seed)
        right = count_right(verdicts, asked)
        correlation = sum(verdict.correlation for verdict in verdicts) / len(verdicts)
        print(f"| {title} | {cells(right)} | {correlation:.3f} |", flush=True)
        if asked is scenes:
            for name, target in NAMED.items():
                check(f"everything, {name}", right[name], target)
            check("correlation", correlation, CORRELATION)
    spread: dict[tuple[str, ...], dict[str, float]] = {}
    for named in PARTS:
        verdicts = read(pipe, scenes, named, 2000 * arguments.seed)
        right = {name: share for name, share in count_right(verdicts, scenes).items() if name in named}
        spread[named] = {name: largest_share(verdicts, name) for name in ATTRIBUTES if name not in named}
        correlation = sum(verdict.correlation for verdict in verdicts) / len(verdicts)
        form = scenes[0].caption(*named)
        print(f"| {' + '.join(named)}, as `{form}` | {cells(right)} | {correlation:.3f} |", flush=True)
        for name, share in right.items():
            check(f"{' + '.join(named)}, {name}", share, PARTIAL)
    print("\nOf what is left open: the largest share of one value over an even share\n")
    print("| prompt names | " + " | ".join(ATTRIBUTES) + " |\n|---|" + "---|" * len(ATTRIBUTES))
    for named, shares in spread.items():
        print(f"| {' + '.join(named)} | {cells(shares)} |")
        for name, share in shares.items():
            check(f"{' + '.join(named)}, {name} open", share, SPREAD, is_least=False)
    started = time.perf_counter()
    for seed in range(5):
        paint(pipe, ["a red circle"], seed)
    seconds = (time.perf_counter() - started) / 5
    print(f"\n{seconds:.3f} s a picture, one at a time, on {torch.get_num_threads()} threads")
    check("seconds a picture", seconds, SECONDS, is_least=False)
    print("\nAll targets reached." if not missed else "\nMissed:\n" + "\n".join(missed))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
