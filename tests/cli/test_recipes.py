"""`zimage-vl recipes`: every recipe, its figures, and options that give the same knobs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_calls import call
from zimage_vl.cli.recipes import ABOUT, CHANCE
from zimage_vl.recipes import RECIPES, WISHES


def test_each_recipe_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ABOUT) == set(RECIPES)
    assert tuple(ABOUT)[:4] == WISHES
    lines = call(capsys, "recipes").out.splitlines()
    assert lines[::3] == list(ABOUT)
    told = json.loads(call(capsys, "recipes", "--format", "json").out)
    assert {name: facts["knobs"] for name, facts in told.items()} == dict(RECIPES)


def test_its_figures_are_those_of_the_evidence() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.evidence.measurements import Measurements

    measured = Measurements.load()
    for name, (_, *told) in ABOUT.items():
        shares = [measured.get_share(f"recipes/{name}/open", axis) for axis in ("kept", "followed")]
        assert told == [round(share[0], 2) for share in shares if share], name
    chance = measured.get_share("controls/no reference/open", "followed")
    assert chance
    assert round(chance[0], 2) == CHANCE


def test_its_options_are_the_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The third line of each, typed behind generate, gives its knobs."""
    seen: list[Any] = []

    def stop(asked: Any, _: Any) -> None:
        seen.append(asked.knobs)
        raise ValueError("seen")

    monkeypatch.setattr("zimage_vl.cli.generate._check_together", stop)
    lines = call(capsys, "recipes").out.splitlines()
    for name, options in zip(ABOUT, lines[2::3], strict=True):
        call(capsys, "generate", "-p", "x", "-o", "x.png", *shlex.split(options)).refused("seen")
        typed = seen.pop()
        alpha, wanted = typed.pop("vl_alpha"), dict(RECIPES[name])
        assert {name: float(value) for name, _, value in (text.rpartition("=") for text in alpha)} == (
            wanted.pop("vl_alpha") if "=" in alpha[0] else {"": wanted.pop("vl_alpha")}
        )
        assert typed == wanted
