"""`zimage-vl recipes`: every recipe, its wishes, and options that give the same knobs."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from cli_calls import call
from zimage_vl.cli.recipes import ABOUT
from zimage_vl.recipes import RECIPES, WISHES


def test_each_recipe_is_listed_with_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ABOUT) == set(RECIPES) - set(WISHES)
    lines = call(capsys, "recipes").out.splitlines()
    assert [line.split(", ")[-1] for line in lines[::3]] == list(ABOUT)
    assert "colours, colour-palette" in lines
    told = json.loads(call(capsys, "recipes", "--format", "json").out)
    assert {name: facts["knobs"] for name, facts in told.items()} == {name: RECIPES[name] for name in ABOUT}
    assert told["composition"]["wishes"] == ["layout"]


def test_its_options_are_the_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The third line of each, typed behind generate, gives its knobs."""
    seen: list[Any] = []

    def stop(asked: Any) -> None:
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
