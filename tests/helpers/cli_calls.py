"""Calls the command line in this process: quick, with what it printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zimage_vl.cli.app import app


@dataclass(frozen=True)
class Call:
    """How a command ended and what it said."""

    code: int | str | None
    out: str
    err: str

    def refused(self, *reasons: str) -> None:
        """Asserts that it ended with code 2, printed no result, and gave these reasons in its last line."""
        assert (self.code, self.out) == (2, ""), self.err
        assert "Traceback" not in self.err
        for reason in reasons:
            assert reason in self.err.splitlines()[-1]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Call:
    """`zimage-vl ARGUMENTS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        app([str(argument) for argument in arguments], prog_name="zimage-vl")
    printed = capsys.readouterr()
    return Call(stop.value.code or 0, printed.out, printed.err)


def read_png(path: Path) -> tuple[Any, dict[str, Any]]:
    """The pixels of a PNG and how it was made."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")), json.loads(image.info["parameters"])
