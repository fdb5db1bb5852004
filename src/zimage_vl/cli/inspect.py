"""`zimage-vl inspect`: what a file of reference embeddings, or of text-encoder statistics, holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._shared import FormatOption, OutputFormat, print_json
from .statistics import describe_statistics, statistics_lines


if TYPE_CHECKING:
    from torch import Tensor

    from zimage_vl.pipeline.text_statistics import TextStatistics
    from zimage_vl.reference.embeds import ReferenceEmbeds

_LARGEST_SHOWN = 8  # outliers in the text form; JSON has them all

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="safetensors file of `zimage-vl extract`, or of `zimage-vl statistics`.")
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="FILE",
        help="File of `zimage-vl statistics`, to find outlier dimensions against it. Default: none.",
    ),
]
ThresholdOption = Annotated[
    float, typer.Option("--threshold", metavar="NUMBER", help="Ratio, above 1, over which a dimension is an outlier.")
]


def inspect(
    file: FileArgument,
    statistics: StatisticsOption = None,
    threshold: ThresholdOption = 10.0,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Say what is inside a file: sizes, layers, regions, spread, attention sinks, outliers, and where it is from."""
    from zimage_vl.pipeline.text_statistics import TextStatistics

    described = _describe_statistics_file(file)
    lines = statistics_lines
    if described is None:
        from zimage_vl.reference.embeds import ReferenceEmbeds

        embeds = ReferenceEmbeds.load(file)
        against = None if statistics is None else TextStatistics.load(statistics)
        described = describe_reference(embeds, against, threshold)
        lines = _reference_lines
    elif statistics is not None:
        raise ValueError(f"{file} holds statistics itself: --statistics is for a file of reference embeddings.")
    if output_format is OutputFormat.JSON:
        print_json({"file": str(file), "bytes": file.stat().st_size, **described})
        return
    typer.echo(f"file              {file}, {file.stat().st_size} bytes")
    for line in lines(described):
        typer.echo(line)


def _describe_statistics_file(file: Path) -> dict[str, Any] | None:
    """What a file of statistics holds; None for a file that is not one, whatever else it is."""
    from safetensors import SafetensorError, safe_open

    from zimage_vl.pipeline.text_statistics import STATISTICS_FILE, TextStatistics

    try:
        with safe_open(str(file), "pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError):
        return None
    if metadata.get("schema") != STATISTICS_FILE.schema:
        return None
    return {"schema": metadata["schema"], **describe_statistics(TextStatistics.load(file))}


def describe_reference(
    embeds: ReferenceEmbeds, against: TextStatistics | None = None, threshold: float = 10.0
) -> dict[str, Any]:
    """Reference embeddings as plain values.

    Args:
        embeds: What is described.
        against: Statistics of the text encoder, for outliers and the guide's correlation.
        threshold: > 1, the ratio over which a dimension is an outlier.

    Returns:
        "schema", "width", "tokens", "regions" {name: count}, "layers" {layer: what `_describe_layer` says},
        "provenance" and "statistics" (whose they are, or None).

    Raises:
        ValueError: Statistics of another width; a threshold that is not above 1.
    """
    from zimage_vl.blend.regions import Region
    from zimage_vl.blend.report import make_jsonable
    from zimage_vl.reference.embeds import REFERENCE_SCHEMA

    if against is not None and against.width != embeds.width:
        raise ValueError(
            f"The statistics are of {against.model_id!r}, which is {against.width} wide; the reference's states are "
            f"{embeds.width} wide. They belong to different models: measure the text encoder that goes with it."
        )
    return {
        "schema": REFERENCE_SCHEMA,
        "width": embeds.width,
        "tokens": embeds.num_tokens,
        "regions": {region.name.lower(): int((embeds.regions == region).sum()) for region in Region},
        "layers": {
            str(layer): make_jsonable(_describe_layer(states, embeds.regions, against, threshold))
            for layer, states in embeds.hidden_states.items()
        },
        "provenance": make_jsonable(asdict(embeds.provenance)),
        "statistics": against and {"model_id": against.model_id, "fingerprint": against.fingerprint},
    }


def _describe_layer(
    states: Tensor, regions: Tensor, against: TextStatistics | None, threshold: float
) -> dict[str, Any]:
    """Spread, sinks and, against statistics, what stands out in image tokens and text tokens."""
    from zimage_vl.blend.embedding_statistics import find_sink_tokens, get_overall_std, get_token_rms
    from zimage_vl.blend.regions import Region, select_tokens

    rms, sinks = get_token_rms(states), find_sink_tokens(states)
    described: dict[str, Any] = {
        "dtype": str(states.dtype).removeprefix("torch."),
        "std": get_overall_std(states),
        "std_without_sinks": get_overall_std(states[~sinks]),
        "median_token_rms": float(rms.median()),
        "sinks": [
            {"token": i, "region": Region(int(regions[i])).name.lower(), "rms": float(rms[i])}
            for i in sinks.nonzero().flatten().tolist()
        ],
    }
    groups = {"image_tokens": regions == Region.IMAGE, "text_tokens": select_tokens(regions, "text")}
    return described | {
        name: _describe_group(states[group], against, threshold) for name, group in groups.items() if bool(group.any())
    }


def _describe_group(states: Tensor, against: TextStatistics | None, threshold: float) -> dict[str, Any]:
    import torch

    from zimage_vl.blend.embedding_statistics import (
        get_dimension_std,
        get_overall_std,
        get_token_rms,
        per_dimension_correlation,
    )
    from zimage_vl.blend.normalize import mask_outlier_dimensions

    described: dict[str, Any] = {
        "tokens": len(states),
        "std": get_overall_std(states),
        "median_token_rms": float(get_token_rms(states).median()),
    }
    if against is None:
        return described
    info = mask_outlier_dimensions(states, against.statistics, threshold, "none")[1]
    described["outliers"] = [
        {"dimension": dim, "ratio": ratio, "direction": info.directions[dim]}
        for dim, ratio in info.left_dim_ratios.items()
    ]
    spread = get_dimension_std(states)
    if len(states) > 1 and not torch.equal(spread, spread[:1].expand_as(spread)):  # otherwise it is not defined
        described["per_dimension_correlation"] = per_dimension_correlation(states, against.statistics)
    return described


def _reference_lines(described: dict[str, Any]) -> list[str]:
    """The description for people."""
    regions = ", ".join(f"{count} {name}" for name, count in described["regions"].items() if count)
    lines = [f"tokens            {described['tokens']} of {described['width']} dimensions: {regions}"]
    lines += [
        f"{name.replace('_', ' '):<17} {_shown_value(value)}"
        for name, value in described["provenance"].items()
        if value is not None
    ]
    for layer, facts in described["layers"].items():
        lines += _layer_lines(layer, facts)
    return lines


def _shown_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " x ".join(str(item) for item in value)
    return repr(value) if isinstance(value, str) and (not value or " " in value) else str(value)


def _layer_lines(layer: str, facts: dict[str, Any]) -> list[str]:
    sinks = ", ".join(f"token {sink['token']} ({sink['region']}, RMS {sink['rms']:.4g})" for sink in facts["sinks"])
    lines = [
        f"layer {layer:<11} {facts['dtype']}, std {facts['std']:.4g}, without sinks {facts['std_without_sinks']:.4g}, "
        f"median token RMS {facts['median_token_rms']:.4g}; sinks: {sinks or 'none'}"
    ]
    for name in ("image_tokens", "text_tokens"):
        if name not in facts:
            continue
        group = facts[name]
        text = f"  {name.replace('_', ' '):<15} {group['tokens']}, std {group['std']:.4g}"
        text += f", median token RMS {group['median_token_rms']:.4g}"
        if "per_dimension_correlation" in group:
            text += f", per-dimension correlation {group['per_dimension_correlation']:.3f}"
        lines.append(text)
        if "outliers" in group:
            shown = [
                f"{o['dimension']} ({o['ratio'] if isinstance(o['ratio'], str) else format(o['ratio'], '.1f')}x "
                f"{o['direction']})"
                for o in group["outliers"][:_LARGEST_SHOWN]
            ]
            more = len(group["outliers"]) - len(shown)
            lines.append(f"  {'outliers':<15} {', '.join(shown) or 'none'}{f' and {more} more' if more else ''}")
    return lines
