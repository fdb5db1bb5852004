"""What several commands need: formats, versions, output files that are never half-written, and the models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
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


class OutputFormat(str, Enum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    OutputFormat,
    typer.Option("--format", metavar="CHOICE", help="text for people, json for programs: one object on stdout."),
]


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """A remark for the person, on stderr, so that stdout stays the result."""
    typer.echo(text, err=True)


def get_package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed versions, without importing anything; None for what is missing.

    Example:
        >>> get_package_versions(["no-such-package"])
        {'no-such-package': None}
    """
    return {name: _installed_version(name) for name in names}


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_output_path(path: Path, suffixes: tuple[str, ...] = (".png",)) -> None:
    """Refuses a file that could not be written, before any work is done for it.

    Args:
        path: Where the result is to go.
        suffixes: What its name may end in, any case.

    Raises:
        ValueError: The suffix is unknown, the path is a directory, or its folder is missing or cannot be written to.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {' or '.join(suffixes)}, got {str(path)!r}.")
    if path.is_dir():
        raise ValueError(f"--output {str(path)!r} is a directory: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"--output {str(path)!r}: the folder {str(path.parent)!r} does not exist. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output {str(path)!r}: the folder {str(path.parent)!r} cannot be written to.")


def numbered_paths(path: Path, count: int) -> list[Path]:
    """The path itself for one result, `name-0.png`, `name-1.png` and so on for several.

    Example:
        >>> [str(p) for p in numbered_paths(Path("a/b.png"), 2)]
        ['a/b-0.png', 'a/b-1.png']
    """
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(count)]


def write_png(image: Image, path: Path, parameters: dict[str, Any]) -> None:
    """A PNG under its final name only once it is whole, with how it was made as its text "parameters" (JSON).

    Args:
        image: The picture.
        path: Where to; an existing file is replaced.
        parameters: Plain values that JSON can hold.

    Raises:
        OSError: The file cannot be written; nothing is left under the final name, or what was there before.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            image.save(file, format="PNG", pnginfo=info)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is: cuda, mps, cpu.

    Raises:
        ValueError: It is no device of this machine.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"--device {device!r} cannot be used here: {reason}") from error
    return device


def check_model_name(model: str) -> None:
    """Refuses what can be no model, without asking the Hub.

    Raises:
        ValueError: Neither "toy" nor a folder that exists nor of an id's form.
    """
    if model == TOY_MODEL or Path(model).is_dir():
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ValueError(f"--model {model!r} is neither a folder that exists, nor a Hub id (owner/name), nor 'toy'.")


def load_pipeline(model: str, vl_model: str | None, dtype: torch.dtype, revision: str | None) -> ZImageVLPipeline:
    """The toy world, or a Z-Image from a folder or the Hub, on the CPU.

    Args:
        model: "toy", a folder in diffusers' layout, or a Hub id.
        vl_model: Folder or Hub id of the Qwen3-VL to load when a reference is read; None for the pipeline's default.
        dtype: Of the weights.
        revision: Branch, tag or commit on the Hub; None for the default branch.

    Raises:
        OSError: The model cannot be found or fetched; the message has its name and the way to pass a local folder.
    """
    if model == TOY_MODEL:
        from zimage_vl.toy import load_toy_pipeline

        pipe = load_toy_pipeline()
        return pipe if pipe.dtype == dtype else pipe.to(dtype)
    from diffusers.utils import deprecation_utils

    from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline

    # Older diffusers ignore `dtype` silently; newer ones, which have this helper, call `torch_dtype` deprecated.
    dtype_name = "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"
    options: dict[str, Any] = {dtype_name: dtype, "revision": revision}
    if vl_model is not None:
        options["vl_model_id"] = vl_model
    try:
        return ZImageVLPipeline.from_pretrained(model, **options)
    except OSError as error:
        reason = " ".join(str(error).split())
        advice = "Instead of an id, a folder with the model's files can be given."
        raise OSError(f"--model {model!r} could not be loaded: {reason} {advice}") from error


def paint_in_stages(
    model: str,
    vl_model: str | None,
    revision: str | None,
    dtype: torch.dtype,
    device: str,
    prompt: str,
    **arguments: Any,
) -> Any:
    """What a pipeline from `load_pipeline` would paint, with one model in memory at a time.

    Args:
        model: As in `load_pipeline`; the toy world is written to a temporary folder first.
        vl_model: As in `load_pipeline`.
        revision: As in `load_pipeline`.
        dtype: Of the weights.
        device: Where each model runs.
        prompt: What to paint.
        arguments: Everything else that the pipeline's call takes.

    Raises:
        OSError: As `load_pipeline`.
    """
    import tempfile

    from zimage_vl.workflows.low_memory import generate_low_memory

    with tempfile.TemporaryDirectory() as folder:
        if model == TOY_MODEL:
            load_pipeline(model, None, dtype, None).save_pretrained(folder)
        options: dict[str, Any] = {"torch_dtype": dtype, "device": device, "revision": revision, **arguments}
        source = folder if model == TOY_MODEL else model
        try:
            return generate_low_memory(source, prompt, vl_model_id=vl_model, **options)
        except OSError as error:
            reason = " ".join(str(error).split())
            advice = "Instead of an id, a folder with the model's files can be given."
            raise OSError(f"--model {model!r} could not be loaded: {reason} {advice}") from error
