"""Paragraphs of the rest: other numbers, other words; and a paragraph for every experiment."""

from __future__ import annotations

from evidence_samples import made_measurements
from test_evidence_prose import outcome, reader
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.prose_rest import PARAGRAPHS, tell_controls, tell_masks, tell_refinement, tell_steps
from zimage_vl.evidence.reading import Reader


def test_every_experiment_has_its_paragraphs() -> None:
    assert list(PARAGRAPHS) == list(EXPERIMENTS)
    for tell in PARAGRAPHS.values():
        assert all(len(paragraph) > 40 for paragraph in tell(Reader(made_measurements())))


def test_controls_at_chance_and_above() -> None:
    labels = [setting.label for setting in EXPERIMENTS["controls"].settings]
    quiet = {label: outcome("---") for label in labels}
    assert "No control matches" in tell_controls(reader("controls", quiet))[0]
    loud = {**quiet, "noise, all, alpha 1": outcome("-r-")}
    assert (
        "Above chance by three standard errors: noise, all, alpha 1, colour."
        in tell_controls(reader("controls", loud))[0]
    )


def test_windows_that_divide() -> None:
    labels = [setting.label for setting in EXPERIMENTS["steps"].settings]
    rows = {label: outcome("rrr") for label in labels}
    assert "No window divides" in tell_steps(reader("steps", rows))[0]
    rows[labels[-1]] = outcome("prr")
    assert f"colours comes from: {labels[-1]}" in tell_steps(reader("steps", rows))[0]


def test_what_a_mask_leaves() -> None:
    rows = {"the whole reference, alpha 1": outcome("rrr"), "its middle alone, alpha 1": outcome("-r-")}
    told = tell_masks(reader("masks", {**rows, "its border alone, alpha 1": outcome("--r")}))[0]
    assert "The middle says more of colour, the border more of background." in told
    assert "The prompt does not come back" in told
    told = tell_masks(reader("masks", {**rows, "its border alone, alpha 1": outcome("p-r")}))[0]
    assert "leaves room for the prompt" in told


def test_rounds_that_fade() -> None:
    made = reader("refinement", {})
    for setting in EXPERIMENTS["refinement"].settings:
        made.measurements.outcomes[setting.key] = [outcome("rrr"), outcome("rrp"), outcome("ppp")]
    assert "the reference fades" in tell_refinement(made)[0]
    for setting in EXPERIMENTS["refinement"].settings:
        made.measurements.outcomes[setting.key] = [outcome("rrr")] * 3
    assert "do not lead back" in tell_refinement(made)[0]
