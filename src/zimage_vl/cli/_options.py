"""The options that commands share: those of the knobs, made from the registry, and those of models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from zimage_vl.blend.registry import KNOBS, Knob

from ._models import DTYPES, TOY_MODEL, Model, announce
from ._parsing import parse_layer, parse_numbers, parse_text
from ._terminal import OutputFormat, escape, one_line


Command = Callable[..., None]
# Names that are older or shorter than the knob's own, which is an option too: --hidden-layer beside --layer.
_SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "reference_image": ("--reference", "-r"),
    "negative_reference_image": ("--negative-reference",),
    "negative_reference_embeds": ("--negative-embeds",),
    "reference_embeds": ("--embeds",),
    "reference_mask": ("--reference-mask", "--mask"),
    "vl_alpha": ("--alpha", "-a"),
    "vl_hidden_layer": ("--layer",),
    "vl_text": ("--vl-text",),
    "vl_text_position": ("--vl-text-position",),
    "vl_token_selection": ("--tokens",),
}
_SWITCHED_OFF = {"vl_exclude_sinks": "--include-sinks"}
# The values as they are typed, where they are not the call's: metavar, and the form in words.
_TYPED: dict[str, tuple[str, str]] = {
    "reference_image": ("PATH|URL", "again for several, which act together"),
    "reference_embeds": ("FILE", "of `zimage-vl extract`, again for several"),
    "reference_weights": ("NUMBERS", "such as 2,1"),
    "reference_mask": ("PATH|URL", ""),
    "negative_reference_image": ("PATH|URL", "needs --guidance; again for several"),
    "negative_reference_embeds": ("FILE", "of `zimage-vl extract`, again for several"),
    "neutral_image": ("PATH|URL", ""),
    "vl_alpha": (
        "ALPHA",
        "0..1, or by place, again for each: prefix=0, prompt=0.5, suffix=1, default=0, any phrase=1",
    ),
    "vl_hidden_layer": ("LAYER", "such as -6, several as -6,-8, with weights as -6:1,-8:3"),
    "vl_text": ("TEXT", ""),
}
SEVERAL = ("vl_alpha", *(f"{side}reference_{kind}" for side in ("", "negative_") for kind in ("image", "embeds")))
# What the library's messages call the other options: by their names, and by others.
_ARGUMENTS = {
    **{name: f"--{name}" for name in ("height", "iterations", "layers", "prompt", "strength", "threshold", "width")},
    **{name: "--" + name.replace("_", "-") for name in ("init_image", "max_pixels", "negative_prompt")},
    "guidance_scale": "--guidance",
    "num_images_per_prompt": "--num-images",
    "num_inference_steps": "--steps",
    "recipe": "--take",
    "vl_model_id": "--vl-model",
}
# What the library's messages say in words of Python, and what is said here.
_IN_PYTHON = {
    r"a number from 0 to 1, a list with one per text token, or a dict such as {.*?}": (
        "a number from 0 to 1, or one for each place, as `--alpha default=0.3 --alpha 'red car=0.6'`"
    ),
    r"^Layer (?=-?\d)": "`vl_hidden_layer` ",
    r"encode the reference again and save it with ReferenceEmbeds\.save": "read the picture with `zimage-vl extract`",
    r"[Ee]ncode the reference again": "read the picture with `zimage-vl extract` again",
}
PANELS = ("Options", "Reference", "Model", "Advanced: how the reference is read and blended")


def option(names: str, metavar: str | None, help: str, **more: Any) -> Any:
    """Get an option of these names, in one string."""
    more |= {"parser": parse_text} if metavar in ("TEXT", "ALPHA") else {}
    if (choices := getattr(more.get("parser"), "choices", None)) is not None:

        def complete(incomplete: str) -> list[str]:
            return [choice for choice in choices if choice.startswith(incomplete)]

        more["autocompletion"] = complete
    return typer.Option(*names.split(), metavar=metavar, help=help, **more)


def option_names(knob: str) -> tuple[str, ...]:
    """Get a knob's options; messages use the first unless another one was typed."""
    own = "--" + knob.removeprefix("vl_").replace("_", "-")
    return tuple(dict.fromkeys((*_SHORT_NAMES.get(knob, ()), own)))


def name_options(text: str, typed: Iterable[str] = ()) -> str:
    """Get a message of the library in the words of the command line, `typed`: options in the place of arguments."""
    given = {word.partition("=")[0] for word in typed}

    def option(match: re.Match[str]) -> str:
        name = match["ticked"] or match["bare"]
        names = option_names(name) if name in KNOBS else (_ARGUMENTS[name],)
        return next((one for one in (*names, names[0] + "s") if one in given), names[0])  # extract has --layers

    for python, words in _IN_PYTHON.items():
        text = re.sub(python, words, text)
    bare = "|".join(name for name in (*KNOBS, *_ARGUMENTS) if "_" in name)
    pattern = rf"`(?P<ticked>{'|'.join([*KNOBS, *_ARGUMENTS])})(?:\[\d+\])?`|(?<![\w./'-])(?P<bare>{bare})(?![\w./'-])"
    return re.sub(r"`(--[^`]+)`", r"\1", re.sub(pattern, option, text))


def explain(error: BaseException) -> str:
    """Get an error of the library as one line for the terminal, in the words of the command line."""
    return escape(name_options(one_line(error)).replace("`", ""))


def choose(choices: Sequence[str]) -> Callable[[str], str]:
    """Get a parser that takes these words alone and says which one may have been meant."""

    def choice(text: str) -> str:
        if text in choices:
            return text
        near = get_close_matches(text.lower().replace("_", "-"), [c.replace("_", "-") for c in choices], 1, 0.5)
        meant = next((f" Did you mean {c}?" for c in choices if near and c.replace("_", "-") == near[0]), "")
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}.{meant}")

    setattr(choice, "choices", choices)  # noqa: B010 - for the completion of shells; functions declare none
    return choice


class PanelledCommand(TyperCommand):
    """A command whose options stand in panels in its help, the advanced ones behind the others."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None) or PANELS[0]
            record = parameter.get_help_record(ctx)
            panels[panel] += [] if record is None else [record]
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def with_options(knobs: Iterable[str] = (), vl_model: bool = True) -> Callable[[Command], Command]:
    """Give a command an option for each of these knobs, for its `**knobs` (those typed), and those of its `model`."""

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        models = {name: kind for name, kind in _MODEL_OPTIONS.items() if vl_model or name != "vl_model"}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                parameters += [_parameter(name, None, _annotate(KNOBS[name])) for name in knobs]
            elif parameter.name == "model":
                parameters += [_parameter(n, TOY_MODEL if n == "model" else None, kind) for n, kind in models.items()]
            else:
                parameters.append(_parameter(parameter.name, parameter.default, hints[parameter.name]))

        def run(**given: Any) -> None:
            announce(given["model"])
            quiet = given.get("output_format") is OutputFormat.JSON
            model = Model(**{name: given.pop(name) for name in models}, quiet=quiet)
            command(
                model=model, **{n: value for n, value in given.items() if n not in KNOBS or value not in (None, [])}
            )

        setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - functions declare none
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotate(knob: Knob) -> Any:
    """The type and the option of a knob: what it takes is read off its choices, its default and its values."""
    names, (metavar, form) = list(option_names(knob.name)), _TYPED.get(knob.name, ("", ""))
    parser: Any = {"vl_hidden_layer": parse_layer, "reference_weights": parse_numbers}.get(knob.name)
    kind: type = list[str] if knob.name in SEVERAL else str
    if knob.choices:
        metavar, form, parser = "CHOICE", ", ".join(knob.choices), choose(knob.choices)
    elif isinstance(knob.default, bool):
        kind, names[0] = bool, f"{names[0]}/{_SWITCHED_OFF.get(knob.name, '--no-' + names[0][2:])}"
    elif not metavar:
        kind, metavar = (int, "INT") if knob.values.startswith("int") else (float, "NUMBER")
        form = name_options(knob.values.removesuffix(", or None").removeprefix("int "))
    said = re.sub(r"\bNone:", "left out:", name_options(knob.help.removesuffix("; a list is one per prompt")))
    default = "" if knob.default is None else f" Default: {str(knob.default).replace('False', 'no')}."
    text = f"{said[0].upper()}{said[1:]}{f' ({form})' if form else ''}.{default}"
    panel = PANELS[3 if knob.name in _ADVANCED else 1]
    made = option(" ".join(names), metavar or None, text, parser=parser, rich_help_panel=panel)
    return Annotated[kind | None, made]


_OFFLOADS = ("none", "model", "sequential")
_OFFLOAD = f"{', '.join(_OFFLOADS)}: keep one model or one layer at a time on the accelerator."
OffloadOption = Annotated[str, option("--offload", "CHOICE", _OFFLOAD, parser=choose(_OFFLOADS))]
_ADVANCED = list(KNOBS)[list(KNOBS).index("vl_text_position") :]  # the registry has what is asked for most first
_MODEL = "toy, this package's miniature; a folder in diffusers' layout; a Hub id as Tongyi-MAI/Z-Image-Turbo."
_VL_MODEL = "Folder or Hub id of the Qwen3-VL to read with. Default: the model's, or Qwen/Qwen3-VL-4B-Instruct."
_DTYPE = "float32, bfloat16, float16 (may overflow): precision. Default: bfloat16; float32 with toy."
_REVISION = "Branch, tag or commit of a Hub id. Default: its main branch."
_DEVICE = "cpu, cuda, cuda:1, mps. Default: the best there is."
_AT: dict[str, Any] = {"rich_help_panel": PANELS[2]}
_MODEL_OPTIONS: Mapping[str, Any] = {
    "model": Annotated[str, option("--model", "NAME", _MODEL, **_AT)],
    "vl_model": Annotated[str | None, option("--vl-model", "NAME", _VL_MODEL, **_AT)],
    "revision": Annotated[str | None, option("--revision", "NAME", _REVISION, **_AT)],
    "device": Annotated[str | None, option("--device", "NAME", _DEVICE, **_AT)],
    "dtype": Annotated[str | None, option("--dtype", "CHOICE", _DTYPE, parser=choose(DTYPES), **_AT)],
}
