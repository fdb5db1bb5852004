"""`zimage-vl extract`: references read once, a safetensors file each, for `generate --embeds` anywhere."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import (
    DeviceOption,
    DtypeChoice,
    DtypeOption,
    MaxPixelsOption,
    ModelOption,
    PositionChoice,
    RevisionOption,
    VLModelOption,
)
from ._parts import ReferenceReader, load_reference_reader
from ._shared import (
    TOY_MODEL,
    FormatOption,
    OutputFormat,
    check_model_name,
    choose_device,
    note,
    print_json,
)
from ._sources import Source, find_sources


MANIFEST = "manifest.jsonl"
PARTLY_DONE = 3  # the exit code where some references failed and the others were extracted
_DEFAULT_MAX_PIXELS = 1024 * 1024
_DEFAULT_LAYERS = "-2,-4,-6,-8"

ReferencesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...", help="Pictures: files, folders (their pictures, not those of folders in them), globs, URLs."
    ),
]
FolderOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the files; made where its own folder exists.")
]
TextOption = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="TEXT",
        help="What the VL model reads beside the picture; to have what one call without --vl-text gives: its prompt.",
    ),
]
TextPositionOption = Annotated[
    PositionChoice,
    typer.Option("--text-position", metavar="CHOICE", help="after, before: where it stands, seen from the picture."),
]
LayersOption = Annotated[
    str, typer.Option("--layers", metavar="LAYERS", help="Hidden layers to keep, -1 the last; all from one forward.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; load no model, write nothing.")]


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
        """`<picture>-<settings>.safetensors`: the same picture with other settings is another file."""
        named = {**asdict(self), "model": _identity(self.model), "vl_model": _identity(self.vl_model)}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        return f"{content_sha256[:16]}-{digest[:8]}.safetensors"


def extract(
    references: ReferencesArgument,
    output: FolderOption,
    text: TextOption = "",
    text_position: TextPositionOption = PositionChoice.AFTER,
    layers: LayersOption = _DEFAULT_LAYERS,
    max_pixels: MaxPixelsOption = None,
    model: ModelOption = TOY_MODEL,
    vl_model: VLModelOption = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    dry_run: DryRunOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Read references once and keep what the VL model says, a safetensors file each, named by content.

    Complete files of an earlier run are kept. Every reference gets a line in DIR/manifest.jsonl. One that cannot be
    read does not end the run: the exit code is then 3. The files' paths are printed.
    """
    check_model_name(model)
    if vl_model is not None and model == TOY_MODEL:
        raise ValueError("--vl-model does nothing with --model toy, which has a VL model of its own: leave one out.")
    precision = dtype or (DtypeChoice.FLOAT32 if model == TOY_MODEL else DtypeChoice.BFLOAT16)
    settings = ExtractSettings(
        model=model,
        vl_model=vl_model,
        revision=revision,
        dtype=precision.value,
        text=text,
        text_position=text_position.value,
        layers=parse_layers(layers),
        max_pixels=_DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels,
    )
    _prepare_folder(output, dry_run)
    run = _Run(settings, output, choose_device(device), dry_run)
    sources = find_sources(references)
    with typer.progressbar(sources, label=f"{len(sources)} references", file=sys.stderr) as bar:
        records = [run.handle(source) for source in bar]
    _report(records, output, output_format)
    if any(record["status"] == "failed" for record in records):
        raise typer.Exit(PARTLY_DONE)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers from a text as "-2,-6".

    Raises:
        ValueError: No whole numbers with commas between them, or one twice.

    Example:
        >>> parse_layers("-2, -6")
        (-2, -6)
    """
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--layers takes whole numbers with commas between them, as -2,-6, got {text!r}.") from None
    if len(set(layers)) < len(layers):
        raise ValueError(f"--layers names a layer twice: {text!r}.")
    return layers


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
        raise _BadReferenceError(" ".join(str(error).split()) or type(error).__name__) from error


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
            image = load_reference_image(data, f"REF {source.name}")
        if self.dry_run:
            self.planned.add(path.name)
            record |= {"status": "planned", "file": path.name}
            return
        reader = self._load_reader()
        with _blamed_on_the_reference():
            embeds = reader.read(
                image,
                self.settings.text,
                self.settings.layers,
                text_position=self.settings.text_position,
                max_pixels=self.settings.max_pixels,
            )
        embeds.save(path)
        record |= {"status": "written", "file": path.name, "tokens": embeds.num_tokens}

    def _load_reader(self) -> ReferenceReader:
        if self.reader is None:
            import torch

            settings = self.settings
            precision = getattr(torch, settings.dtype)
            self.reader = load_reference_reader(
                settings.model, settings.vl_model, precision, self.device, settings.revision
            )
            self.reader.check_layers(settings.layers)
        return self.reader


def is_extracted(path: Path, settings: ExtractSettings) -> bool:
    """Whether a complete file of these settings lies there; one that is damaged does not count."""
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


def _prepare_folder(folder: Path, dry_run: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {str(folder)!r} is a file: name a folder.")
    if not folder.parent.is_dir():
        raise ValueError(
            f"--output {str(folder)!r}: the folder {str(folder.parent)!r} does not exist. Create it first."
        )
    if not dry_run:
        folder.mkdir(exist_ok=True)


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """One line more, written at once; a line that a kill cut off before stays alone."""
    text = json.dumps(record, ensure_ascii=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode("utf-8"))


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
            typer.echo(str(folder / record["file"]))
