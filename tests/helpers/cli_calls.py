"""Calls the command line in this process: quick, with what it printed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from zimage_vl.cli.app import app


@dataclass(frozen=True)
class Call:
    """How a command ended and what it said."""

    code: int | str | None
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Call:
    """`zimage-vl ARGUMENTS`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        app([str(argument) for argument in arguments], prog_name="zimage-vl")
    printed = capsys.readouterr()
    return Call(stop.value.code or 0, printed.out, printed.err)
