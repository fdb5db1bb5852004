"""The processes and machines that share the work of one command; mostly it is one process, alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from ._options import option


_SHARDS = "Machines that share nothing and do a part each, into folders of their own, for `zimage-vl merge`."
_SHARD = "The part of this one, from 0."
NumShardsOption = Annotated[int, option("--num-shards", "INT", _SHARDS, min=1)]
ShardIndexOption = Annotated[int, option("--shard-index", "INT", _SHARD, min=0)]
_Item = TypeVar("_Item")


def take_part(items: Sequence[_Item], parts: int, index: int) -> Sequence[_Item]:
    """Get one of as many parts, neighbours together; a ValueError in the words of the options where there is none.

    Example:
        >>> [list(take_part(range(5), 3, index)) for index in range(3)]
        [[0], [1, 2], [3, 4]]
    """
    if index >= parts:
        raise ValueError(f"--shard-index counts from 0 and must be below --num-shards {parts}, got {index}.")
    return items[slice(*(len(items) * part // parts for part in (index, index + 1)))]


@dataclass(frozen=True)
class Team:
    """The processes that torchrun or `accelerate launch` started for one command.

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

    def share(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Get this process's part."""
        return items if self.state is None else take_part(items, self.state.num_processes, self.state.process_index)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def add_up(self, *counters: Counter[str]) -> list[dict[str, int]]:
        """Get the counts of all processes together, the same in each."""
        return [dict(sum(each, Counter[str]())) for each in zip(*self.gather([counters]), strict=True)]

    def gather(self, own: list[_Item]) -> list[_Item]:
        """Get the items of all processes in their order, the same in each."""
        if self.state is None:
            return own
        from accelerate.utils import gather_object

        return list(gather_object(own))

    def leave(self) -> None:
        """End what accelerate began."""
        if self.state is not None:
            import torch

            torch.distributed.destroy_process_group()
