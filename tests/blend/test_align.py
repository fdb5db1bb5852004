from __future__ import annotations

from typing import get_args

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
    for mode, length, error, message in (
        ("anchored", 4, ValueError, r"`mode` must be one of \['pool', 'interpolate', 'truncate'\], got 'anchored'"),
        ("pool", 0, ValueError, "at least 1.*, got 0"),
        ("pool", True, TypeError, "`length`"),
        ("pool", 2.0, TypeError, "`length`"),
    ):
        with pytest.raises(error, match=message):
            align_sequence(VL, length, mode)  # pyright: ignore[reportArgumentType]


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


@pytest.mark.parametrize("selection", get_args(TokenSelection))
@pytest.mark.parametrize(("reference_words", "text_words"), [(5, 5), (1, 5), (3, 5), (9, 5), (0, 5), (5, 0)])
def test_anchored_is_its_formula(reference_words: int, text_words: int, selection: TokenSelection) -> None:
    regions = make_regions(reference_words, PATCHES)
    states = make_states(len(regions))
    values, covered = align_anchored(states, regions, make_regions(text_words), selection)
    with_text, parts = selection in ("all", "text"), []
    if with_text and reference_words and text_words:
        parts.append(align_sequence(of(Region.WORDS, states, regions), text_words))
    if selection != "text" and text_words:
        parts.append(align_sequence(of(Region.IMAGE, states, regions), text_words))
    assert covered.tolist() == [with_text] * PREFIX + [bool(parts)] * text_words + [with_text] * SUFFIX
    assert not values[~covered].any()
    if with_text:
        assert torch.equal(values[:PREFIX], of(Region.PREFIX, states, regions))
        assert torch.equal(values[-SUFFIX:], of(Region.SUFFIX, states, regions))
    if parts:
        expected = mix(*parts) if len(parts) == 2 else parts[0].double()
        torch.testing.assert_close(values[PREFIX:-SUFFIX].double(), expected, rtol=1e-4, atol=1e-4)


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
