"""Where each token of a chat turn lies, and which tokens a selection keeps.

A user turn is a chat template around a content. In the text encoder's sequence the content is the prompt's words; in
the reference's it is the picture (vision markers around image tokens) and some words. The regions say which is which,
so that the two sequences can be laid on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import get_args

import torch
from torch import Tensor

from .registry import TextPosition, TokenSelection  # noqa: F401 - the reference room has it from here


class Region(IntEnum):
    """The part of a turn that a token belongs to."""

    PREFIX = 0  # the chat template before the user's content
    MARKER = 1  # <|vision_start|> and <|vision_end|>
    IMAGE = 2  # <|image_pad|>, one per merged patch of the picture
    WORDS = 3  # the user's text
    SUFFIX = 4  # the chat template after the user's content


_SELECTED: dict[str, tuple[Region, ...]] = {
    "all": tuple(Region),
    "text": (Region.PREFIX, Region.WORDS, Region.SUFFIX),
    "image": (Region.MARKER, Region.IMAGE),
    "image_no_markers": (Region.IMAGE,),
}


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt's turn as the text encoder reads it.

    Attributes:
        index: Position in the unpadded sequence, the index of its row in `prompt_embeds`.
        text: What the token decodes to.
        region: `Region.PREFIX`, `Region.WORDS` or `Region.SUFFIX`.
        start: First character of the token within the prompt (words only, otherwise -1).
        end: One past its last character within the prompt (words only, otherwise -1).
    """

    index: int
    text: str
    region: Region
    start: int = -1
    end: int = -1


def select_tokens(regions: Tensor, selection: TokenSelection) -> Tensor:
    """Which tokens a selection keeps.

    Args:
        regions: `(tokens,)` integer tensor of `Region` values.
        selection: `"all"`; `"text"` (template and words); `"image"` (vision markers and image tokens) or
            `"image_no_markers"` (image tokens alone).

    Returns:
        `(tokens,)` bool tensor.

    Raises:
        ValueError: `selection` is none of these.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.MARKER, Region.IMAGE, Region.MARKER, Region.WORDS])
        >>> select_tokens(regions, "image").tolist()
        [False, True, True, True, False]
    """
    if selection not in _SELECTED:
        raise ValueError(f"`selection` must be one of {list(get_args(TokenSelection))}, got {selection!r}.")
    wanted = torch.tensor([int(region) for region in _SELECTED[selection]], device=regions.device)
    return torch.isin(regions, wanted)
