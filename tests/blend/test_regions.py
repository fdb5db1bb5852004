"""Which tokens each selection keeps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from embedding_samples import make_regions
from zimage_vl.blend.regions import PromptToken, Region, TokenSelection, select_tokens


REGIONS = make_regions(words=2, patches=3)
KEPT = {
    "all": {"PREFIX", "MARKER", "IMAGE", "WORDS", "SUFFIX"},
    "text": {"PREFIX", "WORDS", "SUFFIX"},
    "image": {"MARKER", "IMAGE"},
    "image_no_markers": {"IMAGE"},
}


@pytest.mark.parametrize("selection", get_args(TokenSelection))
def test_a_selection_keeps_its_regions_and_no_other(selection: TokenSelection) -> None:
    kept = select_tokens(REGIONS, selection)
    assert kept.dtype == torch.bool
    assert kept.tolist() == [Region(region).name in KEPT[selection] for region in REGIONS.tolist()]


def test_the_values_are_those_in_files_and_a_token_of_the_template_has_no_place() -> None:
    assert [region.name for region in sorted(Region)] == ["PREFIX", "MARKER", "IMAGE", "WORDS", "SUFFIX"]
    assert sorted(Region) == [0, 1, 2, 3, 4]
    token = PromptToken(0, "<|im_start|>", Region.PREFIX)
    assert (token.start, token.end) == (-1, -1)
    with pytest.raises(ValueError, match=r"`selection` must be one of \['all', 'text', .*\], got 'words'"):
        select_tokens(REGIONS, "words")
