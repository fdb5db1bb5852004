"""Turns and embeddings built by hand: regions of a chat turn, random states, a sink like the published one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds


PREFIX, SUFFIX = 3, 4


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_regions(words: int, patches: int = 0, *, prefix: int = PREFIX, suffix: int = SUFFIX) -> Tensor:
    """A turn; with patches: prefix, <vision_start>, patches, <vision_end>, words, suffix."""
    picture = [Region.MARKER, *[Region.IMAGE] * patches, Region.MARKER] if patches else []
    regions = [*[Region.PREFIX] * prefix, *picture, *[Region.WORDS] * words, *[Region.SUFFIX] * suffix]
    return torch.tensor([int(region) for region in regions], dtype=torch.int8)


def make_states(tokens: int, dims: int = 16, *, rms: float = 10.0, seed: int = 0) -> Tensor:
    return torch.randn(tokens, dims, generator=make_generator(seed)) * rms


def make_text(words: int = 5, dims: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Text embeddings and their regions."""
    regions = make_regions(words)
    return make_states(len(regions), dims, seed=seed), regions


def make_reference(
    words: int = 5,
    patches: int = 9,
    dims: int = 16,
    *,
    rms: float = 7.0,
    seed: int = 2,
    layers: Iterable[int] = (-6,),
) -> ReferenceEmbeds:
    regions = make_regions(words, patches)
    states = {layer: make_states(len(regions), dims, rms=rms, seed=100 * seed - layer) for layer in layers}
    return ReferenceEmbeds(states, regions)


def change_reference(reference: ReferenceEmbeds, states: Tensor, layer: int = -6) -> ReferenceEmbeds:
    return ReferenceEmbeds({layer: states}, reference.regions)


def put_sink(states: Tensor, position: int = 0, values: Sequence[tuple[int, float]] = ((4, 13504.0),)) -> Tensor:
    """A copy with an attention sink at `position`."""
    changed = states.clone()
    for dim, value in values:
        changed[position, dim] = value
    return changed


# What the published figures come down to: one token a prompt, two dimensions.
PUBLISHED_SINK = ((4, 13504.0), (396, -4544.0))


def make_tokens_of_std(std: Tensor, tokens: int = 64, seed: int = 0) -> Tensor:
    """Random tokens whose std in each dimension is exactly (up to rounding) the one given, mean 0."""
    x = torch.randn(tokens, len(std), generator=make_generator(seed), dtype=torch.float64)
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    return (x * std.double()).float()


def rms_of(x: Tensor) -> Tensor:
    """Root mean square of each token, in float64, written anew."""
    return (x.double() ** 2).mean(dim=-1) ** 0.5
