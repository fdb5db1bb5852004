"""The Makefile: its help names every target, and its recipes name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {name for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
RECIPES = dict(re.findall(r"^([\w-]+):[^=\n]*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))


def test_the_help_names_every_target_and_no_other() -> None:
    named = set(re.findall(r"make ([\w-]+) ", RECIPES["help"]))
    assert named == TARGETS - {"help"}


def test_every_target_does_something() -> None:
    assert set(RECIPES) | {"setup"} == TARGETS


@pytest.mark.parametrize("target", sorted(RECIPES))
def test_the_files_of_its_recipe_exist(target: str) -> None:
    named = re.findall(r"\b(?:tools|tests|benchmarks|requirements)/[\w/.-]+\.\w+", RECIPES[target])
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert "[ -f" not in RECIPES[target], "a recipe that doubts whether its own file exists"
