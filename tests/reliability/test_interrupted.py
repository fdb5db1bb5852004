"""Commands that are killed, interrupted, out of disk, without rights, or two at a time: no half file is ever taken for
a whole one, nothing is lost, and a second run gives what an undisturbed one gives.

Each command runs in a fork of this process, which has the toy in memory. A full disk is played by the limit that the
system sets to the size of a file (RLIMIT_FSIZE): a write beyond it fails as on a full disk, or kills the process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tally import FACTOR, count, expect, load_toy_once
from zimage_vl import toy
from zimage_vl.cli.app import app
from zimage_vl.toy import Scene, draw_scene


resource = pytest.importorskip("resource", reason="needs the limits of a Unix system")
ROW = "interrupted commands"
COMMANDS = {
    "extract": "extract a.png --text x --layers=-2 --output out",
    "generate": "generate --prompt x --reference a.png --steps 1 --seed 0 --output out/picture.png --overwrite",
    "sweep": "sweep --prompt x --reference a.png --steps 1 --seed 0 --output out",
    "two pictures": "generate --prompt x --steps 1 --seed 0 --num-images 2 --output out/picture.png --overwrite",
    "two references": "extract a.png b.png --text x --layers=-2 --output out",
    "statistics": "statistics --output out/statistics.safetensors --overwrite",
}
# What changes a disk: Python tells of each before it does it.
EVENTS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.symlink"}
Doom = Callable[[Path], None]
Process = tuple[int, int]  # its id, and the pipe of what it says


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Two pictures, and a toy that is loaded already."""
    folder, pipe = tmp_path_factory.mktemp("interrupted"), load_toy_once()
    for name, colour in {"a": "red", "b": "blue"}.items():
        draw_scene(Scene("circle", colour, "white")).save(folder / f"{name}.png")
    if FACTOR > 1:
        pipe.text_statistics()  # which it then knows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "load_toy_pipeline", lambda: pipe)
        yield folder


def start(desk: Path, command: str, doom: Doom | None = None) -> Process:
    """Runs a command in a folder, under its doom."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 99
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        code = run(desk, command, doom)
    finally:
        os._exit(code)  # whatever happens: the rest of the tests is not this process's


def run(desk: Path, command: str, doom: Doom | None) -> int:
    signal.alarm(100)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.chdir(desk)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        if doom is not None:
            doom(desk / "out")
        app(command.split(), prog_name="zimage-vl")
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
    return 99


def end(process: Process, kill_after: float | None = None) -> tuple[int, str]:
    """How it ended, as Python tells it (-9: killed), and what it said."""
    child, reading = process
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # nobody has waited for it, so that the id is still its own
    with open(reading, encoding="utf-8", errors="replace") as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def at_change(number: int, sign: int) -> Doom:
    """A signal in the moment before the disk is changed for the so-manieth time."""

    def doom(folder: Path) -> None:
        left = number

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in EVENTS and not reads and str(folder) in os.path.abspath(str(arguments[0])):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), sign)

        sys.addaudithook(hook)

    return doom


def at_byte(number: int, deadly: bool) -> Doom:
    """No file gets longer than this: the write fails, or it kills, with half a file on the disk."""

    def doom(_: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    return doom


def empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def is_hidden(file: str) -> bool:
    return Path(file).name.startswith(".")


Case = tuple[str, str, dict[str, bytes]]


@pytest.fixture(params=list(COMMANDS)[: len(COMMANDS) if FACTOR > 1 else 3])
def case(request: pytest.FixtureRequest, desk: Path) -> Case:
    """A command, and what it gives undisturbed."""
    empty(desk / "out")
    assert end(start(desk, COMMANDS[request.param]))[0] == 0
    return request.param, COMMANDS[request.param], files(desk / "out")


def disturb(desk: Path, case: Case, how: str, doom: Doom | None = None, kill_after: float | None = None) -> int:
    """Runs a command under its doom, judges what it leaves, and runs it again."""
    (_, command, whole), what = case, f"{case[0]}, {how}"
    count(ROW)
    empty(desk / "out")
    code, told = end(start(desk, command, doom), kill_after)
    count(ROW, "faults injected", code != 0)
    expect(ROW, "Traceback" not in told, f"{what}: {told}")
    found = files(desk / "out")
    hidden = [file for file in found if is_hidden(file)]
    hollow = [path for path in (desk / "out").rglob("*") if path.is_dir() and not any(path.iterdir())]
    expect(ROW, code < 0 or not hidden + hollow, f"{what}: {code} leaves {hidden + hollow}")
    expect(ROW, {file: found[file] for file in found if file not in hidden}.items() <= whole.items(), f"{what}: half")
    expect(ROW, end(start(desk, command))[0] == 0, f"{what}: the second run failed")
    again = files(desk / "out")
    expect(ROW, again == whole, f"{what}: the second run gives {[*again]}", "files lost")
    if command.startswith(("extract", "sweep")):
        listed = set()
        for line in (desk / "out" / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # one that was cut off
                listed.add(json.loads(line)["file"])
        made = {file for file in whole if file.startswith("pictures") or file.endswith(".safetensors")}
        expect(ROW, listed == made, f"{what}: the manifest lists {listed}", "files lost")
    return code


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_interrupted_at_every_change_of_the_disk(desk: Path, case: Case, sign: signal.Signals) -> None:
    step = 6 if case[0] == "sweep" else 2  # of two, each change has one of the signals
    for number in range(80) if FACTOR > 1 else range(sign is signal.SIGINT, 80, step):
        code = disturb(desk, case, f"{sign.name} at change {number}", at_change(number, sign))
        if code == 0:
            assert number > 2
            return
        assert code == (-9 if sign is signal.SIGKILL else 130)
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("deadly", [False, True])
def test_a_disk_that_is_full(desk: Path, case: Case, deadly: bool) -> None:
    size = min(map(len, case[2].values()))
    for number in range(0, size, size // 30) if FACTOR > 1 else [size - 1 if deadly else 100]:
        code = disturb(desk, case, f"a disk of {number} bytes", at_byte(number, deadly))
        assert code == (-signal.SIGXFSZ if deadly else 2)


def test_killed_at_any_moment(desk: Path, case: Case) -> None:
    numbers, begin = random.Random(None if FACTOR > 1 else 0), time.monotonic()
    end(start(desk, case[1]))
    duration = time.monotonic() - begin
    for _ in range(FACTOR):
        moment = numbers.random() * duration
        disturb(desk, case, f"killed after {moment:.3f} s", kill_after=moment)


def test_two_writers_of_one_output(desk: Path, case: Case) -> None:
    name, command, whole = case
    for order in [command.replace(" --overwrite", ""), command][: 2 if FACTOR > 1 else 1]:
        count(ROW)
        empty(desk / "out")
        codes = [end(process)[0] for process in [start(desk, order) for _ in range(2)]]
        expect(ROW, files(desk / "out") == whole, f"two times {name}: {codes}", "files lost")
        replaces = name == "extract" or "--overwrite" in order
        expect(ROW, codes == [0, 0] if replaces else 0 in codes and set(codes) <= {0, 2}, f"two times {name}: {codes}")


def test_a_folder_without_the_right_to_write(desk: Path, case: Case) -> None:
    """As another user where the tests run as root, who may write anywhere."""

    def give_up_rights(_: Path) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

    count(ROW)
    with tempfile.TemporaryDirectory() as place:
        public = Path(place)
        for picture in desk.glob("*.png"):
            shutil.copy(picture, public)
        (public / "out").mkdir(mode=0o555)
        public.chmod(0o755)
        code, told = end(start(public, case[1], give_up_rights))
        expect(ROW, code == 2 and "Traceback" not in told and "out" in told, f"{case[0]}: {code} {told}")
        expect(ROW, not files(public / "out"), f"{case[0]} wrote {[*files(public / 'out')]}")
