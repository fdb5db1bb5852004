"""docs/performance.md: sections between markers, each rewritten by the command that measures it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .timing import Spread


PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_INTRO = """# Performance

What the reference costs, measured. Every ratio is taken within one run, its sides in turns (A B A B ...): a table
shows the median over the rounds, the quartiles in brackets, and whether the median meets the goal. Models with random
weights cost what trained ones cost; the toy world is a trained miniature, and its seconds say nothing about the real
models. The method itself is experimental.
"""
_GAP = "\n\n"
GPU_PARTS = ("gpu-reading", "gpu-readers", "gpu-again", "gpu-calls", "gpu-resident", "gpu-offloaded")
# In the order of the page.
SECTIONS = ("machine", "a", "b", "c", "d", "e", "f", "gpu", *GPU_PARTS)


@dataclass(frozen=True)
class Section:
    """One section: its title, and blocks of Markdown."""

    title: str
    blocks: list[str] = field(default_factory=list)

    def render(self) -> str:
        return _GAP.join([f"## {self.title}", *(block.strip() for block in self.blocks)])


@dataclass(frozen=True)
class Finding:
    """One row: what was measured, what was hoped for, what came, and whether that is good enough (None: no goal)."""

    what: str
    goal: str
    result: str
    met: bool | None = None


def show(values: Spread, digits: int = 3, unit: str = "") -> str:
    """`0.853 [0.851, 0.860]`."""
    return f"{values.median:.{digits}f}{unit} [{values.lower:.{digits}f}, {values.upper:.{digits}f}]"


def show_seconds(values: Spread) -> str:
    if values.median < 1:
        in_ms = Spread(*(1000 * v for v in (values.median, values.lower, values.upper)), values.count)
        return show(in_ms, 0 if in_ms.median >= 100 else 1, " ms")
    return show(values, 2, " s")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def findings_table(findings: Sequence[Finding], judged: bool = True) -> str:
    """One row a finding; where nothing is to be judged, whether a goal is met stays out."""
    if not judged:
        return table(("measured", "goal", "here"), [(each.what, each.goal or "-", each.result) for each in findings])
    words = {None: "-", True: "yes", False: "**no**"}
    return table(
        ("measured", "goal", "median [quartiles]", "met"),
        [(each.what, each.goal or "-", each.result, words[each.met]) for each in findings],
    )


# ---- Reading and writing ----


def _begin(name: str) -> str:
    return f"<!-- begin {name} -->"


def _end(name: str) -> str:
    return f"<!-- end {name} -->"


def read_section(path: Path, name: str) -> str | None:
    """The text of a section, None where the page or the section is missing."""
    if not path.is_file():
        return None
    found = re.search(f"{_begin(name)}\n(.*?)\n{_end(name)}", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found.group(1) if found else None


def write_sections(path: Path, texts: Mapping[str, str | None]) -> None:
    """Put these sections into the page, take those of None out of it, and leave all others as they are."""
    unknown = sorted(set(texts) - set(SECTIONS))
    if unknown:
        raise ValueError(f"The page has no sections {unknown}; there are {list(SECTIONS)}.")
    kept = {name: texts[name] if name in texts else read_section(path, name) for name in SECTIONS}
    parts = [f"{_begin(name)}\n{text.strip()}\n{_end(name)}" for name, text in kept.items() if text is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_INTRO + "\n" + _GAP.join(parts) + "\n", encoding="utf-8")
