"""How a picture was made: written into its PNG, read from there, and made options again."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from zimage_vl._version import __version__
from zimage_vl.blend.registry import KNOBS

from ._options import SEVERAL, option_names
from ._outputs import new_file
from ._terminal import note


RECORDED_PACKAGES = ("torch", "diffusers", "transformers")
# What is given as files, and recorded by their names and digests.
PICTURE_KNOBS = tuple(name for name in KNOBS if not name.startswith("vl_") and name != "reference_weights")
# The parameters behind the options that a record names.
_PARAMETERS = {option: name for name in (*PICTURE_KNOBS, "init_image", "statistics") for option in option_names(name)}
# Not repeated where one of these is typed.
_TOGETHER: dict[str, tuple[str, ...]] = dict.fromkeys(PICTURE_KNOBS[:3], PICTURE_KNOBS[:2])
_SAME_NAMES = ("prompt", "model", "revision", "vl_model", "negative_prompt", "steps", "guidance", "seed", "dtype")


def get_package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Get installed versions, without importing anything; None for what is missing."""
    found: dict[str, str | None] = dict.fromkeys(names)
    for name in found:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def recorded_versions() -> dict[str, str | None]:
    """Get the versions that stand in a record."""
    return {"zimage-vl": __version__, **get_package_versions(RECORDED_PACKAGES)}


def describe_file(path: Path, **first: str) -> dict[str, str]:
    """Get a file's name and its SHA-256, behind what goes first."""
    return {**first, "name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_png(image: Any, path: Path, parameters: Mapping[str, Any], overwrite: bool = False) -> None:
    """Write a PNG that holds how it was made, as JSON in its text "parameters"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", json.dumps(parameters))
    with new_file(path, overwrite) as file:
        image.save(file, format="PNG", pnginfo=info)


def read_png(path: Path) -> dict[str, Any]:
    """Get how a picture of ours was made; a ValueError where it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return dict(json.loads(getattr(image, "text", {})["parameters"]))
    except (UnidentifiedImageError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no record of how it was made: it is no PNG of `zimage-vl`.") from error


def repeat(context: Any, picture: Path | None) -> Path | None:
    """Make a picture's settings the defaults of the other options; its files are looked for beside it, and here."""
    if picture is None:
        return None
    record, typed = read_png(picture), {word.partition("=")[0] for word in context.find_root().meta["typed"]}
    if not {"width", "height", "knobs", "references", "init_image", "statistics"} <= record.keys():
        raise ValueError(f"{picture} was not made by `zimage-vl generate`, so that its settings cannot be repeated.")
    found = {name: record.get(name) for name in _SAME_NAMES}
    if not typed & {"--size", "--width", "--height"}:
        found["size"] = f"{record['width']}x{record['height']}"
    if not typed & {"--take", "--recipe"}:
        changed = {name: value for name, value in (record["knobs"] or {}).items() if name in KNOBS}
        changed = {name: value for name, value in changed.items() if value != KNOBS[name].default}
        found |= {name: _as_typed(name, value) for name, value in changed.items()}
    start, statistics = record["init_image"] or {}, record["statistics"] or {}
    found["strength"] = start.get("strength")
    for file in filter(None, [*record["references"], start, statistics]):
        option = file.get("option", "--statistics").replace("--iterations", "--reference")  # of a later round
        name = _PARAMETERS[option]
        if any(typed.intersection(option_names(other)) for other in (name, *_TOGETHER.get(name, ()))):
            continue
        places = (place for place in (picture.parent / file["name"], Path(file["name"])) if place.is_file())
        place = next((str(p) for p in places if describe_file(p)["sha256"] == file["sha256"]), None)
        if place is None:
            note(f"{option} {file['name']} of {picture} is neither beside it nor here: pass it too.")
        else:
            found[name] = [*found.get(name, ()), place] if name in SEVERAL else place
    context.default_map = {name: value for name, value in found.items() if value is not None}
    return picture


def as_options(knobs: Mapping[str, Any]) -> list[str]:
    """Get the words of a command line that sets these knobs."""
    typed = {name: _as_typed(name, value) for name, value in knobs.items()}
    each = [(name, text) for name, texts in typed.items() for text in (texts if isinstance(texts, list) else [texts])]
    return [shlex.join([option_names(name)[0], *([] if text is True else [str(text)])]) for name, text in each]


def _as_typed(knob: str, value: Any) -> Any:
    if isinstance(value, dict):
        between = "=" if knob == "vl_alpha" else ":"
        value = [f"{key}{between}{number}" for key, number in cast("dict[str, float]", value).items()]
        return value if knob == "vl_alpha" else ",".join(value)
    if isinstance(value, list):
        return ",".join(str(number) for number in cast("list[float]", value))
    text = value if isinstance(value, bool) else str(value)
    return [text] if knob in SEVERAL else text
