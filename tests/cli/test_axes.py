"""The axes of a sweep: what is typed and what stands in a plan file mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli_calls import call
from zimage_vl.blend.registry import KNOBS
from zimage_vl.cli._axes import read_plan, read_values
from zimage_vl.cli._options import option_names


def test_every_knob_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "sweep", "--help").out
    for name in KNOBS:
        for option in option_names(name):
            assert f"{option}" in shown
    assert "act together" not in shown


@pytest.mark.parametrize(
    ("name", "given", "values"),
    [
        ("vl_alpha", ["0,0.3", "0.7"], [0.0, 0.3, 0.7]),
        ("vl_alpha", [0, 1], [0.0, 1.0]),
        ("vl_alpha", "prompt=0.5,suffix=1", [{"prompt": 0.5, "suffix": 1.0}]),
        ("vl_alpha", {"red circle": 1}, [{"red circle": 1}]),
        ("vl_hidden_layer", ["-2,-6"], [-2, -6]),
        ("vl_hidden_layer", ["-8..-6", "-6:1,-8:3"], [-8, -7, -6, {-6: 1.0, -8: 3.0}]),
        ("vl_hidden_layer", [-2, [-2, -6], {"-6": 2}], [-2, [-2, -6], {-6: 2}]),
        ("seed", ["0..2,7"], [0, 1, 2, 7]),
        ("seed", 5, [5]),
        ("steps", "4, 8", [4, 8]),
        ("guidance", [0, 4.5], [0.0, 4.5]),
        ("size", ["64x64,128x64"], [(64, 64), (128, 64)]),
        ("vl_token_selection", ["all,text"], ["all", "text"]),
        ("vl_exclude_sinks", ["yes,no", True], [True, False, True]),
        ("vl_concat_tokens", ["1..3"], [1, 2, 3]),
        ("vl_max_pixels", ["4096"], [4096]),
        ("reference_weights", ["2,1", [1, 1]], [[2.0, 1.0], [1, 1]]),
        ("prompt", ["one, two"], ["one, two"]),
        ("vl_text", ["", None], ["", None]),
        ("recipe", ["guide,calibrated"], ["guide", "calibrated"]),
        ("reference_mask", ["a,b.png"], ["a,b.png"]),
        (
            "reference_image",
            [["a.png", "b.png"], "https://example.com/c.png"],
            [["a.png", "b.png"], "https://example.com/c.png"],
        ),
    ],
)
def test_values(name: str, given: Any, values: list[Any]) -> None:
    assert read_values(name, given) == values


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("vl_alpha", ["0,much"], "--alpha: 'much' is no finite number"),
        ("vl_token_selection", ["al"], "--tokens: 'al' is not one of .* Did you mean all"),
        ("seed", ["3..0"], "--seed: '3..0' is no whole number, nor a range"),
        ("seed", ["0..99999999999"], "--seed"),
        ("steps", ["2.5"], "--steps: '2.5' is no whole number"),
        ("steps", ["10001"], "--steps: '10001' is below 1 or too large"),
        ("vl_max_pixels", ["1"], "--max-pixels: '1' is below 256"),
        ("size", ["100x64"], "multiples of 16"),
        ("vl_exclude_sinks", ["perhaps"], "neither yes nor no"),
        ("prompt", [7], "7 is no text"),
        ("negative_prompt", [7], "--negative-prompt: 7 is no text"),
        ("prompt", ["a\udcff"], r"--prompt: .* is no valid UTF-8"),
        ("reference_image", [7], "7 is no path"),
        *[("reference_image", [odd], "is no path") for odd in ("", "a\0b", [[]], [["a.png", ""]], None)],
        ("reference_image", [], "--reference: an empty list has no value"),
        *[
            ("vl_hidden_layer", odd, "--layer: ")
            for odd in ({float("inf"): 1}, {None: 1}, {True: 1}, {-2.7: 1, -2.2: 1})
        ],
        *[("vl_hidden_layer", odd, "--layer: ") for odd in ({"-2": 1, "-02": 5}, {"-8..-6": 1}, {}, [[]], [[True]])],
        *[
            (name, odd, f"--{name}: ")
            for name in ("seed", "steps", "guidance")
            for odd in (None, True, [[1, 2]], {"a": 1})
        ],
        *[("size", odd, "--size") for odd in (None, 64, [["a", 64]], [[17, 64]], [[64, 64, 64]])],
        *[("recipe", odd, "--take: ") for odd in (True, [["x"]], {})],
        *[("vl_describe", odd, "--describe: ") for odd in ([[True]], 2, {})],
        *[("vl_alpha", odd, "--alpha: ") for odd in (True, {1: 0.3}, {"prompt": None}, [["x"]], [])],
        ("prompt", None, "None is no text"),
        ("seed", None, "--seed: None is none of its values: whole numbers"),
        ("recipe", ["guid"], "Did you mean guide"),
    ],
)
def test_other_values_are_refused_by_the_option_s_name(name: str, given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_values(name, given)
    with pytest.raises(ValueError, match=r"^--plan 'a.yaml', [a-z-]+: "):
        read_values(name, given, Path("a.yaml"))


def test_a_folder_means_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.jpg", "c.txt"):
        (tmp_path / name).touch()
    assert read_values("reference_image", [".", "none.png"]) == ["a.jpg", "b.png", "none.png"]


PLANS = {
    "plan.yaml": "prompt: a circle\nalpha: [0, 0.3]\nhidden-layer: '-2,-6'\nvl_exclude_sinks: yes\n",
    "plan.toml": 'prompt = "a circle"\nalpha = [0, 0.3]\nlayer = "-2,-6"\nexclude-sinks = true\n',
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_name_axes_as_options_or_as_the_call_does(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PLANS[name])
    axes = {"prompt": "a circle", "vl_alpha": [0, 0.3], "vl_hidden_layer": "-2,-6", "vl_exclude_sinks": True}
    assert read_plan(tmp_path / name) == axes


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("plan.yaml", "alpa: 1", "no axis 'alpa'; did you mean alpha"),
        ("plan.yaml", "alpha: 1\nvl_alpha: 2", "twice, under two names"),
        ("plan.yaml", "[1, 2]", "must hold names with their values"),
        ("plan.yaml", "alpha: [", "cannot be read"),
        ("plan.yaml", "alpha: " + "[" * 3000, "cannot be read"),
        ("plan.yaml", "!!python/object/apply:os.getcwd []", "cannot be read"),
        ("plan.toml", "alpha", "cannot be read"),
        ("plan.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nprompt: [*b, *b]", "aliases, as .name, are none of a plan"),
        ("plan.yaml", "seed: 1\nseed: 2", "a name stands twice in what begins in line 1"),
        ("plan.yaml", "seed: 2020-01-01", "is no text, number"),
        ("plan.yaml", "prompt: !!binary aGk=", "is no text, number"),
        ("plan.yaml", "seed: !!set {1, 2}", "is no text, number"),
        ("plan.toml", "seed = [2020-01-01]", "is no text, number"),
        ("plan.yaml", "#" * (2**24 + 1), "is larger than 16777216 bytes"),
        ("plan.json", "{}", "must end in .yaml, .yml or .toml"),
    ],
)
def test_other_plans_are_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_plan(tmp_path / name)
