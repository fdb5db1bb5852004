"""`zimage-vl inspect`: what a file of reference embeddings, of text-encoder statistics, or a picture of ours holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import zimage_vl

from ._options import explain, option, option_names
from ._outputs import PARTLY_DONE
from ._records import read_png
from ._sources import PICTURE_SUFFIXES
from ._terminal import FormatOption, OutputFormat, note, print_facts, print_json, say
from .statistics import describe_statistics


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
    against = None if statistics is None else zimage_vl.TextStatistics.load(statistics)
    described = [_describe(file, against, threshold) for file in files]
    for facts in described if output_format is OutputFormat.TEXT else ():
        if isinstance(facts.get("knobs"), dict):  # for people, by their options' names
            facts["knobs"] = {option_names(name)[0][2:]: value for name, value in facts["knobs"].items()}
    for facts in [{"files": described}] if output_format is OutputFormat.JSON and len(files) > 1 else described:
        print_facts(facts, output_format)


def _verify(files: list[Path], output_format: OutputFormat) -> None:
    refused: dict[str, str] = {}
    for file in files:
        try:
            _load(file)
        except (ValueError, OSError) as error:
            refused[str(file)] = explain(error)
    if output_format is OutputFormat.JSON:
        print_json({"whole": [str(file) for file in files if str(file) not in refused], "refused": refused})
    else:
        for file in files:
            say(f"{'REFUSED' if str(file) in refused else 'whole  '} {file}")
    for reason in refused.values():
        note(f"Refused: {reason}")
    if refused:
        raise typer.Exit(PARTLY_DONE)


def _load(file: Path) -> zimage_vl.TextStatistics | zimage_vl.ReferenceEmbeds | dict[str, Any]:
    """What a file holds; a ValueError or OSError with its name where that is none of ours."""
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return read_png(file)
    from safetensors import safe_open

    schema = None
    if file.is_file():  # a pipe would wait for ever
        with suppress(Exception), safe_open(str(file), "pt") as opened:
            schema = (opened.metadata() or {}).get("schema")
    return (zimage_vl.TextStatistics if schema == "zimage_vl.text_statistics" else zimage_vl.ReferenceEmbeds).load(
        file
    )


def _describe(file: Path, against: zimage_vl.TextStatistics | None, threshold: float) -> dict[str, Any]:
    held = _load(file)
    if against is not None and not isinstance(held, zimage_vl.ReferenceEmbeds):
        raise ValueError(f"{file} holds no reference embeddings: --statistics is for a file of these.")
    if isinstance(held, dict):  # a picture needs no torch
        holds, facts = "a picture", held
    elif isinstance(held, zimage_vl.ReferenceEmbeds):
        holds, facts = "reference embeddings", describe_reference(held, against, threshold)
    else:
        holds, facts = "text-encoder statistics", describe_statistics(held)
    return {"file": str(file), "bytes": file.stat().st_size, "holds": holds, **facts}


def describe_reference(
    embeds: zimage_vl.ReferenceEmbeds, against: zimage_vl.TextStatistics | None = None, threshold: float = 10.0
) -> dict[str, Any]:
    """Get reference embeddings as plain values; outliers and the guide's correlation against statistics, if given."""
    from zimage_vl.blend.report import make_jsonable

    if against is not None and against.width != embeds.width:
        raise ValueError(
            f"The statistics are of {against.model_id!r}, which is {against.width} wide; the reference's states are "
            f"{embeds.width} wide. They belong to different models: measure the text encoder that goes with it."
        )
    layers: dict[str, Any] = {}
    for layer, states in embeds.hidden_states.items():
        sinks, rms = zimage_vl.find_sink_tokens(states), states.double().square().mean(dim=1).sqrt()
        layers[str(layer)] = {
            "dtype": str(states.dtype).removeprefix("torch."),
            **_measure(states),
            "std_without_sinks": float(states[~sinks].double().std()),
            "sinks": [
                {"token": i, "region": zimage_vl.Region(int(embeds.regions[i])).name.lower(), "rms": float(rms[i])}
                for i in sinks.nonzero().flatten().tolist()
            ],
        }
        groups = {
            "image_tokens": embeds.select("image_no_markers", layer),
            "text_tokens": embeds.select("text", layer),
        }
        for name, group in groups.items():
            if len(group):
                layers[str(layer)][name] = {"tokens": len(group), **_measure(group)}
                layers[str(layer)][name] |= {} if against is None else _compare(group, against, threshold)
    return {
        "width": embeds.width,
        "tokens": embeds.num_tokens,
        "regions": {region.name.lower(): int((embeds.regions == region).sum()) for region in zimage_vl.Region},
        "muted_too": bool(embeds.muted_states),
        "provenance": make_jsonable(asdict(embeds.provenance)),
        "statistics": against and {"model_id": against.model_id, "fingerprint": against.fingerprint},
        "layers": make_jsonable(layers),
    }


def _measure(states: Any) -> dict[str, float]:
    """The std over all values of tokens, and the RMS of the median one."""
    states = states.double()
    return {"std": float(states.std()), "median_token_rms": float(states.square().mean(dim=1).sqrt().median())}


def _compare(states: Any, against: zimage_vl.TextStatistics, threshold: float) -> dict[str, Any]:
    """The dimensions that spread unlike the text's, and the correlation of all, where it is defined."""
    spread, usual = zimage_vl.EmbeddingStatistics.from_embeddings(states).std, against.statistics.std
    described: dict[str, Any] = {}
    if bool((spread != spread[0]).any()):
        described["per_dimension_correlation"] = zimage_vl.per_dimension_correlation(states, against.statistics)
    described["outliers"] = [
        {"dimension": dim, "ratio": ratio, "direction": "excess" if spread[dim] > usual[dim] else "deficit"}
        for dim, ratio in zimage_vl.get_outlier_dimensions(states, against.statistics, threshold)
    ]
    return described
