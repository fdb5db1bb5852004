"""The appendix: every row that was measured, in tables."""

from __future__ import annotations

from typing import Any

from .measurements import Measurements, Share
from .settings import KINDS, TITLES, Row, make_rows


HEAD = """# Evidence: the tables

Written by `python -m benchmarks.evidence --render` from `{folder}/measurements.json`; the findings are in
[evidence.md](evidence.md). {pairs} pairs of a prompt and a reference that share nothing ({attributes}), seed {seed};
toy {checkpoint}, single file {pipeline}; {versions}; Python {python}. Measured by `{commands}`.

**Kept** is the share of what the prompt names that the picture shows. **Followed** is the share of what the prompt
leaves open that is the reference's; of a prompt that names everything, the share of what it names that is the
reference's, which contradicts it in every value. *Open* prompts name one to three things, *naming* prompts everything.
± is the standard error over the pairs; a share of 0 or 1 has none by that formula, and the true one may lie
{rule:.2f} away. *Dose* is the median effective alpha of the tokens acted on, *turned* the influence (1 - mean cosine),
*form* the fit with the nearest drawing (1 is a drawing). What a reference that shows nothing "follows" is chance: see
the controls. A row that is missing is not measured yet. The toy is no evidence about the real models.
"""


def write_tables(measurements: Measurements, folder: str) -> str:
    """Get the page: for each group a table over all attributes, and one attribute by attribute."""
    run = measurements.provenance
    told: dict[str, Any] = {**run, "folder": folder, "rule": 3 / run["pairs"]}
    told |= {"commands": "`, `".join(measurements.commands), "attributes": ", ".join(run["attributes"])}
    told["versions"] = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    parts = [HEAD.format(**told)]
    for group, title in TITLES.items():
        rows = [row for row in make_rows() if row["group"] == group]
        rows = [row for row in rows if f"{group}/{row['name']}/open" in measurements.rows]
        if rows:
            parts += [f"## {title}\n", *_write_group(rows, measurements)]
    if measurements.language_model:
        parts.append("## A real language model\n\n| number | |\n|---|---|")
        parts[-1] += "".join(
            f"\n| {key} | {value:.2f} |" for key, value in measurements.language_model["numbers"].items()
        )
    return "\n".join(parts).rstrip() + "\n"


def _write_group(rows: list[Row], measurements: Measurements) -> list[str]:
    attributes: list[str] = measurements.provenance["attributes"]
    seen: list[Row] = []
    refused: list[str] = []
    for row in rows:
        why = measurements.rows[f"{row['group']}/{row['name']}/open"].get("refused")
        seen += [] if why else [row]
        refused += [f"Not measured: *{row['name']}*, because {why}."] if why else []
    if not seen:
        return [" ".join(refused) + "\n"]
    second = any(row.get("reference") in ("two", "beside") for row in seen)
    quantities = ("kept", "followed", *(["second"] if second else []))
    columns = ["row", "dose", "turned", *(f"{kind}: {name}" for kind in KINDS for name in quantities), "form"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in seen:
        keys = [f"{row['group']}/{row['name']}/{kind}" for kind in KINDS]
        first = measurements.rows[keys[0]]
        cells = [f"{first[name]:.2f}" if name in first else "-" for name in ("effective_alpha", "influence")]
        cells += [_show(measurements.get_share(key, name)) for key in keys for name in quantities]
        lines.append("| " + " | ".join([row["name"], *cells, f"{first['form'][0]:.2f}"]) + " |")
    lines += ["", "<details><summary>attribute by attribute: kept / followed</summary>", ""]
    columns = ["row", *(f"{kind}: {name}" for kind in KINDS for name in attributes)]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in seen:
        keys = [f"{row['group']}/{row['name']}/{kind}" for kind in KINDS]
        pairs = [
            [measurements.get_share(key, quantity, name) for quantity in ("kept", "followed")]
            for key in keys
            for name in attributes
        ]
        cells = [" / ".join("-" if share is None else f"{share[0]:.2f}" for share in pair) for pair in pairs]
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return [*lines, "", "</details>", "", *([" ".join(refused), ""] if refused else [])]


def _show(share: Share | None) -> str:
    return "-" if share is None else f"{share[0]:.2f} ± {share[1]:.2f}"
