"""`zimage-vl evidence`: every knob measured, and the page that says what came out beside what the guide claims."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from zimage_vl.evidence.outcomes import Measurements
    from zimage_vl.evidence.tables import Table

TOY_OUTPUT, MODEL_OUTPUT = Path("docs/evidence.md"), Path("outputs/evidence.md")
PAIRS, SEED = 60, 1
_REAL_SIDE, _REAL_STEPS = 1024, 9  # Z-Image-Turbo's own card
MEASUREMENTS = "measurements.json"
_RECORDED_PACKAGES = ("torch", "diffusers", "transformers")
_TOY_ONLY = ("pairs", "only", "fresh", "render_only")
_MODEL_ONLY = ("pictures", "prompts", "vl_model", "revision", "device", "dtype", "steps", "guidance_scale", "size")

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Markdown file to write; plots and figures go into a folder of its name beside it. Default: "
        "docs/evidence.md, with --model outputs/evidence.md; their folders are made.",
    ),
]
PairsOption = Annotated[
    int | None,
    typer.Option(
        "--pairs", min=2, metavar="INT", help="Toy: pairs of prompt and reference a setting, at least 2. Default: 60."
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**31 - 1, metavar="INT", help="Seed of pairs and noise, at least 0.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="NAME", help="Toy: measure this experiment alone; again for several. Default: all of them."
    ),
]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Toy: forget what was measured before and measure everything again.")
]
RenderOption = Annotated[
    bool, typer.Option("--render-only", help="Toy: measure nothing, write the page from what was measured before.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="INT", help="CPU threads, at least 1. Default: torch's choice."),
]
EvidenceModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="toy, this package's miniature; or a Z-Image, from a folder in diffusers' layout or the Hub, which is "
        "measured on --pictures and --prompts.",
    ),
]
PicturesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pictures", metavar="PATH", help="With --model: reference pictures, files, folders or globs; again."
    ),
]
PromptsOption = Annotated[
    list[str] | None, typer.Option("--prompts", metavar="TEXT", help="With --model: a prompt; again for several.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="INT", help="With --model: denoising steps. Default: 9.")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option("--guidance-scale", min=0, metavar="NUMBER", help="With --model: guidance scale. Default: 0.0."),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="With --model: WIDTHxHEIGHT, multiples of 16. Default: 1024x1024."),
]


def evidence(
    output: OutputOption = None,
    pairs: PairsOption = None,
    seed: SeedOption = SEED,
    only: OnlyOption = None,
    fresh: FreshOption = False,
    render_only: RenderOption = False,
    threads: ThreadsOption = None,
    model: EvidenceModelOption = TOY_MODEL,
    pictures: PicturesOption = None,
    prompts: PromptsOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    size: SizeOption = None,
    vl_model: VLModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Measure every knob on the toy world and write the page: the guide's claims beside what came out.

    About twenty minutes on one quiet core. What is measured is kept as it comes: an interrupted run goes on where it
    stopped. The toy is no evidence on the real models; with --model the same knobs are measured on a Z-Image and
    pictures of yours.
    """
    given = dict(locals())
    is_toy = model == TOY_MODEL
    for name in _MODEL_ONLY if is_toy else _TOY_ONLY:
        if given[name] not in (None, False):
            needs = "--model FOLDER: the toy brings its own" if is_toy else "the toy"
            raise ValueError(f"--{name.replace('_', '-')} is for {needs}; leave it out.")
    if fresh and render_only:
        raise ValueError("--fresh forgets what --render-only would show: pass one of them.")
    path = output or (TOY_OUTPUT if is_toy else MODEL_OUTPUT)
    if output is None:
        path.parent.mkdir(exist_ok=True)
    check_output_path(path, (".md",))
    if is_toy:
        _measure_toy(path, pairs, seed, only or [], fresh=fresh, render_only=render_only, threads=threads)
    else:
        _measure_model(path, seed, threads, given)
    typer.echo(str(path))


def _measure_toy(
    path: Path,
    pairs: int | None,
    seed: int,
    only: Sequence[str],
    *,
    fresh: bool,
    render_only: bool,
    threads: int | None,
) -> None:
    from zimage_vl.evidence.plots import require_matplotlib
    from zimage_vl.evidence.running import choose_experiments

    require_matplotlib()
    experiments = choose_experiments(only)
    folder = path.parent / path.stem
    kept = folder / MEASUREMENTS
    if render_only:
        from zimage_vl.evidence.outcomes import Measurements

        _render(path, folder, Measurements.load(kept))
        return
    import torch

    from zimage_vl.evidence.running import describe_run, get_missing, lacks_tables, open_measurements, run_experiments
    from zimage_vl.toy import load_toy_pipeline

    if threads is not None:
        torch.set_num_threads(threads)
    measurements = open_measurements(kept, describe_run(pairs or PAIRS, seed), fresh)
    missing = get_missing(experiments, measurements)
    if missing or lacks_tables(measurements):
        folder.mkdir(exist_ok=True)
        measurements.remarks |= {"threads": torch.get_num_threads(), "python": platform.python_version()}
        note(f"Loading the toy world ... {len(missing)} settings of {pairs or PAIRS} pairs are to be measured.")
        pipe = load_toy_pipeline()
        pipe.set_progress_bar_config(disable=True)
        total = len(missing) * (pairs or PAIRS)
        with typer.progressbar(length=total, label=f"Measuring {len(missing)} settings", file=sys.stderr) as bar:
            run_experiments(pipe, missing, measurements, kept, on_pictures=bar.update)
    else:
        note(f"All of it is in {kept} already; --fresh measures it again.")
    _render(path, folder, measurements)


def _render(path: Path, folder: Path, measurements: Measurements) -> None:
    from zimage_vl.evidence.figures import draw_plots
    from zimage_vl.evidence.page import write_page
    from zimage_vl.evidence.reading import Reader

    note("Writing the page ...")
    plots = draw_plots(Reader(measurements), folder)
    _write_text(path, write_page(measurements, plots, folder.name))


def _measure_model(path: Path, seed: int, threads: int | None, given: dict[str, Any]) -> None:
    model: str = given["model"]
    check_model_name(model)
    prompts: list[str] = given["prompts"] or []
    if not given["pictures"] or not prompts:
        raise ValueError("--model needs --pictures PATH and --prompts TEXT: at least one of each.")
    sources = find_sources(given["pictures"])
    for source in sources:
        if source.error is not None:
            raise ValueError(f"--pictures: {source.error}")
    size = parse_size(given["size"], None, None, _REAL_SIDE)
    where = choose_device(given["device"])
    precision: DtypeChoice = given["dtype"] or DtypeChoice.BFLOAT16
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    note(f"Loading {model} ...")
    pipe = load_pipeline(model, given["vl_model"], getattr(torch, precision.value), given["revision"]).to(where)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "seed": seed,
        "steps": given["steps"] or _REAL_STEPS,
        "guidance_scale": 0.0 if given["guidance_scale"] is None else given["guidance_scale"],
    }
    folder = path.parent / path.stem
    folder.mkdir(exist_ok=True)
    tables = _paint_and_measure(pipe, [Path(source.name) for source in sources], prompts, folder, size=size, **call)
    facts = {
        **call,
        "size": f"{size[0]} x {size[1]}",
        "precision": precision.value,
        "device": where,
        "threads": torch.get_num_threads(),
        "zimage-vl": __version__,
        **get_package_versions(_RECORDED_PACKAGES),
    }
    from zimage_vl.evidence.page import write_model_page

    _write_text(path, write_model_page(model, _tell_model_command(given), facts, tables))


def _paint_and_measure(pipe: Any, files: list[Path], prompts: list[str], folder: Path, **call: Any) -> list[Table]:
    """The tables; every painted picture goes into the folder as it comes."""
    from zimage_vl.evidence.picture_settings import make_settings
    from zimage_vl.evidence.pictures import measure_pictures
    from zimage_vl.evidence.similarity import count_layers

    settings = make_settings(count_layers(pipe))
    total = len(prompts) * (1 + len(files) * len({setting.key for setting in settings}))
    with typer.progressbar(length=total, label=f"Painting {total} pictures", file=sys.stderr) as bar:

        def keep(setting: Any, picture: int, prompt: int, image: Image) -> None:
            name = "prompt-alone" if setting is None else f"picture-{picture} {setting.group} {setting.name}"
            name = re.sub(r"[^a-z0-9.-]+", "-", f"prompt-{prompt} {name}".lower())
            write_png(image, folder / f"{name}.png", {"prompt": prompts[prompt], **call})
            bar.update(1)

        return measure_pictures(pipe, files, prompts, settings=settings, on_picture=keep, **call)


def _tell_model_command(given: dict[str, Any]) -> str:
    """The command line as it can be typed again."""
    words = ["zimage-vl", "evidence", "--model", given["model"]]
    for name in ("seed", *_MODEL_ONLY):
        values = given[name] if isinstance(given[name], list) else [given[name]]
        for value in values:
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(getattr(value, "value", value))]
    return shlex.join(words)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
