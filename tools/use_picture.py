#!/usr/bin/env python
"""Paint what the method is for on the toy world, at its best, typically, at its worst: the model card's first picture.

    python tools/use_picture.py    # writes pipelines/zimage_vl/use.png, and the counts below it into the card

A prompt names a shape alone, a reference shows another shape. A picture keeps the prompt if the judge sees its shape,
and follows the reference in as many of the other attributes as are the reference's. All pairs are painted at the
default alpha and sorted by what is kept plus what is followed, less what is followed without the reference, by chance;
equal pairs stay in the order they were drawn. The first, the middle and the last are shown. Nothing else is chosen.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_vl.toy import SIZE, STEPS, Scene, disagreeing_pairs, draw_scene, judge, load_toy_pipeline
from zimage_vl.toy.sheet import SheetRow, contact_sheet


FOLDER = Path(__file__).resolve().parent.parent / "pipelines" / "zimage_vl"
OUTPUT, CARD = FOLDER / "use.png", FOLDER / "README.md"
PAIRS, SEED, BATCH = 100, 7, 25
ALPHAS = (0.0, 0.15, 0.3, 0.5, 0.7)
DEFAULT = 0.3
_COUNTS = re.compile(r"(?<=<!-- counts:use -->\n).*?(?=<!-- /counts:use -->)", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """How the picture of a pair came out.

    Attributes:
        number: Of the pair, in the order they are drawn.
        kept: 1.0 if the picture shows the prompt's shape, else 0.0.
        followed: Share of the other attributes that are the reference's.
        plain_kept: The same of the picture that is painted without the reference.
        plain_followed: Likewise.
    """

    number: int
    kept: float
    followed: float
    plain_kept: float
    plain_followed: float


def name_shape(scene: Scene) -> str:
    return f"a {scene.shape}"


def paint(pipe: Any, pairs: Sequence[tuple[Scene, Scene]], numbers: Sequence[int], alpha: float) -> list[Image.Image]:
    """A picture for each of these pairs, each from noise of its own."""
    images: list[Image.Image] = []
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        images += pipe(
            [name_shape(pairs[n][0]) for n in batch],
            reference_image=[draw_scene(pairs[n][1], n) for n in batch],
            vl_alpha=alpha,
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(n) for n in batch],
        ).images
    return images


def assess(number: int, pair: tuple[Scene, Scene], image: Image.Image, plain: Image.Image) -> Case:
    """Judge a picture by rule, and the one that was painted without the reference."""
    found: list[float] = []
    for verdict in (judge(image), judge(plain)):
        others = [right for name, right in verdict.matches(pair[1]).items() if name != "shape"]
        found += [float(verdict.matches(pair[0])["shape"]), sum(others) / len(others)]
    return Case(number, *found)


def choose(cases: Sequence[Case]) -> dict[str, Case]:
    """Get the best, the typical and the worst, by the rule above."""
    ordered = sorted(cases, key=lambda case: (case.plain_followed - case.kept - case.followed, case.number))
    return {"best": ordered[0], "typical": ordered[len(ordered) // 2], "worst": ordered[-1]}


def count(cases: Sequence[Case]) -> str:
    """Get the sentences below the picture."""
    share = {name: f"{sum(getattr(case, name) for case in cases) / len(cases):.0%}" for name in Case.__annotations__}
    return (
        f"Counted over {len(cases)} such pairs at alpha {DEFAULT}: {share['kept']} of the pictures keep the prompt's\n"
        f"shape (without a reference {share['plain_kept']}). Of what the prompt leaves open, {share['followed']}\n"
        f"comes out as in the reference (without it, by chance, {share['plain_followed']}).\n"
    )


def parameters() -> str:
    """How the picture was made, for its own file and for the test that tells when it is stale."""
    return json.dumps({"pairs": PAIRS, "seed": SEED, "alphas": ALPHAS, "default": DEFAULT, "steps": STEPS})


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the picture, and the counts into the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="PNG file, default: %(default)s")
    parser.add_argument("--card", type=Path, default=CARD, help="the page with the counts, default: %(default)s")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="default: %(default)s")
    options = parser.parse_args(arguments)
    pipe: Any = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pairs = disagreeing_pairs(options.pairs, SEED)
    painted = paint(pipe, pairs, range(len(pairs)), DEFAULT)
    plain = paint(pipe, pairs, range(len(pairs)), 0.0)
    cases = [assess(n, pairs[n], painted[n], plain[n]) for n in range(len(pairs))]
    chosen = choose(cases)
    columns = [paint(pipe, pairs, [case.number for case in chosen.values()], alpha) for alpha in ALPHAS]
    rows = [
        SheetRow(
            f"{name}: {name_shape(pairs[case.number][0])}",
            draw_scene(pairs[case.number][1], case.number),
            [[column[i] for column in columns]],
        )
        for i, (name, case) in enumerate(chosen.items())
    ]
    info = PngInfo()
    info.add_text("parameters", parameters())
    contact_sheet(rows, ["none", *(f"alpha {alpha}" for alpha in ALPHAS[1:])]).save(
        options.output, pnginfo=info, optimize=True
    )
    said = count(cases)
    card, places = _COUNTS.subn(said, options.card.read_text(encoding="utf-8"))
    if not places:
        print(f"{options.card} has no place for the counts, <!-- counts:use -->.", file=sys.stderr)
        return 1
    options.card.write_text(card, encoding="utf-8", newline="\n")
    print(f"{options.output}\n{said}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
