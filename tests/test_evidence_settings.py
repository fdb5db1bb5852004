"""Settings as data: what is painted decides the key, not what it is called."""

from __future__ import annotations

import pytest

from zimage_vl.evidence.settings import Setting, recipe_row, row
from zimage_vl.recipes import COMPOSITION, RECIPES


def test_a_key_is_what_is_painted() -> None:
    assert row("a", "x", vl_alpha=0.5).key == row("b", "y", vl_alpha=0.5).key
    assert row("a", vl_alpha=0.5).key == row("a", vl_alpha=0.5, vl_token_selection="all").key  # the default
    different = [
        row("a", vl_alpha=0.5),
        row("a", vl_alpha=0.6),
        row("a", vl_alpha=0.5, reference="noise"),
        row("a", vl_alpha=0.5, text=""),
        row("a", vl_alpha=0.5, text="", text_position="before"),
        row("a", vl_alpha=0.5, mask="middle"),
        row("a", vl_alpha=0.5, second=(1.0, 2.0)),
        row("a", vl_alpha=0.5, rounds=2),
        row("a", vl_alpha={"suffix": 0.5}),
    ]
    assert len({setting.key for setting in different}) == len(different)


def test_at_alpha_0_nothing_else_matters() -> None:
    assert row("a", vl_alpha=0.0, vl_hidden_layer=-2).key == row("b", vl_alpha=0, reference="noise").key


def test_a_recipe_keeps_its_knobs_and_gives_its_text_to_the_encoding() -> None:
    setting = recipe_row("a", "composition", "claim")
    assert setting.text == COMPOSITION["vl_text"] == ""
    assert dict(setting.knobs) == {name: value for name, value in COMPOSITION.items() if name != "vl_text"}
    changed = recipe_row("a", "guide", "claim", vl_target_std=None, text="{rc}")
    assert changed.knobs == {**RECIPES["guide"], "vl_target_std": None}
    assert changed.text == "{rc}"


@pytest.mark.parametrize("wrong", [{"reference": "photo"}, {"mask": "left"}, {"neutral": "white"}])
def test_what_a_setting_does_not_know_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Setting("a", **wrong)
