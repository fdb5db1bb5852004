"""Paragraphs of blend modes, masking, recipes and places: other numbers, other words."""

from __future__ import annotations

from test_evidence_prose import outcome, reader
from zimage_vl.evidence.prose import is_structure, is_style
from zimage_vl.evidence.prose_more import tell_blend, tell_masking, tell_positions, tell_recipes


def test_style_and_structure() -> None:
    assert is_style(outcome("prr"))
    assert not is_style(outcome("rrr"))
    assert is_structure(outcome("rpp"))
    assert not is_structure(outcome("ppp"))


def test_adain_is_called_inert_only_where_it_is() -> None:
    alone = reader("alpha", {"alpha 0": outcome("ppp")})
    for letters, words in (("ppp", "AdaIN per token is inert"), ("rpp", "AdaIN per token is not inert")):
        made = reader("blend", {"adain, alpha 1": outcome(letters)})
        made.measurements.outcomes["the prompt alone"] = alone.measurements.outcomes["the prompt alone"]
        assert words in tell_blend(made)[0]


def test_a_delta_that_works_is_told() -> None:
    made = reader("blend", {"style_delta, neutral desaturated, alpha 1": outcome("prr")})
    told = " ".join(tell_blend(made))
    assert "desaturated: shape the prompt's, colour the reference's, background the reference's" in told
    assert "in the reference's colours comes with: desaturated; the reference's shape" in told
    assert "which the guide calls fundamental, is not so on the toy" in told
    assert "No neutral picture divides" in " ".join(tell_blend(reader("blend", {})))


def test_masks_that_find_nothing_say_nothing() -> None:
    labels = [
        f"{mode}, threshold 10, {where}"
        for mode in ("zero", "clamp", "scale")
        for where in ("all tokens, alpha 0.5", "image tokens, alpha 1")
    ]
    assert (
        "next to no outlier dimension"
        in tell_masking(reader("masking", {label: outcome("rrr") for label in labels}))[0]
    )


def test_recipes_by_what_they_give() -> None:
    told = " ".join(tell_recipes(reader("recipes", {"appearance": outcome("rrr"), "structure": outcome("ppp")})))
    assert "APPEARANCE gives: all the reference's; STRUCTURE: all the prompt's" in told
    assert "So neither does here what it is named for" in told
    told = " ".join(tell_recipes(reader("recipes", {"appearance": outcome("prr")})))
    assert "At least one of them does what it is named for" in told


def test_places_that_divide_and_places_that_do_not() -> None:
    rows = {
        "all: the template after the prompt": outcome("rrr"),
        "all: the prompt's own words": outcome("ppp"),
    }
    assert "the tail carries everything" in tell_positions(reader("positions", rows))[0]
    rows["all: the template after the prompt"] = outcome("prr")
    told = tell_positions(reader("positions", rows))[0]
    assert "Places do divide" in told
    assert "all: the template after the prompt" in told
