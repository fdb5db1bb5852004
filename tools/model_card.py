#!/usr/bin/env python
"""Fill in the model card of the Hub repository, or print the table of knobs that it shares with README.md.

    python tools/model_card.py owner/name        # prints the card as it is to be published there
    python tools/model_card.py --knobs           # prints the table of all call parameters, from the registry of knobs

pipelines/zimage_vl/README.md is a template: the repository's name, the version, the address of the source and the
digests of the code are known when it is published.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "pipelines" / "zimage_vl" / "README.md"
VERSION_FILE = ROOT / "src" / "zimage_vl" / "_version.py"

_TEMPLATE_NOTE = re.compile(r"<!-- A template: .*? -->\n+", re.DOTALL)
_DIGEST = re.compile(r"\{\{SHA256 ([\w.]+)\}\}")


def fill_model_card(card: str, repo: str, version: str, source: str, files: Mapping[str, bytes]) -> str:
    """Get the card for a repository, without a placeholder.

    Args:
        card: The template's text.
        repo: `owner/name` on the Hub.
        version: Such as `0.1.0`; the card pins the tag `v0.1.0`.
        source: Address of the project's own repository.
        files: What else goes to the Hub, by name; the card says the sha256 of some.

    Raises:
        ValueError: `repo` is no repository id, or the template has a placeholder that is not known.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise ValueError(f"The repository must be given as owner/name, got {repo!r}.")
    filled = _TEMPLATE_NOTE.sub("", card)
    for name, value in (("REPO", repo), ("VERSION", version), ("SOURCE", source)):
        filled = filled.replace(f"{{{{{name}}}}}", value)
    for name in set(_DIGEST.findall(filled)) & set(files):
        filled = filled.replace(f"{{{{SHA256 {name}}}}}", hashlib.sha256(files[name]).hexdigest())
    left = re.search(r"\{\{[A-Z0-9_]{2,}[^{}]*\}\}", filled)
    if left is not None:
        raise ValueError(f"The model card has a placeholder that nothing fills: {left.group()}.")
    return filled


def read_code(root: Path = ROOT) -> dict[str, bytes]:
    """Get what runs on a user's machine, by its name on the Hub."""
    return {path.name: path.read_bytes() for path in root.glob("pipelines/*/*.py")}


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
    parser.add_argument("--source", default="<SOURCE>", help="address of the project's own repository")
    options = parser.parse_args(arguments)
    try:
        if options.knobs:
            print(knob_table(), end="")
            return 0
        card = CARD.read_text(encoding="utf-8")
        print(fill_model_card(card, options.repo, read_version(), options.source, read_code()), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
