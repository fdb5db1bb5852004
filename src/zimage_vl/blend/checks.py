"""The checks of arguments that the arithmetic shares: numbers, choices, alphas, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor


def check_number(name: str, value: object, expected: str, accepts: Callable[[float], bool]) -> float:
    """A real number inside its range. A bool or a string is not a number, NaN is in no range.

    Args:
        name: The argument's name, for the message.
        value: What came.
        expected: The range in words, for the message.
        accepts: Whether a number is in the range.

    Returns:
        The number as a float.

    Raises:
        TypeError: `value` is not a number.
        ValueError: It is outside the range.

    Example:
        >>> check_number("vl_start", 0, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
        0.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be {expected}, got {value!r} of type {type(value).__name__}.")
    number = float(value)
    if number != number or not accepts(number):
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a `ValueError` that lists the choices unless `value` is one of them.

    Example:
        >>> check_choice("mode", "pool", ["pool", "truncate"])
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def check_alpha(name: str, alpha: object) -> float | tuple[float, ...]:
    """An alpha as a number, or as one number a token.

    Args:
        name: The argument's name, for the message.
        alpha: A number from 0 to 1, or a sequence, 1-D tensor or 1-D array of such.

    Returns:
        A float, or a tuple of floats.

    Raises:
        TypeError: `alpha`, or one of its values, is not a number.
        ValueError: A value is NaN or outside 0..1, or there is none.

    Example:
        >>> check_alpha("alpha", torch.tensor([0.0, 0.5]))
        (0.0, 0.5)
    """
    tolist: Any = getattr(alpha, "tolist", None)
    values: Any = tolist() if callable(tolist) else alpha
    if isinstance(values, str) or not isinstance(values, Sequence):
        expected = "a number from 0 to 1 or one such number a text token"
        return check_number(name, values, expected, lambda number: 0 <= number <= 1)
    if not values:
        raise ValueError(f"`{name}` must hold one number a text token, got none.")
    numbers = enumerate(cast("Sequence[object]", values))
    return tuple(check_number(f"{name}[{i}]", x, "a number from 0 to 1", lambda n: 0 <= n <= 1) for i, x in numbers)


def check_embeddings(name: str, embeddings: object, dims: int | None = None) -> Tensor:
    """Embeddings of one sequence, as float32.

    Args:
        name: What they are, for the message: an argument or a stage.
        embeddings: `(tokens, dims)` floating-point tensor with at least one token, finite throughout.
        dims: Their width, where it is known.

    Returns:
        `(tokens, dims)` float32. It shares memory with a float32 input: do not write into it.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Another shape, no token, another width, NaN or inf.

    Example:
        >>> check_embeddings("text_embeds", torch.zeros(2, 3, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"`{name}` must be a floating-point tensor of shape (tokens, dims), got {got}.")
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"`{name}` must have the shape (tokens, dims) with at least one token, got {tuple(embeddings.shape)}."
        )
    if dims is not None and embeddings.shape[1] != dims:
        raise ValueError(
            f"`{name}` must be {dims} wide, as the text embeddings or statistics it meets, got {embeddings.shape[1]}: "
            "it comes from a model of another size. Qwen3-VL-2B is 2048 wide and Qwen3-VL-8B 4096; a text encoder of "
            "2560 fits Qwen3-VL-4B."
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError(
            f"`{name}` contains NaN or inf, which would give a black image. A float16 overflow is the usual cause: "
            "run that stage in bfloat16 or float32."
        )
    return embeddings.float()
