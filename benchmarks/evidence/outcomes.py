"""What was measured with a setting, and its file: written after each setting, so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .tables import Table


# What a picture shows of an attribute: the prompt's value, the reference's, the second reference's, none of these; or
# the pair does not count for the attribute.
PROMPT, REFERENCE, SECOND, NEITHER, EXCLUDED = "p", "r", "s", "-", "x"
# Names of the tables that need no pictures.
TOY_TABLES, SYNTHETIC_TABLES = "embeddings", "synthetic"
SCHEMA = "zimage_vl.evidence/1"


def get_standard_error(share: float, count: int) -> float:
    """Of a share of `count` independent pictures: `sqrt(p (1 - p) / n)`.

    Example:
        >>> get_standard_error(0.5, 100)
        0.05
    """
    return (share * (1 - share) / count) ** 0.5


@dataclass(frozen=True)
class Outcome:
    """What the judge saw in the pictures of one setting, in the order of the pairs.

    Attributes:
        shape: One letter a picture, of `PROMPT`, `REFERENCE`, `SECOND`, `NEITHER`, `EXCLUDED`.
        colour: The same.
        background: The same.
        iou: Intersection over union of each shape with its nearest template, in percent.
        stray: Share of stray pixels of each picture, in per mille.
        effective_alpha: Mean over the pairs of the median over the tokens acted on; None unless the blend was linear.
        influence: Mean over the pairs.
        masked_dimensions: Mean number over the pairs.
    """

    shape: str
    colour: str
    background: str
    iou: list[int]
    stray: list[int]
    effective_alpha: float | None
    influence: float
    masked_dimensions: float

    @classmethod
    def from_pictures(cls, judged: Sequence[Mapping[str, Any]]) -> Outcome:
        """Put together from what was found on each picture."""
        alphas = [one["effective_alpha"] for one in judged if one["effective_alpha"] is not None]
        return cls(
            *("".join(one[name] for one in judged) for name in ("shape", "colour", "background")),
            iou=[round(100 * one["iou"]) for one in judged],
            stray=[round(1000 * one["stray"]) for one in judged],
            effective_alpha=sum(alphas) / len(alphas) if alphas else None,
            influence=sum(one["influence"] for one in judged) / len(judged),
            masked_dimensions=sum(one["masked_dimensions"] for one in judged) / len(judged),
        )

    def count(self, attribute: str) -> int:
        """Pictures that count for an attribute."""
        letters: str = getattr(self, attribute)
        return len(letters) - letters.count(EXCLUDED)

    def share(self, attribute: str, side: str) -> float:
        """Share of the pictures that show the side's value.

        Example:
            >>> Outcome("ppr-", "pprr", "xxpr", [90] * 4, [0] * 4, 0.5, 0.1, 0.0).share("background", "r")
            0.5
        """
        letters: str = getattr(self, attribute)
        return letters.count(side) / self.count(attribute)

    def error(self, attribute: str, side: str) -> float:
        """The standard error of that share."""
        return get_standard_error(self.share(attribute, side), self.count(attribute))


@dataclass
class Measurements:
    """All that one run measured.

    Attributes:
        provenance: Pairs, seed, versions and what else must be the same for a run to go on.
        remarks: What may differ, such as threads and time.
        outcomes: By the key of the setting, one a round.
        tables: Tables that need no pictures, by name.
    """

    provenance: dict[str, Any]
    remarks: dict[str, Any] = field(default_factory=dict[str, Any])
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict[str, list[Outcome]])
    tables: dict[str, list[Table]] = field(default_factory=dict[str, list[Table]])

    def save(self, path: Path) -> None:
        """Write the file: all of it or nothing."""
        content = {
            "schema": SCHEMA,
            "provenance": self.provenance,
            "remarks": self.remarks,
            "tables": {name: [asdict(table) for table in tables] for name, tables in self.tables.items()},
        }
        # A line an outcome: short, and its changes can be read.
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
        rounds = {key: json.dumps([asdict(outcome) for outcome in found]) for key, found in self.outcomes.items()}
        outcomes = ",\n".join(f"{json.dumps(key)}: {found}" for key, found in rounds.items())
        lines.append(f'"outcomes": {{\n{outcomes}\n}}')
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Measurements:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or of another kind.
        """
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"its schema is {content['schema']!r}, not {SCHEMA!r}")
            return cls(
                content["provenance"],
                content["remarks"],
                {key: [Outcome(**one) for one in rounds] for key, rounds in content["outcomes"].items()},
                {name: [_read_table(one) for one in tables] for name, tables in content["tables"].items()},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no measurements: {error}. Remove it, or pass --fresh.") from error


def _read_table(content: Mapping[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in content["rows"])
    return Table(content["title"], tuple(content["columns"]), rows, content["note"])
