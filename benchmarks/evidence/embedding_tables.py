"""Tables of the toy's embeddings, for which nothing is painted: sizes, correlations, outliers, effective alpha."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from zimage_vl.blend.embedding_statistics import find_sink_tokens, get_overall_std, per_dimension_correlation
from zimage_vl.blend.normalize import get_outlier_dimensions
from zimage_vl.blend.regions import select_tokens
from zimage_vl.reference.embeds import ReferenceEmbeds
from zimage_vl.toy.world import Scene, draw_scene

from .tables import Table


_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
_NORMALIZATIONS = ("none", "global", "per_dim", "hybrid", "token_rms")
_SELECTIONS = ("text", "image_no_markers", "all")
_LAYERS = (-1, -2, -4, -6, -8)


class _Readings:
    """A few pairs, read once."""

    def __init__(self, pipe: Any, pairs: Sequence[tuple[Scene, Scene]]) -> None:
        self.pipe = pipe
        self.prompts = [prompt.caption() for prompt, _ in pairs]
        self.embeds: list[ReferenceEmbeds] = [
            pipe.encode_reference(draw_scene(reference, n), prompt, _LAYERS)
            for n, (prompt, (_, reference)) in enumerate(zip(self.prompts, pairs, strict=True))
        ]

    def states(self, layer: int, selection: str) -> torch.Tensor:
        """`(tokens, dims)` of all pairs."""
        return torch.cat([e.hidden_states[layer][select_tokens(e.regions, selection)] for e in self.embeds]).float()  # pyright: ignore[reportArgumentType]

    def effective_alphas(self, **knobs: Any) -> list[float]:
        """The median over a pair's tokens, a pair."""
        reports = self.pipe.encode_prompt_with_reference(
            list(self.prompts), reference_embeds=list(self.embeds), do_classifier_free_guidance=False, **knobs
        ).reports
        return [float(r.effective_alpha[r.effective_alpha > 0].median()) for r in reports]


def measure_embedding_tables(
    pipe: Any, pairs: Sequence[tuple[Scene, Scene]], alphas: Sequence[float] = _ALPHAS
) -> list[Table]:
    """Sizes and outliers of the toy's tokens, and effective against nominal alpha.

    Args:
        pipe: A toy pipeline.
        pairs: Pairs of prompt and reference.
        alphas: Nominal ones.
    """
    readings = _Readings(pipe, pairs)
    return [_tabulate_sizes(readings), _tabulate_alpha(readings, alphas)]


def _tabulate_sizes(readings: _Readings) -> Table:
    text = readings.pipe.text_statistics()
    rows: list[tuple[str, ...]] = []
    for layer in _LAYERS:
        for selection in _SELECTIONS:
            states = readings.states(layer, selection)
            outliers = [len(get_outlier_dimensions(states, text, threshold)) for threshold in (10.0, 2.0)]
            sinks = sum(int(find_sink_tokens(e.hidden_states[layer]).sum()) for e in readings.embeds)
            rows.append(
                (
                    f"{layer}",
                    selection,
                    f"{get_overall_std(states):.2f}",
                    f"{per_dimension_correlation(states, text):.3f}",
                    *(str(number) for number in outliers),
                    str(sinks),
                )
            )
    width = len(text.std)
    return Table(
        "Sizes, correlations and outliers of the toy's tokens",
        ("layer", "tokens", "std", "correlation", "outliers above 10", "outliers above 2", "sinks"),
        tuple(rows),
        f"{len(readings.embeds)} references. The correlation is that of the std vectors with the text encoder's at "
        f"layer -2 ({text.count} calibration tokens), as the guide's .999 for text tokens and .737 for image tokens; "
        f"an outlier is one of {width} dimensions whose std differs from the text encoder's by more than that factor, "
        "either way; sinks are tokens above 8 times the median RMS, in whole sequences.",
    )


def _tabulate_alpha(readings: _Readings, alphas: Sequence[float]) -> Table:
    rows: list[tuple[str, ...]] = []
    for layer, selection, alignment in (
        (-2, "all", "anchored"),
        (-6, "all", "anchored"),
        (-2, "image_no_markers", "pool"),
        (-6, "image_no_markers", "pool"),
    ):
        for normalization in _NORMALIZATIONS:
            knobs = {
                "vl_hidden_layer": layer,
                "vl_token_selection": selection,
                "vl_alignment": alignment,
                "vl_normalization": normalization,
            }
            cells = [_mean(readings.effective_alphas(vl_alpha=alpha, **knobs)) for alpha in alphas]
            rows.append((normalization, f"{layer}", f"{selection}, {alignment}", *cells))
    return Table(
        "Effective against nominal alpha on the toy",
        ("normalization", "layer", "tokens", *(f"nominal {alpha:g}" for alpha in alphas)),
        tuple(rows),
        f"From `report.effective_alpha`: mean and standard error over {len(readings.embeds)} pairs of the median over "
        "the tokens acted on. global and hybrid to the std of the prompt's own text. The toy has no sink tokens, so "
        "its global scaling is off only by what its layers and tokens differ in size.",
    )


def _mean(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {error:.2f}"
