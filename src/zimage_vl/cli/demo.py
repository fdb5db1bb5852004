"""`zimage-vl demo`: a contact sheet of the toy world, on which reference pictures visibly steer what prompts paint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zimage_vl.workflows.files import remove_leftovers

from ._options import option
from ._outputs import OverwriteOption, check_output_path, new_folder
from ._records import recorded_versions, write_png
from ._terminal import note, say


if TYPE_CHECKING:
    from PIL.Image import Image

    from zimage_vl.toy.sheet import SheetRow

DEFAULT_OUTPUT = Path("outputs/demo.png")
# Over the columns, and their alphas.
STRENGTHS = {"none": 0.0, "a trace": 0.15, "some": 0.3, "more": 0.5, "much": 0.7, "all of it": 1.0}
# What the prompts name, in turn; the last row's names everything, which the reference contradicts.
NAMED = (("shape", "place"), ("fill", "shape"), ("shape",), ("colour", "shape", "place"))

_OUTPUT = f"PNG file to write. Default: {DEFAULT_OUTPUT}, or with a number where that is taken; its folder is made."
_PAIRS = "Pairs of prompt and reference, 1 to 50."
FOOTNOTE = (
    f"The columns are vl_alpha {', '.join(f'{alpha:g}' for alpha in STRENGTHS.values())}. A trained miniature of the "
    "models paints, so this is no evidence about them."
)
LAST_ROW = " What a prompt names gives way in the end: the last one names everything, and there it goes wrong."


def demo(
    output: Annotated[Path | None, option("--output -o", "FILE", _OUTPUT)] = None,
    pairs: Annotated[int, option("--pairs", "INT", _PAIRS, min=1, max=50)] = 5,
    seed: Annotated[int, option("--seed", "INT", "Seed of pairs and noise.", min=0, max=2**31 - 1)] = 0,
    threads: Annotated[int | None, option("--threads", "INT", "CPU threads. Default: torch's choice.", min=1)] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Paint the contact sheet of the toy world: a prompt, a reference, and pictures in which it counts more and more.

    The prompts leave things open, which the reference then fills; the last one names everything, and there the
    reference can only contradict it. The sheet's path is printed last. The toy is a trained miniature of all the
    models: it shows what the method does, not how good the real models' pictures are.
    """
    with nullcontext() if output is not None else new_folder(DEFAULT_OUTPUT.parent):
        path = output or _free_name(DEFAULT_OUTPUT, overwrite)
        remove_leftovers(path.parent, [path.name])
        check_output_path(path, overwrite=overwrite)
        note("Loading the toy world ...")
        import torch

        from zimage_vl.toy import SIZE, STEPS, load_toy_pipeline
        from zimage_vl.toy.sheet import contact_sheet

        if threads is not None:
            torch.set_num_threads(threads)
        pipe = load_toy_pipeline()
        pipe.set_progress_bar_config(disable=True)  # one bar for all pictures instead of one for each
        total = pairs * len(STRENGTHS)
        with typer.progressbar(length=total, label=f"Painting {total} pictures", file=sys.stderr) as bar:
            rows = paint_rows(pipe, pairs, seed, size=int(SIZE), steps=int(STEPS), on_picture=lambda: bar.update(1))
        sheet = contact_sheet(
            rows,
            list(STRENGTHS),
            title="Same prompt and noise: the reference counts more and more",
            footnote=FOOTNOTE + LAST_ROW * (pairs > 1),
        )
        made = {
            "command": f"zimage-vl demo --pairs {pairs} --seed {seed}",
            "model": "toy",
            "prompts": [row.prompt for row in rows],
            "alphas": list(STRENGTHS.values()),
            "seeds": [seed + number for number in range(len(rows))],
            "steps": int(STEPS),
            "versions": recorded_versions(),
        }
        write_png(sheet, path, made, overwrite)
    say(str(path))


def _free_name(path: Path, overwrite: bool) -> Path:
    """The path, or with a number behind its name: a sheet that is there stays, and the demo can be run again."""
    number, free = 1, path
    while os.path.lexists(free) and not overwrite:
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def paint_rows(
    pipe: Any, pairs: int, seed: int, *, size: int, steps: int, on_picture: Callable[[], object] = lambda: None
) -> list[SheetRow]:
    """Paint the rows of the sheet: a prompt and a reference that share nothing, one noise per row."""
    import torch

    from zimage_vl.toy.sheet import SheetRow
    from zimage_vl.toy.world import disagreeing_pairs, draw_scene

    rows: list[SheetRow] = []
    for number, (wanted, shown) in enumerate(disagreeing_pairs(pairs, seed)):
        names = () if number and number == pairs - 1 else NAMED[number % len(NAMED)]
        prompt, reference, noise = wanted.caption(*names), draw_scene(shown, seed=seed + number), seed + number
        embeds = pipe.encode_reference(reference, prompt)
        pictures: list[Image] = []
        for alpha in STRENGTHS.values():
            output = pipe(
                prompt,
                reference_embeds=embeds,
                vl_alpha=alpha,
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=0.0,
                generator=torch.Generator("cpu").manual_seed(noise),
            )
            pictures.append(output.images[0])
            on_picture()
        rows.append(SheetRow(prompt, reference, [pictures]))
    return rows
