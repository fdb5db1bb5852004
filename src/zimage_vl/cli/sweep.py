"""`zimage-vl sweep` and `zimage-vl merge`: many pictures from one plan, with a manifest, contact sheets and a page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from zimage_vl.workflows.files import claimed
from zimage_vl.workflows.gallery import Gallery
from zimage_vl.workflows.manifest import (
    MANIFEST,
    PICTURES,
    REFERENCES,
    Manifest,
    check_sweep_folder,
    is_written,
    merge_folders,
    prepare_folder,
)

from ._axes import read_plan, read_values, with_axes
from ._models import Model
from ._options import OffloadOption, explain, option
from ._outputs import PARTLY_DONE, check_output_folder, new_folder
from ._records import PICTURE_KNOBS, recorded_versions
from ._sources import NoUrlsOption, refuse_urls
from ._team import NumShardsOption, ShardIndexOption, Team, take_part
from ._terminal import FormatOption, OutputFormat, escape, note, print_json, say
from ._views import describe_dry_run, dry_run_lines, write_views
from .extract import is_extracted, merge_extracted


_MOST_ERRORS = 50  # told at the end; the manifest has all
_OUTPUT = "Folder for pictures, manifest.jsonl, sheet.png and index.html; what it has already is kept."
_PLAN = "YAML or TOML file with names and values, as alpha: [0, 0.3]. Options beside it take precedence."
_PROMPT = "What to paint; again for another."
_NEGATIVE = "Keep away; needs --guidance. Again for another."
_TAKE = "Wishes and recipes of `zimage-vl recipes`, several with commas; options beside them take precedence."
_SIZE = "WIDTHxHEIGHT in pixels. Default: 1024x1024; 64x64 with toy."
_STEPS = "Denoising steps. Default: 9; 8 with toy."
_SEEDS = "Seeds, as 0..3. Default: 0."
_DRY = "Count pictures, readings, memory, disk and time; load no model, write nothing."
_FOLDERS = "Folders of sweeps, or of `zimage-vl extract`."
_MERGED = "Folder for all of it; may be one of them."


@with_axes
def sweep(
    output: Annotated[Path, option("--output -o", "DIR", _OUTPUT)],
    model: Model,
    prompt: Annotated[list[str] | None, option("--prompt -p", "TEXT", _PROMPT)] = None,
    plan: Annotated[Path | None, option("--plan", "FILE", _PLAN)] = None,
    recipe: Annotated[list[str] | None, option("--take --recipe", "NAMES", _TAKE)] = None,
    negative_prompt: Annotated[list[str] | None, option("--negative-prompt", "TEXT", _NEGATIVE)] = None,
    steps: Annotated[list[str] | None, option("--steps", "NUMBERS", _STEPS)] = None,
    guidance: Annotated[
        list[str] | None, option("--guidance", "NUMBERS", "Scales; 0, the default, is off, for Turbo.")
    ] = None,
    seed: Annotated[list[str] | None, option("--seed", "NUMBERS", _SEEDS)] = None,
    size: Annotated[list[str] | None, option("--size", "SIZES", _SIZE)] = None,
    offload: OffloadOption = "none",
    no_urls: NoUrlsOption = False,
    num_shards: NumShardsOption = 1,
    shard_index: ShardIndexOption = 0,
    dry_run: Annotated[bool, option("--dry-run", None, _DRY)] = False,
    output_format: FormatOption = OutputFormat.TEXT,
    **knobs: Any,
) -> None:
    """Paint every combination of prompts, references, knobs and seeds, and lay the pictures side by side.

    Options take several values: with commas, as ranges (0..3), or by giving the option again. A second run paints what
    is missing, also of a changed plan. Under torchrun or `accelerate launch` the processes share the work.
    """
    typed = {"prompt": prompt, "recipe": recipe, "negative_prompt": negative_prompt, "steps": steps} | knobs
    typed |= {"guidance": guidance, "seed": seed, "size": size}
    check_output_folder(output)
    check_sweep_folder(output)
    if offload != "none" and model.device == "cpu":
        raise ValueError(f"--offload {offload} needs an accelerator, and this is the CPU.")
    take_part((), num_shards, shard_index)  # which refuses what is none, before anything is read
    axes = _read_axes(plan, typed, model)
    for source in (source for name in PICTURE_KNOBS for source in axes.get(name, ())):
        paths = [source] if isinstance(source, str) else source
        refuse_urls(paths, no_urls)
        for path in paths:
            file = Path(path).resolve()  # behind its links
            if is_written(file.name) and file.parent == output.resolve():
                raise ValueError(
                    f"'{escape(path)}' is an input, and this sweep would replace it: name another folder."
                )
    from zimage_vl.workflows.sweep import run_sweep
    from zimage_vl.workflows.sweep_plan import SweepPlan

    try:
        whole = SweepPlan(axes)
    except TypeError as error:  # a value of another kind in a plan file
        raise ValueError(str(error)) from error
    team = Team.join(str(model.device))
    numbers = take_part(range(len(whole)), num_shards, shard_index)
    numbers = numbers if dry_run else team.share(numbers)
    rows = run_sweep(
        whole,
        output,
        None if dry_run else partial(_load, replace(model, device=team.device, quiet=True), offload, whole),
        origin={**model.describe(), "versions": recorded_versions()},
        identity=" ".join(str(Path(n).resolve()) for n in (model.model, model.vl_model) if n and Path(n).is_dir()),
        numbers=numbers,
        explain=explain,
    )
    if dry_run:
        described = describe_dry_run(rows, output, model.model, model.vl_model, team.kind)
        _tell_errors(described["errors"])
        if output_format is OutputFormat.JSON:
            print_json(described)
        for line in dry_run_lines(described) if output_format is OutputFormat.TEXT else ():
            say(line)
        if described["errors"]:
            raise typer.Exit(PARTLY_DONE)
        return
    with _prepared(output) if team.is_main else nullcontext():
        team.wait()
        counts, errors = team.add_up(*_run(rows, len(numbers), team.is_main))
        if team.is_main:
            Manifest(output).path.touch()  # for `merge`, also where there was nothing to do
            Manifest(output).tidy()
            _report({"output": str(output), "counts": counts, "errors": errors, **write_views(output)}, output_format)
    team.leave()
    if counts.get("failed") and team.is_main:
        raise typer.Exit(PARTLY_DONE)


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help=_FOLDERS)],
    output: Annotated[Path, option("--output -o", "DIR", _MERGED)],
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Bring the pictures and manifests of several sweeps into one folder, with one page and one set of sheets.

    Folders of `zimage-vl extract` are brought together too: their files, and the lines of their manifests.
    """
    check_output_folder(output)
    if any(map(is_extracted, folders)):
        with new_folder(output), claimed(output), _gone_if_it_fails(output):
            described = merge_extracted(folders, output)
        _report({**described, "errors": {}, "sheets": []}, output_format)
        return
    for folder in folders:
        Gallery.read(folder)  # so that a damaged line is blamed on the folder that it is in
    with _prepared(output), _gone_if_it_fails(output):
        merge_folders(folders, output)
        counts = Counter("done" if entry.done else "failed" for entry in Manifest(output).entries())
        _report({"output": str(output), "counts": dict(counts), "errors": {}, **write_views(output)}, output_format)


@contextmanager
def _gone_if_it_fails(folder: Path) -> Generator[None]:
    """Within it, what fails takes away again what it brought into a folder without a manifest: links and copies."""
    if (folder / MANIFEST).exists():
        yield
        return
    before = {*folder.rglob("*")}
    try:
        yield
    except Exception:
        for path in sorted({*folder.rglob("*")} - before, reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


@contextmanager
def _prepared(folder: Path) -> Generator[None]:
    """Within it, the folder is in order and this run's alone."""
    with new_folder(folder, PICTURES, REFERENCES), claimed(folder):
        prepare_folder(folder)
        yield


def _read_axes(plan: Path | None, typed: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The values of each axis: those typed, those of the plan file, and defaults for what a picture needs."""
    side, steps = model.defaults
    defaults: dict[str, Any] = {"size": f"{side}x{side}", "steps": steps, "guidance": 0, "seed": 0}
    given = {name: values for name, values in typed.items() if values}
    planned = {} if plan is None else read_plan(plan)
    axes = defaults | planned | given
    if "prompt" not in axes:
        raise ValueError("A sweep needs a prompt: --prompt, or `prompt` in a --plan.")
    return {name: read_values(name, x, None if name in given else plan) for name, x in axes.items()}


def _load(model: Model, offload: str, plan: Any) -> Any:
    pipe = model.load()
    for reader, layers in plan.layers.items() if "reference_image" in plan.axes else ():
        model.check_reader(pipe, reader, layers)
    return model.place(pipe, offload)


def _run(rows: Iterable[dict[str, Any]], count: int, shown: bool) -> tuple[Counter[str], Counter[str]]:
    """Do the jobs; count how they ended, and what was wrong."""
    counts, errors = Counter[str](), Counter[str]()
    bar = (
        typer.progressbar(rows, length=count, label=f"{count} pictures", file=sys.stderr)
        if shown
        else nullcontext(rows)
    )
    try:
        with bar as each:
            for row in each:
                counts[row["status"]] += 1
                if row["status"] == "failed" and (row["error"] in errors or len(errors) < _MOST_ERRORS):
                    errors[row["error"]] += 1
    except KeyboardInterrupt:
        note("Stopped; the same command goes on from here.")
        raise
    return counts, errors


def _report(described: dict[str, Any], output_format: OutputFormat) -> None:
    _tell_errors(described["errors"])
    note(", ".join(f"{count} {status}" for status, count in sorted(described["counts"].items())) or "nothing to do")
    if output_format is OutputFormat.JSON:
        print_json(described)
        return
    for path in (*described["sheets"], described.get("page", described["manifest"])):
        say(path)


def _tell_errors(errors: Mapping[str, int]) -> None:
    for error, times in errors.items():
        note(f"Failed{f' {times} times' if times > 1 else ''}: {error}")
