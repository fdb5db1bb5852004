"""What the README and the pages of docs/ say is what the code does: their Python and their command lines run."""

from __future__ import annotations

import glob
import re
import shlex
import sys
from pathlib import Path

import pytest

from cli_calls import call
from pages import ROOT, desk, python_blocks, run_page  # noqa: F401 - desk is a fixture


sys.path.insert(0, str(ROOT / "tools"))

from model_card import knob_table


README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    zimage-vl ")]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_its_python_runs(page: Path, desk: Path) -> None:  # noqa: F811
    run_page(page)


def test_its_command_lines_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert len(COMMANDS) > 5
    for line in COMMANDS:
        here = line.replace("--offload model ", "")  # which needs an accelerator
        words = [word for part in shlex.split(here, comments=True) for word in glob.glob(part) or [part]]
        small = ["--size", "64x64", "--steps", "2"] if "Tongyi-MAI/Z-Image-Turbo" in words else []
        done = call(capsys, *words[1:], *small)
        assert done.code == 0, (line, done.err)


def test_it_is_short() -> None:
    assert len(README.split("\n## Reference\n")[0].split()) <= 900


def test_its_table_is_the_registry_of_knobs() -> None:
    assert knob_table() in README, "write the output of `python tools/model_card.py --knobs` there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_it_points_to_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link
    if page.name == "CHANGELOG.md":
        return  # what has gone may be named there
    for file in re.findall(r"`(?:python )?((?:benchmarks|tools|requirements|src|tests|examples)/[\w./-]+\w)", text):
        assert (ROOT / file).exists(), file
    assert set(re.findall(r"(?:`|^(?:    )?)make (?:\w+=\S+ )*([\w-]+)", text, re.MULTILINE)) <= TARGETS
