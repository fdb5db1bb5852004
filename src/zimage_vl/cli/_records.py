"""How a picture was made: written into its PNG, read from there, and made options again."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any, cast

from zimage_vl._version import __version__
from zimage_vl.blend.registry import KNOBS
from zimage_vl.workflows.files import save_png

from ._options import SEVERAL, option_names
from ._outputs import new_file
from ._parsing import parse_alpha, parse_size
from ._terminal import one_line


RECORDED_PACKAGES = ("torch", "diffusers", "transformers")
# What is given as files, and recorded by their names and digests.
PICTURE_KNOBS = tuple(name for name in KNOBS if not name.startswith("vl_") and name != "reference_weights")
# The parameters behind the options that a record names.
_PARAMETERS = {option: name for name in (*PICTURE_KNOBS, "init_image", "statistics") for option in option_names(name)}
# Not repeated where one of these is typed.
_TOGETHER: dict[str, tuple[str, ...]] = dict.fromkeys(PICTURE_KNOBS[:3], PICTURE_KNOBS[:2])
_SAME_NAMES = ("prompt", "model", "revision", "vl_model", "negative_prompt", "steps", "guidance", "seed", "dtype")
# What the fields of a record are in JSON, as far as they are repeated, and its knobs.
_NULL = type(None)
_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("prompt", "model"), (str,)),
    **dict.fromkeys(("revision", "vl_model", "negative_prompt", "dtype"), (str, _NULL)),
    **dict.fromkeys(("width", "height", "steps", "seed"), (int,)),
    **dict.fromkeys(("knobs", "init_image", "statistics"), (dict, _NULL)),
    "guidance": (int, float),
    "references": (list,),
}
_KNOB_FIELDS: dict[str, tuple[type, ...]] = {
    **{name: (type(knob.default),) for name, knob in KNOBS.items() if name not in PICTURE_KNOBS},
    **dict.fromkeys(("vl_outlier_threshold", "vl_start", "vl_end"), (int, float)),
    "vl_alpha": (int, float, dict),
    "vl_hidden_layer": (int, list, dict, _NULL),
    "vl_target_std": (int, float, _NULL),
    "vl_concat_tokens": (int, _NULL),
    "reference_weights": (list, _NULL),
    "vl_text": (str, _NULL),
}
_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    _NULL: "null",
}


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
    """Write a PNG of `save_png` under a new name."""
    with new_file(path, overwrite) as file:
        save_png(image, file, parameters)


def read_png(path: Path) -> dict[str, Any]:
    """Get how a picture of ours was made; a ValueError where it is none."""
    from PIL import Image

    if path.exists() and not path.is_file():  # reading a pipe or a device could wait for ever
        raise ValueError(f"{path} is a folder or is no regular file: name a PNG of `zimage-vl`.")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            record = json.loads(getattr(image, "text", {})["parameters"])
            if not isinstance(record, dict) or not record:
                raise ValueError("of something else")
            if _depth(record) > 30:  # what is shown of it is walked through, too
                raise ValueError("nested too deep")
            return record
    except Exception as error:  # a damaged file, or one made for it, can bring about any in Pillow
        if isinstance(error, OSError) and error.filename:  # it is not there, or may not be read
            raise
        raise ValueError(
            f"{path} holds no record of how it was made: it is no PNG of `zimage-vl`, or a damaged one."
        ) from error


def _depth(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, cast("Iterable[Any]", items)), default=0)


def repeat(context: Any, picture: Path | None) -> Path | None:
    """Make a picture's settings the defaults of the other options; its files are looked for beside it, and here."""
    if picture is None:
        return None
    record, typed = read_png(picture), {word.partition("=")[0] for word in context.find_root().meta["typed"]}
    if not {"width", "height", "knobs", "references", "init_image", "statistics"} <= record.keys():
        raise ValueError(f"{picture} was not made by `zimage-vl generate`, so that its settings cannot be repeated.")
    _check_fields(picture, record)
    found = {name: record.get(name) for name in _SAME_NAMES}
    if not typed & {"--size", "--width", "--height"}:
        found["size"] = f"{record['width']}x{record['height']}"
    if not typed & {"--take", "--recipe"}:
        knobs = (record["knobs"] or {}).items()
        changed = {name: value for name, value in knobs if value != KNOBS[name].default}
        found |= {name: _as_typed(name, value) for name, value in changed.items()}
    start, statistics = record["init_image"] or {}, record["statistics"] or {}
    found["strength"] = start.get("strength")
    of_options = [(file["option"].replace("--iterations", "--reference"), file) for file in record["references"]]
    of_options += [(option, file) for option, file in (("--init-image", start), ("--statistics", statistics)) if file]
    for option, file in of_options:
        name = _PARAMETERS[option]
        if any(typed.intersection(option_names(other)) for other in (name, *_TOGETHER.get(name, ()))):
            continue
        places = (place for place in (picture.parent / file["name"], Path(file["name"])) if place.is_file())
        place = next((str(p) for p in places if describe_file(p)["sha256"] == file["sha256"]), None)
        if place is None:
            told = f"{option} {file['name']} of {picture} is neither beside it nor here, as it was then"
            raise ValueError(f"{told}: put it there, or pass {option}.")
        found[name] = [*found.get(name, ()), place] if name in SEVERAL else place
    context.default_map = {name: value for name, value in found.items() if value is not None}
    _check_values(picture, context)
    return picture


def _check_fields(picture: Path, record: dict[str, Any]) -> None:
    """Refuse a record whose fields are not what they are when it is written, as after an edit."""
    for name, value, kinds in _fields(record):
        if type(value) not in kinds or (isinstance(value, float) and not isfinite(value)):
            expected = " or ".join(_WORDS[kind] for kind in kinds if kind is not int or float not in kinds)
            told = f"`{name}` in its record is {json.dumps(value):.80}, expected {expected or 'no such knob'}"
            raise ValueError(f"{picture} cannot be repeated: {told}.")
    for file in record["references"]:
        if file["option"].replace("--iterations", "--reference") not in _PARAMETERS:
            told = f"`references.option` in its record is {file['option']!r:.80}, expected an option that takes files"
            raise ValueError(f"{picture} cannot be repeated: {told}.")


def _fields(record: dict[str, Any]) -> Iterator[tuple[str, Any, tuple[type, ...]]]:
    """Names, values, and what these have to be; what holds others goes before them."""
    yield from ((name, record.get(name), kinds) for name, kinds in _FIELDS.items())
    for name, value in (record["knobs"] or {}).items():
        yield (name, value, _KNOB_FIELDS[name]) if name in _KNOB_FIELDS else (f"knobs.{name}", value, ())
    yield from (("references", file, (dict,)) for file in record["references"])
    start, statistics = record["init_image"], record["statistics"]
    files = [("init_image", start), ("statistics", statistics), *(("references", one) for one in record["references"])]
    for name, file in files:
        keys = ("name", "sha256", "option") if name == "references" else ("name", "sha256")
        yield from [] if file is None else [(f"{name}.{key}", file.get(key), (str,)) for key in keys]
    yield from [] if start is None else [("init_image.strength", start.get("strength"), (int, float))]


def _check_values(picture: Path, context: Any) -> None:
    """Refuse a record whose values the options do not take, while it is known that they are from there."""
    from zimage_vl.workflows.sweep_plan import make_conditioning

    found, name = dict[str, Any](), ""
    try:
        for option in context.command.params:
            if (name := option.name) in context.default_map:
                found[name] = option.process_value(context, context.default_map[name])
        name = ""
        parse_size(found.get("size"), None, None, 16)
        knobs = {name: value for name, value in found.items() if name in KNOBS}
        knobs |= {"vl_alpha": parse_alpha(found["vl_alpha"])} if "vl_alpha" in found else {}
        make_conditioning(knobs, "neutral_image" in knobs)
    except Exception as error:
        # A refusal of the options' parsers has a class of click's or of typer's own.
        if not isinstance(error, (ValueError, OverflowError)) and not hasattr(error, "format_message"):
            raise
        reason = one_line(error) if not name else f"`{name}` in its record: {getattr(error, 'message', error)}"
        raise ValueError(f"{picture} cannot be repeated: {reason}") from error


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
