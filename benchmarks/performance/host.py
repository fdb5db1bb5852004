"""Host memory: what `benchmarks/host_memory.py` prints, which starts a process for each way of painting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .page import Section


SCRIPT = Path(__file__).resolve().parents[1] / "host_memory.py"


def measure_host_memory(script: Path = SCRIPT) -> Section:
    """Runs it, for a peak can only be measured in a process of its own.

    Raises:
        RuntimeError: It failed; with its last lines.
    """
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-2000:]}")
    intro = (
        f"Printed by `python benchmarks/{script.name}`: random weights in float32, a process for each way of painting."
    )
    return Section("Host memory", [intro, set_tables_apart(done.stdout)])


def set_tables_apart(text: str) -> str:
    """An empty line before and after each table: without it, it would be part of a paragraph.

    Example:
        >>> set_tables_apart("sizes\\n| a |\\n|---|\\nend")
        'sizes\\n\\n| a |\\n|---|\\n\\nend'
    """
    lines: list[str] = []
    for line in text.strip().splitlines():
        if lines and lines[-1].startswith("|") != line.startswith("|") and lines[-1] and line:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
