"""The rooms of the house: who may import whom, read off the imports themselves, and how files are named and sized."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"
ROOMS = {"blend", "reference", "pipeline", "workflows", "cli", "toy"}
# What each room may import of the others. A word with a dot is one module.
ALLOWED: dict[str, set[str]] = {
    "recipes": set(),
    "_version": set(),
    "blend": {"_version"},
    "reference": {"blend.regions", "_version"},
    "pipeline": {"blend", "reference", "recipes", "_version"},
    "workflows": {"blend", "reference", "pipeline", "recipes", "_version"},
    "toy": {"blend", "reference", "pipeline", "workflows", "recipes", "_version"},
    "cli": {"blend", "reference", "pipeline", "workflows", "toy", "recipes", "_version"},
    "__main__": {"cli"},
}


def module_files() -> dict[str, Path]:
    """Every module by its dotted name within the package, such as `cli.env`; a package by its own name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()


def imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """All that a module imports when it runs, wherever in the file, as absolute dotted names."""
    names: set[str] = set()
    here = ["zimage_vl", *filter(None, module.split("."))]
    tree = ast.parse(source)
    for node in ast.walk(tree):  # what stands under TYPE_CHECKING is never run
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = len(here) - node.level + is_package
            base = [*(here[:up] if node.level else []), *filter(None, (node.module or "").split("."))]
            names |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return names


IMPORTS = {
    name: imported_names(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    for name, path in FILES.items()
}


def room_of(module: str) -> str:
    return module.split(".")[0]


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    inside = {name.removeprefix("zimage_vl.") for name in IMPORTS[module] if name.startswith("zimage_vl.")}
    return {name for name in inside if name in FILES}


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in FILES} - {""} == set(ALLOWED)
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == ROOMS


@pytest.mark.parametrize("module", [name for name in FILES if name])  # "" is the package itself, which is lazy
def test_a_module_imports_what_its_room_may(module: str) -> None:
    room = room_of(module)
    foreign = {name for name in ours(module) if room_of(name) != room and name not in ROOMS}
    assert not {name for name in foreign if not {name, room_of(name)} & ALLOWED[room]}


def test_the_arithmetic_is_on_torch_alone() -> None:
    for module in FILES:
        outside = {name.split(".")[0] for name in IMPORTS[module]}
        if room_of(module) == "blend":
            assert not outside & {"diffusers", "transformers", "PIL", "accelerate", "numpy"}, module
        if room_of(module) == "recipes":
            assert not outside & {"torch", "diffusers", "transformers", "PIL"}, module
        if room_of(module) == "reference":  # it knows Qwen3-VL, and of diffusers the loggers and hooks alone
            assert not {name for name in IMPORTS[module] if name.startswith("diffusers.pipelines")}, module


@pytest.mark.parametrize("module", ["zimage_vl", "zimage_vl.cli", "zimage_vl.recipes"])
def test_importing_is_light_and_silent(module: str, tmp_path: Path) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# ---- Files ----


def test_every_module_has_its_tests_at_the_same_place() -> None:
    missing = []
    for path in FILES.values():
        if path.name not in ("__init__.py", "__main__.py", "_version.py"):
            inside = path.relative_to(PACKAGE)
            test = ROOT / "tests" / inside.parent / f"test_{inside.stem.lstrip('_')}.py"
            missing += [] if test.is_file() else [str(test.relative_to(ROOT))]
    assert not missing


def test_no_file_is_named_after_its_overflow_or_after_a_standard_module() -> None:
    overflowing = {name for name in FILES if name.rsplit(".", 1)[-1].rpartition("_")[2] in ("more", "rest", "others")}
    assert not overflowing
    standard = {name for name in FILES if name.rsplit(".", 1)[-1] in sys.stdlib_module_names}
    # A command's file is named as the command, and is never imported under a bare name.
    assert standard <= {"cli.inspect", "cli.statistics"}


def test_no_file_is_too_long() -> None:
    too_long = {}
    for folder in ("src", "tests", "tools", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            # Lines on which code begins: docstrings are no reason to tear a file apart.
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            lines = len({node.lineno for node in nodes if isinstance(node, (ast.stmt, ast.expr))})
            if lines > 600:
                too_long[str(path.relative_to(ROOT))] = lines
    assert not too_long
