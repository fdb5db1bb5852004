"""The Makefile: its help names every target, and nothing is installed but under a lock."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {name for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}
RECIPES = dict(re.findall(r"^([\w-]+):[^=\n]*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
FILES = set(re.findall(r"\b(?:tools|tests|benchmarks|requirements)/[\w/.-]+\.\w+", MAKEFILE))


def test_the_help_names_every_target_each_does_something_and_its_files_exist() -> None:
    assert set(re.findall(r"make ([\w-]+) ", RECIPES["help"])) == TARGETS - {"help"}
    assert set(RECIPES) | {"setup"} == TARGETS
    assert [name for name in FILES if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("environment", "lock"), [(".venv", "current"), (".venv-oldest", "oldest"), (".venv-newest", "")]
)
def test_every_environment_is_set_up_under_its_lock_alone(environment: str, lock: str) -> None:
    target = f"{environment}/quantised"
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "PIP_ARGS=", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    installs = [line for line in done.stdout.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert "torch==" in installs[0]
    for line in installs:
        assert line.startswith(f"{environment}/bin/python -m pip install")
        assert re.findall(r"-c (\S+)", line) == ([f"requirements/{lock}.txt"] if lock else [])


def test_the_result_with_the_newest_versions_blocks_nothing() -> None:
    assert '|| echo "With the newest versions: FAILED' in RECIPES["test-newest"]


def test_the_integration_checks_and_tests() -> None:
    steps = re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == ["check", "test"]
