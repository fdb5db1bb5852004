"""The rooms of the house: who may import whom, read off the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"

DATA = {"regions", "embeddings", "tensor_files", "block_counts", "fingerprints"}
ARITHMETIC = DATA | {
    "tensor_checks",
    "statistics",
    "normalization",
    "outliers",
    "blending",
    "alignment",
    "places",
    "report",
    "knobs",
    "conditioning_inputs",
    "conditioning",
    "calibration",
    "text_statistics",
}
ENCODING = {
    "encoding",
    "vl_forward",
    "patch_grid",
    "turn",
    "images",
    "versions",
    "bounded_store",
    "encoder_identity",
    "prefix_cache",
    "reference_cache",
}
PIPELINE = "pipeline_z_image_vl"
# The pipeline and what it is made of: the only modules below the toy world that know both arithmetic and encoding.
PIPELINE_SIDE = {
    PIPELINE,
    "pipeline_output",
    "vl_parts",
    "request",
    "call_checks",
    "residency",
    "caching",
    "step_window",
    "vl_loading",
    "saving",
    "image_to_image",
    "sharing",
}
DATA_ONLY = {"recipes", "_version", "iteration"}
ABOVE_PIPELINE = {"toy", "cli", "evidence", "low_memory"}


def module_files() -> dict[str, Path]:
    """Every module by its dotted name within the package, such as `cli.env`; a package by its own name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """All that a module imports, wherever in the file, as absolute dotted names.

    >>> sorted(imported_names("from ..toy import world\\nimport torch.nn", "cli.demo", False))
    ['torch.nn', 'zimage_vl.toy', 'zimage_vl.toy.world']
    """
    names: set[str] = set()
    here = ["zimage_vl", *filter(None, module.split("."))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = len(here) - node.level + is_package
            base = [*(here[:up] if node.level else []), *filter(None, (node.module or "").split("."))]
            names |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    return names


IMPORTS = {
    name: imported_names(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    for name, path in module_files().items()
}


def rooms(module: str) -> set[str]:
    """The rooms of the package that a module imports: the first names after `zimage_vl`."""
    inside = [name.split(".") for name in IMPORTS[module] if name.startswith("zimage_vl.")]
    return {parts[1] for parts in inside}


def modules_of(names: set[str]) -> list[str]:
    return [module for module in IMPORTS if module.split(".")[0] in names]


def test_the_reader_of_imports_resolves_relative_ones() -> None:
    source = "from .regions import Region\nfrom . import blending\n"
    assert {"zimage_vl.blend.regions", "zimage_vl.blend.mix"} <= imported_names(source, "conditioning", False)
    assert "zimage_vl.cli.app" in imported_names("from .app import main", "cli", True)
    assert "zimage_vl.toy.world" in imported_names("def f():\n    from ..toy import world", "cli.demo", False)
    assert "PIL.Image" in imported_names("if True:\n    from PIL import Image", "blending", False)


def test_every_module_has_a_room() -> None:
    known = ARITHMETIC | ENCODING | PIPELINE_SIDE | ABOVE_PIPELINE | DATA_ONLY | {""}
    found = {module.split(".")[0] for module in IMPORTS}
    assert not found - known, "say in this file where these belong"
    assert not known - found, "this file names modules that are gone"


def test_the_arithmetic_imports_torch_alone() -> None:
    for module in modules_of(ARITHMETIC):
        outside = {name.split(".")[0] for name in IMPORTS[module]}
        assert not outside & {"diffusers", "transformers", "PIL"}, module
        assert not rooms(module) - ARITHMETIC - {"_version"}, module


def test_the_encoding_knows_no_arithmetic() -> None:
    for module in modules_of(ENCODING):
        assert not rooms(module) & (ARITHMETIC - DATA), module
        assert not rooms(module) & PIPELINE_SIDE, module


def test_the_data_imports_nothing_of_the_package() -> None:
    for module in DATA_ONLY:
        assert not rooms(module), module


def test_only_what_is_above_the_pipeline_imports_it() -> None:
    for module in IMPORTS:
        if module and module.split(".")[0] not in ABOVE_PIPELINE:  # "" is the package itself, which is lazy
            assert PIPELINE not in rooms(module), module


def test_nothing_imports_the_command_line() -> None:
    for module in IMPORTS:
        if module.split(".")[0] != "cli":
            assert "cli" not in rooms(module), module


def test_only_the_command_line_imports_the_evidence() -> None:
    for module in IMPORTS:
        if module.split(".")[0] not in ("evidence", "cli"):
            assert "evidence" not in rooms(module), module


def test_no_module_of_the_bundle_imports_the_package_by_its_name() -> None:
    for name, path in module_files().items():
        if name.split(".")[0] in ABOVE_PIPELINE:  # stays out of the single file
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        absolute = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        assert "zimage_vl" not in {imported.split(".")[0] for imported in plain | absolute}, name


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


def test_every_module_has_its_tests() -> None:
    missing = []
    for module, path in module_files().items():
        if path.name in ("__init__.py", "_version.py"):
            continue
        name = "test_" + "_".join(part.lstrip("_") for part in module.split(".")) + ".py"
        if not (ROOT / "tests" / name).is_file():
            missing.append(name)
    assert not missing


def test_no_file_is_too_long() -> None:
    folders = [ROOT / folder for folder in ("src", "tests", "tools", "examples", "benchmarks")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    assert not {path: lines for path, lines in lengths.items() if lines >= 400}
