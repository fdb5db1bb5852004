"""Wheel and sdist hold what they should and nothing else, and the wheel works where the repository is not."""

from __future__ import annotations

import ast
import configparser
import email
import email.message
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from command_line import environment


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "zimage_vl"
MAX_BYTES = 14 * 10**6
JUNK = {
    "src/zimage_vl/__pycache__/knobs.cpython-311.pyc": b"junk",
    "src/zimage_vl/notes.md": b"junk",
    "src/zimage_vl/.cache.json": b"{}",
    "tests/test_junk.py": b"",
    "outputs/demo.png": b"junk",
    "build/lib/zimage_vl/removed.py": b"",
    "notes.txt": b"junk",
}
# Distribution to the module it brings, where their names differ.
MODULES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"}
# huggingface-hub: what from_pretrained of diffusers and transformers fetches with.
NOT_IMPORTED = {"huggingface-hub"}


SINGLE_FILE = "pipelines/zimage_vl/pipeline.py"


def package_files() -> set[str]:
    """What of src belongs into an installation: written out here, not read from the settings."""
    code = {path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts}
    data = {path for path in (PACKAGE / "toy" / "checkpoint").rglob("*") if path.is_file()}
    data |= {PACKAGE / "py.typed", PACKAGE / "workflows" / "gallery.html"}
    return {path.relative_to(PACKAGE.parent).as_posix() for path in code | data}


class Built:
    """The distributions of a copy of the checkout that has junk lying about, built without a network.

    The wheel is built from the sdist, as `make dist` does it.
    """

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", self.source / "src", ignore=ignore)
        for name in ("docs", "pipelines", "tools"):
            shutil.copytree(ROOT / name, self.source / name, ignore=ignore)
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(path, self.source)
        for name, data in JUNK.items():
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(data)
        output = folder / "dist"
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(self.source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.wheel, self.sdist = sorted(output.iterdir(), key=lambda path: path.suffix, reverse=True)

    def wheel_contents(self) -> dict[str, bytes]:
        with zipfile.ZipFile(self.wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def sdist_contents(self) -> dict[str, bytes]:
        """Without the folder that everything lies in."""
        with tarfile.open(self.sdist) as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive.getmembers())
            return {name.split("/", 1)[1]: file.read() for name, file in files if file is not None}

    def metadata(self) -> email.message.Message:
        (text,) = (data for name, data in self.wheel_contents().items() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    for tool in ("build", "setuptools"):
        pytest.importorskip(tool)
    return Built(tmp_path_factory.mktemp("distribution"))


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(section: Mapping[str, str], key: str) -> list[str]:
    return [line.split("#")[0].strip() for line in section[key].splitlines() if line.split("#")[0].strip()]


def test_both_hold_the_sources_byte_for_byte_and_nothing_else(built: Built) -> None:
    sources = {name: (ROOT / "src" / name).read_bytes() for name in package_files()}
    single_file, licence = (ROOT / SINGLE_FILE).read_bytes(), (ROOT / "LICENSE").read_bytes()
    version = re.search(r"zimage_vl-(.+?)-py3-none-any\.whl", built.wheel.name)
    assert version is not None, "the wheel must suit every system"
    info, wheel = f"zimage_vl-{version[1]}.dist-info", built.wheel_contents()
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")}
    expected = {"zimage_vl/single_file_pipeline.txt": single_file, f"{info}/licenses/LICENSE": licence, **sources}
    assert {name: data for name, data in wheel.items() if name not in about} == expected
    assert about < set(wheel)
    sdist = {name: data for name, data in built.sdist_contents().items() if ".egg-info/" not in name}
    about = {"MANIFEST.in", "PKG-INFO", "docs/package.md", "pyproject.toml", "setup.cfg", "setup.py"}
    expected = {SINGLE_FILE: single_file, "LICENSE": licence, **{f"src/{name}": sources[name] for name in sources}}
    assert {name: data for name, data in sdist.items() if name not in about} == expected
    assert about < set(sdist)
    assert max(path.stat().st_size for path in (built.wheel, built.sdist)) < MAX_BYTES


def test_the_metadata_say_what_the_settings_say(built: Built, settings: configparser.ConfigParser) -> None:
    from zimage_vl import __version__

    metadata = built.metadata()
    assert metadata["Name"] == "zimage-vl"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [line for line in metadata.get_all("Requires-Dist", []) if ";" not in line]
    assert required == lines(settings["options"], "install_requires")
    (points,) = (data for name, data in built.wheel_contents().items() if name.endswith("/entry_points.txt"))
    assert points.decode().split() == ["[console_scripts]", "zimage-vl", "=", "zimage_vl.cli:main"]


def test_the_page_for_an_index_needs_no_file_of_the_repository(built: Built) -> None:
    metadata = built.metadata()
    page = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.strip() == (ROOT / "docs" / "package.md").read_text(encoding="utf-8").strip()
    assert "Experimental" in page
    assert re.findall(r"\]\((?!https?://)[^)]*\)|<img|make \w+", page) == []


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", line, maxsplit=1)[0].lower() for line in requirements}


def test_what_the_package_imports_is_required_and_what_is_required_is_imported(
    settings: configparser.ConfigParser,
) -> None:
    needed: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                needed.add(node.module.split(".")[0])
    needed -= {*sys.stdlib_module_names, "zimage_vl"}
    required = names_of(lines(settings["options"], "install_requires"))
    extras = settings["options.extras_require"]
    optional = set[str]().union(*(names_of(lines(extras, extra)) for extra in extras))
    assert needed <= {MODULES.get(name, name) for name in required | optional}
    assert {MODULES.get(name, name) for name in required - NOT_IMPORTED} <= needed


@pytest.mark.slow
def test_the_wheel_paints_the_demo_where_the_repository_is_not(built: Built, tmp_path: Path) -> None:
    # Unpacked, not installed: an empty environment with torch in it takes minutes, and `make try-wheel` makes one.
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import zimage_vl; print(zimage_vl.__file__, flush=True); from zimage_vl.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "demo", "--pairs", "1", "--output", "demo.png"],
        env={**environment(), "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith(str(tmp_path / "installed"))
    with Image.open(tmp_path / "demo.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 1000
