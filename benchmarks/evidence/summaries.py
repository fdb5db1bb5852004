"""Numbers for tables: a mean with its error, the typical alpha of a report, a layer by its relative depth."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from zimage_vl.blend.report import ConditioningReport


GUIDE_LAYERS = 36
"""Layers of Qwen3-VL-4B, which the guide's layer numbers count."""


def format_mean(values: Sequence[float]) -> str:
    """The mean and its standard error, `s / sqrt(n)`; of a single value no error can be told.

    Example:
        >>> format_mean([0.2, 0.4]), format_mean([0.5]), format_mean([])
        ('0.30 ± 0.10', '0.50', '-')
    """
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def get_typical_alpha(report: ConditioningReport) -> float | None:
    """The median effective alpha over the text's tokens on which a reference acted, sinks left out.

    Args:
        report: Of one prompt.

    Returns:
        0..1; 0.0 where no token was acted on, None where the blend was not linear.
    """
    if report.effective_alpha is None:
        return None
    sinks = set(report.text_sinks)
    acted = [float(a) for n, a in enumerate(report.effective_alpha) if a > 0 and n not in sinks]
    return statistics.median(acted) if acted else 0.0


def scale_layer(layer: int, num_layers: int, of_layers: int = GUIDE_LAYERS) -> int:
    """The layer at the same relative depth in a model with another number of layers.

    Hidden states are numbered 0 (the word embeddings) to `num_layers`, so that -6 of 36 is number 31, at .86 of the
    depth. -1 stays -1: it alone comes after the final norm.

    Args:
        layer: As of a model with `of_layers` layers, negative from the end.
        num_layers: Layers of the model in use.
        of_layers: Layers of the model that `layer` belongs to.

    Returns:
        A negative index, below -1 unless `layer` is the last.

    Raises:
        ValueError: `layer` does not exist in `of_layers` layers.

    Example:
        >>> scale_layer(-6, 36), scale_layer(-6, 8), scale_layer(-24, 8), scale_layer(-2, 8)
        (-6, -2, -6, -2)
    """
    if not -of_layers - 1 <= layer <= of_layers:
        raise ValueError(f"`layer` must be one of {-of_layers - 1} .. {of_layers}, got {layer}.")
    number = layer % (of_layers + 1)
    if number == of_layers:
        return -1
    return min(round(number * num_layers / of_layers), num_layers - 1) - num_layers - 1
