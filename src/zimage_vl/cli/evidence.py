"""`zimage-vl evidence`: what references do with a checkpoint, on pictures and prompts of the user's own."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zimage_vl._version import __version__

from ._options import DeviceOption, DtypeChoice, DtypeOption, RevisionOption, VLModelOption
from ._parsing import parse_size
from ._shared import (
    TOY_MODEL,
    check_model_name,
    check_output_path,
    choose_device,
    get_package_versions,
    load_pipeline,
    note,
    write_png,
)
from ._sources import find_sources


if TYPE_CHECKING:
    from PIL.Image import Image

OUTPUT = Path("outputs/evidence.md")
_SIDE, _SHEET_ROWS = 1024, 4

ModelOption = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="A Z-Image: a folder in diffusers' layout, a Hub id, or toy."),
]
PicturesOption = Annotated[
    list[str], typer.Option("--pictures", metavar="PATH", help="Reference pictures: files, folders or globs; again.")
]
PromptsOption = Annotated[
    list[str],
    typer.Option("--prompts", metavar="TEXT", help="A prompt that leaves something open; again for several."),
]
OutputOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="Markdown file; pictures and a JSON go into a folder beside."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, metavar="INT", help="Seed of the noise.")]
StepsOption = Annotated[int, typer.Option("--steps", min=1, metavar="INT", help="Denoising steps.")]
GuidanceOption = Annotated[float, typer.Option("--guidance-scale", min=0, metavar="NUMBER", help="Guidance scale.")]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="WIDTHxHEIGHT, multiples of 16. Default: 1024x1024.")
]


def evidence(
    model: ModelOption,
    pictures: PicturesOption,
    prompts: PromptsOption,
    output: OutputOption = OUTPUT,
    seed: SeedOption = 1,
    steps: StepsOption = 9,
    guidance_scale: GuidanceOption = 0.0,
    size: SizeOption = None,
    vl_model: VLModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Paint prompts with references under some thirty settings; write what is kept of the prompt and what follows the
    reference to one page.

    Each prompt is painted with each picture. Use prompts that leave things open, as people do: "a lighthouse at dusk"
    leaves colours and style to the reference. No other model is downloaded to measure with.
    """
    check_model_name(model)
    if output == OUTPUT:
        output.parent.mkdir(exist_ok=True)
    check_output_path(output, (".md",))
    sources = find_sources(pictures)
    for error in (source.error for source in sources if source.error is not None):
        raise ValueError(f"--pictures: {error}")
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("--prompts has an empty text: every picture is compared with what its prompt alone gives.")
    width, height = parse_size(size, None, None, _SIDE)
    where = choose_device(device)
    precision = dtype or (DtypeChoice.FLOAT32 if model == TOY_MODEL else DtypeChoice.BFLOAT16)
    import torch

    from zimage_vl import load_reference_image
    from zimage_vl.workflows import evidence as measuring

    references = [load_reference_image(source.name, "--pictures") for source in sources]
    note(f"Loading {model} ...")
    pipe = load_pipeline(model, vl_model, getattr(torch, precision.value), revision).to(where)
    pipe.set_progress_bar_config(disable=True)
    call = {"width": width, "height": height, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    settings = measuring.make_settings(int(pipe.text_encoder.config.num_hidden_layers))
    folder = output.with_suffix("")
    folder.mkdir(exist_ok=True)
    shown: dict[tuple[int, int, str], Image] = {}
    total = len(prompts) * len(references) * (2 + len(settings))
    with typer.progressbar(length=total, label=f"Painting {total} pictures", file=sys.stderr) as bar:

        def keep(name: str, prompt: int, picture: int, image: Image) -> None:
            file = re.sub(r"[^a-z0-9.-]+", "-", f"prompt-{prompt} picture-{picture} {name}".lower())
            write_png(
                image, folder / f"{file}.png", {"prompt": prompts[prompt], "setting": name, "seed": seed, **call}
            )
            if len(shown) < _SHEET_ROWS * (1 + len(measuring.SHOWN)) and name in (measuring.ALONE, *measuring.SHOWN):
                shown[prompt, picture, name] = image
            bar.update(1)

        outcomes = measuring.measure_pictures(measuring.Studio(pipe, prompts, seed, call), references, settings, keep)
    pairs = list(dict.fromkeys((prompt, picture) for prompt, picture, _ in shown))
    heads = [name for name in (measuring.ALONE, *measuring.SHOWN) if all((*pair, name) in shown for pair in pairs)]
    rows = [[references[pair[1]], *(shown[(*pair, name)] for name in heads)] for pair in pairs]
    facts = {"model": model, "seed": seed, "precision": precision.value, "device": where, "zimage-vl": __version__}
    facts |= {**call, **get_package_versions(("torch", "diffusers", "transformers"))}
    command = shlex.join(["zimage-vl", *sys.argv[1:]])
    sheet = measuring.make_sheet(rows, [prompts[pair[0]] for pair in pairs], ["reference", *heads])
    write_png(sheet, folder / "sheet.png", facts)
    kept = {name: {**asdict(outcome), "settings": settings.get(name)} for name, outcome in outcomes.items()}
    content = {
        "command": command,
        **facts,
        "prompts": prompts,
        "pictures": [s.name for s in sources],
        "outcomes": kept,
    }
    (folder / "measurements.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    head = f"# References with {model}\n\n`{command}`\n\n{len(prompts)} prompts, {len(references)} pictures; {told}."
    output.write_text(measuring.write_page(outcomes, head, f"{folder.name}/sheet.png"), encoding="utf-8")
    typer.echo(str(output))
