"""The synthetic states are what they say: sizes, sinks, regions, stds."""

from __future__ import annotations

import pytest
import torch

from zimage_vl.evidence.synthetic_states import (
    LAYER_6,
    MIXED,
    TEXT_SINK,
    count_patches,
    get_sink_norm,
    give_std,
    make_calibration_prompts,
    make_reference,
    make_text,
    make_tokens,
    measure_calibration,
)
from zimage_vl.regions import Region
from zimage_vl.statistics import find_sink_tokens, get_token_rms


def test_text_has_one_sink_and_tokens_of_one_size() -> None:
    text, regions = make_text(24)
    assert text.shape == (24, 2560)
    assert torch.nonzero(find_sink_tokens(text)).tolist() == [[0]]
    assert (float(text[0, 4]), float(text[0, 396])) == (13504.0, -4544.0)
    torch.testing.assert_close(get_token_rms(text)[1:], torch.full((23,), 10.5))
    assert [int((regions == region).sum()) for region in Region] == [3, 0, 0, 16, 5]


def test_a_reference_has_the_sizes_of_its_kind() -> None:
    reference = make_reference(64, 4, MIXED)
    rms, regions = get_token_rms(reference.hidden_states[-2]), reference.regions
    assert reference.num_tokens == 64 + 4 + 10
    assert reference.num_image_tokens == 64
    torch.testing.assert_close(rms[regions == Region.IMAGE], torch.full((64,), 7.0))
    torch.testing.assert_close(rms[regions == Region.WORDS], torch.full((4,), 10.5))
    assert find_sink_tokens(reference.hidden_states[-2]).nonzero().tolist() == [[0]]
    deeper = make_reference(64, 4, LAYER_6).hidden_states[-6]
    assert float(deeper[0, 4]) == TEXT_SINK[4]


def test_states_follow_from_their_seed() -> None:
    assert torch.equal(make_text(12, seed=3)[0], make_text(12, seed=3)[0])
    assert not torch.equal(make_text(12, seed=3)[0], make_text(12, seed=4)[0])


def test_the_calibration_has_220_tokens_of_ten_prompts() -> None:
    prompts = make_calibration_prompts()
    assert (len(prompts), sum(len(x) for x in prompts)) == (10, 220)
    assert measure_calibration(False).count == 220
    assert measure_calibration(True).count == 210


def test_massive_dimensions_must_leave_room() -> None:
    with pytest.raises(ValueError, match=r"RMS 1.0 have no room for \{4:"):
        make_tokens(5, 1.0, {4: (300.0, 1.0)}, torch.Generator().manual_seed(0))


def test_stds_are_given_exactly_and_means_kept() -> None:
    x = make_tokens(50, 7.0, {4: (100.0, 60.0)}, torch.Generator().manual_seed(0))
    y = give_std(x, {4: 12.5})
    assert float(y[:, 4].std()) == pytest.approx(12.5, rel=1e-6)
    assert float(y[:, 4].mean()) == pytest.approx(float(x[:, 4].mean()), rel=1e-5)
    assert torch.equal(y[:, 5:], x[:, 5:])


def test_grids_and_norms() -> None:
    assert [count_patches(side) for side in (256, 512, 1024, 2048)] == [64, 256, 1024, 4096]
    assert get_sink_norm({0: 3.0, 9: -4.0}) == 5.0
    assert round(get_sink_norm(TEXT_SINK)) == 14248
