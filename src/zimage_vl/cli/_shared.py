"""What several commands need: words for the terminal, output files that are never half-written, and models by name."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

TOY_MODEL = "toy"
RECORDED_PACKAGES = ("torch", "diffusers", "transformers")


class OutputFormat(str, Enum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    OutputFormat,
    typer.Option("--format", metavar="CHOICE", help="text for people, json for programs: one object on stdout."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a file of the output's name; without, it is refused.")
]


# ---- Words for the terminal ----


def escape(text: str) -> str:
    r"""Get a text that is safe to show: what moves a terminal's cursor, or is no Unicode, as `\x1b` or `\udcff`.

    Example:
        >>> escape("a\x1b[2J\udcff ä")
        'a\\x1b[2J\\udcff ä'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, err: bool = False) -> None:
    """Print a line, escaped, in the terminal's encoding whatever that is."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    typer.echo(escape(text).encode(encoding, "backslashreplace").decode(encoding), err=err)


def note(text: str) -> None:
    """Print a remark for the person, on stderr, so that stdout stays the result."""
    say(text, err=True)


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2))


def one_line(error: BaseException) -> str:
    """Get an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_text(option: str, text: str | None) -> None:
    """Refuse a text with bytes that are no UTF-8: no tokenizer could read it."""
    if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"{option} is no valid UTF-8 text: '{escape(text)}'.")


def get_package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Get installed versions, without importing anything; None for what is missing.

    Example:
        >>> get_package_versions(["no-such-package"])
        {'no-such-package': None}
    """
    found: dict[str, str | None] = dict.fromkeys(names)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# ---- Output files ----


def check_output_path(
    path: Path,
    suffixes: tuple[str, ...] = (".png",),
    *,
    overwrite: bool = True,
    inputs: Sequence[str | os.PathLike[str] | None] = (),
) -> None:
    """Refuse a file that could not or may not be written, before any work is done for it.

    What the command reads (`inputs`: files, folders of models, and names of neither) is never replaced.
    """
    shown = f"--output '{escape(str(path))}'"
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {' or '.join(suffixes)}, got '{escape(str(path))}'.")
    if path.is_dir():
        raise ValueError(f"{shown} is a directory: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{shown}: the folder '{escape(str(path.parent))}' does not exist. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{shown}: the folder '{escape(str(path.parent))}' cannot be written to.")
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{shown} is no regular file: name another.")
    for given in inputs:
        if given is not None and _is_part_of(path, Path(given)):
            raise ValueError(f"{shown} is an input of this command, which is never written over: name another file.")
    if not overwrite:
        raise _exists_already(path)


def _is_part_of(path: Path, given: Path) -> bool:
    with suppress(OSError, ValueError):
        if given.is_dir():
            return path.resolve().is_relative_to(given.resolve())
        return path.exists() and os.path.samefile(path, given)
    return False


def _exists_already(path: Path) -> ValueError:
    return ValueError(f"--output '{escape(str(path))}' exists already: name another file, or add --overwrite.")


@contextmanager
def new_file(path: Path, overwrite: bool) -> Generator[Path]:
    """Within it, a file of a random name beside `path`, to be written to; at the end it becomes `path`.

    Under its final name it is whole or not there. An OSError names `path`.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished{path.suffix}")
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield unfinished
        if overwrite:
            os.replace(unfinished, path)
            return
        try:
            os.link(unfinished, path)  # which, unlike a renaming, never replaces
        except FileExistsError:
            raise _exists_already(path) from None
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise _exists_already(path) from None
            os.rename(unfinished, path)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Generator[None]:
    """Within it, the folder is there; one that was made for a command that failed and is empty goes again."""
    made = not folder.is_dir()
    folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Get the path itself for one result, `name-0.png`, `name-1.png` and so on for several.

    Example:
        >>> [str(p) for p in numbered_paths(Path("a/b.png"), 2)]
        ['a/b-0.png', 'a/b-1.png']
    """
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def write_png(image: Image, path: Path, parameters: dict[str, Any], overwrite: bool = True) -> None:
    """Write a PNG that holds how it was made, as JSON in its text "parameters"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters))
    with new_file(path, overwrite) as unfinished, open(unfinished, "wb") as file:
        image.save(file, format="PNG", pnginfo=info)
        file.flush()
        os.fsync(file.fileno())


# ---- Models by name ----


def choose_device(device: str | None) -> str:
    """Get the device asked for, or the best there is: cuda, mps, cpu."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--device '{escape(device)}' cannot be used here: {reason}") from error
    return device


def check_model_name(model: str, vl_model: str | None = None, revision: str | None = None) -> None:
    """Refuse what can be no model, without asking the Hub, and a VL model or a revision beside the toy."""
    if revision is not None and model == TOY_MODEL:
        raise ValueError("--revision does nothing with --model toy, which comes with this package: leave it out.")
    if vl_model is not None and model == TOY_MODEL:
        raise ValueError("--vl-model does nothing with --model toy, which has a VL model of its own: leave one out.")
    for option, name in (("--model", model), ("--vl-model", vl_model)):
        if name is None or (name == TOY_MODEL and option == "--model") or Path(name).is_dir():
            continue
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is None:
            toy = ", nor 'toy'" if option == "--model" else ""
            raise ValueError(
                f"{option} '{escape(name)}' is neither a folder that exists, nor a Hub id (owner/name){toy}."
            )


def load_pipeline(model: str, vl_model: str | None, dtype: torch.dtype, revision: str | None) -> ZImageVLPipeline:
    """Load the toy world, or a Z-Image from a folder or the Hub, on the CPU; an OSError has its name."""
    if model == TOY_MODEL:
        from zimage_vl.toy import load_toy_pipeline

        pipe = load_toy_pipeline()
        return pipe if pipe.dtype == dtype else pipe.to(dtype)
    from diffusers.utils import deprecation_utils

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    from ._parts import loading, read_index

    read_index(model, revision)
    # Older diffusers ignore `dtype` silently; newer ones, which have this helper, call `torch_dtype` deprecated.
    options: dict[str, Any] = {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}
    options |= {} if vl_model is None else {"vl_model_id": vl_model}
    with loading(model):
        return ZImageVLPipeline.from_pretrained(model, revision=revision, **options)
