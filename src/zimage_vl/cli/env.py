"""`zimage-vl env`: what runs here, for a bug report."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer

from zimage_vl._version import __version__

from ._records import RECORDED_PACKAGES, get_package_versions
from ._terminal import FormatOption, OutputFormat, print_facts


_PACKAGES = (*RECORDED_PACKAGES, "accelerate", "safetensors", "huggingface-hub", "pillow", "numpy", "typer")
_OPTIONAL_PACKAGES = ("torchvision", "peft", "torchao", "bitsandbytes")


def env(
    output_format: FormatOption = OutputFormat.TEXT,
    devices: Annotated[
        bool, typer.Option(help="Import torch and list the accelerators; without, versions only.")
    ] = True,
) -> None:
    """Print the versions and devices that a bug report needs."""
    facts = collect_environment(devices)
    if output_format is OutputFormat.TEXT:
        packages, torch_facts, found = facts.pop("packages"), facts.pop("torch"), facts.pop("devices")
        facts |= {name: version or "not installed" for name, version in packages.items()} | torch_facts
        for device in found:
            memory = device["memory_bytes"]
            size = "" if memory is None else f", {memory / 2**30:.1f} GiB"
            facts[f"device {device['device']}"] = device["name"] + size
    print_facts(facts, output_format)


def collect_environment(with_devices: bool = True) -> dict[str, Any]:
    """Get versions and, if torch may be imported, devices as plain values; what is not known is None."""
    optional = {name: version for name, version in get_package_versions(_OPTIONAL_PACKAGES).items() if version}
    torch_facts, devices = _ask_torch() if with_devices else ({}, [])
    return {
        "zimage-vl": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {**get_package_versions(_PACKAGES), **optional},
        "torch": torch_facts,
        "devices": devices,
    }


def _ask_torch() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What torch was built for and what it finds; a torch that does not import is a finding too."""
    try:
        torch: Any = import_module("torch")
    except Exception as error:  # the report must come out whatever is broken
        return {"torch_error": f"{type(error).__name__}: {error}"}, []
    has_mps = bool(torch.backends.mps.is_available())
    facts = {
        "torch_cuda": torch.version.cuda or getattr(torch.version, "hip", None) or "not in this build",
        "torch_mps": "available" if has_mps else "not available",
        "torch_threads": torch.get_num_threads(),
    }
    found: list[tuple[str, str, int | None]] = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", properties.name, properties.total_memory))
    if has_mps:
        found.append(("mps", platform.processor(), torch.mps.recommended_max_memory()))
    memory = None
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found.append(("cpu", f"{platform.machine()}, {os.cpu_count()} cores", memory))
    return facts, [dict(zip(("device", "name", "memory_bytes"), row, strict=True)) for row in found]
