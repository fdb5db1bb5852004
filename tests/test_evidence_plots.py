"""The plots: PNGs with what they were given; matplotlib is asked for by name."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from command_line import environment
from evidence_samples import random_outcome
from zimage_vl.evidence import plots
from zimage_vl.evidence.plots import Line, pick_colour, plot_lines, plot_rows, require_matplotlib


has_matplotlib = importlib.util.find_spec("matplotlib") is not None
needs_matplotlib = pytest.mark.skipif(not has_matplotlib, reason="no matplotlib")


@needs_matplotlib
def test_lines_and_rows_are_drawn(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes = [random_outcome(rng) for _ in range(4)]
    points = list(enumerate(outcomes))
    plot_lines(tmp_path / "a.png", "A title", "x", [Line("one", points, "p", pick_colour(0))])
    plot_rows(tmp_path / "b.png", "A title", [(f"row {n}", outcome) for n, outcome in points])
    plot_lines(tmp_path / "c.png", "A title", "x", [Line("one", points[:3], "p", pick_colour(0))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert 600 < image.width < 1300
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_missing_matplotlib_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need matplotlib.*pip install 'zimage-vl\[evidence\]'"):
        require_matplotlib()


def test_matplotlib_is_imported_only_to_draw() -> None:
    program = (
        "import sys, zimage_vl.cli.evidence, zimage_vl.evidence.plots, zimage_vl.evidence.figures, "
        "zimage_vl.evidence.page\nsys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], env=environment(), check=False).returncode == 0
