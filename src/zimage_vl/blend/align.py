"""The anchored alignment: each part of the reference's turn on the same part of the prompt's."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_embeddings
from .embedding_statistics import get_token_rms
from .mix import align_sequence
from .normalize import rescale_tokens
from .regions import Region, TokenSelection, select_tokens


def align_anchored(
    embeddings: Tensor,
    regions: Tensor,
    text_regions: Tensor,
    selection: TokenSelection = "all",
    dropped: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay a reference on a prompt, template on template and content on words.

    The reference's prefix meets the prompt's prefix and its suffix the suffix, one to one. On the prompt's words lie
    the reference's own words w, pooled to their number where it differs, and its image tokens p, pooled to it in
    order, mixed as directions: `w / rms(w) + p / rms(p)`, brought to the mean of the two RMS. A region that the
    selection leaves out lays nothing down; the vision markers lie nowhere.

    Args:
        embeddings: `(tokens, dims)`, the reference's whole sequence.
        regions: `(tokens,)` `Region` values of the reference.
        text_regions: `(text tokens,)` `Region` values of the prompt: PREFIX, WORDS, SUFFIX.
        selection: "all", "text", "image" or "image_no_markers".
        dropped: `(tokens,)` bool, tokens to leave out (attention sinks). The text token that one of them would meet
            one to one gets nothing; from what is pooled they are merely absent.

    Returns:
        `(text tokens, dims)` in the dtype of `embeddings`, zeros where nothing lies, and `(text tokens,)` bool: where
        something of the reference lies.

    Raises:
        ValueError: Regions that do not fit the embeddings; a prefix or suffix that the selection keeps and that has
            not as many tokens as the prompt's; NaN or inf.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.IMAGE, Region.IMAGE, Region.WORDS, Region.SUFFIX])
        >>> text_regions = torch.tensor([Region.PREFIX, Region.WORDS, Region.SUFFIX])
        >>> x = torch.tensor([[1.0, 1.0], [4.0, -4.0], [4.0, -4.0], [2.0, 2.0], [9.0, 9.0]])
        >>> align_anchored(x, regions, text_regions, "image")[0].tolist()
        [[0.0, 0.0], [4.0, -4.0], [0.0, 0.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    if regions.shape != x.shape[:1]:
        raise ValueError(
            f"`regions` must hold one region for each of {x.shape[0]} tokens, got {tuple(regions.shape)}."
        )
    dropped = torch.zeros_like(regions, dtype=torch.bool) if dropped is None else dropped
    chosen = {region for region in Region if bool(select_tokens(torch.tensor([int(region)]), selection)[0])}
    values = x.new_zeros(text_regions.shape[0], x.shape[1])
    covered = torch.zeros(text_regions.shape[0], dtype=torch.bool, device=x.device)
    for region in (Region.PREFIX, Region.SUFFIX):
        if region in chosen:
            theirs, ours = regions == region, text_regions == region
            _check_one_to_one(region, int(theirs.sum()), int(ours.sum()))
            values[ours], covered[ours] = x[theirs], ~dropped[theirs]
    ours = text_regions == Region.WORDS
    if bool(ours.any()):
        values[ours], covered[ours] = _lay_on_words(x, regions, int(ours.sum()), chosen, dropped)
    return torch.where(covered[:, None], values, 0.0).to(embeddings.dtype), covered


def _check_one_to_one(region: Region, theirs: int, ours: int) -> None:
    if theirs != ours:
        raise ValueError(
            f"Anchored alignment lays the {region.name.lower()} of the reference on that of the prompt one to one, "
            f"but they have {theirs} and {ours} tokens: the two were not put into the same chat template. Use "
            "vl_alignment 'pool' or 'interpolate', or the selection 'image', which leaves the template alone."
        )


def _lay_on_words(
    x: Tensor, regions: Tensor, count: int, chosen: set[Region], dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """What lies on the prompt's `count` words: `(count, dims)`, and `(count,)` bool, where anything does."""
    words = regions == Region.WORDS if Region.WORDS in chosen else torch.zeros_like(dropped)
    patches = (regions == Region.IMAGE) & ~dropped if Region.IMAGE in chosen else torch.zeros_like(dropped)
    present = torch.ones(count, dtype=torch.bool, device=x.device)
    if int(words.sum()) == count:
        # One to one: the partner of a dropped word keeps its own embedding.
        present = ~dropped[words]
    else:
        words = words & ~dropped
    if bool(words.any()) and bool(patches.any()):
        w, p = align_sequence(x[words], count), align_sequence(x[patches], count)
        return _mix_directions(w, p), present
    if bool(words.any()) or bool(patches.any()):
        return align_sequence(x[words | patches], count), present
    return x.new_zeros(count, x.shape[1]), torch.zeros_like(present)


def _mix_directions(w: Tensor, p: Tensor) -> Tensor:
    """`w / rms(w) + p / rms(p)`, token by token, brought to the mean of the two RMS."""
    w_rms, p_rms = get_token_rms(w), get_token_rms(p)
    ones = torch.ones_like(w_rms)
    return rescale_tokens(rescale_tokens(w, ones) + rescale_tokens(p, ones), (w_rms + p_rms) / 2)
