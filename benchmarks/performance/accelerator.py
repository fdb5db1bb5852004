"""One face for a GPU and for the CPU: waiting, marks in time, memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch


class Accelerator:
    """Where models run. On the CPU there is nothing to wait for, and memory is not counted: None.

    Args:
        device: "cuda", with or without an index, or "cpu".
    """

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        if self.device.type not in ("cuda", "cpu"):
            raise ValueError(f"`device` must be a cuda device or cpu, got {str(device)!r}.")
        if self.is_gpu and not torch.cuda.is_available():
            raise RuntimeError("`device` is a cuda device, but torch finds none here. Use --device cpu.")
        if self.is_gpu:
            if self.device.index is None:
                self.device = torch.device("cuda", torch.cuda.current_device())
            torch.cuda.set_device(self.device)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str | None:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else None

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """A point in the device's own time, in order with the work that was queued before it."""
        if not self.is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Between two marks; call `synchronize` first."""
        return begin.elapsed_time(end) / 1000 if self.is_gpu else end - begin

    # ---- Memory ----

    def free(self) -> None:
        """Let go of what nobody holds, so that the next peak is that of the next thing alone."""
        self.synchronize()
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def allocated(self) -> int | None:
        """Bytes of live tensors."""
        self.synchronize()
        return torch.cuda.memory_allocated(self.device) if self.is_gpu else None

    def peak_of(self, work: Callable[[], Any]) -> int | None:
        """The most bytes of live tensors while `work` ran, from freed caches on; what it returns is let go."""
        self.free()
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) if self.is_gpu else None
