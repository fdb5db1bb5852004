"""The settings for a real checkpoint: valid, claimed, and the guide's own numbers."""

from __future__ import annotations

import pytest

from zimage_vl.evidence.model_settings import MODEL_SETTINGS, tabulate_claims
from zimage_vl.knobs import VLConditioning
from zimage_vl.recipes import RECIPES


@pytest.mark.parametrize("name", MODEL_SETTINGS)
def test_each_is_one_that_a_call_takes(name: str) -> None:
    VLConditioning(**{knob: value for knob, value in MODEL_SETTINGS[name].items() if knob != "vl_text"})


def test_each_has_the_guides_claim() -> None:
    rows = tabulate_claims().rows
    assert [row[0] for row in rows] == list(MODEL_SETTINGS)
    assert all(row[1] for row in rows)


def test_the_guides_layers_alphas_and_all_recipes_are_there() -> None:
    layers = {knobs.get("vl_hidden_layer") for knobs in MODEL_SETTINGS.values()}
    assert {-1, -2, -4, -6, -8, -16, -24} <= layers
    assert {0.0, 0.15, 0.3, 0.5, 0.7, 1.0} <= {
        a for knobs in MODEL_SETTINGS.values() if isinstance(a := knobs.get("vl_alpha"), float)
    }
    for name, recipe in RECIPES.items():
        assert MODEL_SETTINGS[f"recipe {name}"] == recipe
