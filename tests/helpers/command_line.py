"""Runs the command line as a person does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


SOURCE = Path(__file__).parent.parent.parent / "src"
START = (sys.executable, "-m", "zimage_vl")
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TWO_PROCESSES = (*_TORCHRUN, "-m", "zimage_vl")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment with the checkout's package in it, one thread, and no network to a hub."""
    inherited = {key: value for key, value in os.environ.items() if key != "ZIMAGE_VL_DEBUG"}
    paths = os.pathsep.join(filter(None, [str(SOURCE), inherited.get("PYTHONPATH", "")]))
    return {**inherited, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}


def run(*arguments: object, start: Sequence[str] = START, **variables: str) -> subprocess.CompletedProcess[str]:
    """`zimage-vl ARGUMENTS` with these environment variables."""
    command = [*start, *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)
