"""The examples run as a user runs them, on the toy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from command_line import environment


EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example, tmp_path):
    target = tmp_path / "picture.png"
    run = subprocess.run(
        [sys.executable, str(example), str(target)], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(target)
    with Image.open(target) as image:
        assert image.size == (64, 64)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 16)) > 16  # neither black nor flat
