"""The plots of the page. The only place that imports matplotlib, and only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zimage_vl.toy.measuring import ATTRIBUTES, CHANCE

from .outcomes import PROMPT, REFERENCE, SECOND, Outcome


PROMPT_COLOUR, REFERENCE_COLOUR, SECOND_COLOUR, CHANCE_COLOUR = "#1f5fa8", "#d1611a", "#3b8a4a", "#777777"
_LINE_COLOURS = ("#d1611a", "#1f5fa8", "#3b8a4a", "#8a4a9e")
_DPI = 100


@dataclass(frozen=True)
class Line:
    """One line of a plot: a side's share along x."""

    label: str
    points: Sequence[tuple[float, Outcome]]
    side: str
    colour: str
    dashed: bool = False
    joined: bool = True
    marker: str = "o"


def require_matplotlib() -> None:
    """Refuse early, before anything is measured.

    Raises:
        ValueError: matplotlib is not installed; with the command that installs it.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("The plots need matplotlib, which is not installed: pip install 'zimage-vl[evidence]'")


def _new_figure(panels: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, panels, sharey=True)
    return figure, list(axes) if panels > 1 else [axes]


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=12, fontweight="bold")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        figure.savefig(unfinished, format="png", dpi=_DPI, metadata={"Software": None})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def plot_lines(path: Path, title: str, x_label: str, lines: Sequence[Line], ticks: Sequence[float] = ()) -> None:
    """Shares along a number, a panel an attribute, with one standard error up and down and the line of chance.

    Args:
        path: The PNG to write.
        title: Over the figure.
        x_label: Under each panel.
        lines: What to draw.
        ticks: Of the x axis; none for matplotlib's choice.
    """
    figure, axes = _new_figure(len(ATTRIBUTES), (10.5, 3.9))
    for axis, name in zip(axes, ATTRIBUTES, strict=True):
        for line in lines:
            xs = [x for x, _ in line.points]
            axis.errorbar(
                xs,
                [outcome.share(name, line.side) for _, outcome in line.points],
                [outcome.error(name, line.side) for _, outcome in line.points],
                label=line.label,
                color=line.colour,
                linestyle=("--" if line.dashed else "-") if line.joined else "none",
                marker=line.marker,
                markersize=4.5,
                linewidth=1.7,
                capsize=2.5,
            )
        axis.axhline(
            CHANCE[name], color=CHANCE_COLOUR, linestyle=":", linewidth=1.3, label="chance (reference's value)"
        )
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(x_label)
        axis.set_ylim(-0.04, 1.06)
        if ticks:
            axis.set_xticks(list(ticks))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("share of the pictures")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, fontsize=9)
    _save(figure, path, title)


def plot_rows(path: Path, title: str, rows: Sequence[tuple[str, Outcome]]) -> None:
    """A row a setting, a panel an attribute: the prompt's share and the reference's, with error and chance.

    Args:
        path: The PNG to write.
        title: Over the figure.
        rows: Label and outcome, from the top.
    """
    figure, axes = _new_figure(len(ATTRIBUTES), (10.5, 1.7 + 0.31 * len(rows)))
    sides = [(PROMPT, PROMPT_COLOUR, "prompt's value", "o"), (REFERENCE, REFERENCE_COLOUR, "reference's value", "s")]
    if any(SECOND in outcome.shape for _, outcome in rows):
        sides.append((SECOND, SECOND_COLOUR, "second reference's value", "^"))
    places = range(len(rows), 0, -1)
    for axis, name in zip(axes, ATTRIBUTES, strict=True):
        for side, colour, label, marker in sides:
            axis.errorbar(
                [outcome.share(name, side) for _, outcome in rows],
                list(places),
                xerr=[outcome.error(name, side) for _, outcome in rows],
                linestyle="none",
                color=colour,
                marker=marker,
                markersize=6,
                capsize=2.5,
                label=label,
            )
        axis.axvline(
            CHANCE[name], color=CHANCE_COLOUR, linestyle=":", linewidth=1.3, label="chance (reference's value)"
        )
        axis.set_title(name, fontsize=11)
        axis.set_xlim(-0.05, 1.05)
        axis.set_ylim(0.4, len(rows) + 0.6)
        axis.set_xlabel("share of the pictures")
        axis.grid(alpha=0.25)
    axes[0].set_yticks(list(places), [label for label, _ in rows], fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    _save(figure, path, title)


def pick_colour(number: int) -> str:
    """The colour of the n-th line."""
    return _LINE_COLOURS[number % len(_LINE_COLOURS)]
