"""What a figure was measured on, in words that name no computer and no path."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import diffusers
import torch
import transformers


def describe_machine(device: str | None = None) -> str:
    """Processor, memory, system and versions as a Markdown list; `device` is the accelerator's name."""
    lines = [
        f"processor: {_processor()}, {_usable_cores()} cores, {torch.get_num_threads()} threads for torch",
        f"memory: {_memory_in_gib():.0f} GiB",
        f"system: {_system()}, Python {platform.python_version()}",
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
    ]
    if device is not None:
        lines.insert(0, f"accelerator: {device}")
    return "\n".join(f"- {line}" for line in lines)


def describe_load() -> str:
    """How busy the machine is before anything is measured; a ratio taken on a busy one is worth less."""
    if not hasattr(os, "getloadavg"):
        return "The load of the machine is not known."
    return f"Load of the machine when it began: {os.getloadavg()[0]:.1f} (1-minute average)."


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_in_gib() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):
        return float("nan")


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    return name or platform.system()
