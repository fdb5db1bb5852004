"""How long the package and the command line take to start, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zimage_vl

from .page import Finding, Section, findings_table, show_seconds
from .timing import Spread, interleave, ratio


# What the console script does.
_COMMAND = "import sys; sys.argv[0] = 'zimage-vl'; from zimage_vl.cli import main; sys.exit(main())"
HELP_GOAL = 0.5
QUICK = ("python -c pass", "import zimage_vl", "zimage-vl --help", "zimage-vl generate --help")


def _programs() -> dict[str, list[str]]:
    return {
        "python -c pass": ["-c", "pass"],
        "import zimage_vl": ["-c", "import zimage_vl"],
        "zimage-vl --help": ["-c", _COMMAND, "--help"],
        "zimage-vl generate --help": ["-c", _COMMAND, "generate", "--help"],
        "from diffusers import ZImagePipeline": ["-c", "from diffusers import ZImagePipeline"],
        "from zimage_vl import ZImageVLPipeline": ["-c", "from zimage_vl import ZImageVLPipeline"],
    }


def measure_imports(rounds: int, *, heavy: bool = True) -> Section:
    """Each as a process, in turns.

    Args:
        rounds: How often each is started, after one start that fills the disk cache.
        heavy: Whether torch and diffusers are started too.
    """
    # The package that runs here, wherever it is installed; unwritten bytecode would be compiled at each start.
    source = str(Path(zimage_vl.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(arguments: list[str]) -> Callable[[int], Any]:
        command = [sys.executable, *arguments]
        return lambda _: subprocess.run(command, env=environment, capture_output=True, check=True)

    chosen = {name: start(arguments) for name, arguments in _programs().items() if heavy or name in QUICK}
    times = interleave(chosen, rounds)
    findings = []
    for name in chosen:
        found = Spread.of(times[name])
        aims = name == "zimage-vl --help"
        findings.append(
            Finding(
                f"`{name}`",
                f"< {HELP_GOAL} s" if aims else "",
                show_seconds(found),
                found.median < HELP_GOAL if aims else None,
            )
        )
    blocks = [f"Whole processes, {rounds} starts each, files in the disk cache.", findings_table(findings)]
    if heavy:
        over = ratio(times, "from zimage_vl import ZImageVLPipeline", "from diffusers import ZImagePipeline")
        blocks.append(f"Importing our pipeline takes {over.median:.2f} times what importing diffusers' own takes.")
    return Section("Start-up", blocks)
