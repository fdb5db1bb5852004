"""The guide's claims beside what was measured on pictures of the user's own, row by row."""

from __future__ import annotations

from collections.abc import Sequence

from .settings import NO_CLAIM
from .tables import Table


_ALPHA = (
    ("the prompt alone", "pure text (baseline)"),
    ("alpha 0.15", "subtle style hints"),
    ("alpha 0.3", "recommended default"),
    ("alpha 0.5", "strong style transfer; above it VL dominates"),
    ("alpha 0.7", "preserves the reference's composition"),
    ("alpha 1.0", "pure VL (experimental)"),
)
# By the group of the settings: what the name of a row begins with, and what the guide says of it.
CLAIMS: dict[str, tuple[tuple[str, str], ...]] = {
    "Alpha": _ALPHA,
    "Alpha, every token the size of its text token": _ALPHA,
    "Layers": (
        ("layer -1 ", "heavy artifacts"),
        ("layer -2 ", "heavy artifacts; 617x outlier in dim 396"),
        ("layer -4 ", "moderate artifacts"),
        ("layer -6 ", "least artifacts, the best layer"),
        ("layer -8 ", "moderate artifacts"),
        ("layer -16 ", "moderate to heavy artifacts"),
        ("layer -24 ", "severe artifacts, border noise"),
    ),
    "Tokens": (
        ("all", "a compromise"),
        ("text", "fewest artifacts (its author an hour later: inert at 0.3)"),
        ("image", "more severe artifacts, needs per_dim"),
    ),
    "Text beside the picture": (
        ("nothing", "pure visual features"),
        ("Describe", "VL interprets the image"),
    ),
    "Normalization": (
        ("global", "for text tokens; on image tokens it amplifies outliers"),
        ("per_dim", "required for image tokens"),
        ("hybrid", "experimental"),
    ),
    "Outlier masking, image tokens": (
        ("none", "baseline"),
        ("zero", "tests whether these dimensions cause artifacts"),
        ("clamp", "keeps some signal, limits extremes"),
        ("scale", "gradual reduction"),
    ),
    "Blend": (
        ("linear", "the guide's blend"),
        ("adain_per_dim", "transfers colours, corrupts the subject"),
        ("adain", "keeps the content perfectly, no visible style"),
        ("style_delta", "failed: destroys the content"),
    ),
    "Recipes": (
        ("style-transfer", "style of the reference, the prompt's content; artifacts"),
        ("image-variation", "stays near the reference"),
        ("composition", "layout of the reference, the prompt's content"),
        ("colour-palette", "subtle influence of the colours"),
        ("guide", "the guide's defaults to the letter"),
    ),
}


def add_claims(tables: Sequence[Table]) -> list[Table]:
    """The same tables with a column for what the guide says of each row.

    Example:
        >>> add_claims([Table("Blend", ("setting", "count"), (("adain", "3"),))])[0].rows
        (('adain', 'keeps the content perfectly, no visible style', '3'),)
    """
    return [
        Table(
            table.title,
            (table.columns[0], "the guide says", *table.columns[1:]),
            tuple((row[0], find_claim(table.title, row[0]), *row[1:]) for row in table.rows),
            table.note,
        )
        for table in tables
    ]


def find_claim(group: str, name: str) -> str:
    """What the guide says of a setting; "-" where it says nothing."""
    return next((claim for start, claim in CLAIMS.get(group, ()) if name.startswith(start)), NO_CLAIM)
