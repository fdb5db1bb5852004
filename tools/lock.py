#!/usr/bin/env python
"""Resolve what setup.cfg asks for into requirements/current.txt and requirements/oldest.txt.

    python tools/lock.py              # keeps the versions of the locks where setup.cfg still allows them
    python tools/lock.py --upgrade    # takes newer ones; every other argument goes to `uv pip compile` as well

Each lock is for every platform and for Python 3.10 and later. It is used as a constraint, never installed as a whole.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("current", "oldest")
#: The extras that are locked beside dev; the oldest lock pins their lower bounds, as those of the package itself.
_EXTRAS = {"current": ("evidence", "app", "quantised"), "oldest": ("evidence", "quantised")}
_HEADER = "# Written by `make lock` from setup.cfg and requirements/{name}.in: do not edit.\n"


def read_requirements(name: str) -> list[str]:
    """Get what a lock is resolved from, one requirement per entry."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = settings["options.extras_require"]
    bounds = _split(settings["options"]["install_requires"])
    bounds += [line for extra in _EXTRAS[name] for line in _split(extras[extra])]
    if name == "oldest":
        bounds = [line.replace(">=", "==") for line in bounds]
    added = _split((ROOT / "requirements" / f"{name}.in").read_text(encoding="utf-8"))
    return bounds + _split(extras["dev"]) + added


def _split(text: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("zimage-vl[")]


def main(arguments: Sequence[str]) -> int:
    """Write the locks; return the exit status."""
    uv = Path(sys.executable).with_name("uv")
    options = ["--universal", "--python-version=3.10", "--no-annotate", "--no-header", "--strip-extras", "--quiet"]
    for name in LOCKS:
        lock = ROOT / "requirements" / f"{name}.txt"
        with tempfile.TemporaryDirectory() as folder:
            # uv keeps the versions of the file that it writes to. A lock that stays the same is not written: make
            # looks at its time.
            output = Path(folder) / lock.name
            shutil.copy(lock, output)
            command = [str(uv), "pip", "compile", *options, "-", "--output-file", str(output), *arguments]
            done = subprocess.run(command, input="\n".join(read_requirements(name)), text=True, check=False)
            if done.returncode:
                return done.returncode
            lines = output.read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if not line.startswith(("#", "--"))]
        text = _HEADER.format(name=name) + "\n".join(pins) + "\n"
        if text != lock.read_text(encoding="utf-8"):
            lock.write_text(text, encoding="utf-8", newline="\n")
        print(f"requirements/{name}.txt holds {len(pins)} pins.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
