"""The command line: `zimage-vl COMMAND`. One file a command; what is heavy is imported inside the commands."""

from __future__ import annotations

import sys


_INTERRUPTED = 130  # what shells report for Ctrl-C


def main() -> None:
    """Run the `zimage-vl` console script.

    Exit codes: 0 done; 2 something in the call has to change (one line on stderr says what); 3 done but for some of
    many inputs, which stderr names; 1 any other failure, with its traceback; 130 interrupted.
    """
    try:
        from .app import app  # here, so that Ctrl-C ends these imports too without a traceback

        app(prog_name="zimage-vl")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


__all__ = ["main"]
