"""What can be known of the method without any weights: sizes, on synthetic embeddings with the published sink."""

from __future__ import annotations

from collections.abc import Sequence

from .synthetic_alpha import (
    PROMPT_LENGTHS,
    SIDES,
    tabulate_alpha,
    tabulate_length,
    tabulate_published,
    tabulate_regions,
    tabulate_resolution,
)
from .synthetic_figures import tabulate_modes, tabulate_outliers, tabulate_per_dim, tabulate_sink
from .tables import Table


def synthetic_experiments(sides: Sequence[int] = SIDES, prompt_lengths: Sequence[int] = PROMPT_LENGTHS) -> list[Table]:
    """All tables of the synthetic experiments; some 20 seconds on a core.

    They say how large embeddings become, which follows from the published figures, and nothing about pictures.

    Args:
        sides: Of square references, in pixels, multiples of 32.
        prompt_lengths: Of prompts, in tokens, more than the template's 8.

    Returns:
        Effective alpha by normalization, resolution, length and part of the prompt, the published effective alphas
        computed again, the sink's statistics, the outlier dimensions, and what single modes do to a token.
    """
    return [
        tabulate_alpha(),
        tabulate_resolution(sides),
        tabulate_length(prompt_lengths),
        tabulate_regions(),
        tabulate_published(),
        tabulate_sink(),
        tabulate_outliers(),
        tabulate_per_dim(),
        tabulate_modes(),
    ]
