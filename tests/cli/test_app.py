"""The frame of the command line: help at once, errors as one line, Ctrl-C without noise."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import zimage_vl
from command_line import environment, run


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"zimage-vl {zimage_vl.__version__}\n")


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("generate", "--help"), ("env", "-h")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from zimage_vl.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout.startswith("Usage: zimage-vl")


def test_every_command_is_listed() -> None:
    listed = run("--help").stdout
    for command in ("demo", "generate", "env"):
        assert f"\n  {command} " in listed


def test_no_command_shows_the_help_and_fails() -> None:
    done = run()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_an_unknown_command_is_refused() -> None:
    done = run("paint")
    assert done.returncode == 2
    assert "paint" in done.stderr
    assert "Traceback" not in done.stderr


def frame_with(body: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The frame with one more command, `fail`, whose body is given."""
    program = (
        "import os, signal\n"
        "from zimage_vl.cli.app import app, main\n"
        "@app.command('fail')\n"
        "def fail() -> None:\n"
        f"    {body}\n"
        "main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise ValueError('`x` must be\\n  above 0, got 0.')", "Error: `x` must be above 0, got 0."),
        ("open('/nowhere/at/all')", "Error: /nowhere/at/all: No such file or directory."),
        ("raise OSError('the hub cannot be reached')", "Error: the hub cannot be reached"),
        ("raise NotImplementedError('`vl_start` is not built yet')", "Error: `vl_start` is not built yet"),
        ("raise MemoryError", "Error: MemoryError"),
        ("raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory')", "Error: CUDA out of memory"),
    ],
)
def test_what_the_user_can_mend_is_one_line(body: str, line: str) -> None:
    done = frame_with(body, "fail")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


def test_debug_shows_the_traceback() -> None:
    for arguments, variables in ((("--debug", "fail"), {}), (("fail",), {"ZIMAGE_VL_DEBUG": "1"})):
        done = frame_with("raise ValueError('deep down')", *arguments, **variables)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ValueError: deep down" in done.stderr


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    done = frame_with("{}['missing']", "fail")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError" in done.stderr


def test_ctrl_c_is_quiet() -> None:
    assert signal.SIGINT == 2
    # A process started in the background may have inherited to ignore it.
    heed = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    done = frame_with(f"{heed}; os.kill(os.getpid(), signal.SIGINT)", "fail")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
