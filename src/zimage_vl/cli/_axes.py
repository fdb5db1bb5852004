"""The axes of a sweep: an option for each, and the values that options and plan files mean."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from math import isfinite, nan
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

import typer

from zimage_vl.blend.registry import KNOBS
from zimage_vl.recipes import RECIPES

from ._options import Command, choose, option_names, with_options
from ._parsing import parse_alpha, parse_layer, parse_numbers, parse_size, parse_text
from ._records import PICTURE_KNOBS
from ._sources import find_sources
from ._terminal import escape, one_line


_PAINTING = ("prompt", "negative_prompt", "recipe", "size", "steps", "guidance", "seed")
_TEXTS = ("prompt", "negative_prompt", "vl_text")
_MAY_BE_NONE = {"negative_prompt", "recipe", *KNOBS} - {*PICTURE_KNOBS}
_VALUES = {
    "recipe": "names of zimage-vl recipes",
    "size": "WIDTHxHEIGHT",
    "guidance": "numbers",
    **dict.fromkeys(("steps", "seed"), "whole numbers"),
}
_SWITCH = {"yes": True, "true": True, "no": False, "false": False}
_LEAST = {"steps": 1, "seed": 0, "guidance": 0, "vl_max_pixels": 16 * 16}  # an image token, of the smallest model
_MOST = {"steps": 10_000}
_MOST_IN_A_RANGE, _MOST_WHOLE = 10_000_000, 2**62
_MOST_BYTES = 2**24  # of a plan
# How values are written where another form stands in the help of a single picture.
_FORMS = {
    "reference_image": "a file, a folder, a glob or a URL",
    "vl_alpha": "0..1, as 0,0.3; by place, as prompt=0.5,suffix=1",
    "vl_hidden_layer": "as -2,-6; a mean of several, as -6:1,-8:3",
    "reference_embeds": "of `zimage-vl extract`",
    "negative_reference_image": "needs --guidance",
    "negative_reference_embeds": "of `zimage-vl extract`",
}


def axis_option(name: str) -> str:
    """Get the option of an axis.

    Example:
        >>> axis_option("vl_hidden_layer"), axis_option("negative_prompt")
        ('--layer', '--negative-prompt')
    """
    return option_names(name)[0] if name in KNOBS else "--take" if name == "recipe" else "--" + name.replace("_", "-")


def with_axes(command: Command) -> Command:
    """Give a command what `with_options` gives it, but each knob several values."""
    command = with_options(KNOBS)(command)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in KNOBS:
            told = copy.copy(parameter.annotation.__metadata__[0])
            told.default, *told.param_decls = option_names(parameter.name)  # typer's own order
            told.parser = None
            if parameter.name in _FORMS:
                told.help = re.sub(r" \([^()]*\)(?=\.)", f" ({_FORMS[parameter.name]})", told.help, count=1)
            told.metavar = "yes,no" if isinstance(KNOBS[parameter.name].default, bool) else told.metavar
            parameter = parameter.replace(annotation=Annotated[list[str] | None, told])
        parameters.append(parameter)
    setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010 - functions declare none
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def read_plan(path: Path) -> dict[str, Any]:
    """Get the axes of a plan file, by the names of the call; they stand there under these or their options' names.

    Raises:
        ValueError: It is neither YAML nor TOML, or names what is no axis.
    """
    shown = f"--plan '{escape(str(path))}'"
    # PyYAML and, before Python 3.11, tomli come with what this package requires: huggingface-hub requires them.
    library = {".toml": "tomllib" if sys.version_info >= (3, 11) else "tomli"}.get(path.suffix, "yaml")
    try:
        if path.suffix not in (".yaml", ".yml", ".toml"):
            raise ValueError("its name must end in .yaml, .yml or .toml.")
        if path.exists() and not path.is_file():  # reading a pipe or a device could wait for ever
            raise ValueError("it is no regular file.")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes.")
        reader: Any = import_module(library)
        data = path.read_bytes()
        found: object = _load_yaml(reader, data) if library == "yaml" else reader.loads(data.decode())
        _check_plain(found)
    except OSError:
        raise
    except Exception as error:  # of two libraries
        raise ValueError(f"{shown} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{shown} must hold names with their values, such as alpha: [0, 0.3].")
    axes = {alias: name for name in (*_PAINTING, *KNOBS) for alias in (name, *_aliases(name))}
    plan: dict[str, Any] = {}
    for given, value in found.items():
        name = axes.get(str(given).replace("-", "_"))
        if name is None:
            near = get_close_matches(str(given), axes, 1)
            raise ValueError(f"{shown} has no axis {given!r}{f'; did you mean {near[0]}?' if near else '.'}")
        if name in plan:
            raise ValueError(f"{shown} names {given!r} twice, under two names.")
        plan[name] = value
    return plan


def _load_yaml(yaml: Any, data: bytes) -> object:
    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # few of which can stand for more than fits into the memory
                raise ValueError("aliases, as *name, are none of a plan: write the values out.")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise ValueError(f"a name stands twice in what begins in line {node.start_mark.line + 1}.")
            return found

    return yaml.load(data, Loader)


def _check_plain(value: Any) -> None:
    """Refuse dates, bytes and sets, of which no axis has any."""
    if isinstance(value, (list, dict)):
        for each in value if isinstance(value, list) else (*value, *value.values()):
            _check_plain(each)
    elif not isinstance(value, (str, int, float, NoneType)):
        raise ValueError(f"{value!r:.80} is no text, number, yes, no, or list of such: put it in quotes.")


def _aliases(name: str) -> list[str]:
    options = [option for option in (option_names(name) if name in KNOBS else (axis_option(name),)) if "--" in option]
    return [option[2:].replace("-", "_") for option in options]


def read_values(name: str, given: Any, plan: Path | None = None) -> list[Any]:
    """Get the values of an axis. A text may mean several, with commas and ranges; a list gives each of its own.

    Errors name the option, or the axis of the plan that they come from.

    Raises:
        ValueError: A value that is none of this axis.

    Example:
        >>> read_values("seed", ["0..2", "7"]), read_values("vl_alpha", ["0,0.3", "suffix=1,default=0.2"])
        ([0, 1, 2, 7], [0.0, 0.3, {'suffix': 1.0, 'default': 0.2}])
    """
    try:
        items = given if isinstance(given, list) else [given]
        if not items:
            raise typer.BadParameter("an empty list has no value: leave the axis out.")
        return [value for item in items for value in _read_item(name, item)]
    except (typer.BadParameter, ValueError) as error:
        if plan is None and isinstance(error, ValueError):
            raise  # which names the option
        shown = axis_option(name) if plan is None else f"--plan '{escape(str(plan))}', {axis_option(name)[2:]}"
        raise ValueError(f"{shown}: {getattr(error, 'message', error)}") from None


def _read_item(name: str, item: Any) -> list[Any]:
    if item is None and name in _MAY_BE_NONE:
        return [None]
    if name in _TEXTS:
        if not isinstance(item, str):
            raise typer.BadParameter(f"{item!r:.80} is no text: put it in quotes.")
        return [parse_text(item)]
    if name in PICTURE_KNOBS:
        paths: list[Any] = item if isinstance(item, list) else [item]
        if not paths or not all(isinstance(path, str) and path and "\0" not in path for path in paths):
            raise typer.BadParameter(f"{item!r:.80} is no path, nor a list of several that act together.")
    if not isinstance(item, str):
        return [_read_plain(name, item)]
    if name in PICTURE_KNOBS:
        return [source.name for source in find_sources([item])] if name == "reference_image" else [item]
    if name == "vl_alpha" and "=" in item:
        return [parse_alpha(item.split(","))]
    if name == "vl_hidden_layer" and ":" in item:
        return [parse_layer(item)]
    if name == "reference_weights":
        return [parse_numbers(item)]
    return [value for word in item.split(",") for value in _read_word(name, word.strip())]


def _read_plain(name: str, value: Any) -> Any:
    """A value of a plan file that is no text."""
    knob = KNOBS.get(name)
    if name in PICTURE_KNOBS or (isinstance(value, bool) and knob is not None and isinstance(knob.default, bool)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [float(value)] if name == "reference_weights" else _read_word(name, str(value))[0]
    if isinstance(value, Mapping) and value and name == "vl_hidden_layer":
        layers = {_one_layer(layer): _number(weight) for layer, weight in value.items()}
        if len(layers) == len(value):
            return layers  # TOML has texts as keys
    if isinstance(value, Mapping) and name == "vl_alpha" and all(isinstance(place, str) for place in value):
        return {place: _number(alpha) for place, alpha in value.items()}
    if isinstance(value, list) and name == "size":
        return parse_size("x".join(map(str, value)), None, None, 0)
    if isinstance(value, list) and value and name in ("vl_alpha", "vl_hidden_layer", "reference_weights"):
        return list(map(_one_layer if name == "vl_hidden_layer" else _number, value))
    raise typer.BadParameter(f"{value!r:.80} is none of its values: {_VALUES[name] if knob is None else knob.values}.")


def _one_layer(value: Any) -> int:
    layers = _read_word("vl_hidden_layer", str(value))
    if len(layers) > 1:
        raise typer.BadParameter(f"{value!r} is more than one whole number.")
    return layers[0]


def _number(value: Any) -> float:
    return _read_number("none" if isinstance(value, bool) else str(value), float("-inf"))


def _read_word(name: str, word: str) -> list[Any]:
    knob = KNOBS.get(name)
    if name == "recipe":
        return [choose(tuple(RECIPES))(word)]
    if name == "size":
        return [parse_size(word, None, None, 0)]
    if knob is not None and knob.choices:
        return [choose(knob.choices)(word)]
    if knob is not None and isinstance(knob.default, bool):
        if word.lower() not in _SWITCH:
            raise typer.BadParameter(f"{word!r} is neither yes nor no.")
        return [_SWITCH[word.lower()]]
    if name not in ("seed", "steps", "vl_hidden_layer") and not (knob and knob.values.startswith("int")):
        return [_read_number(word, _LEAST.get(name, float("-inf")))]
    match = re.fullmatch(r"([+-]?\d{1,19})(?:\.\.([+-]?\d{1,19}))?", word)
    first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
    if not 0 <= last - first < _MOST_IN_A_RANGE:
        raise typer.BadParameter(f"{word!r} is no whole number, nor a range of them, as 0..3.")
    if first < _LEAST.get(name, first) or last > _MOST.get(name, _MOST_WHOLE):
        raise typer.BadParameter(f"{word!r} is below {_LEAST.get(name)} or too large.")
    return list(range(first, last + 1))


def _read_number(word: str, least: float) -> float:
    try:
        value = float(word)
    except ValueError:
        value = nan
    if not isfinite(value) or value < least:
        raise typer.BadParameter(
            f"{word!r} is no finite number{f' of at least {least:g}' if isfinite(least) else ''}."
        )
    return value
