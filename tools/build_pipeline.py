#!/usr/bin/env python
"""Join the package into the single file that diffusers loads from the Hub.

    python tools/build_pipeline.py            # writes pipelines/zimage_vl/pipeline.py and the copy inside the package
    python tools/build_pipeline.py --check    # exits with 1 when one of them is not what the sources give

The package ships the copy, so that a pipeline it saves can carry its own code.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))

from bundling.joining import join_modules
from bundling.modules import BundleError, collect_modules


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"
ENTRY = "pipeline_z_image_vl"
#: The file for the Hub, and the copy that the package's `saving` module reads. ".txt": it is data there, not a module.
OUTPUTS = (ROOT / "pipelines" / "zimage_vl" / "pipeline.py", PACKAGE / "single_file_pipeline.txt")


def format_source(source: str) -> str:
    """The source as `ruff` sorts its imports and formats it, with the settings of pyproject.toml."""
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
    """The text of the single file.

    Args:
        package: Folder of the package.
        entry: Module with the pipeline, without `.py`.

    Raises:
        BundleError: The package cannot be joined; the message names the module and the line.
    """
    return format_source(join_modules(collect_modules(package, entry)))


def stale_outputs(text: str, outputs: Sequence[Path] = OUTPUTS) -> list[str]:
    """A sentence for each output that is missing or differs from the text."""
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
    """Writes or checks the outputs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when an output is stale")
    options = parser.parse_args(arguments)
    try:
        text = build(package, entry)
    except BundleError as error:
        print(f"The single-file pipeline cannot be built: {error}", file=sys.stderr)
        return 1
    if options.check:
        sentences = stale_outputs(text, outputs)
        print("\n".join(sentences) or "The single-file pipeline is up to date.")
        return 1 if sentences else 0
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"Wrote {_shown(path)} ({len(text.splitlines())} lines).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
