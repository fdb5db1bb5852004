"""The frame of the command line: help at once, errors as one line, Ctrl-C without noise."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import zimage_vl
from cli_calls import call
from command_line import environment, run


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"zimage-vl {zimage_vl.__version__}\n")


def test_the_shell_completes_commands_options_and_choices() -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # which looks at the process that runs the tests
    assert "_ZIMAGE_VL_COMPLETE=complete_bash" in run("--show-completion", "bash", **named).stdout
    for words, completed in (
        ("gen", "generate"),
        ("generate --take col", "colours colour-palette"),
        ("extract --tok", ""),
        ("generate --tokens image_", "image_no_markers"),
    ):
        typed = {"COMP_WORDS": f"zimage-vl {words}", "COMP_CWORD": str(len(words.split()))}
        assert run(_ZIMAGE_VL_COMPLETE="complete_bash", **typed).stdout.split() == completed.split()


def test_a_line_comes_before_anything_slow_and_json_shows_no_bars(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from zimage_vl.cli import _models, main\n"
        "announce = _models.note\n"
        "def note(text):\n"
        "    announce(text)\n"
        "    print([name for name in ('torch', 'diffusers') if name in sys.modules], file=sys.stderr)\n"
        "_models.note = note\n"
        "main()"
    )
    given = ("generate", "-p", "x", "--steps", "1", "-o", tmp_path / "x.png", "--seed", "0", "--format", "json")
    done = run(*given, start=(sys.executable, "-c", program))
    assert json.loads(done.stdout)["outputs"] == [str(tmp_path / "x.png")]
    told = "Model: the toy, which knows only coloured shapes; for more: --model Tongyi-MAI/Z-Image-Turbo"
    assert done.stderr.splitlines()[:2] == [told, "[]"]  # what follows are warnings of older libraries
    assert (done.stderr.count(told), done.stderr.count("it/s")) == (1, 0)


def test_ctrl_c_ends_the_imports_too_without_a_traceback() -> None:
    program = (
        "import os, signal, sys\n"
        "from zimage_vl.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background ignore it
        "class Finder:\n"
        "    def find_spec(self, *name):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_closed_stdout_takes_nothing() -> None:
    done = subprocess.run(f"{sys.executable} -m zimage_vl recipes >&-", shell=True, env=environment(), stderr=-1)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("extract", "-h")])
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


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = call(capsys, "--help").out
    for command in ("demo", "generate", "app", "env", "extract", "inspect", "statistics", "evidence"):
        assert f"\n  {command} " in listed


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys)
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_an_unknown_command_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "\x1b[31mpaint\udcff")
    done.refused(r"\x1b[31mpaint\udcff")
    assert "\x1b" not in done.err


def frame_with(body: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The frame with one more command, `fail`, whose body is given."""
    program = (
        "import os, signal\n"
        "from zimage_vl.cli import main\n"
        "from zimage_vl.cli.app import app\n"
        "@app.command('fail')\n"
        "def fail() -> None:\n"
        f"    {body}\n"
        "main()"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


def raise_in_inspect(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr("zimage_vl.reference.embeds.ReferenceEmbeds.load", broken)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("`x` must be\n  above 0, got 0."), "Error: `x` must be above 0, got 0."),
        (FileNotFoundError(2, "No such file or directory", "/nowhere"), "Error: /nowhere: No such file or directory."),
        (OSError("the hub cannot be reached"), "Error: the hub cannot be reached"),
        (NotImplementedError("`vl_start` is not built yet"), "Error: --start is not built yet"),
        (MemoryError(), "Error: MemoryError"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "Error: CUDA out of memory"),
        (ValueError("no \x1b[2J screen \udcff"), r"Error: no \x1b[2J screen \udcff"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in_inspect(monkeypatch, error)
    done = call(capsys, "inspect", "a.safetensors")
    assert (done.code, done.out, done.err) == (2, "", line + "\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_in_inspect(monkeypatch, ValueError("deep down"))
    for arguments in (("--debug", "inspect", "a"), ("inspect", "a", "--debug")):
        with pytest.raises(ValueError, match="deep down"):
            zimage_vl.cli.app.app(list(arguments), standalone_mode=True)
    monkeypatch.undo()
    done = run("inspect", "nowhere", ZIMAGE_VL_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


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


def test_the_package_s_warnings_are_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    package = Path(zimage_vl.__file__).parent

    def warn(_: object) -> None:
        logging.getLogger("zimage_vl.pipeline.inputs").warning("`vl_target_std` does nothing\x1b")
        warnings.showwarning("`reference` is animated", UserWarning, str(package / "reference" / "pictures.py"), 1)
        raise ValueError("done")

    monkeypatch.setattr("zimage_vl.reference.embeds.ReferenceEmbeds.load", warn)
    shown = warnings.showwarning
    done = call(capsys, "inspect", "a")
    assert done.err.splitlines() == [r"--target-std does nothing\x1b", "`reference` is animated", "Error: done"]
    assert warnings.showwarning is shown
    assert not logging.getLogger("zimage_vl").handlers


def test_a_terminal_of_little_encoding_is_written_to(tmp_path: Path) -> None:
    done = run("generate", "-p", "x", "-o", tmp_path / "ä.jpg", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 2
    assert os.fsencode(r"\xe4.jpg").decode() in done.stderr
