#!/usr/bin/env python
"""Join the package into the single file that diffusers loads from the Hub.

    python tools/build_pipeline.py            # writes pipelines/zimage_vl/pipeline.py
    python tools/build_pipeline.py --check    # exits with 1 when it is not what the sources give, or its map is wrong

setup.py copies it into the wheel, so that a pipeline that the installed package saves can carry its own code.
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

from bundling.joining import join_modules
from bundling.modules import BundleError, collect_modules
from bundling.reach import compare_with_map


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"
ENTRY = "pipeline.pipeline_z_image_vl"
OUTPUTS = (ROOT / "pipelines" / "zimage_vl" / "pipeline.py",)
#: What in the file reaches outside of it, written by hand and checked against the code.
MAP = Path(__file__).parent / "bundling" / "map.txt"


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


def build(package: Path = PACKAGE, entry: str = ENTRY) -> str:
    """Get the text of the single file.

    Args:
        package: Folder of the package.
        entry: Module with the pipeline, by its name within the package.

    Raises:
        BundleError: The package cannot be joined; the message names the module and the line.
    """
    modules = collect_modules(package, entry)
    return format_source(join_modules(modules, _public_names(package), MAP.read_text(encoding="utf-8")))


def _public_names(package: Path) -> list[str]:
    """The package's `__all__`."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise BundleError("the package's __init__.py has no __all__, which says what is public.")


def stale_outputs(text: str, outputs: Sequence[Path] = OUTPUTS) -> list[str]:
    """Get a sentence for each output that is missing or differs from the text."""
    sentences: list[str] = []
    for path in outputs:
        if not path.is_file():
            sentences.append(f"{_shown(path)} is missing: run `make bundle` and commit it.")
        elif path.read_text(encoding="utf-8") != text:
            sentences.append(
                f"{_shown(path)} is stale: it is not what the package gives. Run `make bundle` and commit it."
            )
    return sentences


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def main(
    arguments: Sequence[str] | None = None,
    package: Path = PACKAGE,
    entry: str = ENTRY,
    outputs: Sequence[Path] = OUTPUTS,
) -> int:
    """Write or check the outputs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when an output is stale")
    options = parser.parse_args(arguments)
    try:
        text = build(package, entry)
    except BundleError as error:
        print(f"The single-file pipeline cannot be built: {error}", file=sys.stderr)
        return 1
    mistakes = [f"{_shown(MAP)}: {mistake}." for mistake in compare_with_map(MAP.read_text(encoding="utf-8"), text)]
    if options.check:
        sentences = stale_outputs(text, outputs) + mistakes
        print("\n".join(sentences) or "The single-file pipeline is up to date.")
        return 1 if sentences else 0
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"Wrote {_shown(path)} ({len(text.splitlines())} lines, {len(text.encode()) // 1000} KB).")
    print("\n".join(mistakes), file=sys.stderr, end="\n" * bool(mistakes))
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
