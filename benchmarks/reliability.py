"""Print the table of docs/reliability.md: what tests/reliability tries, and how it ends. Ten times the cases of
`make test`, other ones each time; `FUZZ=100` in the environment for more."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
ROWS = ("arguments", "knobs", "files", "pictures", "plans and manifests", "faults", "interrupted commands")


def main() -> int:
    """Run the tests in this process, print the table, return their exit status."""
    os.environ.setdefault("FUZZ", "10")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from tally import COLUMNS, COUNTS

    os.chdir(ROOT)
    status = pytest.main(["tests/reliability", "-p", "no:cacheprovider", *sys.argv[1:]])
    print("| | " + " | ".join(COLUMNS) + " |\n|---|" + "--:|" * len(COLUMNS))
    for row in ROWS:
        print(f"| {row} | " + " | ".join(f"{COUNTS[row][column]:,}" for column in COLUMNS) + " |")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
