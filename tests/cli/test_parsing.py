"""How the texts of options are read."""

from __future__ import annotations

import pytest
import typer

from zimage_vl.cli._parsing import parse_alpha, parse_layer, parse_layers, parse_numbers, parse_size, parse_text


def test_an_alpha_is_a_number_or_places() -> None:
    assert parse_alpha(["0.25"]) == 0.25
    assert parse_alpha(["suffix=1", "default=0"]) == {"suffix": 1.0, "default": 0.0}
    assert parse_alpha(["a=b house=0.5"]) == {"a=b house": 0.5}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["much"], "`vl_alpha` needs a number, got 'much'"),
        (["0.1", "0.2"], "one number, or place=number"),
        (["0.1", "suffix=1"], "one number, or place=number"),
        (["=1"], "one number, or place=number"),
        (["suffix="], "needs a number, got ''"),
        (["suffix=1", "suffix=0"], "'suffix' twice"),
    ],
)
def test_other_alphas_are_refused(texts: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_alpha(texts)


def test_layers_are_one_several_or_weighed() -> None:
    assert parse_layer("-6") == -6
    assert parse_layer("-6,-8") == (-6, -8)
    assert parse_layer("-6:1,-8:3") == {-6: 1.0, -8: 3.0}
    assert parse_layer("-2:1") == {-2: 1.0}
    assert parse_layers(" -2, 4") == (-2, 4)


@pytest.mark.parametrize("text", ["last", "-6.5", "-6,-6", "-6:1,-6:2", "-6:1,-8", "-6:", ""])
def test_other_layers_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"no whole number|twice|needs a weight"):
        parse_layer(text)


def test_numbers_with_commas() -> None:
    assert parse_numbers("2, 1") == [2.0, 1.0]
    with pytest.raises(typer.BadParameter, match="'2,x' is not one or more numbers"):
        parse_numbers("2,x")


def test_texts_are_texts() -> None:
    assert parse_text("家 \x1b") == "家 \x1b"
    with pytest.raises(typer.BadParameter, match="is no valid UTF-8 text"):
        parse_text("a\udcff")


def test_sizes() -> None:
    assert parse_size(None, None, None, 64) == (64, 64)
    assert parse_size("96X64", None, None, 64) == (96, 64)
    assert parse_size(None, 96, None, 64) == (96, 64)
    assert parse_size(None, None, 96, 64) == (64, 96)


@pytest.mark.parametrize(
    ("size", "width", "height", "reason"),
    [
        ("64x64", 64, None, "gives both sides"),
        ("64", None, None, "must be WIDTHxHEIGHT"),
        ("-64x64", None, None, "must be WIDTHxHEIGHT"),
        ("64x64x64", None, None, "must be WIDTHxHEIGHT"),
        ("9" * 5000 + "x64", None, None, "must be WIDTHxHEIGHT"),
        ("0x64", None, None, "multiples of 16"),
        (None, 100, None, "multiples of 16, at least 16, got 100x64"),
    ],
)
def test_other_sizes_are_refused(size: str | None, width: int | None, height: int | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_size(size, width, height, 64)
