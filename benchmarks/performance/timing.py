"""Times taken side by side in one run, and what can be said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values; of one value alone, three times that value."""

    median: float
    lower: float
    upper: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            raise ValueError("A spread needs at least one value, got none.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        lower, _, upper = quantiles(values, n=4, method="inclusive")
        return cls(median(values), lower, upper, len(values))

    def holds(self, value: float) -> bool:
        return self.lower <= value <= self.upper


def interleave(
    sides: Mapping[str, Callable[[int], Any]],
    rounds: int,
    *,
    warmups: int = 1,
    synchronize: Callable[[], None] = lambda: None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, taken in turns: A B A B ..., so that what drifts on the machine drifts for all alike.

    Args:
        sides: Name to what is timed; called with the number of the round (-1, -2, ... in warm-ups).
        rounds: How often each side is timed.
        warmups: Rounds before, untimed.
        synchronize: Waits for an accelerator; called before and after each side, within the time taken.
        check: Called after each round with what the sides returned, outside of the times.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmups, rounds):
        results: dict[str, Any] = {}
        for name, side in sides.items():
            synchronize()
            begin = time.perf_counter()
            results[name] = side(number)
            synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - begin)
        if check is not None and number >= 0:
            check(results)
    return times


def ratio(times: Mapping[str, Sequence[float]], side: str, base: str) -> Spread:
    """Of the ratios within each round: neighbours in time are compared with each other."""
    return Spread.of([a / b for a, b in zip(times[side], times[base], strict=True)])
