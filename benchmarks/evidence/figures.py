"""Which plots the page has, and what is on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .experiments_more import EXPERIMENTS
from .outcomes import PROMPT, REFERENCE, Outcome
from .plots import PROMPT_COLOUR, REFERENCE_COLOUR, Line, pick_colour, plot_lines, plot_rows
from .reading import NotMeasured, Reader


@dataclass(frozen=True)
class PlotSpec:
    """One plot: its experiment, its words for those who cannot see it, and what draws it."""

    experiment: str
    alt: str
    draw: Callable[[Reader, Path], None]


def draw_plots(reader: Reader, folder: Path) -> dict[str, tuple[str, str]]:
    """Draw what is measured.

    Args:
        reader: The measurements.
        folder: Where the PNGs go; it exists.

    Returns:
        `{experiment: (file name, alt text)}` of what was drawn.
    """
    drawn: dict[str, tuple[str, str]] = {}
    for plot in PLOTS:
        name = f"{plot.experiment}.png"
        try:
            plot.draw(reader, folder / name)
        except NotMeasured:
            (folder / name).unlink(missing_ok=True)  # no plot of another run beside the tables of this
            continue
        drawn[plot.experiment] = (name, plot.alt)
    return drawn


def _plot_alpha(reader: Reader, path: Path) -> None:
    alphas = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
    base = [(alpha, reader.get("alpha", f"alpha {alpha:g}")) for alpha in alphas]
    default = [
        (alpha, reader.get("alpha", f"the call's defaults, alpha {alpha:g}")) for alpha in (0.15, 0.3, 0.5, 0.7, 1.0)
    ]
    lines = [
        Line("prompt's value", base, PROMPT, PROMPT_COLOUR),
        Line("reference's value", base, REFERENCE, REFERENCE_COLOUR, marker="s"),
        Line("prompt's, the call's defaults", default, PROMPT, PROMPT_COLOUR, dashed=True),
        Line("reference's, the call's defaults", default, REFERENCE, REFERENCE_COLOUR, dashed=True, marker="s"),
    ]
    plot_lines(path, "Whose values the picture shows, by alpha", "alpha", lines, (0, 0.25, 0.5, 0.75, 1))


def _plot_layers(reader: Reader, path: Path) -> None:
    layers = range(-8, 0)
    full = [((9 + k) / 8, reader.get("layers", f"layer {k}, alpha 1")) for k in layers]
    half = [((9 + k) / 8, reader.get("layers", f"layer {k}, alpha 0.5")) for k in layers]
    lines = [
        Line("reference's value, alpha 1", full, REFERENCE, REFERENCE_COLOUR, marker="s"),
        Line("reference's value, alpha 0.5", half, REFERENCE, REFERENCE_COLOUR, dashed=True, marker="s"),
        Line("prompt's value, alpha 0.5", half, PROMPT, PROMPT_COLOUR, dashed=True),
    ]
    plot_lines(
        path, "Which layer the reference is read from (the guide's -6 of 36 is at .86)", "relative depth", lines
    )


def _plot_tokens(reader: Reader, path: Path) -> None:
    anchored = (0.3, 0.5, 0.7, 1.0)
    rows: list[tuple[str, str, tuple[float, ...]]] = [
        (f"{tokens}, anchored", f"{tokens}, alpha {{:g}}", anchored) for tokens in ("all", "text", "image")
    ]
    rows.append(("image, pool", "image, pool, alpha {:g}", (0.5, 1.0)))
    lines = [
        Line(
            name,
            # Set apart a little: some lie on each other.
            [(alpha + 0.008 * (number - 1.5), reader.get("tokens", label.format(alpha))) for alpha in alphas],
            REFERENCE,
            pick_colour(number),
            dashed=number == 3,
            marker="osD^"[number],
        )
        for number, (name, label, alphas) in enumerate(rows)
    ]
    title = "The reference's value in the picture, by the tokens that count"
    plot_lines(path, title, "alpha", lines, (0.3, 0.5, 0.7, 1.0))


def _plot_doses(reader: Reader, path: Path) -> None:
    """Every row of linear, anchored blends of all tokens, whatever made its dose."""
    rows: dict[str, Outcome] = {}
    for experiment in ("alpha", "normalization", "layers"):
        for setting in EXPERIMENTS[experiment].settings:
            knobs = setting.knobs
            deep = knobs.get("vl_hidden_layer", -6) not in (-1, -7, -8)  # those do not give the reference at any dose
            if deep and "vl_alignment" not in knobs:
                rows[setting.key] = reader.get(experiment, setting.label)
    dosed = sorted((o.effective_alpha, key) for key, o in rows.items() if o.effective_alpha is not None)
    points = [(dose, rows[key]) for dose, key in dosed]
    lines = [
        Line("prompt's value", points, PROMPT, PROMPT_COLOUR, marker="o", joined=False),
        Line("reference's value", points, REFERENCE, REFERENCE_COLOUR, marker="s", joined=False),
    ]
    title = f"{len(points)} settings of alpha, layer (-2 to -6) and normalization, by effective alpha"
    plot_lines(path, title, "effective alpha", lines, (0, 0.25, 0.5, 0.75, 1))


def _plot_all_rows(experiment: str, title: str, ending: str = "") -> Callable[[Reader, Path], None]:
    """A plot of the rows of an experiment whose label has this ending."""

    def draw(reader: Reader, path: Path) -> None:
        labels = [setting.label for setting in EXPERIMENTS[experiment].settings if setting.label.endswith(ending)]
        rows = [(label.removesuffix(ending), reader.get(experiment, label)) for label in labels]
        plot_rows(path, title, rows)

    return draw


PLOTS = (
    PlotSpec(
        "alpha", "Shares of the prompt's and the reference's shape, colour and background against alpha", _plot_alpha
    ),
    PlotSpec("layers", "Shares of the reference's values against the relative depth of the layer", _plot_layers),
    PlotSpec("tokens", "Shares of the reference's values against alpha for all, text and image tokens", _plot_tokens),
    PlotSpec(
        "normalization", "Shares of the prompt's and the reference's values against the effective alpha", _plot_doses
    ),
    PlotSpec("blend", "Shares for each blend mode", _plot_all_rows("blend", "Blend modes at alpha 1", ", alpha 1")),
    PlotSpec("recipes", "Shares for each recipe", _plot_all_rows("recipes", "The recipes as they are shipped")),
    PlotSpec(
        "positions",
        "Shares for each place of the blend",
        _plot_all_rows("positions", "Where in the prompt the blend happens"),
    ),
    PlotSpec(
        "steps",
        "Shares for each window of steps",
        _plot_all_rows("steps", "During which steps the reference counts (alpha 1)"),
    ),
)
