"""`zimage-vl extract`: references read once, one safetensors file each, for `generate --embeds` anywhere."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from zimage_vl.blend.registry import KNOBS

from ._options import (
    DeviceOption,
    DtypeChoice,
    DtypeOption,
    ModelOption,
    RevisionOption,
    VLModelOption,
    choose,
    name_options,
    option,
)
from ._parsing import parse_layers
from ._parts import ReferenceReader, load_reference_reader
from ._shared import (
    TOY_MODEL,
    FormatOption,
    OutputFormat,
    check_model_name,
    check_text,
    choose_device,
    escape,
    new_file,
    new_folder,
    note,
    one_line,
    print_json,
    say,
)
from ._sources import Source, find_sources


MANIFEST = "manifest.jsonl"
PARTLY_DONE = 3  # the exit code where some references failed and the others were extracted
_LAYERS: Any = "-2,-4,-6,-8"

_POSITION = KNOBS["vl_text_position"]
_REFS = "Pictures: files, folders (their pictures, not those of folders in them), globs, URLs."
_FOLDER = "Folder for the files; made where its own folder exists."
_TEXT = "Words read beside the picture; to have what one call without --vl-text gives: its prompt."
_PLACE = f"{', '.join(_POSITION.choices)}: {_POSITION.help}."
_KEEP = "Hidden layers to keep, -1 the last; all from one forward."
_AREA = "Largest area in pixels at which a reference is read."
_DRY = "Say what would be done; load no model, write nothing."


@dataclass(frozen=True)
class ExtractSettings:
    """What decides, beside the picture, what a file holds. Its digest is part of the file's name."""

    model: str
    vl_model: str | None
    revision: str | None
    dtype: str
    text: str
    text_position: str
    layers: tuple[int, ...]
    max_pixels: int

    def file_name(self, content_sha256: str) -> str:
        """Get `<picture>-<settings>.safetensors`: the same picture with other settings is another file."""
        named = {**asdict(self), "model": _identity(self.model), "vl_model": _identity(self.vl_model)}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        return f"{content_sha256[:16]}-{digest[:8]}.safetensors"


def extract(
    references: Annotated[list[str], typer.Argument(metavar="REF...", help=_REFS)],
    output: Annotated[Path, option("--output -o", "DIR", _FOLDER)],
    text: Annotated[str, option("--text", "TEXT", _TEXT)] = "",
    text_position: Annotated[
        str, option("--text-position", "CHOICE", _PLACE, parser=choose(_POSITION.choices))
    ] = "after",
    layers: Annotated[Any, option("--layers", "LAYERS", _KEEP, parser=parse_layers)] = _LAYERS,
    max_pixels: Annotated[int, option("--max-pixels", "INT", _AREA, min=1)] = 1024 * 1024,
    model: ModelOption = TOY_MODEL,
    vl_model: VLModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: Annotated[bool, option("--dry-run", None, _DRY)] = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Read references once and keep what the VL model says, one safetensors file each, named by content.

    Complete files of an earlier run are kept. Every reference gets a line in DIR/manifest.jsonl. One that cannot be
    read does not end the run: the exit code is then 3. The files' paths are printed.
    """
    check_model_name(model, vl_model, revision)
    check_text("--text", text)
    precision = dtype or (DtypeChoice.FLOAT32 if model == TOY_MODEL else DtypeChoice.BFLOAT16)
    settings = ExtractSettings(model, vl_model, revision, precision.value, text, text_position, layers, max_pixels)
    if output.suffix in (".safetensors", ".pt") and not output.is_dir():
        raise ValueError(
            f"--output is a folder, which gets a file per picture, got {output}. Name a folder; then: zimage-vl "
            "generate --embeds FOLDER/FILE."
        )
    _check_folder(output)
    run = _Run(settings, output, choose_device(device), dry_run)
    sources = find_sources(references)
    bar = typer.progressbar(sources, label=f"{len(sources)} references", file=sys.stderr)
    with nullcontext() if dry_run else new_folder(output), bar:
        records = [run.handle(source) for source in bar]
    _report(records, output, output_format)
    if any(record["status"] == "failed" for record in records):
        raise typer.Exit(PARTLY_DONE)


class _BadReferenceError(ValueError):
    """What is wrong with one reference, in a line."""


@contextmanager
def _blamed_on_the_reference() -> Generator[None]:
    """Bad pictures, and those too large for the memory, are no reason to end a run."""
    try:
        yield
    except Exception as error:
        # torch's own name, so that torch need not be imported to compare
        if not isinstance(error, (ValueError, OSError, MemoryError)) and type(error).__name__ != "OutOfMemoryError":
            raise
        raise _BadReferenceError(escape(name_options(one_line(error)).replace("`", ""))) from error


class _Run:
    """One run over many references; the models are loaded for the first that needs them."""

    def __init__(self, settings: ExtractSettings, folder: Path, device: str, dry_run: bool) -> None:
        self.settings, self.folder, self.device, self.dry_run = settings, folder, device, dry_run
        self.reader: ReferenceReader | None = None
        self.planned: set[str] = set()  # of a dry run, which leaves no file to find

    def handle(self, source: Source) -> dict[str, Any]:
        """Extract one reference, or find it extracted, or say why it cannot be; all of it goes into the manifest."""
        start = time.perf_counter()
        record: dict[str, Any] = {"source": source.name, "status": "failed", "file": None, "sha256": None}
        try:
            self._extract(source, record)
        except _BadReferenceError as error:
            record["error"] = str(error)
        record["seconds"] = round(time.perf_counter() - start, 3)
        if not self.dry_run:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            _append_line(self.folder / MANIFEST, {**record, "time": now, "settings": asdict(self.settings)})
        return record

    def _extract(self, source: Source, record: dict[str, Any]) -> None:
        from zimage_vl.reference.pictures import load_reference_image, read_image_bytes

        if source.error is not None:
            raise _BadReferenceError(source.error)
        with _blamed_on_the_reference():
            data = read_image_bytes(source.name, "REF")
        record["sha256"] = hashlib.sha256(data).hexdigest()
        path = self.folder / self.settings.file_name(record["sha256"])
        if path.name in self.planned or is_extracted(path, self.settings):
            record |= {"status": "kept", "file": path.name}
            return
        with _blamed_on_the_reference():
            image = load_reference_image(data, f"REF {source.name.split('?')[0]}")
        if self.dry_run:
            self.planned.add(path.name)
            record |= {"status": "planned", "file": path.name}
            return
        reader, settings = self._get_reader(), self.settings
        with _blamed_on_the_reference():
            position, most = settings.text_position, settings.max_pixels
            embeds = reader.read(image, settings.text, settings.layers, text_position=position, max_pixels=most)
        with new_file(path, overwrite=True) as unfinished:  # what is there of that name is a damaged one of ours
            embeds.save(unfinished)
        record |= {"status": "written", "file": path.name, "tokens": embeds.num_tokens}

    def _get_reader(self) -> ReferenceReader:
        """The parts that read, complete: whatever is wrong with them is no reference's fault and ends the run."""
        if self.reader is None:
            import torch

            from zimage_vl.reference.reading import resolve_layers

            settings = self.settings
            self.reader = load_reference_reader(
                settings.model, settings.vl_model, getattr(torch, settings.dtype), self.device, settings.revision
            )
            resolve_layers(settings.layers, self.reader.config.text_config.num_hidden_layers)
            self.reader.load()
        return self.reader


def is_extracted(path: Path, settings: ExtractSettings) -> bool:
    """Check whether a complete file of these settings lies there; one that is damaged does not count."""
    from zimage_vl.reference.embeds import ReferenceEmbeds

    try:
        embeds = ReferenceEmbeds.load(path)
    except (ValueError, OSError):
        return False
    made = embeds.provenance
    return (embeds.layers, made.text, made.text_position) == (settings.layers, settings.text, settings.text_position)


def _identity(model: str | None) -> str | None:
    """A folder is one folder, however its path is written."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model


def _check_folder(folder: Path) -> None:
    shown = f"--output '{escape(str(folder))}'"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{shown} is a file: name a folder.")
    if not folder.parent.is_dir():
        raise ValueError(f"{shown}: the folder '{escape(str(folder.parent))}' does not exist. Create it first.")
    if (folder / MANIFEST).exists() and not (folder / MANIFEST).is_file():
        raise ValueError(f"{shown}: {MANIFEST} in it is no regular file.")


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """One line more, written at once; a line that a kill cut off before stays alone."""
    text = json.dumps(record, ensure_ascii=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode("utf-8", "backslashreplace"))  # which JSON reads as it was


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
