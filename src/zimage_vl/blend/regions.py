"""The parts of a chat turn, so that a prompt's sequence and a reference's can be laid on each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .checks import KNOWN_WIDTHS, check_choice, check_count, check_flag, check_kind, has_values
from .registry import TextPosition, TokenSelection


# With what the reference's side takes of this package: it imports nothing else of it.
__all__ = [
    "KNOWN_WIDTHS",
    "PromptToken",
    "Region",
    "TextPosition",
    "TokenSelection",
    "check_choice",
    "check_count",
    "check_flag",
    "check_kind",
    "check_regions",
    "has_values",
    "select_tokens",
]


class Region(IntEnum):
    """The part of a turn that a token belongs to."""

    PREFIX = 0  # the chat template before the user's content
    MARKER = 1  # <|vision_start|> and <|vision_end|>
    IMAGE = 2  # <|image_pad|>, one per merged patch of the picture
    WORDS = 3  # the user's text
    SUFFIX = 4  # the chat template after the user's content


_SELECTED_REGIONS: dict[str, tuple[Region, ...]] = {
    "all": tuple(Region),
    "text": (Region.PREFIX, Region.WORDS, Region.SUFFIX),
    "image": (Region.MARKER, Region.IMAGE),
    "image_no_markers": (Region.IMAGE,),
}


_REGIONS_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt's turn as the text encoder reads it; `start` and `end` are -1 outside the words."""

    index: int  # its row in `prompt_embeds`
    text: str  # what it decodes to
    region: Region  # PREFIX, WORDS or SUFFIX
    start: int = -1  # its first character within the prompt
    end: int = -1  # one past its last


def check_regions(name: str, regions: object, count: int) -> None:
    """Check `Region` values, an integer tensor `(count,)`: TypeError for no dense tensor, else ValueError."""
    if not isinstance(regions, Tensor) or not has_values(regions):
        got = regions.layout if isinstance(regions, Tensor) else type(regions).__name__
        raise TypeError(f"`{name}` must be an integer tensor of shape ({count},), dense and in memory, got {got}.")
    fits = tuple(regions.shape) == (count,) and regions.dtype in _REGIONS_DTYPES
    if not (fits and int(regions.min()) >= min(Region) and int(regions.max()) <= max(Region)):
        raise ValueError(
            f"`{name}` must be an integer tensor of shape ({count},), one per token, with values of Region, "
            f"0..{max(Region):d}, got {regions.dtype} of shape {tuple(regions.shape)}: {regions.tolist()!r:.80}."
        )


def select_tokens(regions: Tensor, selection: TokenSelection) -> Tensor:
    """Get the tokens that a selection (else ValueError) keeps: `(tokens,)` `Region` values to `(tokens,)` bool.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.MARKER, Region.IMAGE, Region.MARKER, Region.WORDS])
        >>> select_tokens(regions, "image").tolist()
        [False, True, True, True, False]
    """
    check_choice("selection", selection, list(_SELECTED_REGIONS))
    wanted = torch.tensor([int(region) for region in _SELECTED_REGIONS[selection]], device=regions.device)
    return torch.isin(regions, wanted)
