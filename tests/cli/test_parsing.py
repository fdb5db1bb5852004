"""How the texts of options are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer

from zimage_vl.cli._parsing import parse_alpha, parse_layer, parse_layers, parse_numbers, parse_size, parse_text


@pytest.mark.parametrize(
    ("parse", "given", "value"),
    [
        (parse_alpha, [["0.25"]], 0.25),
        (parse_alpha, [["suffix=1", "default=0"]], {"suffix": 1.0, "default": 0.0}),
        (parse_alpha, [["a=b house=0.5"]], {"a=b house": 0.5}),
        (parse_layer, ["-6"], -6),
        (parse_layer, ["-6,-8"], (-6, -8)),
        (parse_layer, ["-6:1,-8:3"], {-6: 1.0, -8: 3.0}),
        (parse_layer, ["-2:1"], {-2: 1.0}),
        (parse_layers, [" -2, 4"], (-2, 4)),
        (parse_numbers, ["2, 1"], [2.0, 1.0]),
        (parse_text, ["家 \x1b"], "家 \x1b"),
        (parse_size, [None, None, None, 64], (64, 64)),
        (parse_size, ["96X64", None, None, 64], (96, 64)),
        (parse_size, [None, 96, None, 64], (96, 64)),
        (parse_size, [None, None, 96, 64], (64, 96)),
    ],
)
def test_what_is_read(parse: Callable[..., Any], given: list[Any], value: Any) -> None:
    assert parse(*given) == value


@pytest.mark.parametrize(
    ("parse", "given", "reason"),
    [
        *[(parse_alpha, [[text]], "`vl_alpha` needs a number, got ''") for text in ("", "suffix=")],
        *[(parse_alpha, [["0.1", text]], "one number, or place=number") for text in ("0.2", "suffix=1")],
        (parse_alpha, [["=1"]], "one number, or place=number"),
        (parse_alpha, [["suffix=1", "suffix=0"]], "'suffix' twice"),
        *[(parse_layer, [text], "no whole number") for text in ("last", "-6.5", "")],
        *[(parse_layer, [text], "twice") for text in ("-6,-6", "-6:1,-6:2")],
        *[(parse_layer, [text], "needs a weight") for text in ("-6:1,-8", "-6:")],
        (parse_numbers, ["2,x"], "'2,x' is not one or more numbers"),
        (parse_text, ["a\udcff"], "is no valid UTF-8 text"),
        (parse_size, ["64x64", 64, None, 64], "gives both sides"),
        *[
            (parse_size, [size, None, None, 64], "must be WIDTHxHEIGHT")
            for size in ("64", "-64x64", "64x64x64", "9" * 5000 + "x64")
        ],
        (parse_size, ["0x64", None, None, 64], "multiples of 16"),
        (parse_size, [None, 100, None, 64], "multiples of 16, at least 16, got 100x64"),
    ],
)
def test_what_is_refused(parse: Callable[..., Any], given: list[Any], reason: str) -> None:
    with pytest.raises((ValueError, typer.BadParameter), match=reason):
        parse(*given)
