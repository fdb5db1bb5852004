"""How hard tests/reliability tries, and what it counts for benchmarks/reliability.py.

`FUZZ=50` in the environment tries fifty times as many cases, other ones each time; without, they are always the same.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from zimage_vl.toy import load_toy_pipeline


FACTOR = int(os.environ.get("FUZZ", "1"))
COLUMNS = ("cases tried", "faults injected", "wrong results", "files lost", "hooks left")
COUNTS: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by row of the table


def fuzz(cases: int) -> Callable[[Any], Any]:
    """Decorates a test that hypothesis gives its cases: that many, times FUZZ."""
    return settings(
        max_examples=cases * FACTOR,
        derandomize=FACTOR == 1,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink][: 3 if FACTOR > 1 else 2],
        suppress_health_check=list(HealthCheck),
    )


def count(row: str, column: str = "cases tried", number: int = 1) -> None:
    """One more of what the table counts."""
    assert column in COLUMNS
    COUNTS[row][column] += number


def expect(row: str, holds: object, message: object = "", column: str = "wrong results") -> None:
    """Asserts, and counts where it does not hold."""
    if not holds:
        count(row, column)
        raise AssertionError(f"{row}, {column}: {message!s:.700}")


def is_ours(error: BaseException) -> bool:
    """A line of ours raised it on purpose: no slip within one, nothing from a library, and a message to read."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = "zimage_vl" in Path(last.filename).parts and (last.line or "").startswith("raise ")
    return ours and isinstance(error, (ValueError, TypeError)) and len(str(error)) > 15


#: How a file's bytes are changed: what is done, where (0..1), with which number.
CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "drop", "add"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def change(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Content with such changes, half of them within the first eighth."""
    for how, place, number in changes:
        at = int(place**3 * (len(content) - 1))
        byte, rest = content[at : at + 1] or b"\0", content[at + 1 :]
        new = {"flip": bytes([byte[0] ^ 1 << number % 8]), "set": bytes([number]), "add": byte * (number + 2)}
        content = content[:at] + new.get(how, b"") + (rest if how != "cut" else b"")
    return content


@cache
def load_toy_once() -> Any:
    """The toy, without a bar of progress."""
    pipe = load_toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe
