"""The tests of quantised models, in processes that can import what quantises.

torchao and bitsandbytes lie in a folder of their own, `quantised` in the environment (`make test` puts them there):
diffusers imports them wherever they are installed, which costs every other test its time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment


TESTS = Path(__file__).parent
LIBRARIES = Path(sys.prefix) / "quantised"
SKIPPING = re.compile(r'importorskip\("(?:torchao|bitsandbytes)"\)')
FILES = [path for path in sorted(TESTS.rglob("test_*.py")) if SKIPPING.search(path.read_text(encoding="utf-8"))]


@pytest.mark.slow
@pytest.mark.skipif(not LIBRARIES.is_dir(), reason=f"there is no {LIBRARIES.name} folder: `make test` makes it")
@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="the tests run here by themselves")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_quantised_models(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "-k", "quantised"]
    paths = os.pathsep.join([str(LIBRARIES), environment()["PYTHONPATH"]])
    # Not xdist's own variables, which say that this process is one of its workers.
    inherited = {name: "" for name in os.environ if name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, str(file)],
        env={**environment(PYTHONPATH=paths), **inherited},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not import" not in done.stdout, done.stdout
