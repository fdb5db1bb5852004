"""Outcomes, their errors, and the file that keeps them."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from evidence_samples import made_measurements, random_outcome
from zimage_vl.evidence.outcomes import EXCLUDED, Measurements, Outcome, get_standard_error


def test_the_standard_error_is_that_of_a_mean_of_zeros_and_ones() -> None:
    outcome = random_outcome(random.Random(3), 37)
    for side in "pr-":
        values = [float(letter == side) for letter in outcome.colour]
        assert outcome.share("colour", side) == pytest.approx(statistics.fmean(values))
        assert outcome.error("colour", side) == pytest.approx(statistics.pstdev(values) / 37**0.5)
    assert get_standard_error(0.0, 5) == get_standard_error(1.0, 5) == 0.0


def test_the_standard_error_covers_repeated_draws() -> None:
    rng = random.Random(0)
    shares = [sum(rng.random() < 0.3 for _ in range(50)) / 50 for _ in range(4000)]
    assert statistics.stdev(shares) == pytest.approx(get_standard_error(0.3, 50), rel=0.05)


def test_pictures_that_do_not_count_are_left_out() -> None:
    outcome = Outcome("pppp", "pppp", EXCLUDED * 2 + "rp", [90] * 4, [0] * 4, None, 0.0, 0.0)
    assert (outcome.count("shape"), outcome.count("background")) == (4, 2)
    assert outcome.share("background", "r") == 0.5


def test_an_outcome_is_put_together_from_its_pictures() -> None:
    judged = [
        {
            "shape": letter,
            "colour": "r",
            "background": "-",
            "iou": 0.5,
            "stray": 0.25,
            "effective_alpha": alpha,
            "influence": 0.5,
            "masked_dimensions": 2,
        }
        for letter, alpha in (("p", 0.2), ("r", 0.4))
    ]
    made = Outcome.from_pictures(judged)
    assert (made.shape, made.colour, made.iou, made.stray) == ("pr", "rr", [50, 50], [250, 250])
    assert made.effective_alpha == pytest.approx(0.3)
    assert (made.influence, made.masked_dimensions) == (0.5, 2.0)


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = made_measurements()
    made.save(tmp_path / "a.json")
    loaded = Measurements.load(tmp_path / "a.json")
    assert loaded == made
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["provenance"] == made.provenance
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made = made_measurements()
    made.save(path)
    before = path.read_bytes()
    made.remarks["threads"] = object()  # what JSON cannot hold
    with pytest.raises(TypeError):
        made.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "zimage_vl.evidence/0"}', "[]"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a.json holds no measurements.*--fresh"):
        Measurements.load(tmp_path / "a.json")
