"""The page: every experiment's table and what follows from it, as markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from zimage_vl.toy.measuring import ATTRIBUTES, CHANCE

from .experiments_more import EXPERIMENTS
from .model_claims import add_claims
from .outcomes import PROMPT, REFERENCE, SECOND, SYNTHETIC_TABLES, TOY_TABLES, Measurements, Outcome
from .prose_rest import PARAGRAPHS
from .reading import NotMeasured, Reader, format_share, tell_outcome
from .settings import Experiment, Setting
from .tables import Table
from .transfers import tabulate_transfers
from .wishes import tabulate_wishes


_NOT_EVIDENCE = (
    "> **The toy is not evidence about the real models.** Everything measured below was measured on the toy world "
    "that ships with this package: a transformer of 2.5 million parameters that paints 64 x 64 pictures of one "
    "coloured shape. It shows that the knobs work and how they act on a model of this kind. What it says about "
    "Z-Image is a guess until somebody runs the same page on the real weights (`zimage-vl evidence --model FOLDER "
    "--pictures ... --prompts ...`)."
)
_WAITING = (
    "**What waits for real weights:** whether an artifact looks as the guide says; every statement about style, mood, "
    "fine detail, faces or writing, of which the toy has none; at which alpha the prompt gives way; which layer is "
    "best; whether text tokens carry the picture; whether places of the prompt divide structure from appearance; "
    "everything that hangs on attention sinks, which the toy does not have (for these the synthetic tables below use "
    "the published sizes)."
)

_TRANSFERS = (
    "**The guide:** what may transfer does so with artifacts, no combination of parameters is free of them. Its "
    "entries one by one, with what the toy can and cannot say:"
)


def write_page(measurements: Measurements, plots: Mapping[str, tuple[str, str]], folder: str) -> str:
    """The page of a toy run.

    Args:
        measurements: Of the run, whole or in part.
        plots: `{experiment: (file name, alt text)}`.
        folder: Of the plots, as seen from the page.

    Returns:
        Markdown.
    """
    reader = Reader(measurements)
    parts = [
        "# What each knob does: the guide's claims beside the toy",
        _NOT_EVIDENCE,
        _WAITING,
        _tell_run(measurements),
        _tell_reading(reader.pairs),
    ]
    for experiment in EXPERIMENTS.values():
        parts.append(_write_section(experiment, reader, plots, folder))
        if experiment.name == "normalization":
            parts += ["### Effective against nominal alpha", *_tables_of(measurements, TOY_TABLES)]
    parts += [_section("What transfers, what is unreliable, what does not work"), _TRANSFERS]
    parts.append(tabulate_transfers(reader).to_markdown().split("\n", 2)[2])
    parts.append(_section("Synthetic embeddings with the published sink"))
    parts.append(
        "No model at all: tokens made to the published sizes, through the package's own conditioning. This is where "
        "the attention sink shows, which the toy has not."
    )
    parts += _tables_of(measurements, SYNTHETIC_TABLES)
    parts += [_section("Which setting for which wish"), *tabulate_wishes(reader)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_model_page(model: str, command: str, facts: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """The page of a run on a checkpoint and pictures of the user's own.

    Args:
        model: Its name.
        command: What printed the page.
        facts: Seed, steps, versions and the like.
        tables: What was measured; the guide's claims are put beside it.
    """
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    parts = [
        f"# What each knob does on {model}",
        f"Printed by `{command}`; {told}.",
        "Measured on the pictures and prompts that were given, and true of those. Colour, structure and semantics "
        "are measured as likeness, by arithmetic and by the model's own eyes: none of it sees whether a picture is "
        "good or full of artifacts. For that, look at the painted pictures in the folder beside this page.",
        *(table.to_markdown() for table in add_claims(tables)),
    ]
    return "\n\n".join(parts) + "\n"


def tell_command(pairs: int, seed: int) -> str:
    """The command that prints the page.

    Example:
        >>> tell_command(60, 1)
        'zimage-vl evidence --pairs 60 --seed 1'
    """
    return shlex.join(["zimage-vl", "evidence", "--pairs", str(pairs), "--seed", str(seed)])


def count_measured(reader: Reader) -> int:
    """How many different settings of the experiments are measured."""
    settings = (setting for experiment in EXPERIMENTS.values() for setting in experiment.settings)
    return len({setting.key for setting in settings if reader.rounds(setting)})


def _section(title: str) -> str:
    return f"## {title}"


def _tell_run(measurements: Measurements) -> str:
    provenance, remarks = dict(measurements.provenance), measurements.remarks
    pairs, seed = provenance.pop("pairs"), provenance.pop("seed")
    code = f"sources of the pipeline {provenance.pop('pipeline')}, weights of the toy {provenance.pop('toy')}"
    versions = ", ".join(f"{name} {value}" for name, value in provenance.items())
    spent = f"; {remarks['seconds'] / 60:.0f} minutes of measuring" if "seconds" in remarks else ""
    return (
        f"Printed by `{tell_command(pairs, seed)}` (`make evidence`), and written again from "
        "`evidence/measurements.json` with `--render-only`.\n"
        f"{pairs} pairs of a prompt and a reference that share neither shape nor colour nor background, seed {seed}; "
        f"{versions}; Python {remarks.get('python', 'unknown')}; {code}; {remarks.get('threads', 'unknown')} "
        f"thread(s){spent}. {count_measured(Reader(measurements))} different settings."
    )


def _tell_reading(pairs: int) -> str:
    chance = ", ".join(f"{name} {CHANCE[name]:.2f}" for name in ATTRIBUTES)
    return (
        f"**How to read the tables.** Every row is painted for all {pairs} pairs from the same noise. A cell holds "
        "the share of pictures that show the prompt's value and, after the stroke, the reference's, each ± one "
        f"standard error, sqrt(p (1 - p) / {pairs}). A share of 0 or 1 has error 0 by that formula; the true one may "
        f"still lie {3 / pairs:.2f} away (three in {pairs}). By chance a picture that has lost the prompt shows the "
        f"reference's value in: {chance}. *Form* is how well the shape fits its nearest template (intersection over "
        "union, 1 is perfect; a drawn scene has nearly 1), *stray* the share of pixels that belong to neither the "
        "shape's colour nor the background's. *Effective* is the mean effective alpha of the tokens acted on (- "
        "where the blend is not linear). *In short* follows from the numbers: an attribute is the prompt's or the "
        "reference's where that share is above one half by two standard errors, else open. Two rows are said to "
        "differ where their pair by pair difference is more than twice its standard error; with this many rows some "
        "will by accident."
    )


def _write_section(experiment: Experiment, reader: Reader, plots: Mapping[str, tuple[str, str]], folder: str) -> str:
    parts = [_section(experiment.title), f"**The guide:** {experiment.claim}"]
    if experiment.common:
        parts.append(f"*{experiment.common}*")
    rows = [setting for setting in experiment.settings if reader.rounds(setting)]
    if not rows:
        return "\n\n".join([*parts, f"Not measured yet: `zimage-vl evidence --only {experiment.name}`."])
    table = tabulate(experiment, reader).to_markdown()
    parts.append(table.split("\n", 2)[2])  # without its heading: the section has one
    if experiment.name in plots:
        name, alt = plots[experiment.name]
        parts.append(f"![{alt}]({folder}/{name})")
    parts += ["**What we think now.**", *_tell_paragraphs(experiment.name, reader)]
    if len(rows) < len(experiment.settings):
        parts.append(f"{len(experiment.settings) - len(rows)} rows are not measured yet.")
    return "\n\n".join(parts)


def _tell_paragraphs(name: str, reader: Reader) -> list[str]:
    try:
        return PARAGRAPHS[name](reader)
    except NotMeasured as missing:
        return [f"This paragraph needs a row that is not measured yet ({missing})."]


def tabulate(experiment: Experiment, reader: Reader) -> Table:
    """The table of an experiment, a row a setting and round that is measured."""
    masks = experiment.name == "masking"
    columns = ["setting", "the guide says", *ATTRIBUTES, "form", "stray", "effective"]
    columns += ["masked"] if masks else []
    rows: list[tuple[str, ...]] = []
    for setting in experiment.settings:
        for number, outcome in enumerate(reader.rounds(setting)):
            label = setting.label if setting.rounds == 1 else f"{setting.label}, round {number + 1}"
            cells = [_show_shares(setting, outcome, name) for name in ATTRIBUTES]
            effective = "-" if outcome.effective_alpha is None else f"{outcome.effective_alpha:.2f}"
            numbers = [f"{fmean(outcome.iou) / 100:.2f}", f"{fmean(outcome.stray) / 1000:.3f}", effective]
            numbers += [f"{outcome.masked_dimensions:.1f}"] if masks else []
            rows.append((label, setting.claim, *cells, *numbers, tell_outcome(outcome)))
    return Table(experiment.title, (*columns, "in short"), tuple(rows))


def _show_shares(setting: Setting, outcome: Outcome, attribute: str) -> str:
    sides = (PROMPT, REFERENCE, SECOND) if setting.second else (PROMPT, REFERENCE)
    return " / ".join(format_share(outcome, attribute, side) for side in sides)


def _tables_of(measurements: Measurements, name: str) -> list[str]:
    return [table.to_markdown() for table in measurements.tables.get(name, [])] or ["Not measured yet."]
