#!/usr/bin/env python
"""Paint how the method fails on the toy world, and count how often: the picture and the table of the model card.

    python tools/failure_pictures.py             # writes pipelines/zimage_vl/failures.png
    python tools/failure_pictures.py --pairs 200 # and prints the table, counted over so many pairs (minutes)

Each pair is a prompt that names everything and a reference that shares nothing with it; a row has one noise. The
settings are chosen because they fail. The toy is a miniature: the real models may fail otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_vl.toy import ATTRIBUTES, SIZE, STEPS, Scene, disagreeing_pairs, draw_scene, judge, load_toy_pipeline
from zimage_vl.toy.sheet import SheetRow, contact_sheet


OUTPUT = Path(__file__).resolve().parent.parent / "pipelines" / "zimage_vl" / "failures.png"
#: The pairs of the sheet.
ROWS = (0, 1, 2, 3, 4)
BATCH = 25


@dataclass(frozen=True)
class Setting:
    """A column of the sheet and a row of the table.

    Attributes:
        title: Stands over the column; the sheet has room for a dozen letters.
        knobs: Keyword arguments of the call.
        reference: What the references show: "scene", or nothing: "grey", "noise".
    """

    title: str
    knobs: dict[str, Any] = field(default_factory=dict[str, Any])
    reference: str = "scene"

    def __str__(self) -> str:
        knobs = ", ".join(
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in self.knobs.items()
        )
        return f"{self.title}: `{knobs}`" + (
            "" if self.reference == "scene" else f", the reference is {self.reference}"
        )


SETTINGS = (
    Setting("plain", {"vl_alpha": 0.0}),
    Setting("1 alpha 0.5", {"vl_alpha": 0.5}),
    Setting("2 per_dim", {"vl_alpha": 1.0, "vl_normalization": "per_dim"}),
    Setting("3 delta", {"vl_alpha": 0.5, "vl_blend_mode": "style_delta", "vl_normalization": "none"}),
    Setting("4 noise", {"vl_alpha": 1.0}, "noise"),
    Setting("5 grey", {"vl_alpha": 1.0}, "grey"),
    Setting("6 image", {"vl_alpha": 1.0, "vl_token_selection": "image"}),
)


def paint(pipe: Any, pairs: Sequence[tuple[Scene, Scene]], setting: Setting, seed: int) -> Iterator[Image.Image]:
    """A picture a pair; picture n starts from the noise of seed + n."""
    for start in range(0, len(pairs), BATCH):
        numbers = range(start, min(start + BATCH, len(pairs)))
        knobs = dict(setting.knobs)
        if knobs.get("vl_blend_mode") == "style_delta":
            knobs["neutral_image"] = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
        yield from pipe(
            [pairs[n][0].caption() for n in numbers],
            reference_image=[reference(pairs[n][1], setting.reference, seed + n) for n in numbers],
            height=SIZE,
            width=SIZE,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(seed + n) for n in numbers],
            **knobs,
        ).images


def reference(scene: Scene, kind: str, seed: int) -> Image.Image:
    """The reference of a pair, or the control in its place."""
    if kind == "noise":
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    return draw_scene(scene, seed) if kind == "scene" else Image.new("RGB", (SIZE, SIZE), (128, 128, 128))


def paint_sheet(pipe: Any) -> Image.Image:
    """The sheet: a row a pair, a column a setting."""
    pairs = disagreeing_pairs(max(ROWS) + 1, 0)
    columns = [list(paint(pipe, pairs, setting, seed=0)) for setting in SETTINGS]
    rows = [
        SheetRow(pairs[n][0].caption(), draw_scene(pairs[n][1], n), [[column[n] for column in columns]]) for n in ROWS
    ]
    return contact_sheet(
        rows,
        [setting.title for setting in SETTINGS],
        title="How it fails, on the toy world",
        footnote="In 4 and 5 the reference shown is replaced by noise or flat grey. A miniature, no evidence on the "
        "real models.",
    )


def count(pipe: Any, pairs: Sequence[tuple[Scene, Scene]], setting: Setting, seed: int) -> list[str]:
    """For each attribute, the shares of pictures with the prompt's value, the reference's, and neither's."""
    verdicts = [judge(image) for image in paint(pipe, pairs, setting, seed)]
    cells: list[str] = []
    for name in ATTRIBUTES:
        shares = [
            sum(
                getattr(verdict, name) == getattr(pair[side], name)
                for verdict, pair in zip(verdicts, pairs, strict=True)
            )
            / len(pairs)
            for side in (0, 1)
        ]
        # A reference that shows nothing has no value of its own to be matched.
        second = f"{shares[1]:.2f}" if setting.reference == "scene" else "-"
        rest = 1 - shares[0] - (shares[1] if setting.reference == "scene" else 0)
        cells.append(f"{shares[0]:.2f} / {second} / {abs(rest):.2f}")
    return cells


def print_table(pipe: Any, number: int, seed: int) -> None:
    """The table of the model card."""
    pairs = disagreeing_pairs(number, seed)
    print(f"{number} pairs, seed {seed}; each cell: prompt's / reference's / neither\n")
    print("| setting | " + " | ".join(ATTRIBUTES) + " |\n|" + "---|" * (1 + len(ATTRIBUTES)))
    for setting in SETTINGS:
        print(f"| {setting} | " + " | ".join(count(pipe, pairs, setting, seed)) + " |", flush=True)


def parameters() -> str:
    """How the sheet was made, for its own file and for the test that tells when it is stale."""
    settings = [[setting.title, setting.knobs, setting.reference] for setting in SETTINGS]
    return json.dumps({"model": "toy", "rows": ROWS, "steps": STEPS, "settings": settings})


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the sheet, and prints the table if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="PNG file, default: %(default)s")
    parser.add_argument("--pairs", type=int, default=0, help="print the table, over so many pairs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the table's pairs, default: %(default)s")
    options = parser.parse_args(arguments)
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    info = PngInfo()
    info.add_text("parameters", parameters())
    paint_sheet(pipe).save(options.output, pnginfo=info, optimize=True)
    print(options.output)
    if options.pairs:
        print_table(pipe, options.pairs, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
