"""Which plots a page has: those whose rows are measured, and none of an earlier run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from evidence_samples import made_measurements
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.figures import PLOTS, draw_plots
from zimage_vl.evidence.reading import Reader


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_what_is_measured_is_drawn_and_what_is_not_is_removed(tmp_path: Path) -> None:
    made = made_measurements()
    drawn = draw_plots(Reader(made), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {name for name, _ in drawn.values()} == {f"{plot.experiment}.png" for plot in PLOTS}
    assert set(drawn) <= set(EXPERIMENTS)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_500_000
    made.outcomes = {key: made.outcomes[key] for key in (s.key for s in EXPERIMENTS["steps"].settings)}
    assert set(draw_plots(Reader(made), tmp_path)) == {"steps"}
    assert {path.name for path in tmp_path.iterdir()} == {"steps.png"}
