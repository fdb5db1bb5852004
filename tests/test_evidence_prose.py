"""Paragraphs take their words from the numbers: other numbers, other words."""

from __future__ import annotations

from evidence_samples import made_measurements
from zimage_vl.evidence.experiments_more import EXPERIMENTS
from zimage_vl.evidence.outcomes import Outcome
from zimage_vl.evidence.prose import ALPHAS, find_differences, join, tell_alpha, tell_layers, tell_text
from zimage_vl.evidence.reading import Reader


def outcome(letters: str, stray: int = 0, effective: float = 0.5) -> Outcome:
    """Twenty pictures, `letters` for shape, colour, background."""
    return Outcome(*(letter * 20 for letter in letters), [86] * 20, [stray] * 20, effective, 0.1, 0.0)


def reader(experiment: str, letters: dict[str, Outcome]) -> Reader:
    made = made_measurements()
    for setting in EXPERIMENTS[experiment].settings:
        if setting.label in letters:
            made.outcomes[setting.key] = [letters[setting.label]]
    return Reader(made)


def test_alpha_as_a_switch_and_as_a_dial() -> None:
    rows = {f"alpha {a:g}": outcome("ppp" if a < 0.5 else "rrr", 50 if a == 0.5 else 1) for a in ALPHAS}
    told = " ".join(tell_alpha(reader("alpha", rows)))
    assert "a switch rather than a dial: up to 0.4 the prompt leads in everything, from 0.5 on" in told
    assert "The most stray pixels are at 0.5 (0.050 of the picture" in told
    assert "is what the toy shows too" in told
    assert "in nothing that the judge reads" in told
    rows = {f"alpha {a:g}": outcome("ppp" if a < 0.3 else "rrr" if a > 0.8 else "prp") for a in ALPHAS}
    told = " ".join(tell_alpha(reader("alpha", rows)))
    assert "a dial: up to 0.15" in told
    assert "is not what the toy shows" in told


def test_layers_good_and_poor() -> None:
    rows = {f"layer -{k}, alpha 1": outcome("rrr" if 2 <= k <= 6 else "prp") for k in range(1, 9)}
    told = " ".join(tell_layers(reader("layers", rows)))
    assert "the layers -2, -3, -4, -5 and -6 give the reference in everything, -1, -7 and -8 do not" in told
    assert "As the guide says, the last layer" in told
    rows = {f"layer -{k}, alpha 1": outcome("rrr") for k in range(1, 9)}
    assert "The last layer is no worse here" in " ".join(tell_layers(reader("layers", rows)))


def test_words_that_give_the_reference_away_are_found_by_the_control() -> None:
    control = "control: matching description, noise as the picture, alpha 0.5"
    told = tell_text(reader("text", {control: outcome("prp")}))[0]
    assert "shows the reference's colour above chance" in told
    assert "nothing of the reference above chance" in tell_text(reader("text", {control: outcome("ppp")}))[0]


def test_differences_are_named() -> None:
    assert find_differences(outcome("ppp"), outcome("prp")) == ["colour"]
    assert find_differences(outcome("ppp"), outcome("ppp")) == []
    assert join(["a"]) == "a"
