"""The knobs' options come from the registry: one each, with its choices, its help and its default."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import typer

from cli_calls import call
from zimage_vl.blend.registry import KNOBS, Knob
from zimage_vl.cli import _options
from zimage_vl.cli._models import Model
from zimage_vl.cli._options import PANELS, choose, name_options, option_names, with_options
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


def test_a_new_knob_is_a_new_option(monkeypatch: pytest.MonkeyPatch) -> None:
    new = {
        "vl_reader": Knob("vl_reader", "qwen3-vl", "", "who reads", ("qwen3-vl", "text_encoder")),
        "vl_depth": Knob("vl_depth", None, "int >= 1, or None", "how deep; None: vl_alpha"),
        "vl_share": Knob("vl_share", 0.5, "0..1", "how much"),
        "vl_even": Knob("vl_even", False, "bool", "evenly"),
    }
    for name, knob in new.items():
        monkeypatch.setitem(KNOBS, name, knob)

    seen: dict[str, Any] = {}

    @with_options(KNOBS)
    def command(prompt: str, model: Model, size: int = 1, **knobs: Any) -> None:
        seen.update(knobs, prompt=prompt, model=model, size=size)

    made = inspect.signature(command).parameters
    assert list(made) == ["prompt", "model", "vl_model", "revision", "device", "dtype", "size", *KNOBS]
    values = dict.fromkeys(made) | {"prompt": "x", "model": "toy", "size": 2, "vl_share": 0.0, "reference_image": []}
    command(**values)
    assert seen == {"prompt": "x", "model": Model(), "size": 2, "vl_share": 0.0}
    options = {name: annotation(command, name).__metadata__[0] for name in new}
    kinds = {name: annotation(command, name).__origin__ for name in new}
    assert kinds == {"vl_reader": str | None, "vl_depth": int | None, "vl_share": float | None, "vl_even": bool | None}
    assert options["vl_reader"].help == "Who reads (qwen3-vl, text_encoder). Default: qwen3-vl."
    assert options["vl_depth"].help == "How deep; left out: --alpha (>= 1)."
    assert options["vl_share"].help == "How much (0..1). Default: 0.5."
    assert declared(options["vl_even"]) == ["--even/--no-even"]
    with pytest.raises(typer.BadParameter, match="Did you mean text_encoder"):
        options["vl_reader"].parser("text-encoder")


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


def test_choices_say_what_may_have_been_meant() -> None:
    pick = choose(("style-transfer", "colour-palette"))
    assert pick("style-transfer") == "style-transfer"
    for text, reason in (
        ("color-palette", "Did you mean colour-palette?"),
        ("style_transfer", "Did you mean style-transfer?"),
        ("x", "'x' is not one of style-transfer, colour-palette.$"),
    ):
        with pytest.raises(typer.BadParameter, match=re.escape(reason).replace(r"\$", "$")):
            pick(text)


def test_help_has_panels_with_the_advanced_last(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "generate", "--help").out
    places = [shown.index(f"\n{panel}:\n") for panel in PANELS]
    assert places == sorted(places)
    assert shown.index("--alpha") < shown.index(f"\n{PANELS[-1]}") < shown.index("--alignment")
    assert "Advanced" not in call(capsys, "statistics", "--help").out
