"""`zimage-vl demo`: a contact sheet of the toy world, on which reference pictures visibly steer what prompts paint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zimage_vl._version import __version__
from zimage_vl.blend.registry import KNOBS

from ._options import option
from ._outputs import OverwriteOption, check_output_path, new_folder
from ._records import recorded_versions, write_png
from ._terminal import note, say


if TYPE_CHECKING:
    from PIL.Image import Image

    from zimage_vl.toy.sheet import SheetRow

DEFAULT_OUTPUT = Path("outputs/demo.png")
ALPHAS = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
_DEFAULTS = [KNOBS[name].default for name in ("vl_token_selection", "vl_alignment", "vl_normalization")]
_DEFAULT_LAYER = -6  # of the reader that the default is
# Heading of a block to the knobs it is painted with.
SETTINGS: dict[str, dict[str, Any]] = {
    f"default: {_DEFAULTS[0]} tokens, layer {_DEFAULT_LAYER}, {_DEFAULTS[1]}, {_DEFAULTS[2]}": {},
    "text tokens, layer -2, token_rms": {
        "vl_token_selection": "text",
        "vl_hidden_layer": -2,
        "vl_normalization": "token_rms",
    },
}
LAYERS = (_DEFAULT_LAYER, -2)  # all that the settings ask for: a reference is read once

_OUTPUT = f"PNG file to write. Default: {DEFAULT_OUTPUT}, or with a number where that is taken; its folder is made."
_PAIRS = "Pairs of prompt and reference, 1 to 50."


def demo(
    output: Annotated[Path | None, option("--output -o", "FILE", _OUTPUT)] = None,
    pairs: Annotated[int, option("--pairs", "INT", _PAIRS, min=1, max=50)] = 5,
    seed: Annotated[int, option("--seed", "INT", "Seed of pairs and noise.", min=0, max=2**31 - 1)] = 0,
    threads: Annotated[int | None, option("--threads", "INT", "CPU threads. Default: torch's choice.", min=1)] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Paint the contact sheet of the toy world: prompt, reference, and alpha from 0 to 1.

    Prompt and reference disagree in shape, colour and background. The sheet's path is printed last. The toy is a
    trained miniature of all the models: it shows what the method does, not how good the real models' pictures are.
    """
    with nullcontext() if output is not None else new_folder(DEFAULT_OUTPUT.parent):
        path = output or _free_name(DEFAULT_OUTPUT, overwrite)
        check_output_path(path, overwrite=overwrite)
        note("Loading the toy world ...")
        import torch

        from zimage_vl.toy import SIZE, STEPS, load_toy_pipeline
        from zimage_vl.toy.sheet import contact_sheet

        if threads is not None:
            torch.set_num_threads(threads)
        pipe = load_toy_pipeline()
        pipe.set_progress_bar_config(disable=True)  # one bar for all pictures instead of one for each
        total = pairs * count_pictures()
        with typer.progressbar(length=total, label=f"Painting {total} pictures", file=sys.stderr) as bar:
            rows = paint_rows(pipe, pairs, seed, size=int(SIZE), steps=int(STEPS), on_picture=lambda: bar.update(1))
        sheet = contact_sheet(
            rows,
            [f"alpha {alpha:g}" for alpha in ALPHAS],
            list(SETTINGS),
            title="The same prompt and noise, steered more and more by a reference picture",
            footnote=f"zimage-vl {__version__}, the toy world, seed {seed}: no evidence on the real models",
        )
        made = {
            "command": f"zimage-vl demo --pairs {pairs} --seed {seed}",
            "model": "toy",
            "prompts": [row.prompt for row in rows],
            "alphas": list(ALPHAS),
            "settings": SETTINGS,
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


def count_pictures() -> int:
    """Get the pictures painted per pair: at alpha 0 one serves all settings, since the reference is not read."""
    return 1 + len(SETTINGS) * sum(alpha > 0 for alpha in ALPHAS)


def paint_rows(
    pipe: Any, pairs: int, seed: int, *, size: int, steps: int, on_picture: Callable[[], object] = lambda: None
) -> list[SheetRow]:
    """Paint the rows of the sheet: pairs of a prompt and a reference that share nothing, one noise per row."""
    import torch

    from zimage_vl.toy.sheet import SheetRow
    from zimage_vl.toy.world import disagreeing_pairs, draw_scene

    def paint(prompt: str, noise: int, **knobs: Any) -> Image:
        generator = torch.Generator("cpu").manual_seed(noise)
        call = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 0.0}
        image: Image = pipe(prompt, generator=generator, **call, **knobs).images[0]
        on_picture()
        return image

    rows: list[SheetRow] = []
    for noise, (wanted, shown) in enumerate(disagreeing_pairs(pairs, seed), start=seed):
        prompt, reference = wanted.caption(), draw_scene(shown, seed=noise)
        embeds = pipe.encode_reference(reference, prompt, LAYERS)
        plain = paint(prompt, noise)
        blocks: list[Sequence[Image]] = [
            [plain, *(paint(prompt, noise, reference_embeds=embeds, vl_alpha=x, **knobs) for x in ALPHAS[1:])]
            for knobs in SETTINGS.values()
        ]
        rows.append(SheetRow(prompt, reference, blocks))
    return rows
