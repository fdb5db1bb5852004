"""`zimage-vl statistics`: what a text encoder usually says, per dimension, measured and kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ._options import DeviceOption, DtypeChoice, DtypeOption, ModelOption, RevisionOption, option
from ._parts import load_text_side
from ._shared import (
    TOY_MODEL,
    FormatOption,
    OutputFormat,
    OverwriteOption,
    check_model_name,
    check_output_path,
    choose_device,
    new_file,
    note,
    print_json,
    say,
)


if TYPE_CHECKING:
    from zimage_vl.pipeline.text_statistics import TextStatistics

_LARGEST = 5  # dimensions shown: in a real text encoder two of them hold nearly all of the spread

_SINKS = "Leave attention sinks out of the measurement, or not."


def statistics(
    model: ModelOption = TOY_MODEL,
    exclude_sinks: Annotated[bool, option("--exclude-sinks/--include-sinks", None, _SINKS)] = False,
    output: Annotated[Path | None, option("--output -o", "FILE", "safetensors file to write.")] = None,
    revision: RevisionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    overwrite: OverwriteOption = False,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Measure a text encoder's mean and standard deviation per dimension on the built-in calibration prompts.

    "per_dim", "hybrid" and outlier masking compare references with these; `generate` measures them by itself. A file
    of them serves `zimage-vl inspect --statistics` and `zimage-vl generate --statistics`.
    """
    check_model_name(model)
    if output is not None:
        check_output_path(output, (".safetensors",), overwrite=overwrite, inputs=[model])
    import torch

    from zimage_vl.pipeline.text_statistics import TextStatistics

    where = choose_device(device)
    precision = dtype or (DtypeChoice.FLOAT32 if model == TOY_MODEL else DtypeChoice.BFLOAT16)
    note(f"Loading the text encoder of {model} ...")
    pipe = load_text_side(model, getattr(torch, precision.value), where, revision)
    name = Path(model).name if Path(model).is_dir() else model
    measured = TextStatistics.measure(pipe, name, exclude_sinks)
    if output is not None:
        with new_file(output, overwrite) as unfinished:
            measured.save(unfinished)
    described = describe_statistics(measured)
    if output_format is OutputFormat.JSON:
        print_json({**described, "output": None if output is None else str(output)})
        return
    for line in [*statistics_lines(described), *([] if output is None else [str(output)])]:
        say(line)


def describe_statistics(measured: TextStatistics) -> dict[str, Any]:
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


def statistics_lines(described: dict[str, Any]) -> list[str]:
    """Get the same for people, one fact per line."""
    sinks = "left out" if described["sinks_excluded"] else "counted"
    return [
        f"model             {described['model_id']}, {described['dtype']}, "
        f"fingerprint {described['fingerprint'][:12]}",
        f"layer             {described['layer']}, {described['width']} dimensions",
        f"tokens            {described['tokens']}, sinks {sinks}",
        f"std               {described['overall_std']:.4g} over all values, "
        f"{described['median_dimension_std']:.4g} in the median dimension",
        *(
            f"dimension {row['dimension']:<7} mean {row['mean']:.4g}, std {row['std']:.4g}"
            for row in described["widest_dimensions"]
        ),
    ]
