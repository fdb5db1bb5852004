"""The checks of arguments that the arithmetic and the pipeline share: numbers, choices, alphas, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor


KNOWN_WIDTHS = "Qwen3-VL-2B is 2048 wide, 4B 2560, 8B 4096; Z-Image's text encoder of 2560 fits Qwen3-VL-4B."
_values_are_checked: ContextVar[bool] = ContextVar("values_are_checked", default=False)


@contextmanager
def skip_finite_checks() -> Generator[None, None, None]:
    """Let `check_embeddings` pass over NaN and inf, where the inputs were scanned and the result will be: each scan
    makes a GPU wait."""
    token = _values_are_checked.set(True)
    try:
        yield
    finally:
        _values_are_checked.reset(token)


def check_number(name: str, value: object, expected: str, accepts: Callable[[float], bool]) -> float:
    """Check a real number and return it as a float: TypeError for a bool or a string, ValueError out of range or NaN.

    Example:
        >>> check_number("vl_start", 0, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
        0.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be {expected}, got {value!r:.80} of type {type(value).__name__}.")
    try:
        number = float(value)
    except OverflowError:
        number = float("nan")
    if number != number or not accepts(number):
        raise ValueError(f"`{name}` must be {expected}, got {value!r:.80}.")
    return number


def check_kind(name: str, value: object, attribute: str, expected: str) -> None:
    """Raise a TypeError unless `value` has an attribute of its kind, as objects of another copy of this code have."""
    if not hasattr(value, attribute) or isinstance(value, type):
        raise TypeError(f"`{name}` must be {expected}, got {value!r:.80} of type {type(value).__name__}.")


def check_listed(name: str, value: object) -> Sequence[Any]:
    """Check a list or a tuple and return it; anything else is a TypeError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"`{name}` must be a list, got {value!r:.80} of type {type(value).__name__}.")
    return cast("Sequence[Any]", value)


def check_count(name: str, value: object) -> int:
    """Check an int of at least 1 and return it: TypeError for another type, ValueError below 1 or from 2**31 on."""
    value = to_plain(value)  # numpy has ints of its own
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int of at least 1, got {value!r:.80} of type {type(value).__name__}.")
    return int(check_number(name, value, "an int of at least 1 and below 2**31", lambda x: 1 <= x < 2**31))


def check_flag(name: str, value: object) -> bool:
    """Check a bool and return it; anything else is a TypeError."""
    value = to_plain(value)
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r:.80} of type {type(value).__name__}.")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_fraction(name: str, value: object, expected: str = "a number from 0 to 1") -> float:
    """Check a number from 0 to 1 and return it as a float."""
    return check_number(name, value, expected, lambda x: 0 <= x <= 1)


def check_alpha(
    name: str, alpha: object, expected: str = "a number from 0 to 1, or one such number per text token"
) -> float | tuple[float, ...]:
    """Check a number from 0 to 1, or a sequence, 1-D tensor or array of such; return a float, or a tuple of floats.

    TypeError for what is no number, ValueError for what is out of range, NaN or empty.

    Example:
        >>> check_alpha("alpha", torch.tensor([0.0, 0.5]))
        (0.0, 0.5)
    """
    values = to_plain(alpha)
    if isinstance(values, str) or not isinstance(values, Sequence):
        return check_fraction(name, values, expected)
    if not values:
        raise ValueError(f"`{name}` must be {expected}, got none.")
    return tuple(check_fraction(f"{name}[{i}]", x) for i, x in enumerate(values))


def to_plain(value: object) -> object:
    """Turn a tensor or an array into numbers and lists; anything else comes back as it is."""
    if (isinstance(value, Tensor) and not has_values(value)) or not hasattr(value, "tolist"):
        return value
    return value.tolist()  # pyright: ignore[reportAttributeAccessIssue]


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor is dense, neither quantised nor nested, and not on torch's meta device."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def check_floating(name: str, value: object, shape: str) -> Tensor:
    """Check that it is a dense tensor of 16, 32 or 64 bit floats; a TypeError, which tells the shape, otherwise."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1 and has_values(value):
        return value
    got = f"{value.dtype}, {value.layout}, on {value.device}" if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(f"`{name}` must be a floating-point tensor of shape {shape}, dense and in memory, got {got}.")


def check_embeddings(name: str, embeddings: object, dims: int | None = None) -> Tensor:
    """Check the embeddings of one sequence and return them as float32 `(tokens, dims)`; do not write into the result.

    TypeError unless a floating-point tensor; ValueError for another shape, no token, another width than `dims`, NaN or
    inf. `name` is the argument or stage, for the message.
    """
    embeddings = check_floating(name, embeddings, "(tokens, dims)")
    shape = tuple(embeddings.shape)
    if embeddings.ndim != 2 or 0 in shape:
        raise ValueError(f"`{name}` must have the shape (tokens, dims) with at least one token, got {shape}.")
    if dims is not None and shape[1] != dims:
        raise ValueError(
            f"`{name}` must be {dims} wide, as what it meets, got {shape[1]}: it is of another model. {KNOWN_WIDTHS}"
        )
    if not _values_are_checked.get() and not bool(torch.isfinite(embeddings).all()):
        raise ValueError(f"`{name}` contains NaN or inf, an overflow of float16 or of a very large number given.")
    return embeddings.float()
