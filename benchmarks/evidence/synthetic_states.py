"""Text and reference embeddings made by hand, as wide as the real ones and with an attention sink like the published
one: what conditioning does to sizes can be computed on them without any weights.

Published, measured on the real models by the author of the Qwen3-VL conditioning guide: the extremes of Qwen3-4B's
states at layer -2 over 10 prompts with 220 tokens in all (13504 in dimension 4, -4544 in dimension 396; means 924.87
and -206.41, stds 2752.57 and 948.70), those of Qwen3-VL's text tokens (8960, -3008), the spread of its image tokens
(std 7.0; 64.1 in dimension 4, 1.5 in dimension 396). The rest follows from these by arithmetic or is a guess, and says
so. All directions are random: nothing here has content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from zimage_vl.blend.embedding_statistics import EmbeddingStatistics
from zimage_vl.blend.regions import Region
from zimage_vl.reference.embeds import ReferenceEmbeds


WIDTH = 2560
# One token a turn: the first. Values by dimension.
TEXT_SINK: Mapping[int, float] = {4: 13504.0, 396: -4544.0}
VL_SINK: Mapping[int, float] = {4: 8960.0, 396: -3008.0}
# Ordinary text tokens: "10 to 11.6" fits what was published.
TEXT_RMS = 10.5
# (mean, std) of ordinary text tokens in the sink's dimensions. The means follow from the published ones once the sink
# is taken out: (924.87 - 13504 / 22) · 22 / 21 = 325.9 and 0.1; the stds are inferred, .74 and 1.6 times VL's.
TEXT_MASSIVE: Mapping[int, tuple[float, float]] = {4: (325.9, 47.4), 396: (0.1, 2.4)}
# The image tokens' mean in dimension 4 is a guess that keeps them below the published maximum of 384 and every token
# at RMS 7; only their stds are known.
IMAGE_MASSIVE: Mapping[int, tuple[float, float]] = {4: (100.0, 64.1), 396: (0.0, 1.5)}
# Qwen's chat template around a prompt: `<|im_start|>user\n` and `<|im_end|>\n<|im_start|>assistant\n`.
PREFIX, SUFFIX = 3, 5
# Qwen3-VL reads one image token from 32 x 32 pixels.
PIXELS_PER_TOKEN = 32
PROMPTS, PROMPT_TOKENS = 10, 22


@dataclass(frozen=True)
class ReferenceKind:
    """Sizes of a synthetic reference's tokens.

    Attributes:
        layer: The layer it stands for.
        image_rms: RMS of image tokens.
        text_rms: RMS of the template's and the words' ordinary tokens.
        sink: The values of its first token.
    """

    layer: int
    image_rms: float
    text_rms: float
    sink: Mapping[int, float] = field(default_factory=lambda: VL_SINK)


# Layer -2 with every ordinary token of one size; the same with text tokens as large as the text encoder's (the guide
# finds the two nearly identical); and layer -6, whose size and sink make the published table come out.
UNIFORM = ReferenceKind(-2, 7.0, 7.0)
MIXED = ReferenceKind(-2, 7.0, TEXT_RMS)
LAYER_6 = ReferenceKind(-6, 8.7, 8.7, TEXT_SINK)


def count_patches(side: int) -> int:
    """Image tokens of a square picture.

    Example:
        >>> count_patches(1024)
        1024
    """
    return (side // PIXELS_PER_TOKEN) ** 2


def get_sink_norm(sink: Mapping[int, float]) -> float:
    """The length of a sink: 14248 for the text encoder's."""
    return sum(value * value for value in sink.values()) ** 0.5


def make_tokens(
    count: int, rms: float, massive: Mapping[int, tuple[float, float]], generator: torch.Generator
) -> Tensor:
    """Ordinary tokens `(count, 2560)` of exactly one RMS: normal noise, and in `massive` dimensions `(mean, std)`.

    Raises:
        ValueError: The massive dimensions alone are larger than the RMS allows.
    """
    x = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    rest = torch.ones(WIDTH, dtype=torch.bool)
    for dim, (mean, std) in massive.items():
        x[:, dim] = x[:, dim] * std + mean
        rest[dim] = False
    wanted = rms * rms * WIDTH - x[:, ~rest].square().sum(dim=1)
    if bool((wanted <= 0).any()):
        raise ValueError(f"Tokens of RMS {rms} have no room for {dict(massive)}: lower the means or the stds.")
    x[:, rest] *= (wanted / x[:, rest].square().sum(dim=1)).sqrt()[:, None]
    return x.float()


def put_sink(states: Tensor, sink: Mapping[int, float]) -> Tensor:
    """A copy whose first token is a sink."""
    changed = states.clone()
    for dim, value in sink.items():
        changed[0, dim] = value
    return changed


def make_text(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prompt's embeddings `(tokens, 2560)` and regions, sink first.

    Args:
        tokens: Prompt and template, more than the template's 8.
        seed: Of the noise.

    Example:
        >>> embeds, regions = make_text(11)
        >>> tuple(embeds.shape), int((regions == Region.WORDS).sum())
        ((11, 2560), 3)
    """
    states = make_tokens(tokens, TEXT_RMS, TEXT_MASSIVE, torch.Generator().manual_seed(seed))
    words = tokens - PREFIX - SUFFIX
    regions = [Region.PREFIX] * PREFIX + [Region.WORDS] * words + [Region.SUFFIX] * SUFFIX
    return put_sink(states, TEXT_SINK), torch.tensor([int(region) for region in regions])


def make_reference(patches: int, words: int, kind: ReferenceKind = UNIFORM, seed: int = 1) -> ReferenceEmbeds:
    """A reference of `patches` + `words` + 10 tokens: the template, two vision markers, image tokens, words."""
    generator = torch.Generator().manual_seed(seed)
    before = make_tokens(PREFIX + 1, kind.text_rms, {}, generator)
    image = make_tokens(patches, kind.image_rms, IMAGE_MASSIVE, generator)
    after = make_tokens(1 + words + SUFFIX, kind.text_rms, {}, generator)
    states = put_sink(torch.cat([before, image, after]), kind.sink)
    regions = [Region.PREFIX] * PREFIX + [Region.MARKER] + [Region.IMAGE] * patches + [Region.MARKER]
    regions += [Region.WORDS] * words + [Region.SUFFIX] * SUFFIX
    return ReferenceEmbeds({kind.layer: states}, torch.tensor([int(region) for region in regions]))


@lru_cache(maxsize=1)
def make_calibration_prompts() -> tuple[Tensor, ...]:
    """Ten prompts with 220 tokens in all, as published."""
    return tuple(make_text(PROMPT_TOKENS, seed=100 + n)[0] for n in range(PROMPTS))


@lru_cache(maxsize=2)
def measure_calibration(exclude_sinks: bool) -> EmbeddingStatistics:
    """The text encoder's statistics, with or without its sinks."""
    return EmbeddingStatistics.from_embeddings(list(make_calibration_prompts()), exclude_sinks)


def give_std(states: Tensor, stds: Mapping[int, float]) -> Tensor:
    """A copy in which some dimensions have exactly these stds, their means kept."""
    x = states.double()
    for dim, std in stds.items():
        mean = x[:, dim].mean()
        x[:, dim] = (x[:, dim] - mean) * (std / x[:, dim].std()) + mean
    return x.float()
