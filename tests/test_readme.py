"""What the README promises is what the code has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from zimage_vl.pipeline.pipeline_z_image_vl import ZImageVLPipeline


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `((?:vl|reference|neutral)_\w+)` \|.*\| `([^`]*)` \|$", README, re.MULTILINE))
KNOBS = {
    name: parameter.default
    for name, parameter in inspect.signature(ZImageVLPipeline.__call__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}


def test_the_table_has_every_knob_and_no_other():
    assert set(ROWS) == set(KNOBS)


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_the_table_states_the_default(name):
    assert ROWS[name] == repr(KNOBS[name])


def test_its_pictures_and_pages_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []


def test_the_files_and_commands_it_names_exist():
    named = set(re.findall(r"`?(?:python )?((?:benchmarks|tools|requirements|src|pipelines)/[\w./]+\w)", README))
    assert {"benchmarks/toy_table.py", "benchmarks/memory.py", "tools/train_toy.py"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
