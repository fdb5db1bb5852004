"""Runs scripts, each in a process of its own that has only imported the libraries: forked, so that they load once.

A line of JSON on stdin is a script, `{"script", "arguments", "cwd", "out", "err"}`; the answer is how it ended.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any


def run_script(order: dict[str, Any]) -> None:
    """As `python SCRIPT ARGUMENTS` in a folder, its output in files."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(order[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
    os.chdir(order["cwd"])
    sys.argv = [order["script"], *order["arguments"]]
    sys.path[0] = os.path.dirname(order["script"])
    runpy.run_path(order["script"], run_name="__main__")


def exit_code(function: Callable[[], None]) -> int:
    """How a process that does only this would end."""
    import traceback

    try:
        function()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import diffusers  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import zimage_vl.toy.loading  # noqa: F401 - all that the examples have in common

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            code = exit_code(lambda order=order: run_script(order))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
