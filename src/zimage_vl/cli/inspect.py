"""`zimage-vl inspect`: what a file of reference embeddings, or of text-encoder statistics, holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import option
from ._shared import FormatOption, OutputFormat, print_json, say
from .statistics import describe_statistics, statistics_lines


if TYPE_CHECKING:
    from torch import Tensor

    from zimage_vl.pipeline.text_statistics import TextStatistics
    from zimage_vl.reference.embeds import ReferenceEmbeds

_LARGEST_SHOWN = 8  # outliers in the text form; JSON has them all
_FILE = "safetensors file of `zimage-vl extract`, or of `zimage-vl statistics`."
_AGAINST = "File of `zimage-vl statistics`, to find outlier dimensions against it. Default: none."
_RATIO = "Ratio, above 1, over which a dimension is an outlier."


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=_FILE)],
    statistics: Annotated[Path | None, option("--statistics", "FILE", _AGAINST)] = None,
    threshold: Annotated[float, option("--threshold", "NUMBER", _RATIO)] = 10.0,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Say what is inside a file: sizes, layers, regions, spread, attention sinks, outliers, and where it is from."""
    from safetensors import safe_open

    from zimage_vl.pipeline.text_statistics import STATISTICS_FILE, TextStatistics
    from zimage_vl.reference.embeds import ReferenceEmbeds

    schema = None
    if file.is_file():  # a pipe would wait for ever
        with suppress(Exception), safe_open(str(file), "pt") as opened:
            schema = (opened.metadata() or {}).get("schema")
    if schema == STATISTICS_FILE.schema:
        if statistics is not None:
            raise ValueError(f"{file} holds statistics itself: --statistics is for a file of reference embeddings.")
        described, make_lines = describe_statistics(TextStatistics.load(file)), statistics_lines
    else:
        embeds = ReferenceEmbeds.load(file)
        against = None if statistics is None else TextStatistics.load(statistics)
        described, make_lines = describe_reference(embeds, against, threshold), _reference_lines
    if output_format is OutputFormat.JSON:
        print_json({"file": str(file), "bytes": file.stat().st_size, "schema": schema, **described})
        return
    for line in [f"file              {file}, {file.stat().st_size} bytes", *make_lines(described)]:
        say(line)


def describe_reference(
    embeds: ReferenceEmbeds, against: TextStatistics | None = None, threshold: float = 10.0
) -> dict[str, Any]:
    """Get reference embeddings as plain values; outliers and the guide's correlation against statistics, if given."""
    from zimage_vl.blend.regions import Region
    from zimage_vl.blend.report import make_jsonable

    if against is not None and against.width != embeds.width:
        raise ValueError(
            f"The statistics are of {against.model_id!r}, which is {against.width} wide; the reference's states are "
            f"{embeds.width} wide. They belong to different models: measure the text encoder that goes with it."
        )
    return {
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
    from zimage_vl.blend.embedding_statistics import (
        get_dimension_std,
        get_overall_std,
        get_token_rms,
        per_dimension_correlation,
    )
    from zimage_vl.blend.normalize import get_outlier_dimensions

    described: dict[str, Any] = {
        "tokens": len(states),
        "std": get_overall_std(states),
        "median_token_rms": float(get_token_rms(states).median()),
    }
    if against is None:
        return described
    spread, usual = get_dimension_std(states), against.statistics.std
    described["outliers"] = [
        {"dimension": dim, "ratio": ratio, "direction": "excess" if spread[dim] > usual[dim] else "deficit"}
        for dim, ratio in get_outlier_dimensions(states, against.statistics, threshold)
    ]
    if len(states) > 1 and bool((spread != spread[0]).any()):  # otherwise it is not defined
        described["per_dimension_correlation"] = per_dimension_correlation(states, against.statistics)
    return described


def _reference_lines(described: dict[str, Any]) -> list[str]:
    """The description for people."""
    regions = ", ".join(f"{count} {name}" for name, count in described["regions"].items() if count)
    lines = [f"tokens            {described['tokens']} of {described['width']} dimensions: {regions}"]
    for name, value in described["provenance"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = " x ".join(str(item) for item in value)
        elif isinstance(value, str) and (not value or " " in value):
            value = repr(value)
        if value is not None:
            lines.append(f"{name.replace('_', ' '):<17} {value}")
    for layer, facts in described["layers"].items():
        sinks = [f"token {sink['token']} ({sink['region']}, RMS {sink['rms']:.4g})" for sink in facts["sinks"]]
        lines.append(
            f"layer {layer:<11} {facts['dtype']}, std {facts['std']:.4g}, without sinks "
            f"{facts['std_without_sinks']:.4g}, median token RMS {facts['median_token_rms']:.4g}; sinks: "
            f"{', '.join(sinks) or 'none'}"
        )
        for name in ("image_tokens", "text_tokens"):
            lines += _group_lines(name.replace("_", " "), facts[name]) if name in facts else []
    return lines


def _group_lines(name: str, group: dict[str, Any]) -> list[str]:
    text = f"  {name:<15} {group['tokens']}, std {group['std']:.4g}, median token RMS {group['median_token_rms']:.4g}"
    if "per_dimension_correlation" in group:
        text += f", per-dimension correlation {group['per_dimension_correlation']:.3f}"
    if "outliers" not in group:
        return [text]
    # The ratio of a dimension that does not vary is the word inf.
    shown = [f"{o['dimension']} ({float(o['ratio']):.1f}x {o['direction']})" for o in group["outliers"]]
    more = f" and {len(shown) - _LARGEST_SHOWN} more" if len(shown) > _LARGEST_SHOWN else ""
    return [text, f"  {'outliers':<15} {', '.join(shown[:_LARGEST_SHOWN]) or 'none'}{more}"]
