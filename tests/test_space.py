"""The Space: its settings are those of the lock, and it serves the page from the package."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from command_line import environment


ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"


# A process that is started in the background may have inherited to ignore Ctrl-C.
RUN = "import runpy, signal, sys; signal.signal(2, signal.default_int_handler); runpy.run_path(sys.argv[1])"


def test_its_settings_are_those_of_the_lock() -> None:
    _, front, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = dict(line.split(": ", 1) for line in front.splitlines())
    lock = (ROOT / "requirements" / "current.txt").read_text(encoding="utf-8")
    assert re.findall(r"^gradio==(.+)$", lock, re.MULTILINE) == [settings["sdk_version"]]
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert len(settings["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8") == "zimage-vl[app]\n"
    assert "ZIMAGE_VL_APP" in text


def test_it_serves_the_page(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="no gradio here: `make test-app` brings it")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = environment(ZIMAGE_VL_APP=f"--host 127.0.0.1 --port {port}", TMPDIR=str(tmp_path))
    command = [sys.executable, "-c", RUN, str(SPACE / "app.py")]
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"zimage-vl" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    assert (code, [path for path in tmp_path.rglob("*") if path.is_file()]) == (130, [])
