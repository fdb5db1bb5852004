"""Measure the rows of the settings on the toy world; write the tables, the plots and the numbers of the page."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .measurements import FILE, Measurements, describe_run, write_numbers
from .settings import BASE, KINDS, PLOTTED, TITLES, Row, make_rows


if TYPE_CHECKING:
    from .pairs import Pairs

PAIRS, SEED = 63, 1  # nine pairs for each of the seven open forms
NOT_MEASURED = {"group", "name", "panel", "x"}


def find_row(name: str, rows: Sequence[Row]) -> Row:
    """Get the row of a name "group/name"."""
    for row in rows:
        if f"{row['group']}/{row['name']}" == name:
            return row
    raise SystemExit(f"There is no row {name!r}; a row is group/name, as 'dose/global 0.3'.")


def get_settings(row: Row) -> Row:
    """Get what a row is measured for, without its name."""
    return {name: value for name, value in {**BASE, **row}.items() if name not in NOT_MEASURED}


def spell(settings: Row) -> str:
    """Get one text for equal settings, also where they come from a file."""
    return json.dumps(settings, sort_keys=True)


def open_measurements(path: Path, provenance: dict[str, Any], fresh: bool) -> Measurements:
    """Open the measurements that are there, or begin new ones.

    Raises:
        SystemExit: What is there was measured with something else.
    """
    if fresh or not path.is_file():
        kept = Measurements.load(path).language_model if path.is_file() else {}
        return Measurements(provenance, language_model=kept)
    measurements = Measurements.load(path)
    old = measurements.provenance
    different = [
        f"{name} {old.get(name)} there, {new} here" for name, new in provenance.items() if old.get(name) != new
    ]
    if different:
        raise SystemExit(f"{path} was measured with something else: {'; '.join(different)}. --fresh forgets it.")
    return measurements


def measure_rows(bench: Pairs, rows: Sequence[Row], measurements: Measurements, path: Path) -> None:
    """Measure what is missing, and save after each row. Rows that come to the same settings are measured once."""
    from .pairs import NotHereError

    known: dict[tuple[str, str], dict[str, Any]] = {}
    for key, result in measurements.rows.items():
        known |= {(spell(result["row"]), key.rpartition("/")[2]): result} if "seen" in result else {}
    rows = [row for row in rows if -row.get("own_layer", 0) <= bench.num_layers]
    for row in (bar := tqdm(rows, mininterval=1)):
        for kind in KINDS:
            key, settings = f"{row['group']}/{row['name']}/{kind}", get_settings(row)
            bar.set_description(key)
            same = (spell(settings), kind)
            if same not in known:
                begun = time.perf_counter()
                try:
                    known[same] = {**bench.measure(row, kind), "row": settings}
                    known[same]["seconds"] = round(time.perf_counter() - begun, 1)
                except (NotHereError, ValueError) as error:  # hours of others must not be lost to one
                    measurements.rows[key] = {"refused": str(error), "row": settings}
                    measurements.save(path)
                    continue
            if measurements.rows.get(key) != known[same]:
                measurements.rows[key] = known[same]
                measurements.save(path)


def paint_sheet(bench: Pairs, rows: Sequence[Row], names: Sequence[str], kind: str, count: int, path: Path) -> None:
    """Paint the first pairs under some rows: prompt, reference, and a column per row."""
    from zimage_vl.workflows.evidence import make_sheet

    columns = [[image for image, _ in bench.paint(find_row(name, rows), kind, range(count))] for name in names]
    references = [bench.draw_reference(n, {}) for n in range(count)]
    labels = [bench.get_prompt(n, {}, kind) for n in range(count)]
    heads = ["reference", *(name.partition("/")[2] for name in names)]
    make_sheet([list(images) for images in zip(references, *columns, strict=True)], labels, heads, cell=128).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="START", default=[""], help="rows whose group/name begins so")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--file", type=Path, default=FILE, help="of the measurements; tables and plots lie beside it")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--sheet", nargs="+", metavar="GROUP/NAME", help="paint the first pairs under these rows")
    parser.add_argument("--kind", choices=KINDS, default="open", help="of the sheet's prompts")
    parser.add_argument("--count", type=int, default=5, help="rows of the sheet")
    arguments = parser.parse_args()
    rows = [row for row in make_rows() if f"{row['group']}/{row['name']}".startswith(tuple(arguments.only))]
    if not rows:
        parser.error(f"--only: no row begins so; the groups are {', '.join(TITLES)}")
    if not arguments.render:
        import torch

        from zimage_vl import load_toy_pipeline

        from .pairs import ATTRIBUTES, Pairs

        torch.set_num_threads(arguments.threads)
        pipe = load_toy_pipeline().to(arguments.device)
        pipe.set_progress_bar_config(disable=True)
        bench = Pairs(pipe, arguments.pairs, arguments.seed)
        if arguments.sheet:
            path = arguments.file.with_name("sheet.png")
            paint_sheet(bench, rows, arguments.sheet, arguments.kind, arguments.count, path)
            sys.exit(print(path))
        arguments.file.parent.mkdir(parents=True, exist_ok=True)
        run = describe_run(arguments.pairs, arguments.seed, list(ATTRIBUTES))
        measurements = open_measurements(arguments.file, run, arguments.fresh)
        measurements.note_command(shlex.join(["python", "-m", "benchmarks.evidence", *sys.argv[1:]]))
        measure_rows(bench, rows, measurements, arguments.file)
    from .plots import draw_group
    from .tables import write_tables

    measurements = Measurements.load(arguments.file)
    plots = [draw_group(group, measurements, arguments.file.parent) for group in PLOTTED]
    tables = arguments.file.parent.parent / "evidence-tables.md"
    tables.write_text(write_tables(measurements, arguments.file.parent.name), encoding="utf-8")
    page = tables.with_name("evidence.md")
    if page.is_file():
        page.write_text(write_numbers(page.read_text(encoding="utf-8"), measurements), encoding="utf-8")
    print("\n".join(str(path) for path in [tables, page, *plots] if path))


if __name__ == "__main__":
    main()
