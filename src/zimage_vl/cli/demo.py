"""`zimage-vl demo`: a contact sheet of the toy world, on which reference pictures visibly steer what prompts paint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zimage_vl._version import __version__

from ._shared import check_output_path, get_package_versions, note, write_png


if TYPE_CHECKING:
    from PIL.Image import Image

    from zimage_vl.toy.sheet import SheetRow

DEFAULT_OUTPUT = Path("outputs/demo.png")
ALPHAS = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
# Heading of a block to the knobs it is painted with.
SETTINGS: dict[str, dict[str, Any]] = {
    "default: all tokens, layer -6, anchored, global": {},
    "text tokens, layer -2, token_rms": {
        "vl_token_selection": "text",
        "vl_hidden_layer": -2,
        "vl_normalization": "token_rms",
    },
}
LAYERS = (-6, -2)  # all that the settings ask for: a reference is read once
_RECORDED_PACKAGES = ("torch", "diffusers", "transformers")

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="PNG file to write, in a folder that exists. Default: outputs/demo.png, whose folder is made.",
    ),
]
PairsOption = Annotated[
    int, typer.Option("--pairs", min=1, max=50, metavar="INT", help="How many pairs of prompt and reference, 1 to 50.")
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**31 - 1, metavar="INT", help="Seed of pairs and noise, at least 0."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="INT", help="CPU threads, at least 1. Default: torch's choice."),
]


def demo(
    output: OutputOption = None,
    pairs: PairsOption = 5,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
) -> None:
    """Paint the contact sheet of the toy world: prompt, reference, and alpha from 0 to 1.

    Prompt and reference disagree in shape, colour and background. The sheet's path is printed last. The toy is a
    trained miniature of all the models: it shows what the method does, not how good the real models' pictures are.
    """
    if output is None:
        DEFAULT_OUTPUT.parent.mkdir(exist_ok=True)
    path = output or DEFAULT_OUTPUT
    check_output_path(path)
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
        footnote=f"zimage-vl {__version__}, the toy world, seed {seed}: a miniature, no evidence on the real models",
    )
    write_png(sheet, path, _sheet_parameters(rows, seed, int(STEPS)))
    typer.echo(str(path))


def count_pictures() -> int:
    """Pictures painted a pair: at alpha 0 one serves all settings, since the reference is not read."""
    return 1 + len(SETTINGS) * sum(alpha > 0 for alpha in ALPHAS)


def paint_rows(
    pipe: Any, pairs: int, seed: int, *, size: int, steps: int, on_picture: Callable[[], object] = lambda: None
) -> list[SheetRow]:
    """Paint the rows of the sheet.

    Args:
        pipe: A `ZImageVLPipeline`.
        pairs: How many pairs of a prompt and a reference that share nothing.
        seed: Decides the pairs, the references' places and sizes, and the noise: one noise a row.
        size: Side of a picture in pixels.
        steps: Denoising steps.
        on_picture: Called after each picture.
    """
    from zimage_vl.toy.sheet import SheetRow
    from zimage_vl.toy.world import disagreeing_pairs, draw_scene

    rows: list[SheetRow] = []
    for number, (wanted, shown) in enumerate(disagreeing_pairs(pairs, seed)):
        prompt, reference = wanted.caption(), draw_scene(shown, seed=seed + number)
        embeds = pipe.encode_reference(reference, prompt, LAYERS)
        noise = {"size": size, "steps": steps, "seed": seed + number}
        plain = _paint(pipe, prompt, noise)
        on_picture()
        blocks: list[Sequence[Image]] = []
        for knobs in SETTINGS.values():
            block = [plain]
            for alpha in ALPHAS[1:]:
                block.append(_paint(pipe, prompt, noise, reference_embeds=embeds, vl_alpha=alpha, **knobs))
                on_picture()
            blocks.append(block)
        rows.append(SheetRow(prompt, reference, blocks))
    return rows


def _paint(pipe: Any, prompt: str, noise: dict[str, int], **conditioning: Any) -> Image:
    import torch

    return pipe(
        prompt,
        height=noise["size"],
        width=noise["size"],
        num_inference_steps=noise["steps"],
        guidance_scale=0.0,
        generator=torch.Generator("cpu").manual_seed(noise["seed"]),
        **conditioning,
    ).images[0]


def _sheet_parameters(rows: Sequence[SheetRow], seed: int, steps: int) -> dict[str, Any]:
    """How the sheet was made, for its own file."""
    return {
        "command": f"zimage-vl demo --pairs {len(rows)} --seed {seed}",
        "model": "toy",
        "prompts": [row.prompt for row in rows],
        "alphas": list(ALPHAS),
        "settings": SETTINGS,
        "seeds": [seed + number for number in range(len(rows))],
        "steps": steps,
        "versions": {"zimage-vl": __version__, **get_package_versions(_RECORDED_PACKAGES)},
    }
