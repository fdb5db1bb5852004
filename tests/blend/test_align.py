from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedding_samples import PREFIX, SUFFIX, make_regions, make_states, rms_of
from zimage_vl.blend.align import align_anchored
from zimage_vl.blend.mix import align_sequence
from zimage_vl.blend.regions import Region, TokenSelection


WORDS, PATCHES = 5, 12
TEXT_REGIONS = make_regions(WORDS)
REGIONS = make_regions(WORDS, PATCHES)
STATES = make_states(len(REGIONS))


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
def test_the_template_meets_the_template_one_to_one(selection: TokenSelection) -> None:
    values, covered = lay(selection)
    assert torch.equal(values[:PREFIX], of(Region.PREFIX))
    assert torch.equal(values[-SUFFIX:], of(Region.SUFFIX))
    assert covered.all()


def test_words_and_image_meet_on_the_words_as_directions() -> None:
    values, _ = lay("all")
    expected = mix(of(Region.WORDS), align_sequence(of(Region.IMAGE), WORDS))
    torch.testing.assert_close(values[PREFIX:-SUFFIX].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_loudness_of_one_side_does_not_drown_the_other() -> None:
    louder = torch.where((REGIONS == Region.IMAGE)[:, None], 100 * STATES, STATES)
    values, _ = align_anchored(louder, REGIONS, TEXT_REGIONS)
    torch.testing.assert_close(torch.cosine_similarity(values, lay("all")[0]), torch.ones(len(values)))


def test_text_alone_is_the_reference_token_for_token() -> None:
    values, covered = lay("text")
    assert torch.equal(values, STATES[(REGIONS != Region.IMAGE) & (REGIONS != Region.MARKER)])
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


def test_without_words_of_its_own_the_image_alone_lies_on_the_words() -> None:
    regions = make_regions(0, PATCHES)
    states = make_states(len(regions))
    values, covered = align_anchored(states, regions, TEXT_REGIONS, "all")
    assert torch.equal(values[PREFIX:-SUFFIX], align_sequence(of(Region.IMAGE, states, regions), WORDS))
    assert covered.all()
    _, covered = align_anchored(states, regions, TEXT_REGIONS, "text")
    assert covered.tolist() == [True] * PREFIX + [False] * WORDS + [True] * SUFFIX


def test_a_prompt_without_words_takes_the_template_alone() -> None:
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


def test_inputs_and_dtype_stay() -> None:
    states = STATES.bfloat16()
    before = states.clone()
    values, _ = align_anchored(states, REGIONS, TEXT_REGIONS)
    assert torch.equal(states, before)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values, align_anchored(states.float(), REGIONS, TEXT_REGIONS)[0].bfloat16())
