"""A table as plain text, and as markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """One table of the evidence page.

    Attributes:
        title: Its heading.
        columns: The columns' names.
        rows: One tuple of texts a row, as many as columns.
        note: What was computed, what is published, what waits for real weights.

    Example:
        >>> print(Table("Sizes", ("a", "b"), (("1", "2"),)).to_markdown())
        ### Sizes
        <BLANKLINE>
        | a | b |
        |---|---|
        | 1 | 2 |
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_markdown(self) -> str:
        lines = [f"### {self.title}", "", _line(self.columns), "|" + "---|" * len(self.columns)]
        lines += [_line(row) for row in self.rows]
        return "\n".join(lines + (["", self.note] if self.note else []))


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
