"""The command line: `zimage-vl COMMAND`. One file a command; what is heavy is imported inside the commands."""

from __future__ import annotations

from .app import main


__all__ = ["main"]
