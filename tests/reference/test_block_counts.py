"""How many blocks there are, and how many were loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zimage_vl.reference.block_counts import FULL_DEPTH_FIELD, get_full_depth, is_cut_short


def config(loaded: int, **fields: int) -> Any:
    return SimpleNamespace(num_hidden_layers=loaded, **fields)


def test_a_whole_model_has_as_many_blocks_as_it_says() -> None:
    assert get_full_depth(config(36)) == 36
    assert not is_cut_short(SimpleNamespace(config=SimpleNamespace(text_config=config(36))))


def test_a_model_of_which_the_first_blocks_were_loaded_remembers_the_others() -> None:
    cut = config(31, **{FULL_DEPTH_FIELD: 36})
    assert get_full_depth(cut) == 36
    assert is_cut_short(SimpleNamespace(config=SimpleNamespace(text_config=cut)))
