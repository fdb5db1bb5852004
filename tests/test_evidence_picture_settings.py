"""The settings that are compared on pictures: complete, valid, at their relative depth."""

from __future__ import annotations

from typing import get_args

import pytest

from zimage_vl.evidence.picture_settings import Setting, make_settings
from zimage_vl.knobs import Alignment, BlendMode, Normalization
from zimage_vl.outliers import OutlierMasking
from zimage_vl.recipes import RECIPES
from zimage_vl.regions import TokenSelection


def get_values(knob: str, default: str) -> set[object]:
    return {setting.knobs.get(knob, default) for setting in make_settings()}


def test_every_choice_of_every_knob_is_there() -> None:
    assert get_values("vl_normalization", "global") == set(get_args(Normalization))
    assert get_values("vl_outlier_masking", "none") == set(get_args(OutlierMasking))
    assert get_values("vl_alignment", "anchored") == set(get_args(Alignment))
    assert get_values("vl_blend_mode", "linear") == set(get_args(BlendMode))
    assert get_values("vl_token_selection", "all") == set(get_args(TokenSelection))
    recipes = {setting.name: dict(setting.knobs) for setting in make_settings() if setting.group == "Recipes"}
    assert recipes == {name: {"vl_hidden_layer": -6, **recipe} for name, recipe in RECIPES.items()}


def test_names_are_unique_within_a_group() -> None:
    for layers in (8, 36):
        names = [(setting.group, setting.name) for setting in make_settings(layers)]
        assert len(set(names)) == len(names)


def test_controls_have_their_picture_beside_them() -> None:
    controls = [setting for setting in make_settings() if setting.group == "Controls"]
    assert [setting.reference for setting in controls] == ["picture", "grey", "noise"] * 3
    assert len({repr(setting.knobs) for setting in controls}) == 3


def test_layers_are_those_of_the_model() -> None:
    assert {layer for setting in make_settings(36) for layer in setting.layers} == {-1, -2, -4, -6, -8, -16, -24}
    assert {layer for setting in make_settings(8) for layer in setting.layers} == {-1, -2, -3, -4, -6}


def test_a_key_tells_what_paints_the_same() -> None:
    first = Setting("a", "b", {"vl_alpha": 0.3, "vl_text": ""})
    assert first.key == Setting("c", "d", {"vl_text": "", "vl_alpha": 0.3}).key
    assert first.key != Setting("a", "b", first.knobs, "grey").key
    assert first.key != Setting("a", "b", {"vl_alpha": 0.3}).key


def test_knobs_go_where_they_belong() -> None:
    setting = Setting("a", "b", {"vl_alpha": 0.3, "vl_text": "x", "vl_text_position": "before", "vl_max_pixels": 4096})
    assert setting.calling == {"vl_alpha": 0.3}
    assert setting.encoding == {"text_position": "before", "max_pixels": 4096}
    assert setting.text == "x"
    assert Setting("a", "b", {"vl_blend_mode": "style_delta", "vl_normalization": "none"}).needs_neutral


@pytest.mark.parametrize(
    ("knobs", "kind", "message"),
    [
        ({"vl_alpha": 1.5}, ValueError, "setting 'mine' is refused: .*vl_alpha"),
        ({"vl_colour": 1}, TypeError, "setting 'mine' is refused: .*vl_colour"),
        ({"vl_text": 7}, TypeError, "of the setting 'mine' must be a string"),
        ({"vl_blend_mode": "style_delta"}, ValueError, "setting 'mine' is refused: .*vl_normalization"),
    ],
)
def test_bad_settings_name_themselves(knobs, kind, message) -> None:
    with pytest.raises(kind, match=message):
        Setting("group", "mine", knobs)
    with pytest.raises(ValueError, match=r"'mine' must show one of .*got 'photo'"):
        Setting("group", "mine", {}, "photo")  # pyright: ignore[reportArgumentType]
