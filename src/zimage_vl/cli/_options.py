"""The options that commands share: those of the knobs, made from the registry, and those of models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from math import isfinite
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from zimage_vl.blend.registry import KNOBS, Knob

from ._parsing import parse_layer, parse_numbers


Command = TypeVar("Command", bound=Callable[..., None])

# Names that are older or shorter than the knob's own, which is an option too: --hidden-layer beside --layer.
_SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "reference_image": ("--reference", "-r"),
    "reference_embeds": ("--embeds",),
    "reference_mask": ("--reference-mask", "--mask"),
    "vl_alpha": ("--alpha", "-a"),
    "vl_hidden_layer": ("--layer",),
    "vl_text": ("--vl-text",),
    "vl_text_position": ("--vl-text-position",),
    "vl_token_selection": ("--tokens",),
}
_SWITCHED_OFF = {"vl_exclude_sinks": "--include-sinks"}
# The values as they are typed, where they are not the call's: metavar, and what goes before the registry's help.
_TYPED: dict[str, tuple[str, str]] = {
    "reference_image": ("PATH|URL", "again for several, which act together; "),
    "reference_embeds": ("FILE", "of `zimage-vl extract`; again for several; "),
    "reference_weights": ("NUMBERS", "such as 2,1: "),
    "reference_mask": ("PATH|URL", ""),
    "neutral_image": ("PATH|URL", ""),
    "vl_alpha": (
        "ALPHA",
        "0..1; or by place, again for each: prefix=0, prompt=0.5, suffix=1, default=0 or any phrase of the prompt: ",
    ),
    "vl_hidden_layer": ("LAYER", "such as -6; several as -6,-8, with weights as -6:1,-8:3: "),
    "vl_text": ("TEXT", ""),
}
# What the library's messages call the other arguments.
_ARGUMENTS = {
    "guidance_scale": "--guidance",
    "height": "--height",
    "init_image": "--init-image",
    "iterations": "--iterations",
    "layers": "--layers",
    "max_pixels": "--max-pixels",
    "negative_prompt": "--negative-prompt",
    "num_images_per_prompt": "--num-images",
    "num_inference_steps": "--steps",
    "prompt": "--prompt",
    "strength": "--strength",
    "threshold": "--threshold",
    "vl_model_id": "--vl-model",
    "width": "--width",
}


class DtypeChoice(str, Enum):
    """Values of `--dtype`."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def option_names(knob: str) -> tuple[str, ...]:
    """Get a knob's options; messages use the first unless another one was typed.

    Example:
        >>> option_names("vl_hidden_layer"), option_names("vl_start")
        (('--layer', '--hidden-layer'), ('--start',))
    """
    own = "--" + knob.removeprefix("vl_").replace("_", "-")
    return tuple(dict.fromkeys((*_SHORT_NAMES.get(knob, ()), own)))


def name_options(text: str, typed: Iterable[str] = ()) -> str:
    """Get a message of the library with the options in the place of its arguments.

    Args:
        text: Such as "`vl_alpha` must be ...".
        typed: The command line, whose names go first.

    Example:
        >>> name_options("`vl_alpha` must be 0..1 (vl_text=''), not `x`."), name_options("`vl_alpha`", ["-a", "2"])
        ("--alpha must be 0..1 (--vl-text=''), not `x`.", '-a')
    """
    given = {word.partition("=")[0] for word in typed}

    def option(match: re.Match[str]) -> str:
        name = match["ticked"] or match["bare"]
        names = option_names(name) if name in KNOBS else (_ARGUMENTS[name],)
        return next((one for one in names if one in given), names[0])

    bare = "|".join(name for name in KNOBS if "_" in name)
    pattern = rf"`(?P<ticked>{'|'.join([*KNOBS, *_ARGUMENTS])})(?:\[\d+\])?`|(?<![\w./'-])(?P<bare>{bare})(?![\w./'-])"
    return re.sub(r"`(--[^`]+)`", r"\1", re.sub(pattern, option, text))


def choose(choices: Sequence[str]) -> Callable[[str], str]:
    """Get a parser that takes these words alone and says which one may have been meant."""

    def choice(text: str) -> str:
        if text in choices:
            return text
        near = get_close_matches(text.lower().replace("_", "-"), [c.replace("_", "-") for c in choices], 1, 0.5)
        meant = next((f" Did you mean {c}?" for c in choices if near and c.replace("_", "-") == near[0]), "")
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}.{meant}")

    return choice


def number(at_least: float) -> Callable[[str], float]:
    """Get a parser of finite numbers."""

    def finite(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not isfinite(value) or value < at_least:
            raise typer.BadParameter(f"{text!r} is no finite number of at least {at_least:g}.")
        return value

    return finite


def with_knobs(after: str, names: Iterable[str] = KNOBS) -> Callable[[Command], Command]:
    """Give a command that takes `**knobs` an option for each knob of the registry.

    Args:
        after: The command's parameter behind which they stand in its help.
        names: The knobs. Those that are left out on the command line come as None.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                parameters.append(parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY))
            if parameter.name == after:
                parameters += [
                    inspect.Parameter(name, parameter.KEYWORD_ONLY, default=None, annotation=_annotate(KNOBS[name]))
                    for name in names
                ]
        setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010 - functions declare none
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _annotate(knob: Knob) -> Any:
    """The type and the option of a knob; what it takes is read off its default, its choices and its values."""
    metavar, typed = _TYPED.get(knob.name, ("", ""))
    said = re.sub(r"\bNone:", "left out:", name_options(knob.help))
    names = list(option_names(knob.name))
    parser: Callable[[str], Any] | None = None
    kind: type = str
    if knob.name in ("reference_image", "reference_embeds", "vl_alpha"):
        kind = list[str]
    elif knob.name in ("vl_hidden_layer", "reference_weights"):
        parser = parse_layer if knob.name == "vl_hidden_layer" else parse_numbers
    elif knob.choices:
        metavar, typed, parser = "CHOICE", f"{', '.join(knob.choices)}: ", choose(knob.choices)
    elif isinstance(knob.default, bool):
        kind, names[0] = bool, f"{names[0]}/{_SWITCHED_OFF.get(knob.name, '--no-' + names[0][2:])}"
    elif not metavar and knob.values.startswith("int"):
        kind, metavar, typed = int, "INT", f"{_bounds(knob)}: "
    elif not metavar:
        kind, metavar, typed = float, "NUMBER", f"{_bounds(knob)}: "
    default = "" if knob.default is None else f". Default: {str(knob.default).replace('False', 'no')}"
    return Annotated[
        kind | None, typer.Option(*names, parser=parser, metavar=metavar or None, help=f"{typed}{said}{default}.")
    ]


def _bounds(knob: Knob) -> str:
    return name_options(knob.values.removesuffix(", or None").removeprefix("int "))


def given_knobs(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Get the knobs that were given, as the pipeline's call takes them."""
    return {name: value for name, value in knobs.items() if value is not None and value != []}


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="toy, this package's miniature; a folder in diffusers' layout; a Hub id as Tongyi-MAI/Z-Image-Turbo.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a Hub id. Default: its main branch."),
]
VLModelOption = Annotated[
    str | None,
    typer.Option(
        "--vl-model",
        metavar="NAME",
        help="Folder or Hub id of the Qwen3-VL to read with. Default: the model's, or Qwen/Qwen3-VL-4B-Instruct.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps. Default: the best there is.")
]
DtypeOption = Annotated[
    DtypeChoice | None,
    typer.Option(
        "--dtype",
        metavar="CHOICE",
        help="float32, bfloat16, float16 (may overflow): precision. Default: bfloat16; float32 with toy.",
    ),
]
