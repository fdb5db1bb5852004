"""Words that follow from numbers."""

from __future__ import annotations

import pytest

from evidence_samples import made_measurements
from zimage_vl.evidence.outcomes import Outcome
from zimage_vl.evidence.reading import (
    NotMeasured,
    Reader,
    differ,
    format_share,
    get_leader,
    is_above_chance,
    mean_share,
    tell_outcome,
)


def outcome(shape: str, colour: str = "", background: str = "") -> Outcome:
    return Outcome(shape, colour or shape, background or shape, [90] * len(shape), [0] * len(shape), 0.5, 0.1, 0.0)


def test_a_leader_is_above_one_half_by_two_errors() -> None:
    assert get_leader(outcome("p" * 100), "shape") == "p"
    assert get_leader(outcome("r" * 61 + "p" * 39), "shape") == "r"  # .61 - 2 * .0488 > .5
    assert get_leader(outcome("r" * 59 + "p" * 41), "shape") is None  # .59 - 2 * .0492 < .5
    assert (
        tell_outcome(outcome("p" * 9, "r" * 9, "-" * 9))
        == "shape the prompt's, colour the reference's, background open"
    )
    assert tell_outcome(outcome("----")) == "all open"


def test_chance_is_that_of_the_values_left() -> None:
    # colour: 1/5 and three errors of 100 pictures are .32
    assert not is_above_chance(outcome("r" * 32 + "-" * 68), "colour")
    assert is_above_chance(outcome("r" * 33 + "-" * 67), "colour")
    # shape: 1/3 + 3 * sqrt(2/9/100) = .4747
    assert not is_above_chance(outcome("r" * 47 + "-" * 53), "shape")
    assert is_above_chance(outcome("r" * 48 + "-" * 52), "shape")


def test_two_rows_are_compared_pair_by_pair() -> None:
    first, second = outcome("p" * 50 + "r" * 50), outcome("p" * 45 + "r" * 55)
    assert differ(first, second, "shape", "p")  # five pairs changed, none the other way: 5 / sqrt(4.75) > 2
    swapped = outcome("r" * 5 + "p" * 45 + "p" * 5 + "r" * 45)
    assert not differ(first, swapped, "shape", "p")
    assert not differ(first, first, "shape", "p")


def test_a_row_that_is_not_measured_is_named() -> None:
    made = made_measurements()
    assert Reader(made).pairs == 20
    Reader(made).get("alpha", "alpha 0.3")
    made.outcomes.clear()
    with pytest.raises(NotMeasured, match=r"alpha: alpha 0\.3"):
        Reader(made).get("alpha", "alpha 0.3")


def test_shares_are_shown_with_their_errors() -> None:
    assert format_share(outcome("pprr"), "shape", "p") == ".50 ± .25"
    assert format_share(outcome("pppp"), "shape", "p") == "1.0 ± .00"
    assert mean_share(outcome("pp", "rr", "pr"), "p") == 0.5
