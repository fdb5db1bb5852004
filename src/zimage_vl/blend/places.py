"""Alpha by place: from words like "suffix" or phrases of the prompt to one number a text token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from .checks import check_alpha, check_number
from .regions import PromptToken, Region


# What `vl_alpha` may be.
VLAlpha = float | Sequence[float] | Tensor | Mapping[str, float]

_PLACE_REGIONS = {"prefix": Region.PREFIX, "prompt": Region.WORDS, "suffix": Region.SUFFIX}
_RESERVED_PLACES = (*_PLACE_REGIONS, "default")


def check_vl_alpha(vl_alpha: object) -> float | tuple[float, ...] | dict[str, float]:
    """The alpha that came, in plain values: a float, a tuple with one a text token, or `{place: float}`.

    Args:
        vl_alpha: A number from 0 to 1; a sequence or 1-D tensor of such; or `{place: number}` with the places
            "prefix", "prompt", "suffix", "default" and phrases of the prompt.

    Raises:
        TypeError: None of these, or a value that is not a number.
        ValueError: A value that is NaN or outside 0..1; no place; a blank phrase.

    Example:
        >>> check_vl_alpha({"suffix": 1, "default": 0})
        {'suffix': 1.0, 'default': 0.0}
    """
    if not isinstance(vl_alpha, Mapping):
        return check_alpha("vl_alpha", vl_alpha)
    if not vl_alpha:
        raise ValueError("`vl_alpha` names no place, got {}: give a number, or {'default': number}.")
    places: dict[str, float] = {}
    for place, value in cast("Mapping[object, object]", vl_alpha).items():
        if not isinstance(place, str):
            raise TypeError(f"`vl_alpha` must name its places by strings, got {place!r} of {type(place).__name__}.")
        if not place.strip():
            raise ValueError(f"`vl_alpha` must name its places by words of the prompt, got {place!r}.")
        places[place] = check_number(f"vl_alpha[{place!r}]", value, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    return places


def resolve_alpha(vl_alpha: VLAlpha, tokens: Sequence[PromptToken], prompt: str | None) -> Tensor:
    """One alpha a text token.

    A phrase goes before "prompt", that before "default" (0 if missing); "prefix" and "suffix" are the template around
    the prompt. A phrase is sought case-sensitively, everywhere in the prompt, inside longer words too, and every token
    that shares a character with it counts.

    Args:
        vl_alpha: A number from 0 to 1; one a text token; or `{place: number}`.
        tokens: The prompt's tokens with their places.
        prompt: The prompt, which phrases are sought in; None if only embeddings are known.

    Returns:
        `(tokens,)` float32.

    Raises:
        ValueError: One a token, but not as many as tokens; a phrase that the prompt does not contain, or that was cut
            off with the end of a long prompt; two phrases that give one token different values; a phrase without a
            prompt; otherwise as for `check_vl_alpha`.
        TypeError: As for `check_vl_alpha`.

    Example:
        >>> words = [PromptToken(0, "red", Region.WORDS, 0, 3), PromptToken(1, " car", Region.WORDS, 3, 7)]
        >>> resolve_alpha({"default": 0.5, "car": 0.0}, words, "red car").tolist()
        [0.5, 0.0]
    """
    values = check_vl_alpha(vl_alpha)
    if isinstance(values, tuple):
        if len(values) != len(tokens):
            raise ValueError(
                f"`vl_alpha` must hold one number for each of the prompt's {len(tokens)} tokens (template included), "
                f"got {len(values)}."
            )
        return torch.tensor(values)
    if not isinstance(values, dict):
        return torch.full((len(tokens),), values)
    alphas = torch.full((len(tokens),), values.get("default", 0.0))
    for place, region in _PLACE_REGIONS.items():
        if place in values:
            alphas[[i for i, token in enumerate(tokens) if token.region == region]] = values[place]
    _set_phrases(alphas, values, tokens, prompt)
    return alphas


def _set_phrases(
    alphas: Tensor, values: Mapping[str, float], tokens: Sequence[PromptToken], prompt: str | None
) -> None:
    """Write the phrases' values into `alphas`, and refuse two that disagree on a token."""
    owners: dict[int, str] = {}
    for phrase, value in values.items():
        if phrase in _RESERVED_PLACES:
            continue
        for i in _find_phrase_tokens(phrase, tokens, prompt):
            other = owners.setdefault(i, phrase)
            if values[other] != value:
                raise ValueError(
                    f"`vl_alpha` contradicts itself: the token {tokens[i].text!r} lies in {other!r} with "
                    f"{values[other]} and in {phrase!r} with {value}. Give both the same value, or use phrases that "
                    "do not overlap."
                )
            alphas[i] = value


def _find_phrase_tokens(phrase: str, tokens: Sequence[PromptToken], prompt: str | None) -> list[int]:
    """The tokens that share a character with any occurrence of a phrase."""
    if prompt is None:
        raise ValueError(
            f"`vl_alpha` names the phrase {phrase!r}, but the prompt's text is not known: use the places "
            f"{list(_RESERVED_PLACES)}, or give one number a token."
        )
    starts = [i for i in range(len(prompt)) if prompt.startswith(phrase, i)]
    if not starts:
        raise ValueError(
            f"`vl_alpha` names the phrase {phrase!r}, which the prompt {prompt!r} does not contain (case counts). "
            f"Places that need no phrase: {list(_RESERVED_PLACES)}."
        )
    ends = [start + len(phrase) for start in starts]
    found = [
        i
        for i, token in enumerate(tokens)
        if token.region == Region.WORDS
        and any(token.start < end and start < token.end for start, end in zip(starts, ends, strict=True))
    ]
    if not found:
        raise ValueError(
            f"`vl_alpha` names the phrase {phrase!r}, which lies in the part of the prompt that was cut off for its "
            "length: no token of it is left."
        )
    return found
