"""The knobs' options come from the registry: one each, with its choices, its help and its default."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from cli_calls import call
from zimage_vl.blend.registry import KNOBS
from zimage_vl.cli import _options
from zimage_vl.cli._options import PANELS, name_options, option_names
from zimage_vl.cli.generate import generate


def declared(option: Any) -> list[str]:
    """The names of an option: typer takes the first for a default until it meets the parameter."""
    return [option.default, *option.param_decls]


def annotation(command: Any, name: str) -> Any:
    return inspect.signature(command).parameters[name].annotation


def test_each_knob_is_an_option_with_its_choices_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.sub(r"\s+", " ", call(capsys, "generate", "--help").out)
    for knob in KNOBS.values():
        option = annotation(generate, knob.name).__metadata__[0]
        assert [name.partition("/")[0] for name in declared(option)] == list(option_names(knob.name))
        assert option.help.lower().startswith(name_options(knob.help)[:20].lower())
        for choice in knob.choices:
            assert choice in option.help
        if knob.default is not None and knob.default is not False:
            assert f"Default: {knob.default}." in option.help
        assert re.sub(r"\s+", " ", option.help) in shown
        assert inspect.signature(generate).parameters[knob.name].default is None


def test_todays_names_stay() -> None:
    today = (
        "--reference --embeds --reference-weights --reference-mask --neutral-image --alpha --layer --tokens --start "
        "--normalization --target-std --outlier-masking --outlier-threshold --exclude-sinks --alignment --blend-mode "
        "--vl-text --vl-text-position --max-pixels --end"
    )
    names = [name for knob in KNOBS for name in option_names(knob)]
    assert set(today.split()) <= set(names)
    assert {"-r", "-a", "--mask", "--text", "--hidden-layer"} <= set(names)
    assert len(names) == len(set(names))


def test_messages_name_options() -> None:
    said = (
        "`vl_outlier_masking` 'zero' works on what vl_token_selection 'text' leaves out; pass `reference_image` [1]."
    )
    assert (
        name_options(said)
        == "--outlier-masking 'zero' works on what --tokens 'text' leaves out; pass --reference [1]."
    )
    assert name_options("`vl_alpha[1]` or vl_text=''", ["-a=1"]) == "-a or --vl-text=''"
    assert name_options("`guidance_scale` and `height`, `--reference a.png` (3 bytes)") == (
        "--guidance and --height, --reference a.png (3 bytes)"
    )
    assert name_options("Layer -99 is out of range") == "--layer -99 is out of range"
    for text in ("a prompt about vl_alphabet", "files/vl_alpha.png", "`unknown` height"):
        assert name_options(text) == text


def test_each_argument_of_the_messages_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "generate", "-h").out + call(capsys, "extract", "-h").out + call(capsys, "inspect", "-h").out
    for option in _options._ARGUMENTS.values():
        assert option in shown


def test_help_has_panels_with_the_advanced_last(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "generate", "--help").out
    places = [shown.index(f"\n{panel}:\n") for panel in PANELS]
    assert places == sorted(places)
    assert shown.index("--alpha") < shown.index(f"\n{PANELS[-1]}") < shown.index("--alignment")
    assert "Advanced" not in call(capsys, "statistics", "--help").out
