"""How the texts of options are read: alphas by place, layers with weights, sizes."""

from __future__ import annotations


def parse_alpha(texts: list[str]) -> float | dict[str, float]:
    """One number, or `{place: number}` from texts as "suffix=1".

    Raises:
        ValueError: Neither, several numbers, or a place named twice.

    Example:
        >>> parse_alpha(["0.5"]), parse_alpha(["red house=0", "default=0.7"])
        (0.5, {'red house': 0.0, 'default': 0.7})
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return _number("--alpha", texts[0])
    places: dict[str, float] = {}
    for text in texts:
        place, equals, value = text.rpartition("=")
        if not equals or not place:
            raise ValueError(f"--alpha takes one number, or place=number for each place, got {' and '.join(texts)}.")
        if place in places:
            raise ValueError(f"--alpha names the place {place!r} twice.")
        places[place] = _number("--alpha", value)
    return places


def parse_layer(text: str) -> int | dict[int, float]:
    """One layer, or `{layer: weight}` from a text as "-6:1,-8:3".

    Raises:
        ValueError: Neither, or a layer named twice.

    Example:
        >>> parse_layer("-6"), parse_layer("-6:1,-8:3")
        (-6, {-6: 1.0, -8: 3.0})
    """
    weights: dict[int, float] = {}
    for part in text.split(","):
        layer, colon, weight = part.partition(":")
        try:
            number = int(layer)
        except ValueError:
            raise ValueError(f"--layer takes a whole number, or several as -6:1,-8:3, got {text!r}.") from None
        if not colon and "," not in text:
            return number
        if not colon or number in weights:
            raise ValueError(f"--layer needs every layer once and with its weight, as -6:1,-8:3, got {text!r}.")
        weights[number] = _number("--layer", weight)
    return weights


def parse_numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        ValueError: One of them is none.

    Example:
        >>> parse_numbers("--reference-weights", "2,1")
        [2.0, 1.0]
    """
    return [_number(option, part) for part in text.split(",")]


def parse_size(size: str | None, width: int | None, height: int | None, default: int) -> tuple[int, int]:
    """Width and height in pixels from `--size`, or `--width` and `--height`, or the default for what is missing.

    Raises:
        ValueError: Both ways at once, no WIDTHxHEIGHT, or a side that is no multiple of 16 (a patch).

    Example:
        >>> parse_size("768x1024", None, None, 1024), parse_size(None, 512, None, 1024)
        ((768, 1024), (512, 1024))
    """
    if size is not None:
        if width is not None or height is not None:
            raise ValueError("--size gives both sides: leave out --width and --height, or --size.")
        sides = size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() for side in sides):
            raise ValueError(f"--size must be WIDTHxHEIGHT, as 768x1024, got {size!r}.")
        width, height = int(sides[0]), int(sides[1])
    chosen = (default if width is None else width, default if height is None else height)
    if any(side < 16 or side % 16 for side in chosen):
        raise ValueError(f"width and height must be multiples of 16, at least 16, got {chosen[0]}x{chosen[1]}.")
    return chosen


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} needs a number, got {text!r}.") from None
