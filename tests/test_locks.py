"""The locks, what setup.cfg asks for, and the versions that the pages name: they must be of one mind."""

from __future__ import annotations

import configparser
import importlib.metadata
import itertools
import re
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from lock import LOCKS, read_requirements  # noqa: E402


SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg", encoding="utf-8")
PYTHONS = re.findall(r"Programming Language :: Python :: (3\.\d+)", SETTINGS["metadata"]["classifiers"])
SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
]


def read_lock(name: str) -> list[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(name: str, python: str, system: dict[str, str]) -> dict[str, str]:
    """The version of each package that a lock has for one Python on one system."""
    environment = {**system, "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    found: dict[str, str] = {}
    for line in read_lock(name):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert found.setdefault(requirement.name, str(requirement.specifier)[2:]) == str(requirement.specifier)[2:]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_pins_and_nothing_else(name: str) -> None:
    assert [line for line in read_lock(name) if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^#\[]+)?", line)] == []


def test_all_that_is_installed_is_locked_for_every_python_and_system() -> None:
    assert PYTHONS == ["3.10", "3.11", "3.12", "3.13"]
    assert SETTINGS["options"]["python_requires"] == f">={PYTHONS[0]}"
    for name, python, system in itertools.product(LOCKS, PYTHONS, SYSTEMS):
        found = pins(name, python, system)
        for requirement in map(Requirement, read_requirements(name)):
            version = found.get(canonicalize_name(requirement.name))
            assert version is not None, (requirement, system)
            assert requirement.specifier.contains(version), (requirement, version, system)


def test_the_oldest_lock_holds_the_lower_bounds() -> None:
    bounds = SETTINGS["options"]["install_requires"] + "\n" + SETTINGS["options.extras_require"]["quantised"]
    found = pins("oldest", "3.11", SYSTEMS[0])
    for line in filter(None, (line.split("#")[0].strip() for line in bounds.splitlines())):
        name, lowest = line.split(">=")
        assert found[name] == lowest


@pytest.mark.parametrize(("environment", "name"), [(".venv", "current"), (".venv-oldest", "oldest")])
def test_the_environment_is_what_its_lock_says(environment: str, name: str) -> None:
    if Path(sys.prefix) != ROOT / environment:
        pytest.skip(f"the tests do not run in {environment}")
    found = pins(name, f"3.{sys.version_info[1]}", SYSTEMS[0])
    installed = {
        canonicalize_name(distribution.metadata["Name"]): distribution.version.split("+")[0]
        for distribution in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
        if distribution.metadata["Name"] not in ("pip", "zimage-vl")
    }
    assert installed == {package: found.get(package) for package in installed}


def test_the_versions_that_the_pages_name_are_locked() -> None:
    locked = [pins(name, "3.11", SYSTEMS[0]) for name in LOCKS]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in ("diffusers", "transformers"):
        for found in locked:
            assert f"{package} {found[package]}" in readme
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("pipelines/*/*.md")]
    named = re.compile(r"\b(torch|diffusers|transformers)(?: |==)(\d+\.\d+\.\d+)")
    for page in pages:
        for package, version in named.findall(page.read_text(encoding="utf-8")):
            assert version in {found[package] for found in locked}, f"{page.name} names {package} {version}"
