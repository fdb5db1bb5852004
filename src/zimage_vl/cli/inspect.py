"""`zimage-vl inspect`: what a file of reference embeddings, of text-encoder statistics, or a picture of ours holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import option
from ._records import read_png
from ._terminal import FormatOption, OutputFormat, escape, note, one_line, print_facts, print_json, say
from .extract import PARTLY_DONE
from .statistics import describe_statistics


if TYPE_CHECKING:
    from torch import Tensor

    from zimage_vl.pipeline.text_statistics import TextStatistics
    from zimage_vl.reference.embeds import ReferenceEmbeds

_FILES = "Files of `zimage-vl extract` or `zimage-vl statistics`, pictures of `zimage-vl generate`."
_AGAINST = "File of `zimage-vl statistics`, to find outlier dimensions against it. Default: none."
_RATIO = "Ratio, above 1, over which a dimension is an outlier."
_VERIFY = "Say of each file whether it is whole, by its digest and form, and no more. Exit code 3: one is not."


def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=_FILES)],
    verify: Annotated[bool, option("--verify", None, _VERIFY)] = False,
    statistics: Annotated[Path | None, option("--statistics", "FILE", _AGAINST)] = None,
    threshold: Annotated[float, option("--threshold", "NUMBER", _RATIO)] = 10.0,
    output_format: FormatOption = OutputFormat.TEXT,
) -> None:
    """Say what is inside a file: sizes, layers, regions, spread, attention sinks, outliers, and where it is from; of a
    picture, its settings and what the reference did."""
    if verify:
        _verify(files, output_format)
        return
    from zimage_vl.pipeline.text_statistics import TextStatistics

    against = None if statistics is None else TextStatistics.load(statistics)
    described = [_describe(file, against, threshold) for file in files]
    if output_format is OutputFormat.JSON and len(files) > 1:
        print_json({"files": described})
        return
    for facts in described:
        print_facts(facts, output_format)


def _verify(files: list[Path], output_format: OutputFormat) -> None:
    refused: dict[str, str] = {}
    for file in files:
        try:
            _load(file)
        except (ValueError, OSError) as error:
            refused[str(file)] = escape(one_line(error))
    if output_format is OutputFormat.JSON:
        print_json({"whole": [str(file) for file in files if str(file) not in refused], "refused": refused})
    else:
        for file in files:
            say(f"{'REFUSED' if str(file) in refused else 'whole  '} {file}")
    for reason in refused.values():
        note(f"Refused: {reason}")
    if refused:
        raise typer.Exit(PARTLY_DONE)


def _load(file: Path) -> tuple[str, TextStatistics | ReferenceEmbeds | dict[str, Any]]:
    """The schema of a file, and what it holds; a ValueError or OSError with its name where that is none of ours."""
    from safetensors import safe_open

    from zimage_vl.pipeline.text_statistics import STATISTICS_FILE, TextStatistics
    from zimage_vl.reference.embeds import REFERENCE_FILE, ReferenceEmbeds

    if file.suffix.lower() == ".png":
        return "parameters", read_png(file)
    schema = None
    if file.is_file():  # a pipe would wait for ever
        with suppress(Exception), safe_open(str(file), "pt") as opened:
            schema = (opened.metadata() or {}).get("schema")
    if schema == STATISTICS_FILE.schema:
        return STATISTICS_FILE.schema, TextStatistics.load(file)
    return REFERENCE_FILE.schema, ReferenceEmbeds.load(file)


def _describe(file: Path, against: TextStatistics | None, threshold: float) -> dict[str, Any]:
    from zimage_vl.reference.embeds import ReferenceEmbeds

    schema, held = _load(file)
    if against is not None and not isinstance(held, ReferenceEmbeds):
        raise ValueError(f"{file} holds no reference embeddings: --statistics is for a file of these.")
    if isinstance(held, ReferenceEmbeds):
        described = describe_reference(held, against, threshold)
    else:
        described = held if isinstance(held, dict) else describe_statistics(held)
    return {"file": str(file), "bytes": file.stat().st_size, "schema": schema, **described}


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
        "muted_too": bool(embeds.muted_states),
        "provenance": make_jsonable(asdict(embeds.provenance)),
        "statistics": against and {"model_id": against.model_id, "fingerprint": against.fingerprint},
        "layers": {
            str(layer): make_jsonable(_describe_layer(states, embeds.regions, against, threshold))
            for layer, states in embeds.hidden_states.items()
        },
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
    from zimage_vl.blend import embedding_statistics as measures
    from zimage_vl.blend.normalize import get_outlier_dimensions

    described: dict[str, Any] = {
        "tokens": len(states),
        "std": measures.get_overall_std(states),
        "median_token_rms": float(measures.get_token_rms(states).median()),
    }
    if against is None:
        return described
    spread, usual = measures.get_dimension_std(states), against.statistics.std
    if len(states) > 1 and bool((spread != spread[0]).any()):  # otherwise it is not defined
        described["per_dimension_correlation"] = measures.per_dimension_correlation(states, against.statistics)
    return described | {
        "outliers": [
            {"dimension": dim, "ratio": ratio, "direction": "excess" if spread[dim] > usual[dim] else "deficit"}
            for dim, ratio in get_outlier_dimensions(states, against.statistics, threshold)
        ]
    }
