"""`zimage-vl evidence`: what references do with a checkpoint, on pictures and prompts of the user's own."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import zimage_vl
from zimage_vl.workflows.files import remove_leftovers

from ._models import Model
from ._options import option, with_options
from ._outputs import OverwriteOption, check_output_path, new_file, new_folder
from ._parsing import parse_size
from ._records import recorded_versions, write_png
from ._sources import NoUrlsOption, find_sources
from ._terminal import count_of, escape, note, say


OUTPUT = Path("outputs/evidence.md")
_SHEET_ROWS, _GUIDE_LAYERS = 4, 36

_PICTURES = "Reference pictures: files, folders, globs, URLs; again."
_PROMPTS = "A prompt that leaves something open; again for several."
_PAGE = "Markdown file; pictures and a JSON go into a folder beside."
_SIZE = "WIDTHxHEIGHT, multiples of 16. Default: 1024x1024; 64x64 with toy."


@with_options()
def evidence(
    model: Model,
    pictures: Annotated[list[str], option("--pictures", "PATH", _PICTURES)],
    prompts: Annotated[list[str], option("--prompts", "TEXT", _PROMPTS)],
    output: Annotated[Path, option("--output -o", "FILE", _PAGE)] = OUTPUT,
    seed: Annotated[int, option("--seed", "INT", "Seed of the noise.", min=0, max=2**31 - 1)] = 1,
    steps: Annotated[int | None, option("--steps", "INT", "Denoising steps. Default: 9; 8 with toy.", min=1)] = None,
    guidance: Annotated[float, option("--guidance --guidance-scale", "NUMBER", "Scale.", min=0)] = 0.0,
    size: Annotated[str | None, option("--size", "WxH", _SIZE)] = None,
    no_urls: NoUrlsOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Paint prompts with references under some thirty settings; write what is kept of the prompt and what follows the
    reference to one page.

    Each prompt is painted with each picture. Use prompts that leave things open, as people do: "a lighthouse at dusk"
    leaves colours and style to the reference. No other model is downloaded to measure with.
    """
    sources = find_sources(pictures, no_urls)
    for error in (source.error for source in sources if source.error is not None):
        raise ValueError(f"--pictures: {error}")
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("--prompts has an empty text: each picture is compared with what its prompt alone gives.")
    side, usual_steps = model.defaults
    width, height = parse_size(size, None, None, side)
    if output == OUTPUT:
        output.parent.mkdir(exist_ok=True)
    remove_leftovers(output.parent, [output.name])
    remove_leftovers(output.with_suffix(""))
    check_output_path(output, (".md",), overwrite=overwrite)

    from zimage_vl.workflows import evidence as measuring

    folder = output.with_suffix("")
    if folder.exists() and not overwrite:
        raise ValueError(
            f"--output: {folder}, for the pictures, exists already: name another file, or add --overwrite."
        )
    for source in sources:
        if folder.resolve() in Path(source.name).resolve().parents:
            raise ValueError(f"--pictures: '{escape(source.name)}' is in {folder}, where ours go: move it.")
    references = [zimage_vl.load_reference_image(source.name, "--pictures") for source in sources]
    note(f"Painting at {width}x{height}")
    pipe = model.load().to(model.device)
    pipe.set_progress_bar_config(disable=True)
    call = {"width": width, "height": height, "num_inference_steps": steps or usual_steps, "guidance_scale": guidance}
    depth = int(pipe.text_encoder.config.num_hidden_layers)
    settings, layers = measuring.make_settings(depth), ""
    if depth != _GUIDE_LAYERS:
        here = settings["alpha 0.3"]["vl_hidden_layer"]
        layers = (
            f"Layers are at the depth that they have among the guide's {_GUIDE_LAYERS}: -6 is {here} here, of {depth}."
        )
        note(layers)
    facts = {**model.describe(), "seed": seed, **call, **recorded_versions()}
    shown: dict[tuple[int, int, str], Any] = {}
    total = len(prompts) * len(references) * (2 + len(settings))
    bar = typer.progressbar(length=total, label=f"Painting {total} pictures", file=sys.stderr)
    with new_folder(folder), bar:

        def keep(name: str, prompt: int, picture: int, image: Any) -> None:
            file = re.sub(r"[^a-z0-9.-]+", "-", f"prompt-{prompt} picture-{picture} {name}".lower())
            made = {"prompt": prompts[prompt], "setting": name, "knobs": settings.get(name), **facts}
            write_png(image, folder / f"{file}.png", made, overwrite)
            if len(shown) < _SHEET_ROWS * (1 + len(measuring.SHOWN)) and name in (measuring.ALONE, *measuring.SHOWN):
                shown[prompt, picture, name] = image
            bar.update(1)

        outcomes = measuring.measure_pictures(measuring.Studio(pipe, prompts, seed, call), references, settings, keep)
    pairs = list(dict.fromkeys((prompt, picture) for prompt, picture, _ in shown))
    heads = [name for name in (measuring.ALONE, *measuring.SHOWN) if all((*pair, name) in shown for pair in pairs)]
    rows = [[references[pair[1]], *(shown[(*pair, name)] for name in heads)] for pair in pairs]
    sheet = measuring.make_sheet(rows, [prompts[pair[0]] for pair in pairs], ["reference", *heads])
    write_png(sheet, folder / "sheet.png", facts, overwrite)
    command = shlex.join(["zimage-vl", *sys.argv[1:]])
    kept = {name: {**asdict(outcome), "settings": settings.get(name)} for name, outcome in outcomes.items()}
    content = {"command": command, **facts, "prompts": prompts, "pictures": [source.name for source in sources]}
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    head = f"# References with {model.model}\n\n`{command}`\n\n"
    head += f"{count_of(len(prompts), 'prompt')}, {count_of(len(references), 'picture')}; {told}. {layers}"
    page = measuring.write_page(outcomes, head.rstrip(), f"{folder.name}/sheet.png")
    for path, text in (
        (folder / "measurements.json", json.dumps({**content, "outcomes": kept}, indent=1)),
        (output, page),
    ):
        with new_file(path, overwrite) as file:
            file.write(text.encode())
    say(str(output))
