#!/usr/bin/env python
"""Write the files that diffusers loads from the Hub: the pipeline, joined from the package, and the modular block.

    python tools/build_pipeline.py            # writes them to the folders of pipelines/
    python tools/build_pipeline.py --check    # exits with 1 when they are not what the sources give, or a map is wrong

The block takes from a pipeline.py beside it what it needs, so that its folder has that file too. setup.py copies the
pipeline into the wheel, so that one that the installed package saves can carry its own code.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

from bundling.joining import join_modules, write_beside
from bundling.modules import BundleError, collect_modules
from bundling.reach import compare_with_map


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"
MAPS = Path(__file__).parent / "bundling"


@dataclass(frozen=True)
class Target:
    """A file to be made.

    Attributes:
        entry: The module that it ends with, by its name within the package.
        output: Where it goes.
        map: What in it reaches outside of it, written by hand and checked against the code.
        beside: The entry of a joined file beside it, from which the one module of this file takes what it needs.
    """

    entry: str
    output: Path
    map: Path
    beside: str | None = None

    @property
    def note(self) -> str:
        return self.map.read_text(encoding="utf-8")


PIPELINE = Target("pipeline.pipeline_z_image_vl", ROOT / "pipelines" / "zimage_vl" / "pipeline.py", MAPS / "map.txt")
BLOCK = Target(
    "pipeline.modular",
    ROOT / "pipelines" / "zimage_vl_modular" / "block.py",
    MAPS / "map_block.txt",
    beside=PIPELINE.entry,
)
TARGETS = (PIPELINE, replace(PIPELINE, output=BLOCK.output.with_name("pipeline.py")), BLOCK)


def format_source(source: str) -> str:
    """Get the source as `ruff` sorts its imports and formats it, with the settings of pyproject.toml."""
    program = Path(sys.executable).with_name("ruff")
    ruff = str(program) if program.exists() else shutil.which("ruff")
    if ruff is None:
        raise BundleError("ruff is not installed; `make setup` installs it, or pip install ruff.")
    for arguments in (("check", "--quiet", "--select", "I", "--ignore-noqa", "--fix"), ("format", "--quiet")):
        command = [ruff, *arguments, "--config", str(ROOT / "pyproject.toml"), "--stdin-filename", "pipeline.py", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False, encoding="utf-8")
        if done.returncode:
            raise BundleError(f"ruff {arguments[0]} failed on the joined file:\n{done.stdout}{done.stderr}")
        source = done.stdout
    return source


def build(target: Target, package: Path = PACKAGE) -> str:
    """Get the text of a target, from the folder of the package.

    Raises:
        BundleError: The package cannot be joined; the message names the module and the line.
    """
    modules, public = collect_modules(package, target.beside or target.entry), _public_names(package)
    if target.beside is None:
        return format_source(join_modules(modules, public, target.note))
    own = collect_modules(package, target.entry)[-1]
    return format_source(write_beside(own, PIPELINE.output.stem, modules, public, target.note))


def _public_names(package: Path) -> list[str]:
    """The package's `__all__`."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise BundleError("the package's __init__.py has no __all__, which says what is public.")


def describe_staleness(text: str, path: Path) -> str | None:
    """Get a sentence if an output is missing or differs from the text."""
    if not path.is_file():
        return f"{_shown(path)} is missing: run `make bundle` and commit it."
    if path.read_text(encoding="utf-8") != text:
        return f"{_shown(path)} is stale: it is not what the package gives. Run `make bundle` and commit it."
    return None


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main(arguments: Sequence[str] | None = None, package: Path = PACKAGE, targets: Sequence[Target] = TARGETS) -> int:
    """Write or check the outputs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when an output is stale")
    options = parser.parse_args(arguments)
    mistakes: list[str] = []
    for target in targets:
        try:
            text = build(target, package)
        except BundleError as error:
            print(f"{_shown(target.output)} cannot be built: {error}", file=sys.stderr)
            return 1
        mistakes += [f"{_shown(target.map)}: {mistake}." for mistake in compare_with_map(target.note, text)]
        if options.check:
            mistakes += filter(None, [describe_staleness(text, target.output)])
            continue
        target.output.parent.mkdir(parents=True, exist_ok=True)
        target.output.write_text(text, encoding="utf-8", newline="\n")
        size = f"{len(text.splitlines())} lines, {len(text.encode()) // 1000} KB"
        print(f"Wrote {_shown(target.output)} ({size}).")
    if mistakes:
        print("\n".join(mistakes), file=sys.stdout if options.check else sys.stderr)
    elif options.check:
        print("The files for the Hub are up to date.")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
