"""Processes that load pipelines as a user without the package does, and what they load from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from command_line import environment


TESTS = Path(__file__).parent


class Worker:
    """A process that loads and paints: see loading_worker.py."""

    def __init__(self, folder: Path, **variables: str) -> None:
        # Only what the tests pass: the package's folder must not be on the worker's path.
        inherited = {**environment(**variables), "PYTHONPATH": ""}
        inherited.update(HF_HOME=str(folder / "hf_home"), HF_HUB_DISABLE_TELEMETRY="1")
        self.folder, self.variables = folder, variables
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(TESTS / "loading_worker.py")],
            env=inherited,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def load(self, source: object, call: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Loads; with a call, paints too and adds the "images"."""
        own = {key: str(kwargs.pop(key)) for key in ("embeds", "save", "passed", "over") if key in kwargs}
        order = {"source": str(source), "kwargs": {"trust_remote_code": True, **kwargs}, **own}
        if call is not None:
            order |= {"call": call, "out": str(self.folder / f"{os.urandom(4).hex()}.npy")}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                answer = json.loads(line.removeprefix("ANSWER "))
                return {**answer, "images": np.load(order["out"])} if call and "error" not in answer else answer
        raise AssertionError(f"the worker ended with {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def vl_repository(saved: Path, folder: Path) -> Path:
    """The VL parts of a folder with `vl_encoder` and `vl_processor`, in the form of a Qwen3-VL repository."""
    if not folder.exists():
        shutil.copytree(saved / "vl_encoder", folder)
        for file in (saved / "vl_processor").iterdir():
            shutil.copy(file, folder / file.name)
    return folder
