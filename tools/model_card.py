#!/usr/bin/env python
"""Fill in the model card of the Hub repository, or print the table of knobs that it shares with README.md.

    python tools/model_card.py owner/name        # prints the card as it is to be published there
    python tools/model_card.py --knobs           # prints the table of all call parameters, from the registry of knobs

pipelines/zimage_vl/README.md is a template: the repository's name and the version are known when it is published.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "pipelines" / "zimage_vl" / "README.md"
VERSION_FILE = ROOT / "src" / "zimage_vl" / "_version.py"

_TEMPLATE_NOTE = re.compile(r"<!-- A template: .*? -->\n+", re.DOTALL)


def fill_model_card(card: str, repo: str, version: str) -> str:
    """Get the card for a repository, without a placeholder.

    Args:
        card: The template's text.
        repo: `owner/name` on the Hub.
        version: Such as `0.1.0`; the card pins the tag `v0.1.0`.

    Raises:
        ValueError: `repo` is no repository id, or the template has a placeholder that is not known.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise ValueError(f"The repository must be given as owner/name, got {repo!r}.")
    filled = _TEMPLATE_NOTE.sub("", card).replace("{{REPO}}", repo).replace("{{VERSION}}", version)
    left = re.search(r"\{\{[A-Z_]+\}\}", filled)
    if left is not None:
        raise ValueError(f"The model card has a placeholder that nothing fills: {left.group()}.")
    return filled


def read_version(file: Path = VERSION_FILE) -> str:
    """Get the package's version, without importing it."""
    found = re.search(r'^__version__ = "(.+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{file} does not bind __version__ to a string.")
    return found.group(1)


def knob_table() -> str:
    """Get the table of all call parameters about references, in Markdown, from `zimage_vl.blend.knobs.KNOBS`."""
    from zimage_vl.blend.registry import KNOBS

    lines = ["| argument | values | default | meaning |", "|---|---|---|---|"]
    for knob in KNOBS.values():
        default = f'"{knob.default}"' if isinstance(knob.default, str) else repr(knob.default)
        cells = (f"`{knob.name}`", knob.values, f"`{default}`", knob.help)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the filled card, or the table of knobs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("repo", nargs="?", help="owner/name of the Hub repository")
    wanted.add_argument("--knobs", action="store_true", help="the table of knobs instead")
    options = parser.parse_args(arguments)
    try:
        if options.knobs:
            print(knob_table(), end="")
            return 0
        print(fill_model_card(CARD.read_text(encoding="utf-8"), options.repo, read_version()), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
