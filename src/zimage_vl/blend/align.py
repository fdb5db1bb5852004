"""Bring a reference's sequence to the length of the text's. Embeddings must be finite `(tokens, dims)`."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_choice, check_count, check_embeddings
from .embedding_statistics import get_token_rms
from .normalize import rescale_tokens
from .regions import Region, TokenSelection, select_tokens


SequenceAlignment = Literal["pool", "interpolate", "truncate"]


def align_sequence(embeddings: Tensor, length: int, mode: SequenceAlignment = "pool") -> Tensor:
    """Bring `(tokens, dims)` to `(length, dims)`, in a copy. To the same length it is the identity.

    "pool": adaptive averaging, which reads every token, each pooled token then rescaled to the mean RMS of those it
    averages (alignment changes what tokens say, not how loud). "interpolate": linear with `align_corners=True`, the
    first and last token kept; one token is repeated. "truncate": the first tokens; too few are a ValueError.

    Example:
        >>> align_sequence(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), 2).tolist()
        [[2.0], [6.0]]
        >>> align_sequence(torch.tensor([[1.0], [3.0]]), 3, mode="interpolate").tolist()
        [[1.0], [2.0], [3.0]]
    """
    check_choice("mode", mode, get_args(SequenceAlignment))
    check_count("length", length)
    x = check_embeddings("embeddings", embeddings)
    if len(x) == length:
        return embeddings.clone()
    if mode == "truncate":
        if len(x) < length:
            raise ValueError(f"'truncate' needs at least {length} tokens of the reference, got {len(x)}: select more.")
        return embeddings[:length].clone()
    channels = x.T[None]  # (1, dims, tokens), as torch's resampling wants it
    if mode == "interpolate":
        resampled = functional.interpolate(channels, size=length, mode="linear", align_corners=True)[0].T
        return resampled.contiguous().to(embeddings.dtype)
    pooled = functional.adaptive_avg_pool1d(channels, length)[0].T  # (length, dims)
    loudness = functional.adaptive_avg_pool1d(get_token_rms(x)[None, None], length)[0, 0]  # (length,)
    return rescale_tokens(pooled, loudness).to(embeddings.dtype)


def align_anchored(
    embeddings: Tensor,
    regions: Tensor,
    text_regions: Tensor,
    selection: TokenSelection = "all",
    dropped: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lay a reference on a prompt, template on template and content on words.

    Prefix meets prefix and suffix meets suffix, one to one. On the prompt's words lie the reference's own words w,
    pooled to their number where it differs, and its image tokens p, pooled to it in order, mixed as directions:
    `w / rms(w) + p / rms(p)`, brought to the mean of the two RMS. A region that the selection leaves out lays nothing
    down; the vision markers lie nowhere. It suits models whose text positions carry the picture: where they do not, as
    is published of the real ones, the picture is nearly inert.

    `embeddings` `(tokens, dims)` and `regions` `(tokens,)` are of the reference's whole sequence, `text_regions`
    of the prompt's. `dropped` `(tokens,)` bool leaves tokens out (attention sinks): the text token that one of
    them would meet one to one gets nothing, from what is pooled they are merely absent. Gives `(text tokens,
    dims)`, zeros where nothing lies, and `(text tokens,)` bool, where something does. A ValueError: regions that
    do not fit the embeddings, a prefix or suffix not as long as the prompt's.

    Example:
        >>> regions = torch.tensor([Region.PREFIX, Region.IMAGE, Region.IMAGE, Region.WORDS, Region.SUFFIX])
        >>> text_regions = torch.tensor([Region.PREFIX, Region.WORDS, Region.SUFFIX])
        >>> x = torch.tensor([[1.0, 1.0], [4.0, -4.0], [4.0, -4.0], [2.0, 2.0], [9.0, 9.0]])
        >>> align_anchored(x, regions, text_regions, "image")[0].tolist()
        [[0.0, 0.0], [4.0, -4.0], [0.0, 0.0]]
    """
    x = check_embeddings("embeddings", embeddings)
    if regions.shape != x.shape[:1]:
        raise ValueError(f"`regions` must hold one region for each of {len(x)} tokens, got {tuple(regions.shape)}.")
    selected = select_tokens(regions, selection)
    kept = selected if dropped is None else selected & ~dropped
    values = x.new_zeros(len(text_regions), x.shape[1])
    covered = torch.zeros(len(text_regions), dtype=torch.bool, device=x.device)
    for region in (Region.PREFIX, Region.SUFFIX) if selection in ("all", "text") else ():
        theirs, ours = regions == region, text_regions == region
        if int(theirs.sum()) != int(ours.sum()):
            raise ValueError(
                f"'anchored' needs one chat template, got a {region.name.lower()} of the reference of "
                f"{int(theirs.sum())} tokens and {int(ours.sum())} of the text. Use 'pool' or 'interpolate'."
            )
        values[ours], covered[ours] = x[theirs], kept[theirs]
    ours = text_regions == Region.WORDS
    if bool(ours.any()):
        words = selected & (regions == Region.WORDS)
        values[ours], covered[ours] = _lay_on_words(x, words, kept & (regions == Region.IMAGE), kept, int(ours.sum()))
    return torch.where(covered[:, None], values, 0.0).to(embeddings.dtype), covered


def _lay_on_words(x: Tensor, words: Tensor, patches: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What lies on the prompt's `count` words, `(count, dims)`, and where anything does, `(count,)` bool."""
    one_to_one = int(words.sum()) == count  # then the partner of a dropped word keeps its own embedding
    present = kept[words] if one_to_one else torch.ones(count, dtype=torch.bool, device=x.device)
    words = words if one_to_one else words & kept
    if not bool((words | patches).any()):
        return x.new_zeros(count, x.shape[1]), torch.zeros_like(present)
    if not bool(words.any() and patches.any()):
        return align_sequence(x[words | patches], count), present
    w, p = align_sequence(x[words], count), align_sequence(x[patches], count)  # (count, dims) each
    w_rms, p_rms = get_token_rms(w), get_token_rms(p)
    directions = rescale_tokens(w, torch.ones_like(w_rms)) + rescale_tokens(p, torch.ones_like(p_rms))
    return rescale_tokens(directions, (w_rms + p_rms) / 2), present
