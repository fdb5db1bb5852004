"""The plots. One palette, one meaning per colour in all of them: blue is what is kept of the prompt, orange what
follows the reference, grey is chance; filled marks and full lines are open prompts, hollow marks and broken lines
prompts that name everything."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from .measurements import Measurements
from .settings import TITLES, Row, make_rows


KEPT, FOLLOWED, CHANCE, INK, FAINT = "#2b6a99", "#d4682a", "#9a9a9a", "#26262a", "#dcdcd8"
SIDES = (("kept", KEPT, "kept of the prompt"), ("followed", FOLLOWED, "followed of the reference"))
KINDS = (("open", "-", True, "open prompt"), ("naming", (0, (4, 2)), False, "prompt that names everything"))
FONT = {"font.size": 14, "axes.edgecolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK}
FONT |= {"axes.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 14}


def make_figure(panels: int, columns: int, size: tuple[float, float], *, share: bool = True) -> tuple[Any, list[Any]]:
    """A figure and its panels of a size in inches, in rows of `columns`, with one scale of shares or each its own."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    with mpl.rc_context(FONT):
        figure = Figure(
            figsize=(max(7.4, size[0] * columns + 0.6), size[1] * rows + 1.5), dpi=100, layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel().tolist()
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def finish(figure: Any, title: str, path: Path, handles: list[Any]) -> Path:
    """Title, legend below, and the file."""
    title = textwrap.fill(title, int(figure.get_figwidth() * 5.8))
    figure.suptitle(title, x=0.01, ha="left", fontsize=19, fontweight="bold", color=INK)
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=int(figure.get_figwidth() / 3.6),
        frameon=False,
        fontsize=13,
        labelcolor=INK,
    )
    figure.savefig(path, metadata={"Software": None})
    return path


def _make_handles(lines: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"lw": 3} if lines else {"ls": "", "marker": "o", "ms": 9}
    handles = [Line2D([], [], color=colour, label=label, **style) for _, colour, label in SIDES]
    handles.append(Line2D([], [], color=CHANCE, lw=2, ls=":", label="chance, no reference"))
    for _, dashes, filled, label in KINDS:
        style = {"ls": dashes if lines else "", "mfc": INK if filled else "white", "mew": 1.8}
        handles.append(Line2D([], [], color=INK, lw=2, marker="o", ms=7, label=label, **style))
    return handles


def draw_group(group: str, measurements: Measurements, folder: Path) -> Path | None:
    """Draw a group: lines where its rows have a panel and an x, else dots attribute by attribute.

    Returns:
        The file; None where nothing of the group is measured.
    """
    rows = [r for r in make_rows() if r["group"] == group]
    rows = [r for r in rows if "seen" in measurements.rows.get(f"{group}/{r['name']}/open", {})]
    if not rows:
        return None
    path = folder / f"{group}.png"
    lined = [row for row in rows if "panel" in row]
    return _draw_lines(lined, measurements, path) if lined else _draw_dots(rows, measurements, path)


def get_chance(measurements: Measurements, attribute: str | None = None) -> float | None:
    """Get the share that open prompts "follow" of a reference that was not there."""
    key = "controls/no reference/open"
    share = measurements.get_share(key, "followed", attribute) if key in measurements.rows else None
    return None if share is None else share[0]


def _draw_lines(rows: list[Row], measurements: Measurements, path: Path) -> Path:
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    figure, axes = make_figure(len(panels), min(4, len(panels)), (3.3, 2.9))
    for axis, panel in zip(axes, panels, strict=True):
        chosen = [row for row in rows if row["panel"] == panel]
        xs = [row["x"] for row in chosen]
        for kind, dashes, filled, _ in KINDS:
            for side, colour, _ in SIDES:
                keys = [f"{row['group']}/{row['name']}/{kind}" for row in chosen]
                shares = [share for key in keys if (share := measurements.get_share(key, side))]
                style: dict[str, Any] = {"color": colour, "ls": dashes, "marker": "o", "ms": 7, "lw": 2.2}
                style |= {"mfc": colour if filled else "white", "mew": 1.8, "elinewidth": 1.2}
                axis.errorbar(xs, [s[0] for s in shares], yerr=[s[1] for s in shares], **style)
        _set_axis(axis, panel, get_chance(measurements), vertical=True)
        axis.set_xlabel("alpha" if max(xs) <= 1 else "tokens appended")
        if max(xs) > 1:
            axis.set_xscale("log", base=2)
        ticks = xs if max(xs) > 1 else [0, 0.3, 0.5, 0.7, 1]
        axis.set_xticks(ticks, [f"{x:g}".replace("0.", ".") for x in ticks])
    axes[0].set_ylabel("share")
    return finish(figure, TITLES[rows[0]["group"]], path, _make_handles(lines=True))


def _draw_dots(rows: list[Row], measurements: Measurements, path: Path) -> Path:
    panels = [None, *measurements.provenance["attributes"]]
    figure, axes = make_figure(len(panels), len(panels), (2.4, 0.5 * len(rows)))
    for axis, attribute in zip(axes, panels, strict=True):
        for kind, _, filled, _ in KINDS:
            for side, colour, _ in SIDES:
                for place, row in enumerate(reversed(rows)):
                    share = measurements.get_share(f"{row['group']}/{row['name']}/{kind}", side, attribute)
                    if share is not None:
                        shift = 0.16 if filled else -0.16
                        style: dict[str, Any] = {"color": colour, "marker": "o", "ms": 9, "mew": 1.8}
                        style |= {"mfc": colour if filled else "white", "elinewidth": 1.4}
                        axis.errorbar([share[0]], [place + shift], xerr=[share[1]], **style)
        _set_axis(axis, attribute or "all together", get_chance(measurements, attribute), vertical=False)
        axis.set_ylim(-0.6, len(rows) - 0.4)
    axes[0].set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    return finish(figure, TITLES[rows[0]["group"]], path, _make_handles(lines=False))


def _set_axis(axis: Any, title: str, chance: float | None, *, vertical: bool) -> None:
    """Shares from 0 to 1, a faint grid, and chance."""
    axis.set_title(title, loc="left")
    (axis.set_ylim if vertical else axis.set_xlim)(-0.05, 1.05)
    (axis.set_yticks if vertical else axis.set_xticks)([0, 0.5, 1], ["0", ".5", "1"])
    axis.grid(color=FAINT, lw=0.8)
    axis.set_axisbelow(True)
    if chance is not None:
        (axis.axhline if vertical else axis.axvline)(chance, color=CHANCE, ls=":", lw=2, zorder=0)
