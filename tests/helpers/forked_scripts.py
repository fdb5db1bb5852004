"""Runs scripts, each in a process of its own that is forked from one which has only imported the libraries."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest

from command_line import environment


def _run(script: Path, target: Path) -> None:
    """As `python SCRIPT TARGET` in the target's folder, its output in files."""
    for suffix, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(target.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
    os.chdir(target.parent)
    sys.argv = [str(script), str(target)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def run_forked(script: Path, target: Path) -> tuple[int | None, str, str]:
    """Exit code, stdout, stderr."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusers", "torch", "transformers", "zimage_vl.toy.loading"])
    with pytest.MonkeyPatch.context() as patch:  # what the process that all are forked from begins with
        for name, value in environment().items():
            patch.setenv(name, value)
        process = context.Process(target=_run, args=(script, target))
        process.start()
    process.join()
    out, err = (target.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".out", ".err"))
    return process.exitcode, out, err
