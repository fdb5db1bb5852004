"""The processes that torchrun or `accelerate launch` started for one sweep; mostly it is one, alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Team:
    """The processes of a sweep.

    Attributes:
        kind: The device's, the same for all.
        device: This process's own.
        state: accelerate's `PartialState`; None for a process alone.
    """

    kind: str
    device: str
    state: Any = None

    @classmethod
    def join(cls, kind: str) -> Team:
        """Meet the others, where there are others."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls(kind, kind)
        if ":" in kind:
            raise ValueError(f"--device {kind} is one for all processes: leave it out, and each gets its own.")
        from accelerate import PartialState

        # A process that is done waits for the last, however long that takes.
        state = PartialState(cpu=kind == "cpu", timeout=timedelta(days=365))
        return cls(kind, str(state.device), state)

    @property
    def is_main(self) -> bool:
        """Whether this process reports."""
        return self.state is None or self.state.is_main_process

    def share(self, numbers: range) -> Sequence[int]:
        """Get this process's part, as many neighbours together as can be."""
        if self.state is None:
            return numbers
        import torch

        with self.state.split_between_processes(torch.arange(numbers.start, numbers.stop)) as own:
            return own.tolist()

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def add_up(self, *counters: Counter[str]) -> list[dict[str, int]]:
        """Get the counts of all processes together, the same in each."""
        found = [counters]
        if self.state is not None:
            from accelerate.utils import gather_object

            found = gather_object(found)
        return [dict(sum(each, Counter[str]())) for each in zip(*found, strict=True)]

    def leave(self) -> None:
        """End what accelerate began."""
        if self.state is not None:
            import torch

            torch.distributed.destroy_process_group()
