"""The commands that print the toy world's quality and fidelity: what they count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fidelity_bench
import toy_quality

from zimage_vl.toy import Verdict


def test_an_even_spread_has_a_share_of_one() -> None:
    def seen(shapes: list[str]) -> list[Verdict]:
        return [Verdict(shape, "red", "white", "plain", "left", 0.9) for shape in shapes]

    assert toy_quality.largest_share(seen(["circle", "square", "triangle", "cross"]), "shape") == 1.0
    assert toy_quality.largest_share(seen(["circle"] * 4), "shape") == 4.0


def test_kept_and_followed_are_means_over_the_attributes_asked_for() -> None:
    shares = {"shape": 1.0, "colour": 0.5, "background": 0.0, "fill": 0.0, "place": 0.0}
    outcome = fidelity_bench.Outcome(shares, {name: 1 - share for name, share in shares.items()}, 0.9)
    assert outcome.kept(("shape", "colour")) == 0.75
    assert outcome.followed(("shape", "colour")) == 0.25
    assert fidelity_bench.others(("shape", "background")) == ["colour", "fill", "place"]


def test_the_median_rms_leaves_a_sink_out_of_account() -> None:
    states = torch.ones(5, 4)
    states[0] = 1000
    assert fidelity_bench.median_rms(states) == pytest.approx(1.0)
