"""What a sweep shows: contact sheets and the page in its folder, and what a dry run says of the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._models import TOY_MODEL
from ._terminal import note, one_line


if TYPE_CHECKING:
    from PIL.Image import Image

    from zimage_vl.workflows.gallery import Sheet

_BLANK = (232, 232, 230)
# Operations a second that a dry run reckons with where nothing was measured: rules, and no promises.
_RATES = {"cuda": 2e14, "mps": 5e12, "cpu": 1e11}
_TOY_STEP_SECONDS = 0.02
_BYTES_PER_PIXEL = 1.5  # of a PNG of a photograph
_MOST_MEASURED = 1000
_DEFAULT_VL_MODEL = "Qwen/Qwen3-VL-4B-Instruct"


def write_views(folder: Path) -> dict[str, Any]:
    """Write the sheets and the page of a folder; get their paths and the manifest's."""
    from zimage_vl.workflows.files import whole_file
    from zimage_vl.workflows.gallery import Gallery, write_page
    from zimage_vl.workflows.manifest import MANIFEST, is_sheet

    gallery = Gallery.read(folder)
    if gallery.shots:  # a share may have no jobs
        write_page(folder, gallery)
    sheets: list[Path] = []
    for number, sheet in enumerate(gallery.sheets(), 1):
        sheets.append(folder / ("sheet.png" if number == 1 else f"sheet-{number}.png"))
        with whole_file(sheets[-1]) as file:
            draw_sheet(folder, sheet).save(file, format="PNG")
    for stale in {path for path in folder.glob("sheet*.png") if is_sheet(path.name)} - {*sheets}:
        stale.unlink(missing_ok=True)  # of a time when there were more
    return {
        "manifest": str(folder / MANIFEST),
        "sheets": [str(path) for path in sheets],
        **({"page": str(folder / "index.html")} if gallery.shots else {}),
    }


def draw_sheet(folder: Path, sheet: Sheet) -> Image:
    """Draw one contact sheet; where a picture is missing there is a blank, and a note where it cannot be read."""
    from PIL import Image

    from zimage_vl.reference.pictures import load_reference_image
    from zimage_vl.toy.sheet import SheetRow, contact_sheet

    files = [file for _, _, blocks in sheet.rows for block in blocks for file in block if file is not None]

    unreadable: dict[str, str] = {}

    def read(file: str | None) -> Any:
        try:
            return file and load_reference_image(folder / file, "picture")
        except (OSError, ValueError) as error:
            unreadable[str(file)] = one_line(error)
            return None

    first = next(filter(None, map(read, files)), None)
    cell = 128 if first is None or max(first.size) <= 128 else 256

    def load(file: str | None) -> Any:
        if (small := read(file)) is None:
            return Image.new("RGB", (cell, cell), _BLANK)
        small.thumbnail((cell, cell))
        return small

    rows = [
        SheetRow(
            label, None if reference is None else load(reference), [[load(file) for file in block] for block in blocks]
        )
        for label, reference, blocks in sheet.rows
    ]
    for error in unreadable.values():
        note(f"{error} It is blank on the sheet; the sweep that painted it paints it anew.")
    return contact_sheet(rows, sheet.titles, sheet.headings, title=sheet.title, footnote=sheet.footnote, cell=cell)


def describe_dry_run(
    rows: Iterable[Mapping[str, Any]], folder: Path, model: str, vl_model: str | None, device: str
) -> dict[str, Any]:
    """Get what a sweep would do and cost, from its planned jobs and the pictures that its folder has."""
    from zimage_vl.workflows.manifest import Manifest
    from zimage_vl.workflows.sweep import count_operations

    def cost(row: Mapping[str, Any]) -> float:
        return count_operations(row["width"], row["height"], row["steps"], row["guidance"] > 0)

    counts, errors = Counter[str](), Counter[str]()
    readings, prompts, pixels, operations, steps = set[str](), set[str](), 0, 0.0, 0
    for row in rows:
        counts[row["status"]] += 1
        if row["status"] == "failed":
            errors[row["error"]] += 1
        if row["status"] == "planned":
            readings.update(row["readings"])
            prompts |= {row["prompt"], *filter(None, [row["negative_prompt"]])}
            pixels += row["width"] * row["height"]
            operations += cost(row)
            steps += row["steps"]
    known: list[tuple[float, float]] = []
    for row in (manifest := Manifest(folder)).rows(_MOST_MEASURED):
        with manifest.blaming(row):
            if row["status"] == "done" and row["device"] == device:
                known.append((float(row["seconds"]), cost(row)))
                if not (isfinite(known[-1][0]) and 0 < known[-1][1] < float("inf")):
                    raise ValueError
    if known:
        seconds = operations * sum(seconds for seconds, _ in known) / sum(cost for _, cost in known)
        rule = f"measured on the {len(known)} pictures in {folder}"
    elif model == TOY_MODEL:
        seconds, rule = steps * _TOY_STEP_SECONDS, f"by rule: {_TOY_STEP_SECONDS} s per step"
    else:
        rate = _RATES[device.partition(":")[0]]
        seconds, rule = operations / rate, f"by rule: {operations:.2g} operations at {rate:.0e} per second"
    weights = _count_weights(model, vl_model)
    return {
        "output": str(folder),
        "counts": dict(counts),
        "errors": dict(errors),
        "readings": len(readings),
        "prompts": len(prompts),
        "disk_bytes": round(pixels * _BYTES_PER_PIXEL),
        "weights_bytes": weights,
        "seconds": round(seconds, 1),
        "rule": rule,
    }


def dry_run_lines(described: Mapping[str, Any]) -> list[str]:
    """Get the same for people."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(described["counts"].items())) or "none"
    weights = described["weights_bytes"]
    memory = (
        "29.4 GB for Z-Image and Qwen3-VL-4B in bfloat16" if weights is None else f"{_show_bytes(weights)} of weights"
    )
    return [
        f"pictures  {counts}",
        f"to read   {described['readings']} references with their texts, {described['prompts']} prompts",
        f"memory    {memory}, and what the models compute",
        f"disk      about {_show_bytes(described['disk_bytes'])}",
        f"time      about {_show_seconds(described['seconds'])} ({described['rule']})",
    ]


def _count_weights(model: str, vl_model: str | None) -> int | None:
    """The bytes of the weights; None where their files are not on this machine."""
    folders = [_find_folder(model)]
    if folders[0] is not None and not (folders[0] / "vl_encoder").is_dir() and model != TOY_MODEL:
        folders.append(_find_folder(vl_model or _DEFAULT_VL_MODEL))
    if None in folders:
        return None
    return sum(file.stat().st_size for folder in folders if folder for file in folder.rglob("*.safetensors"))


def _find_folder(model: str) -> Path | None:
    if model == TOY_MODEL:
        from zimage_vl import toy

        return Path(toy.__file__).parent
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(model, name) for name in ("model_index.json", "config.json")]
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _show_bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _show_seconds(seconds: float) -> str:
    sizes = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    return next(
        (f"{seconds / size:.1f} {name}" for size, name in sizes if seconds >= 2 * size), f"{seconds:.0f} seconds"
    )
