"""How the texts of options are read: alphas by place, layers with weights, sizes."""

from __future__ import annotations

import typer


def parse_alpha(texts: list[str]) -> float | dict[str, float]:
    """Get one number, or `{place: number}` from texts as "suffix=1"."""
    if len(texts) == 1 and "=" not in texts[0]:
        return _alpha(texts[0])
    places: dict[str, float] = {}
    for text in texts:
        place, equals, value = text.rpartition("=")
        if not equals or not place:
            raise ValueError(
                f"`vl_alpha` takes one number, or place=number for each place, got {' and '.join(texts)}."
            )
        if place in places:
            raise ValueError(f"`vl_alpha` names the place {place!r} twice.")
        places[place] = _alpha(value)
    return places


def parse_text(text: str) -> str:
    """Refuse a text with bytes that are no UTF-8: no tokenizer could read it."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise typer.BadParameter(f"{text!r} is no valid UTF-8 text.")
    return text


def parse_layers(text: str) -> tuple[int, ...]:
    """Get layers from a text as "-2,-6"."""
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no whole number, nor several with commas between, as -2,-6.") from None
    if len(set(layers)) < len(layers):
        raise typer.BadParameter(f"{text!r} names a layer twice.")
    return layers


def parse_layer(text: str) -> int | tuple[int, ...] | dict[int, float]:
    """Get one layer, several of equal weight from a text as "-6,-8", or `{layer: weight}` from "-6:1,-8:3"."""
    if ":" not in text:
        layers = parse_layers(text)
        return layers[0] if len(layers) == 1 else layers
    pairs = [part.partition(":") for part in text.split(",")]
    layers = parse_layers(",".join(layer for layer, _, _ in pairs))
    try:
        return dict(zip(layers, [float(weight) for _, _, weight in pairs], strict=True))
    except ValueError:
        raise typer.BadParameter(f"{text!r} needs a weight for every layer, as -6:1,-8:3.") from None


def parse_numbers(text: str) -> list[float]:
    """Get numbers from a text as "2,1"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not one or more numbers with commas between, as 2,1.") from None


def parse_size(size: str | None, width: int | None, height: int | None, default: int) -> tuple[int, int]:
    """Get width and height in pixels from `--size`, or `--width` and `--height`, or the default for what is missing.

    Raises:
        ValueError: Both ways at once, no WIDTHxHEIGHT, or a side that is no multiple of 16 (a patch).
    """
    if size is not None:
        if width is not None or height is not None:
            raise ValueError("--size gives both sides: leave out --width and --height, or --size.")
        sides = size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and len(side) < 8 for side in sides):
            raise ValueError(f"--size must be WIDTHxHEIGHT, as 768x1024, got {size!r}.")
        width, height = int(sides[0]), int(sides[1])
    chosen = (default if width is None else width, default if height is None else height)
    if any(side < 16 or side % 16 for side in chosen):
        named = "--width and --height" if size is None else "--size"
        raise ValueError(f"{named} must be multiples of 16, at least 16, got {chosen[0]}x{chosen[1]}.")
    return chosen


def _alpha(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"`vl_alpha` needs a number, got {text!r}.") from None
