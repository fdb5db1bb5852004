"""`zimage-vl statistics`: what a text encoder usually says, per dimension, measured and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import zimage_vl
from zimage_vl.workflows.files import remove_leftovers

from ._models import Model
from ._options import option, with_options
from ._outputs import OverwriteOption, check_output_path, new_file
from ._terminal import FormatOption, OutputFormat, print_facts


_LARGEST = 5  # dimensions shown: in a real text encoder two of them hold nearly all of the spread
_SINKS = "Leave attention sinks out of the measurement, or not."


@with_options(vl_model=False)
def statistics(
    model: Model,
    exclude_sinks: Annotated[bool, option("--exclude-sinks/--include-sinks", None, _SINKS)] = False,
    output: Annotated[Path | None, option("--output -o", "FILE", "safetensors file to write.")] = None,
    overwrite: OverwriteOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Measure a text encoder's mean and standard deviation per dimension on the built-in calibration prompts.

    "per_dim", "hybrid" and outlier masking compare references with these; `generate` measures them by itself. A file
    of them serves `zimage-vl inspect --statistics` and `zimage-vl generate --statistics`.
    """
    if output is not None:
        remove_leftovers(output.parent, [output.name])
        check_output_path(output, (".safetensors",), overwrite=overwrite, inputs=[model.model])
    pipe, name = model.load_text_side(), str(model.describe()["model"])
    measured = zimage_vl.TextStatistics.measure(pipe, name, exclude_sinks)
    if output is not None:
        with new_file(output, overwrite) as file:
            measured.save(file)
    print_facts({**describe_statistics(measured), "output": None if output is None else str(output)}, output_format)


def describe_statistics(measured: zimage_vl.TextStatistics) -> dict[str, Any]:
    """Get the statistics in short as plain values: provenance, the std over everything, and the widest dimensions."""
    mean, std = measured.statistics.mean.cpu().double(), measured.statistics.std.cpu().double()
    count = measured.statistics.count
    # The variance over all values of all tokens, put together from the dimensions' own; both with correction 1.
    squares = (std.square() * (count - 1)).sum() + count * (mean - mean.mean()).square().sum()
    widest = std.argsort(descending=True)[:_LARGEST].tolist()
    return {
        "model_id": measured.model_id,
        "fingerprint": measured.fingerprint,
        "layer": measured.layer,
        "width": measured.width,
        "tokens": count,
        "sinks_excluded": measured.statistics.exclude_sinks,
        "overall_std": float((squares / (count * len(std) - 1)).sqrt()),
        "median_dimension_std": float(std.median()),
        "widest_dimensions": [{"dimension": d, "mean": float(mean[d]), "std": float(std[d])} for d in widest],
        "prompts_sha256": measured.prompts_sha256,
        "dtype": measured.dtype,
        "versions": dict(measured.versions),
    }
