"""`zimage-vl extract`: references read once, one safetensors file each, for `generate --embeds` anywhere."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import zimage_vl
from zimage_vl.blend.registry import KNOBS
from zimage_vl.workflows.errors import is_out_of_memory
from zimage_vl.workflows.files import remove_leftovers
from zimage_vl.workflows.manifest import MANIFEST, append_line, bring_file

from ._models import Model
from ._options import explain, option, with_options
from ._outputs import PARTLY_DONE, OverwriteOption, check_output_folder, check_output_path, new_file, new_folder
from ._parsing import parse_layers
from ._sources import NoUrlsOption, Source, find_sources, read_picture
from ._team import NumShardsOption, ShardIndexOption, Team, take_part
from ._terminal import FormatOption, OutputFormat, count_of, escape, note, print_json, say


_is_own_name = re.compile(r"[0-9a-f-]+\.safetensors").fullmatch
_LAYERS: Any = "-2,-4,-6,-8"
# The knobs that a reading has, and their names in `encode_reference`.
_ARGUMENTS = {
    **{name: name for name in ("vl_reader", "vl_treatment")},
    **{f"vl_{name}": name for name in ("describe", "text_position", "max_pixels")},
}
_REFS = "Pictures: files, folders (their pictures, not those of folders in them), globs, URLs."
_OUTPUT = "Folder for the files, made where its own folder exists; or, for one reference, a FILE.safetensors."
_TEXT = "Words read beside the picture. For what one call of `generate` gives: its prompt."
_KEEP = "Hidden layers to keep, -1 the last; all from one forward."
_MUTED = "Read each picture muted too, as `generate --blend-mode style_delta` without a neutral picture needs it."
_DRY = "Say what would be done; load no model, write nothing."


@with_options((*_ARGUMENTS, "reference_mask"))
def extract(
    references: Annotated[list[str], typer.Argument(metavar="REF...", help=_REFS)],
    output: Annotated[Path, option("--output -o", "DIR|FILE", _OUTPUT)],
    model: Model,
    text: Annotated[str, option("--text", "TEXT", _TEXT)] = "",
    layers: Annotated[Any, option("--layers --layer", "LAYERS", _KEEP, parser=parse_layers)] = _LAYERS,
    muted: Annotated[bool, option("--muted", None, _MUTED)] = False,
    no_urls: NoUrlsOption = False,
    num_shards: NumShardsOption = 1,
    shard_index: ShardIndexOption = 0,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[bool, option("--dry-run", None, _DRY)] = False,
    output_format: FormatOption = OutputFormat.TEXT,
    **knobs: Any,
) -> None:
    """Read references once and keep what the VL model says, one safetensors file each, named by content.

    Complete files of an earlier run are kept. Every reference gets a line in DIR/manifest.jsonl. One that cannot be
    read does not end the run: the exit code is then 3. The files' paths are printed. Under torchrun or `accelerate
    launch` the processes share the work.
    """
    from zimage_vl.pipeline.inputs import check_describe

    describe, reader = (knobs.get(name, KNOBS[name].default) for name in ("vl_describe", "vl_reader"))
    check_describe("vl_describe", describe, "--text" if text else "", reader)
    sources = take_part(find_sources(references, no_urls), num_shards, shard_index)
    to_file = output.suffix == ".safetensors" and not output.is_dir()
    if to_file and len(sources) != 1:
        raise ValueError(f"--output is one file, and there are {count_of(len(sources), 'reference')}: name a folder.")
    if not dry_run:
        remove_leftovers(output.parent if to_file else output, [output.name] if to_file else None)
    inputs = [model.model, model.vl_model, knobs.get("reference_mask"), *references]
    if to_file:
        check_output_path(output, (".safetensors",), overwrite=overwrite, inputs=inputs)
    else:
        check_output_folder(output, ", or a file that ends in .safetensors")
        deque(_own_rows(output), maxlen=0)  # which refuses a folder of something else
    mask, described = knobs.get("reference_mask"), dict[str, str]()
    if mask is not None:
        from zimage_vl.reference.pictures import load_reference_mask

        mask, described = read_picture("--mask", mask, no_urls)
        load_reference_mask(mask, mask.size)  # a coloured one is refused once, not with each reference
    reading = {argument: knobs.get(knob, KNOBS[knob].default) for knob, argument in _ARGUMENTS.items()}
    reading |= {"text": text, "layers": layers, "muted": muted}
    where = {"model": model.model, "vl_model": model.vl_model, "revision": model.revision, "dtype": model.dtype}
    settings = {**where, **reading, "mask": described.get("sha256")}
    team = Team.join(str(model.device))
    model = replace(model, device=team.device)
    run, own = _Run(model, reading, mask, settings, output, to_file, overwrite, dry_run), team.share(sources)
    bar: Any = nullcontext(own)
    if team.is_main:
        bar = typer.progressbar(own, label=count_of(len(own), "reference"), file=sys.stderr)
    with nullcontext() if dry_run or to_file else new_folder(output), bar as each:
        records = team.gather([run.handle(source) for source in each])
        if not dry_run and not to_file:
            (output / MANIFEST).touch()  # for `merge`, also where there was nothing to do
    team.leave()
    if team.is_main:
        _report(records, output.parent if to_file else output, output_format)
    if team.is_main and any(record["status"] == "failed" for record in records):
        raise typer.Exit(PARTLY_DONE)


_START = b'{"source": '  # of every line of a manifest


class _BadReferenceError(ValueError):
    """What is wrong with one reference, in a line."""


@contextmanager
def _blamed_on_the_reference() -> Generator[None]:
    """Bad pictures, and those too large for the memory, are no reason to end a run."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) and not is_out_of_memory(error):
            raise
        raise _BadReferenceError(explain(error)) from error


@dataclass
class _Run:
    """One run over many references; the models are loaded for the first that needs them."""

    model: Model
    reading: dict[str, Any]  # the arguments of `encode_reference`, but for the mask
    mask: Any
    settings: dict[str, Any]  # what decides, beside the picture, what a file holds
    output: Path
    to_file: bool
    overwrite: bool
    dry_run: bool
    reader: Any = None
    planned: set[Path] = field(default_factory=set[Path])  # of a dry run, which leaves no file to find

    def handle(self, source: Source) -> dict[str, Any]:
        """Extract one reference, or find it extracted, or say why it cannot be; all of it goes into the manifest."""
        start = time.perf_counter()
        from zimage_vl.reference.pictures import hide_secrets

        shown = hide_secrets(source.name)
        record: dict[str, Any] = {"source": shown, "status": "failed", "file": None, "sha256": None}
        try:
            record |= self._extract(source, record)
        except _BadReferenceError as error:
            record["error"] = str(error)
        record["seconds"] = round(time.perf_counter() - start, 3)
        if not self.dry_run and not self.to_file:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            row = {**record, "time": now, "settings": self.settings}
            append_line(self.output / MANIFEST, json.dumps(row, ensure_ascii=False))
        return record

    def _extract(self, source: Source, record: dict[str, Any]) -> dict[str, Any]:
        from zimage_vl.reference.pictures import read_image_bytes

        if source.error is not None:
            raise _BadReferenceError(source.error)
        with _blamed_on_the_reference():
            data = read_image_bytes(source.name, "REF")
        record["sha256"] = hashlib.sha256(data).hexdigest()
        path = self.output if self.to_file else self.output / file_name(record["sha256"], self.settings)
        if path in self.planned or (not self.to_file and _is_whole(path)):
            return {"status": "kept", "file": path.name}
        with _blamed_on_the_reference():
            image = zimage_vl.load_reference_image(data, f"REF {record['source']}")
        if self.dry_run:
            self.planned.add(path)
            return {"status": "planned", "file": path.name}
        if self.reader is None:  # complete: whatever is wrong with it is no reference's fault and ends the run
            self.reader = self.model.load_reader(self.reading["vl_reader"], self.reading["layers"])
        with _blamed_on_the_reference():
            embeds = self.reader.encode_reference(image, mask=self.mask, **self.reading)
        # A file of that name is a damaged one of ours, or one that may be replaced.
        with new_file(path, overwrite=self.overwrite or not self.to_file) as file:
            embeds.save(file)
        return {"status": "written", "file": path.name, "tokens": embeds.num_tokens}


def file_name(sha256: str, settings: Mapping[str, Any]) -> str:
    """Get `<picture>-<settings>.safetensors`: the same picture with other settings is another file."""
    paths = {name: settings[name] for name in ("model", "vl_model")}
    # A folder is one folder, however its path is written.
    paths = {name: str(Path(path).resolve()) if path and Path(path).is_dir() else path for name, path in paths.items()}
    digest = hashlib.sha256(json.dumps({**settings, **paths}, sort_keys=True).encode()).hexdigest()
    return f"{sha256[:16]}-{digest[:8]}.safetensors"


def is_extracted(folder: Path) -> bool:
    """Check whether a folder has a manifest of `zimage-vl extract`."""
    return any("source" in row for _, row in _rows(folder))


def merge_extracted(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Bring the files of several folders, and the lines of their manifests, into one; count the lines by status."""
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(errno.ENOENT, f"has no {MANIFEST}: it is no folder of `extract`", str(folder))
    for folder in [*folders, output]:
        deque(_own_rows(folder), maxlen=0)  # before anything is written
    known = dict(_own_rows(output))
    ours = {row.get("file") for row in known.values()}
    for folder in folders:
        for line, row in _own_rows(folder):
            if (file := row.get("file")) is not None:
                _bring_embeds(folder / file, output / file, file in ours)
            if line not in known:
                append_line(output / MANIFEST, json.dumps(row, ensure_ascii=False))
                known[line] = row
    counts = Counter(str(row.get("status")) for _, row in _rows(output))
    return {"output": str(output), "counts": dict(counts), "manifest": str(output / MANIFEST)}


def _bring_embeds(source: Path, target: Path, is_ours: bool) -> None:
    """Bring a file whose own digest is right, in the place of a damaged one of ours too."""
    if not source.is_file():
        raise FileNotFoundError(errno.ENOENT, "is named by the manifest beside it, and no file", str(source))
    zimage_vl.ReferenceEmbeds.load(source)
    if target.exists() and not filecmp.cmp(source, target, shallow=False):
        if not is_ours or _is_whole(target):
            raise ValueError(f"{target} is another file than that of {source.parent}: name a new folder.")
        target.unlink()
    bring_file(source, target)


def _is_whole(path: Path) -> bool:
    with suppress(ValueError, OSError):
        return bool(zimage_vl.ReferenceEmbeds.load(path))
    return False


def _own_rows(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The same, where they are lines of `extract` that lead nowhere else."""
    for line, row in _rows(folder):
        file = row.get("file")
        if not {"source", "status", "settings"} <= row.keys() or not (file is None or _is_own_name(str(file))):
            named = f"{folder / MANIFEST} has a line that is none of `zimage-vl extract`: {row!s:.80}."
            raise ValueError(f"{named} Name another folder.")
        yield line, row


def _rows(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a manifest, but for those that a kill cut off."""
    path = folder / MANIFEST
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a pipe or a device could wait for ever
        raise ValueError(f"{escape(str(path))} is a link or no regular file: name another folder.")
    if not path.exists():
        return
    with open(folder / MANIFEST, "rb") as file:
        for line in file:
            row: Any = None
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
            if isinstance(row, dict):
                yield line, cast("dict[str, Any]", row)
            elif not line.startswith(_START[: len(line.strip())]):  # and not one of ours, cut off
                yield line, {}


def _report(records: list[dict[str, Any]], folder: Path, output_format: OutputFormat) -> None:
    counts = Counter(record["status"] for record in records)
    for record in records:
        if record["status"] == "failed":
            note(f"Failed: {record['source']}: {record['error']}")
    note(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing to do")
    if output_format is OutputFormat.JSON:
        print_json({"output": str(folder), "counts": dict(counts), "references": records})
        return
    for record in records:
        if record["file"] is not None:
            say(str(folder / record["file"]))
