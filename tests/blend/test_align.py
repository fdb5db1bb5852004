from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from embedding_samples import PREFIX, SUFFIX, make_regions, make_states, rms_of
from zimage_vl.blend.align import align_anchored, align_sequence
from zimage_vl.blend.regions import Region, TokenSelection


WORDS, PATCHES = 5, 12
TEXT_REGIONS = make_regions(WORDS)
REGIONS = make_regions(WORDS, PATCHES)
STATES = make_states(len(REGIONS))
VL = make_states(6, seed=2, rms=3.0)


@pytest.mark.parametrize("mode", ["pool", "interpolate", "truncate"])
def test_the_same_length_is_the_identity(mode: str) -> None:
    aligned = align_sequence(VL, 6, mode)  # pyright: ignore[reportArgumentType]
    assert torch.equal(aligned, VL)
    assert aligned.data_ptr() != VL.data_ptr()


@pytest.mark.parametrize(("tokens", "length"), [(12, 5), (1041, 11), (3, 7), (7, 1), (1, 4)])
def test_pool_averages_its_windows_and_keeps_their_loudness(tokens: int, length: int) -> None:
    x = make_states(tokens)
    pooled = align_sequence(x, length)
    for i in range(length):
        window = x[i * tokens // length : -(-(i + 1) * tokens // length)].double()
        mean = window.mean(dim=0)
        expected = mean * rms_of(window).mean() / rms_of(mean)
        torch.testing.assert_close(pooled[i].double(), expected, rtol=1e-4, atol=1e-4)


def test_pool_of_tokens_that_cancel_is_zero() -> None:
    assert align_sequence(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), 1).tolist() == [[0, 0]]


@pytest.mark.parametrize(("tokens", "length"), [(12, 5), (3, 8), (9, 2)])
def test_interpolate_keeps_the_corners(tokens: int, length: int) -> None:
    x = make_states(tokens)
    aligned = align_sequence(x, length, "interpolate")
    torch.testing.assert_close(aligned[[0, -1]], x[[0, -1]])
    places = np.linspace(0, tokens - 1, length)
    expected = np.stack([np.interp(places, np.arange(tokens), x[:, d].numpy()) for d in range(16)], axis=1)
    np.testing.assert_allclose(aligned.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["pool", "interpolate"])
def test_one_token_is_repeated(mode: str) -> None:
    aligned = align_sequence(VL[:1], 4, mode)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(aligned, VL[:1].expand(4, -1))


def test_truncate_takes_the_first_tokens_or_refuses() -> None:
    assert torch.equal(align_sequence(VL, 4, "truncate"), VL[:4])
    with pytest.raises(ValueError, match="at least 7 tokens of the reference, got 6"):
        align_sequence(VL, 7, "truncate")


def test_bad_alignments_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`mode` must be one of \['pool', 'interpolate', 'truncate'\], got 'anchored'"
    ):
        align_sequence(VL, 4, "anchored")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        align_sequence(VL, 0)
    for length in (True, 2.0, "2"):
        with pytest.raises(TypeError, match="`length`"):
            align_sequence(VL, length)  # pyright: ignore[reportArgumentType]


def of(region: Region, states: Tensor = STATES, regions: Tensor = REGIONS) -> Tensor:
    return states[regions == region]


def mix(w: Tensor, p: Tensor) -> Tensor:
    """The formula, in float64."""
    directions = w.double() / rms_of(w)[:, None] + p.double() / rms_of(p)[:, None]
    return directions * ((rms_of(w) + rms_of(p)) / 2 / rms_of(directions))[:, None]


def lay(selection: TokenSelection, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return align_anchored(STATES, REGIONS, TEXT_REGIONS, selection, dropped)


def drop(*positions: int) -> Tensor:
    dropped = torch.zeros(len(REGIONS), dtype=torch.bool)
    dropped[list(positions)] = True
    return dropped


@pytest.mark.parametrize("selection", ["all", "text"])
def test_the_template_meets_the_template_and_words_the_words(selection: TokenSelection) -> None:
    values, covered = lay(selection)
    assert torch.equal(values[:PREFIX], of(Region.PREFIX))
    assert torch.equal(values[-SUFFIX:], of(Region.SUFFIX))
    words, pooled = of(Region.WORDS), align_sequence(of(Region.IMAGE), WORDS)
    expected = mix(words, pooled) if selection == "all" else words.double()
    torch.testing.assert_close(values[PREFIX:-SUFFIX].double(), expected, rtol=1e-4, atol=1e-4)
    assert covered.all()


@pytest.mark.parametrize("selection", ["image", "image_no_markers"])
def test_image_alone_lies_on_the_words_and_nothing_on_the_template(selection: TokenSelection) -> None:
    values, covered = lay(selection)
    assert torch.equal(values[PREFIX:-SUFFIX], align_sequence(of(Region.IMAGE), WORDS))
    assert covered.tolist() == [False] * PREFIX + [True] * WORDS + [False] * SUFFIX
    assert not values[~covered].any()


@pytest.mark.parametrize("reference_words", [1, 3, 9])
def test_other_words_are_pooled_to_the_prompts_number(reference_words: int) -> None:
    regions = make_regions(reference_words, PATCHES)
    states = make_states(len(regions))
    values, _ = align_anchored(states, regions, TEXT_REGIONS, "text")
    words = align_sequence(of(Region.WORDS, states, regions), WORDS)
    assert torch.equal(values[PREFIX:-SUFFIX], words)
    values, covered = align_anchored(states, regions, TEXT_REGIONS, "all")
    expected = mix(words, align_sequence(of(Region.IMAGE, states, regions), WORDS))
    torch.testing.assert_close(values[PREFIX:-SUFFIX].double(), expected, rtol=1e-4, atol=1e-4)
    assert covered.all()


def test_without_words_the_image_or_the_template_is_alone() -> None:
    regions = make_regions(0, PATCHES)
    states = make_states(len(regions))
    values, covered = align_anchored(states, regions, TEXT_REGIONS, "all")
    assert torch.equal(values[PREFIX:-SUFFIX], align_sequence(of(Region.IMAGE, states, regions), WORDS))
    assert covered.all()
    _, covered = align_anchored(states, regions, TEXT_REGIONS, "text")
    assert covered.tolist() == [True] * PREFIX + [False] * WORDS + [True] * SUFFIX
    values, covered = align_anchored(STATES, REGIONS, make_regions(0), "all")
    assert torch.equal(values, torch.cat([of(Region.PREFIX), of(Region.SUFFIX)]))
    assert covered.all()
    assert not align_anchored(STATES, REGIONS, make_regions(0), "image")[1].any()


def test_the_partner_of_a_dropped_token_gets_nothing() -> None:
    first_word = PREFIX + 2 + PATCHES
    values, covered = lay("all", drop(0, first_word + 1))
    assert covered.tolist() == [i not in (0, PREFIX + 1) for i in range(len(TEXT_REGIONS))]
    assert not values[~covered].any()
    assert torch.equal(values[covered], lay("all")[0][covered])


def test_what_is_pooled_does_without_a_dropped_token() -> None:
    position = PREFIX + 1 + 4
    values, _ = lay("image", drop(position))
    rest = torch.cat([STATES[PREFIX + 1 : position], STATES[position + 1 : PREFIX + 1 + PATCHES]])
    assert torch.equal(values[PREFIX:-SUFFIX], align_sequence(rest, WORDS))
    regions = make_regions(3, PATCHES)
    states = make_states(len(regions))
    dropped = torch.zeros(len(regions), dtype=torch.bool)
    dropped[PREFIX + 2 + PATCHES] = True
    values, covered = align_anchored(states, regions, TEXT_REGIONS, "text", dropped)
    assert torch.equal(values[PREFIX:-SUFFIX], align_sequence(of(Region.WORDS, states, regions)[1:], WORDS))
    assert covered.all()


@pytest.mark.parametrize(("prefix", "suffix", "name"), [(2, 4, "prefix"), (3, 6, "suffix"), (0, 4, "prefix")])
def test_another_template_is_refused_with_a_way_out(prefix: int, suffix: int, name: str) -> None:
    regions = make_regions(WORDS, PATCHES, prefix=prefix, suffix=suffix)
    states = make_states(len(regions))
    with pytest.raises(ValueError, match=f"{name} of the reference.*tokens.*'pool' or 'interpolate'"):
        align_anchored(states, regions, TEXT_REGIONS, "all")
    assert align_anchored(states, regions, TEXT_REGIONS, "image")[1].sum() == WORDS


def test_regions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="each of 26 tokens"):
        align_anchored(STATES, REGIONS[:-1], TEXT_REGIONS)
