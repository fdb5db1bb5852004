"""Effective against nominal alpha on synthetic embeddings: read from the report of the real conditioning, beside the
published figures and an independent formula."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zimage_vl.blend.condition import condition_prompt_embeds
from zimage_vl.blend.embedding_statistics import find_sink_tokens
from zimage_vl.blend.knobs import VLConditioning
from zimage_vl.blend.regions import Region, TokenSelection
from zimage_vl.blend.report import ConditioningReport
from zimage_vl.reference.embeds import ReferenceEmbeds

from .synthetic_states import (
    LAYER_6,
    MIXED,
    TEXT_RMS,
    TEXT_SINK,
    UNIFORM,
    VL_SINK,
    WIDTH,
    ReferenceKind,
    count_patches,
    get_sink_norm,
    make_reference,
    make_text,
    measure_calibration,
)
from .tables import Table


ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
SIDES = (256, 512, 1024, 2048)
PROMPT_LENGTHS = (11, 16, 24, 64, 256, 520)
PROMPT = 24
NOMINAL = 0.3
NORMALIZATIONS = ("none", "global", "per_dim", "hybrid", "token_rms")
# (name, sinks excluded, normalization): every way to scale, with its sinks and without.
WAYS = tuple(
    (f"{normalization}, sinks {'excluded' if excluded else 'kept'}", excluded, normalization)
    for normalization in NORMALIZATIONS
    for excluded in (False, True)
)


def condition_synthetic(
    text: tuple[Tensor, Tensor], reference: ReferenceEmbeds, **knobs: Any
) -> tuple[Tensor, ConditioningReport]:
    """The package's own conditioning on synthetic states, pooled unless the knobs say otherwise."""
    chosen: dict[str, Any] = {"vl_hidden_layer": reference.layers[0], "vl_alignment": "pool", **knobs}
    conditioning = VLConditioning(**chosen)
    measured = measure_calibration(conditioning.vl_exclude_sinks) if conditioning.needs_text_statistics else None
    return condition_prompt_embeds(*text, [reference], conditioning, text_statistics=measured)


def read_alphas(
    text: tuple[Tensor, Tensor], reference: ReferenceEmbeds, alphas: Sequence[float], **knobs: Any
) -> list[float]:
    """What alphas amount to, read from the report of one conditioning in which the text's tokens take turns at them.

    Args:
        text: A prompt's embeddings and regions, with several tokens an alpha.
        reference: A synthetic reference.
        alphas: Nominal alphas above 0.
        knobs: Of the conditioning, for a linear blend.

    Returns:
        For each alpha the median effective alpha of the ordinary tokens that had it.

    Raises:
        ValueError: The blend is not linear, so that no effective alpha is known.
    """
    length = len(text[0])
    nominal = [alphas[n % len(alphas)] for n in range(length)]
    report = condition_synthetic(text, reference, vl_alpha=nominal, **knobs)[1]
    if report.effective_alpha is None:
        raise ValueError(f"The effective alpha is only known of a linear blend, got {knobs}.")
    ordinary = [n for n in range(length) if n not in report.text_sinks]
    effective = report.effective_alpha.tolist()
    return [statistics.median(effective[n] for n in ordinary if nominal[n] == alpha) for alpha in alphas]


def get_ratio(alpha: float, effective: float) -> float:
    """r, the size of a reference's token over the text's, from `a = alpha r / (alpha r + 1 - alpha)`.

    Example:
        >>> round(get_ratio(0.5, 0.8), 6)
        4.0
    """
    return effective * (1 - alpha) / (alpha * (1 - effective))


def get_formula_alpha(alpha: float, ratio: float) -> float:
    """`alpha r / (alpha r + 1 - alpha)`.

    Example:
        >>> round(get_formula_alpha(0.5, 4.0), 6)
        0.8
    """
    return alpha * ratio / (alpha * ratio + 1 - alpha)


def get_formula_ratio(target_std: float, vl_rms: float, sink_norm: float = 0.0, tokens: int = 1) -> float:
    """r after global scaling, by arithmetic alone: `target / sqrt(sink² / (2560 tokens) + rms²) · rms / 10.5`.

    Example:
        >>> round(get_formula_ratio(61.0, 8.7, 14248.0, 1039), 1)
        4.1
    """
    spread = (sink_norm**2 / (WIDTH * tokens) + vl_rms**2) ** 0.5
    return target_std / spread * vl_rms / TEXT_RMS


def _rows(
    settings: Iterable[tuple[tuple[Tensor, Tensor], ReferenceEmbeds]], alphas: Sequence[float] = (NOMINAL,)
) -> tuple[tuple[str, ...], ...]:
    """A row a way to scale, a column a setting and alpha."""
    settings = list(settings)
    rows: list[tuple[str, ...]] = []
    for name, excluded, normalization in WAYS:
        knobs = {"vl_exclude_sinks": excluded, "vl_normalization": normalization}
        cells = (alpha for text, reference in settings for alpha in read_alphas(text, reference, alphas, **knobs))
        rows.append((name, *(f"{cell:.2f}" for cell in cells)))
    return tuple(rows)


_SAMPLE = (
    "Synthetic states 2560 wide, read from the report of the package's own conditioning (vl_alignment 'pool', all "
    "tokens; the median over the prompt's ordinary tokens). The text has ordinary tokens of RMS 10.5 and the "
    "published sink; the reference tokens of RMS 7 (layer -2) and the published sink of Qwen3-VL's text tokens. "
)
_OPEN = "Whether the real models' tokens have these sizes at the layer in use waits for real weights."


def tabulate_alpha() -> Table:
    """Effective against nominal alpha, by normalization and treatment of sinks."""
    text, reference = make_text(PROMPT), make_reference(count_patches(1024), PROMPT - 8)
    note = (
        f"{_SAMPLE}A prompt of {PROMPT} tokens, a reference of 1024 x 1024 pixels. With the sinks in the statistics "
        "'global', 'per_dim' and 'hybrid' blend far more than alpha says; without them alpha means what it says. "
        f"'token_rms' does so either way. {_OPEN}"
    )
    columns = ("scaling", *(f"alpha {alpha}" for alpha in ALPHAS))
    rows = _rows([(text, reference)], ALPHAS)
    return Table("Effective alpha by normalization", columns, rows, note)


def tabulate_resolution(sides: Sequence[int] = SIDES) -> Table:
    """Effective alpha at a nominal .3, by the reference's resolution."""
    text = make_text(PROMPT)
    references = [make_reference(count_patches(side), PROMPT - 8) for side in sides]
    note = (
        f"{_SAMPLE}Nominal alpha 0.3. The larger the picture, the smaller the sink's part in the reference's std, the "
        "more 'global' enlarges it. 2048 x 2048 pixels need `vl_max_pixels` raised. " + _OPEN
    )
    sizes = (f"{side} px ({ref.num_tokens} tokens)" for side, ref in zip(sides, references, strict=True))
    rows = _rows((text, reference) for reference in references)
    return Table("Effective alpha by the reference's resolution", ("scaling", *sizes), rows, note)


def tabulate_length(lengths: Sequence[int] = PROMPT_LENGTHS) -> Table:
    """Effective alpha at a nominal .3, by the prompt's length."""
    patches = count_patches(512)
    settings = [(make_text(n), make_reference(patches, n - 8)) for n in lengths]
    note = (
        f"{_SAMPLE}Nominal alpha 0.3, 512 x 512 pixels, the prompt beside the picture. With a sink the std of a "
        "prompt measures how short it is, so a longer prompt is blended less by 'global'. 'per_dim' takes its "
        f"target from the calibration prompts and moves less. {_OPEN}"
    )
    columns = ("scaling", *(f"{n} text tokens" for n in lengths))
    return Table("Effective alpha by the prompt's length", columns, _rows(settings), note)


def tabulate_regions() -> Table:
    """Effective alpha at a nominal .3 by part of the prompt, anchored, with text tokens larger than image tokens."""
    text, reference = make_text(PROMPT), make_reference(count_patches(512), PROMPT - 8, MIXED)
    ordinary = ~find_sink_tokens(text[0])
    rows: list[tuple[str, ...]] = []
    for name, excluded, normalization in WAYS:
        knobs = {"vl_exclude_sinks": excluded, "vl_normalization": normalization, "vl_alignment": "anchored"}
        effective = condition_synthetic(text, reference, vl_alpha=NOMINAL, **knobs)[1].effective_alpha
        assert effective is not None  # the blend is linear
        regions = (Region.PREFIX, Region.WORDS, Region.SUFFIX)
        parts = (effective[(text[1] == region) & ordinary].median() for region in regions)
        rows.append((name, *(f"{float(part):.2f}" for part in parts)))
    note = (
        "As above, nominal alpha 0.3, 512 x 512 pixels, with the default alignment 'anchored', and with the "
        "reference's text tokens as large as the text encoder's (RMS 10.5; the guide finds the two nearly identical) "
        "beside image tokens of RMS 7. One factor cannot fit both: 'global' is set by the image tokens, which are "
        "many, and overshoots on the template even without sinks. 'token_rms' alone is exact everywhere. " + _OPEN
    )
    return Table("Effective alpha by part of the prompt", ("scaling", "prefix", "words", "suffix"), tuple(rows), note)


@dataclass(frozen=True)
class PublishedRow:
    """A published effective alpha, the inputs that give it, and the knobs that do the same here."""

    name: str
    published_ratio: str
    published: tuple[tuple[float, float], ...]  # (nominal, effective)
    target_std: float | None  # None: nothing is scaled
    tokens: int  # of the reference's whole sequence
    kind: ReferenceKind
    selection: TokenSelection = "all"
    matched: bool = False  # every token to the text token's RMS

    @property
    def formula_ratio(self) -> float:
        if self.matched:
            return 1.0
        if self.target_std is None:
            return self.kind.image_rms / TEXT_RMS
        sink = get_sink_norm(self.kind.sink) if self.selection == "all" else 0.0
        return get_formula_ratio(self.target_std, self.kind.image_rms, sink, self.tokens)

    @property
    def knobs(self) -> dict[str, Any]:
        scaling = "token_rms" if self.matched else "none" if self.target_std is None else "global"
        return {
            "vl_normalization": scaling,
            "vl_target_std": self.target_std,
            "vl_token_selection": self.selection,
        }


def _pair(*effective: float) -> tuple[tuple[float, float], ...]:
    return tuple(zip(ALPHAS, effective, strict=True))


PUBLISHED = (
    PublishedRow("none, layer -6", "0.83", _pair(0.08, 0.17, 0.26, 0.36, 0.45), None, 1039, LAYER_6),
    PublishedRow("global to 61, full sequence", "4.1", _pair(0.31, 0.50, 0.64, 0.73, 0.80), 61.0, 1039, LAYER_6),
    PublishedRow("global to 70, full sequence", "4.7", _pair(0.34, 0.54, 0.67, 0.76, 0.82), 70.0, 1039, LAYER_6),
    PublishedRow(
        "global to 61, image tokens only",
        "5.8",
        _pair(0.39, 0.59, 0.71, 0.79, 0.85),
        61.0,
        1039,
        LAYER_6,
        "image_no_markers",
    ),
    PublishedRow(
        "every token to the text's RMS", "1.0", _pair(0.10, 0.20, 0.30, 0.40, 0.50), None, 1039, LAYER_6, matched=True
    ),
    PublishedRow("global to 61, 256 px", "-", ((0.3, 0.44),), 61.0, 64 + 15, UNIFORM),
    PublishedRow("global to 61, 2048 px", "-", ((0.3, 0.70),), 61.0, 4096 + 15, UNIFORM),
)


def tabulate_published() -> Table:
    """The published table of effective alphas, by formula and by the package's own conditioning."""
    text = make_text(PROMPT)
    rows: list[tuple[str, ...]] = []
    for row in PUBLISHED:
        reference = make_reference(row.tokens - 15, 5, row.kind)
        measured = read_alphas(text, reference, [alpha for alpha, _ in row.published], **row.knobs)
        formula = [get_formula_alpha(alpha, row.formula_ratio) for alpha, _ in row.published]
        rows.append(
            (
                row.name,
                " / ".join(str(alpha) for alpha, _ in row.published),
                row.published_ratio,
                f"{row.formula_ratio:.2f}",
                f"{get_ratio(row.published[0][0], measured[0]):.2f}",
                " / ".join(f"{effective:.2f}" for _, effective in row.published),
                " / ".join(f"{effective:.2f}" for effective in formula),
                " / ".join(f"{effective:.2f}" for effective in measured),
            )
        )
    columns = (
        "scaling",
        "nominal alpha",
        "r published",
        "r by formula",
        "r conditioned",
        "effective alpha published",
        "by formula",
        "conditioned",
    )
    text_norm, vl_norm = get_sink_norm(TEXT_SINK), get_sink_norm(VL_SINK)
    note = (
        "Published: figures that follow from the guide author's measurements. By formula: r = target / sqrt(sink² / "
        "(2560 tokens) + rms²) · rms / 10.5, effective = alpha r / (alpha r + 1 - alpha). Conditioned: the report of "
        "the package's own conditioning on synthetic states. Which inputs the published figures were computed from is "
        "our inference: the first five come out for reference tokens of RMS 8.7 (layer -6) and a sink as long as the "
        f"text's ({text_norm:.0f}), the two resolutions for RMS 7 (layer -2) and the sink of Qwen3-VL's text tokens "
        f"({vl_norm:.0f}). One differs in the last digit: 0.506 at r = 4.1 is published as 0.50. The sizes at layer "
        "-6 wait for real weights."
    )
    return Table("The published effective alphas, computed again", columns, tuple(rows), note)
