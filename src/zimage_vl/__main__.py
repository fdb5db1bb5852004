"""`python -m zimage_vl`: the command line."""

from __future__ import annotations

from zimage_vl.cli import main


if __name__ == "__main__":
    main()
