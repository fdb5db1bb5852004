"""The examples run, on the toy and in their branch for the real weights: each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from PIL import Image

from command_line import environment
from forked_scripts import run_forked
from pages import desk, substitute  # noqa: F401 - desk is a fixture


FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
HAS_FORK = hasattr(os, "fork")
FIRST = FOLDER / "first_call.py"
# Those whose branch for the real weights downloads nothing more: the ControlNet's does.
COMPLETE = [path for path in EXAMPLES if path.stem != "controlnet"]
# What an example needs that the oldest version of diffusers does not have.
NEEDED = {"inpaint": "ZImageInpaintPipeline", "controlnet": "ZImageControlNetPipeline"}


def run_alone(script: Path, target: Path) -> tuple[int | None, str, str]:
    """`python SCRIPT TARGET`: exit code, stdout, stderr."""
    command = [sys.executable, str(script), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=target.parent, check=False)
    return done.returncode, done.stdout, done.stderr


def check_picture(path: Path) -> None:
    """Pictures of the toy's size side by side; the last is always a painted one."""
    with Image.open(path) as image:
        assert (image.height, image.width % 64) == (64, 0)
        last = image.convert("RGB").crop((image.width - 64, 0, image.width, 64))
    colours = last.getcolors(maxcolors=1 << 16)
    assert colours is not None
    assert len(colours) > 100  # neither black nor flat nor drawn


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path) -> None:
    target = tmp_path / f"{example.stem}.png"
    code, out, err = (run_forked if HAS_FORK and example != FIRST else run_alone)(example, target)
    if not hasattr(diffusers, NEEDED.get(example.stem, "ZImagePipeline")):
        assert (code, f"has no {NEEDED[example.stem]}: install a newer one" in err) == (1, True)
        pytest.skip(f"diffusers {diffusers.__version__} has no {NEEDED[example.stem]}; the example says so")
    assert code == 0, err
    assert out.splitlines()[-1] == str(target)
    check_picture(target)


@pytest.mark.parametrize("example", COMPLETE, ids=lambda path: path.stem)
def test_its_branch_for_the_real_weights_runs(example: Path, desk: Path) -> None:  # noqa: F811
    if not hasattr(diffusers, NEEDED.get(example.stem, "ZImagePipeline")):
        pytest.skip(f"diffusers {diffusers.__version__} has no {NEEDED[example.stem]}")
    code = example.read_text(encoding="utf-8")
    assert code.count('\nMODEL = "toy"\n') == 1
    script = desk / example.name
    real = code.replace('MODEL = "toy"', 'MODEL = "Tongyi-MAI/Z-Image-Turbo"')
    script.write_text(substitute(real), encoding="utf-8")
    status, _, err = (run_forked if HAS_FORK else run_alone)(script, desk / f"{example.stem}.png")
    assert status == 0, err


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_settings_of_the_toy_stay_with_the_toy(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    assert f"python examples/{example.name} [OUTPUT.png]" in text
    toy, rest = text.split('if MODEL == "toy":\n', 1)[1].split("\nelse:\n", 1)
    assert not re.search(r"vl_hidden_layer|token_rms|vl_alpha=(?!0\.3)", rest)
    assert "vl_alpha" in toy + rest or example.stem == "recipes"
