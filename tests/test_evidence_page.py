"""The page holds every table of the guide, and its words follow from its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evidence_samples import made_measurements
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.figures import PLOTS
from zimage_vl.evidence.outcomes import PROMPT, Measurements
from zimage_vl.evidence.page import tabulate, tell_command, write_model_page, write_page
from zimage_vl.evidence.reading import Reader
from zimage_vl.evidence.running import get_missing
from zimage_vl.evidence.tables import Table


def page(measurements: Measurements) -> str:
    return write_page(measurements, {"alpha": ("alpha.png", "a plot")}, "evidence")


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_experiment_has_its_claim_table_and_paragraphs() -> None:
    made = made_measurements()
    found = sections(page(made))
    for experiment in EXPERIMENTS.values():
        section = found[experiment.title]
        assert experiment.claim in section
        for setting in experiment.settings:
            assert f"| {setting.label}" in section
        told = section.split("**What we think now.**")[1]
        assert len(told.strip()) > 80
        assert "not measured" not in told
    assert "![a plot](evidence/alpha.png)" in found["Alpha"]
    assert "### A sink" in found["Synthetic embeddings with the published sink"]
    assert "### Sizes" in found["Normalization"]


def test_the_page_says_what_it_is_and_how_it_was_made() -> None:
    text = page(made_measurements())
    assert text.index("not evidence about the real models") < 400
    assert "What waits for real weights" in text
    for fact in ("zimage-vl evidence --pairs 20 --seed 1", "20 pairs", "seed 1", "torch 1", "1 thread(s)"):
        assert fact in text
    assert tell_command(7, 3) == "zimage-vl evidence --pairs 7 --seed 3"


def test_the_lists_of_the_guide_have_a_row_each_and_the_wishes_come_last() -> None:
    found = sections(page(made_measurements()))
    lists = found["What transfers, what is unreliable, what does not work"]
    assert [lists.count(f"| {kind} |") for kind in ("may transfer", "unreliable", "does not work")] == [4, 5, 3]
    assert list(found)[-1] == "Which setting for which wish"


def test_every_table_has_as_many_cells_in_every_row() -> None:
    text = page(made_measurements())
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]


@pytest.mark.parametrize("seed", range(8))
def test_any_numbers_give_a_page(seed: int) -> None:
    text = page(made_measurements(seed))
    assert "nan" not in text.lower().split()


def test_a_cell_is_the_share_and_its_error() -> None:
    made = made_measurements()
    reader = Reader(made)
    row = tabulate(EXPERIMENTS["alpha"], reader).rows[4]
    outcome = reader.get("alpha", "alpha 0.5")
    share = outcome.shape.count(PROMPT) / 20
    error = (share * (1 - share) / 20) ** 0.5
    assert row[0] == "alpha 0.5"
    assert row[2].startswith(f"{share:.2f} ± {error:.2f} / ".replace("0.", ".", 2))


def test_rounds_have_a_row_each_and_second_references_a_share() -> None:
    reader = Reader(made_measurements())
    labels = [row[0] for row in tabulate(EXPERIMENTS["refinement"], reader).rows]
    assert labels[:3] == ["alpha 0.3, round 1", "alpha 0.3, round 2", "alpha 0.3, round 3"]
    assert tabulate(EXPERIMENTS["references"], reader).rows[0][2].count("/") == 2


def test_what_is_not_measured_is_said() -> None:
    made = made_measurements()
    for setting in EXPERIMENTS["steps"].settings:
        del made.outcomes[setting.key]
    del made.outcomes[EXPERIMENTS["masks"].settings[1].key]
    found = sections(page(made))
    assert "Not measured yet: `zimage-vl evidence --only steps`." in found["Start and end"]
    assert "1 rows are not measured yet" in found["Masks on the reference"]
    nothing = Measurements(made.provenance)
    assert sections(page(nothing))["Which setting for which wish"].strip() == "Not measured yet."


def test_the_page_of_a_model_has_the_claims_beside_what_was_measured() -> None:
    measured = Table("Blend", ("setting", "likeness"), (("adain", "0.5"),))
    text = write_model_page("a/model", "zimage-vl evidence --model a/model", {"seed": 3}, [measured])
    assert "`zimage-vl evidence --model a/model`; seed 3." in text
    assert "| adain | keeps the content perfectly, no visible style | 0.5 |" in text
    assert "### Blend" in text


def test_the_page_in_docs_is_what_its_measurements_give() -> None:
    docs = Path(__file__).parent.parent / "docs"
    measurements = Measurements.load(docs / "evidence" / "measurements.json")
    plots = {plot.experiment: (f"{plot.experiment}.png", plot.alt) for plot in PLOTS}
    # Written again by `zimage-vl evidence --render-only`.
    assert write_page(measurements, plots, "evidence") == (docs / "evidence.md").read_text(encoding="utf-8")
    assert {path.name for path in (docs / "evidence").iterdir()} == {
        "measurements.json",
        *(name for name, _ in plots.values()),
    }
    assert get_missing(EXPERIMENTS.values(), measurements) == []
