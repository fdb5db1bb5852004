"""The file of measurements: what was seen, where it comes from, and every number that follows from it by its name."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "evidence" / "measurements.json"
PAGE, TABLES = ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence-tables.md"
Share = tuple[float, float, int]


def hash_files(*paths: Path) -> str:
    """Get the first twelve digits of the SHA-256 of files, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def describe_run(pairs: int, seed: int, attributes: list[str]) -> dict[str, Any]:
    """Get what must be the same for a run to go on: pairs, seed, weights, code, versions."""
    import zimage_vl

    checkpoint = Path(zimage_vl.__file__).parent / "toy" / "checkpoint"
    names = ("torch", "diffusers", "transformers")
    return {
        "pairs": pairs,
        "seed": seed,
        "attributes": attributes,
        "checkpoint": hash_files(*sorted(path for path in checkpoint.rglob("*") if path.is_file())),
        "pipeline": hash_files(ROOT / "pipelines" / "zimage_vl" / "pipeline.py"),
        "versions": {"zimage-vl": zimage_vl.__version__, **{name: version(name) for name in names}},
        "python": platform.python_version(),
    }


@dataclass
class Measurements:
    """All that was measured.

    Attributes:
        provenance: From `describe_run`.
        commands: Every command that measured something.
        rows: "group/name/kind" to the result of `Pairs.measure`, with the row it was measured for in "row"; or to
            `{"refused": why}`.
        language_model: From `real_language_model`: numbers by name, and what the plot needs.
    """

    provenance: dict[str, Any]
    commands: list[str] = field(default_factory=list[str])
    rows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    language_model: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def load(cls, path: Path = FILE) -> Measurements:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path = FILE) -> None:
        """Write the file, a line per row: all of it or nothing."""
        head = [f"{json.dumps(name)}: {json.dumps(getattr(self, name))}" for name in ("provenance", "commands")]
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(_round(row))}" for key, row in self.rows.items())
        tail = f'"language_model": {json.dumps(_round(self.language_model))}'
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text("{\n" + ",\n".join([*head, f'"rows": {{\n{rows}\n}}', tail]) + "\n}\n", encoding="utf-8")
        os.replace(unfinished, path)

    def note_command(self, command: str) -> None:
        """Record a command that measured something, once."""
        self.commands += [command] if command not in self.commands else []

    def get_pairs(self, key: str, quantity: str, attribute: str | None = None) -> list[float | None]:
        """Get the share that each pair's picture has of a quantity, None where a pair has no say in it.

        Args:
            key: "group/name/kind".
            quantity: "kept": of what the prompt names, what the picture shows. "followed": of what it leaves open (of
                what it names, if it names everything) what is the reference's. "taken": of what it names, what is the
                reference's. "second": as followed, of the other scene.
            attribute: Of one attribute alone; None takes them together.
        """
        names, naming = self.provenance["attributes"], key.endswith("/naming")
        letter, named = {
            "kept": ("P", True),
            "taken": ("R", True),
            "followed": ("R", True) if naming else ("r", False),
            "second": ("S", True) if naming else ("s", False),
        }[quantity]
        shares: list[float | None] = []
        for word in self.rows[key]["seen"].split():
            letters = [c for n, c in zip(names, word, strict=True) if attribute in (None, n)]
            counted = [c for c in letters if (c.isupper() or c == "=") == named]
            shares.append(counted.count(letter) / len(counted) if counted else None)
        return shares

    def _get_pairs_of(self, name: str) -> list[float | None]:
        group, row, kind, quantity, *attribute = name.split("/")
        return self.get_pairs(f"{group}/{row}/{kind}", quantity, *attribute)

    def get_share(self, key: str, quantity: str, attribute: str | None = None) -> Share | None:
        """Get mean, standard error and count over the pairs; None where no pair counts."""
        values = [value for value in self.get_pairs(key, quantity, attribute) if value is not None]
        if not values:
            return None
        error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return float(np.mean(values)), error, len(values)

    def look_up(self, name: str) -> float:
        """Get a number by its name: "group/row/kind/quantity", also with "/attribute" and "/error" behind it; or
        "language model/..."; or the difference of two names with " - " between them, which with "/error" at the end is
        the standard error of that difference, taken pair by pair.

        Raises:
            KeyError: There is no such number.
        """
        first, minus, second = name.partition(" - ")
        if minus and second.endswith("/error"):
            sides = [self._get_pairs_of(one) for one in (first, second.removesuffix("/error"))]
            changes = [a - b for a, b in zip(*sides, strict=True) if a is not None and b is not None]
            return float(np.std(changes, ddof=1)) / len(changes) ** 0.5
        if minus:
            return self.look_up(first) - self.look_up(second)
        group, *rest = name.split("/")
        if group == "language model":
            return float(self.language_model["numbers"]["/".join(rest)])
        row, kind, quantity, *more = rest
        result = self.rows["/".join([group, row, kind])]
        if quantity in ("kept", "taken", "followed", "second"):
            attribute = next((part for part in more if part != "error"), None)
            share = self.get_share("/".join([group, row, kind]), quantity, attribute)
            if share is None:
                raise KeyError(name)
            return share[more[-1:] == ["error"]]
        value = result[quantity]
        return float(value[more == ["error"]] if isinstance(value, list) else value)


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _round(item) for name, item in value.items()}
    return [_round(item) for item in value] if isinstance(value, (list, tuple)) else value


# In a page a measured number carries its name in a comment, `.83<!-- dose/global 0.3/open/kept -->`. Settings stand in
# backticks, and those numbers are not looked at.
_NO_PROSE = r"```.*?```|`[^`]*`|\]\([^)]*\)"  # blocks, settings and links
_NUMBER = re.compile(r"(?<![\w.])([-+]?\d*\.\d+)(?:<!--\s*(.+?)\s*-->)?")


def find_wrong_numbers(page: str, measurements: Measurements) -> list[str]:
    """Get a sentence for each decimal number of a page that has no name or is not what was measured.

    Example:
        >>> find_wrong_numbers("Kept: .83, at `alpha 0.3`.", Measurements({}))
        ['.83 has no name: write .83<!-- group/row/kind/quantity -->']
    """
    text = re.sub(_NO_PROSE, "", page, flags=re.DOTALL)
    outside = re.sub(r"<!--.*?-->", lambda match: match[0].replace(".", "\0"), text, flags=re.DOTALL)
    wrong: list[str] = []
    for number, name in _NUMBER.findall(outside):
        name = name.replace("\0", ".")
        if not name:
            wrong.append(f"{number} has no name: write {number}<!-- group/row/kind/quantity -->")
            continue
        try:
            value = measurements.look_up(name)
        except (KeyError, ValueError, IndexError):
            wrong.append(f"{number}: there is no {name!r}")
            continue
        told = float(number)
        if abs(told - value) > 0.5001 * 10 ** -len(number.partition(".")[2]):
            wrong.append(f"{number}: {name!r} is {value:.4f}")
    return wrong


def write_numbers(page: str, measurements: Measurements) -> str:
    """Write each named number of a page anew, with as many decimals. The words around them are for a person to check.

    Example:
        >>> rows = {"dose/a/open": {"seen": "Pr Rr", "effective_alpha": 0.625}}
        >>> write_numbers("Acts as .10<!-- dose/a/open/effective_alpha -->.", Measurements({}, rows=rows))
        'Acts as .62<!-- dose/a/open/effective_alpha -->.'
    """

    def write(match: re.Match[str]) -> str:
        number, name = match[1], match[2]
        if not number:
            return match[0]
        value = f"{measurements.look_up(name):.{len(number.partition('.')[2])}f}"
        return value.replace("0.", ".", 1) if number.startswith(".") else value

    return re.sub(rf"{_NO_PROSE}|(?<![\w.])([-+]?\d*\.\d+)(?=<!--\s*(.+?)\s*-->)", write, page, flags=re.DOTALL)
